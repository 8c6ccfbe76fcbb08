//! From options and environment to a client of the store.

use std::time::Duration;

use store::client::{Client, ClientError, Config, Member, TlsFiles};

use crate::args::StoreArgs;

/// Where a store is expected when nothing says otherwise.
const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
const DEFAULT_TOTAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no usable client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The options or files cannot work; the text names them.
    #[error("{0}")]
    Settings(String),
    /// The members could not be asked for.
    #[error(transparent)]
    Sync(#[from] ClientError),
}

/// How to reach the store, after flags, environment and defaults. Pure: the environment is passed in.
pub(crate) fn settings(
    args: &StoreArgs,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, ConnectError> {
    let var = |names: &[&str]| names.iter().find_map(|name| env(name).filter(|value| !value.is_empty()));
    let flag_or = |flag: &Option<String>, name: &str| {
        flag.clone().or_else(|| var(&[&format!("WEFT_{name}"), &format!("ETCDCTL_{name}")]))
    };
    let mut endpoints = args.endpoints.clone();
    if endpoints.is_empty() {
        let names = ["WEFT_ENDPOINTS", "ETCDCTL_ENDPOINTS", "ETCDCTL_ENDPOINT", "ETCDCTL_PEERS"];
        let list = var(&names).unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        endpoints = list.split(',').map(|url| url.trim().to_owned()).filter(|url| !url.is_empty()).collect();
    }
    let (username, password) = match flag_or(&args.username, "USERNAME") {
        None => (None, None),
        Some(pair) => match pair.split_once(':') {
            Some((name, password)) => (Some(name.to_owned()), Some(password.to_owned())),
            None => match var(&["WEFT_PASSWORD"]) {
                Some(password) => (Some(pair), Some(password)),
                None => {
                    return Err(ConnectError::Settings(format!(
                        "--username {pair}: no password; give it as {pair}:PASSWORD or in WEFT_PASSWORD"
                    )));
                }
            },
        },
    };
    let file = |flag, name| flag_or(flag, name).map(Into::into);
    Ok(Config {
        endpoints,
        tls: TlsFiles {
            ca: file(&args.ca_file, "CA_FILE"),
            cert: file(&args.cert_file, "CERT_FILE"),
            key: file(&args.key_file, "KEY_FILE"),
        },
        username,
        password,
        dial_timeout: args.timeout.unwrap_or(DEFAULT_TIMEOUT),
        request_timeout: Some(args.timeout.unwrap_or(DEFAULT_TIMEOUT)),
    })
}

/// A client for the endpoints as given.
pub(crate) fn client(args: &StoreArgs) -> Result<Client, ConnectError> {
    let config = settings(args, &|name| std::env::var(name).ok())?;
    Client::new(config).map_err(|error| match &error {
        ClientError::Config { field, .. } => ConnectError::Settings(format!("{}: {error}", flag_of(field))),
        ClientError::Api { .. }
        | ClientError::Unavailable { .. }
        | ClientError::Unanswered { .. }
        | ClientError::Http { .. }
        | ClientError::Decode { .. } => ConnectError::Sync(error),
    })
}

/// A client for the URLs that the members advertise, as etcdctl does it, unless `--no-sync` is given.
///
/// Advertised `https` URLs are of no use without a CA file; then the given endpoints stay, where etcdctl would
/// fail.
pub(crate) async fn synced_client(args: &StoreArgs) -> Result<Client, ConnectError> {
    let given = client(args)?;
    if args.no_sync {
        return Ok(given);
    }
    tracing::debug!("start to sync cluster using endpoints({})", given.endpoints().join(","));
    let members = given.members().await?;
    let synced = match given.with_endpoints(&advertised(&members)) {
        Ok(synced) => synced,
        Err(error) => {
            tracing::debug!("the advertised URLs are not used: {error}");
            given
        }
    };
    tracing::debug!("got endpoints({}) after sync", synced.endpoints().join(","));
    Ok(synced)
}

fn advertised(members: &[Member]) -> Vec<String> {
    members.iter().flat_map(|member| member.client_urls.iter().cloned()).collect()
}

/// The limit for the whole command.
pub(crate) fn total_timeout(args: &StoreArgs) -> Duration {
    args.total_timeout.unwrap_or(DEFAULT_TOTAL_TIMEOUT)
}

/// The flag that sets a field of the client's configuration.
fn flag_of(field: &str) -> &'static str {
    match field {
        "tls.ca" => "--ca-file",
        "tls.cert" => "--cert-file",
        "tls.key" => "--key-file",
        "username" => "--username",
        _ => "--endpoints",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn with(args: &StoreArgs, env: &[(&str, &str)]) -> Result<Config, ConnectError> {
        settings(args, &|name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_default_is_one_plain_endpoint() {
        let config = with(&StoreArgs::default(), &[]).unwrap();
        assert_eq!(config.endpoints, [DEFAULT_ENDPOINT]);
        assert_eq!(config.tls, TlsFiles::default());
        assert_eq!(config.request_timeout, Some(DEFAULT_TIMEOUT));
    }

    #[test]
    fn a_flag_wins_over_weft_and_that_over_etcdctl() {
        let env = [("ETCDCTL_CA_FILE", "etcd.pem"), ("ETCDCTL_ENDPOINTS", "http://a:1, http://b:2")];
        let mut args = StoreArgs::default();
        let config = with(&args, &env).unwrap();
        assert_eq!(
            (config.endpoints, config.tls.ca),
            (vec!["http://a:1".into(), "http://b:2".into()], Some("etcd.pem".into()))
        );
        let env = [env[0], env[1], ("WEFT_CA_FILE", "weft.pem"), ("WEFT_ENDPOINTS", "http://c:3")];
        let config = with(&args, &env).unwrap();
        assert_eq!((config.endpoints, config.tls.ca), (vec!["http://c:3".into()], Some("weft.pem".into())));
        args.ca_file = Some("flag.pem".into());
        args.endpoints = vec!["http://d:4".into()];
        let config = with(&args, &env).unwrap();
        assert_eq!((config.endpoints, config.tls.ca), (vec!["http://d:4".into()], Some("flag.pem".into())));
    }

    #[test]
    fn a_password_comes_with_the_name_or_from_its_variable() {
        let args = StoreArgs { username: Some("root:a:b".into()), ..StoreArgs::default() };
        let config = with(&args, &[]).unwrap();
        assert_eq!((config.username.as_deref(), config.password.as_deref()), (Some("root"), Some("a:b")));
        let args = StoreArgs { username: Some("root".into()), ..StoreArgs::default() };
        assert_eq!(with(&args, &[("WEFT_PASSWORD", "x")]).unwrap().password.as_deref(), Some("x"));
        let error = with(&args, &[]).unwrap_err().to_string();
        assert!(error.contains("WEFT_PASSWORD") && error.contains("root:PASSWORD"), "{error}");
    }

    #[test]
    fn settings_errors_name_the_flag() {
        for (args, flag, says) in [
            (
                StoreArgs { endpoints: vec!["127.0.0.1:1".into()], ..StoreArgs::default() },
                "--endpoints",
                "127.0.0.1:1",
            ),
            (
                StoreArgs { endpoints: vec!["https://h:1".into()], ..StoreArgs::default() },
                "--ca-file",
                "https://h:1",
            ),
            (
                StoreArgs { ca_file: Some("/no/such.pem".into()), ..StoreArgs::default() },
                "--ca-file",
                "/no/such.pem",
            ),
            (StoreArgs { cert_file: Some("c.pem".into()), ..StoreArgs::default() }, "--key-file", "c.pem"),
        ] {
            let error = client(&args).unwrap_err().to_string();
            assert!(error.starts_with(flag) && error.contains(says), "{error}");
        }
    }
}
