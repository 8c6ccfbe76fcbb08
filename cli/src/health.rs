//! `cli health`: what etcdctl's `cluster-health` asks and says, with scripts in mind.
//!
//! The members come from the given endpoints. Each member's own `/health` is asked at the client URLs that it
//! advertises, in order, until one answers; members are asked at the same time. The verdict is a pure function
//! of what came back, and follows etcdctl 3.2: healthy if at least one member is, since a member says so only
//! after a read through consensus. But an alarm that any member tells of makes the verdict unhealthy: somebody must look.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use clap::Args;
use futures_util::future::join_all;
use serde::Serialize;
use store::client::{Alarm, Client, ClientError, Member};

use crate::{
    args::{Format, StoreArgs},
    connect,
    exit::Exit,
};

/// Shows whether the store works, member by member
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cli health
  cli health --endpoints https://192.168.31.63:2379,https://192.168.31.65:2379 --ca-file ca.pem
  cli health -o json

Exit codes: 0 healthy (at least one member is, so a majority is at work, and no member tells of an alarm); 1 not healthy;
2 usage")]
pub(crate) struct HealthArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// What one member's check brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    /// It says that it is healthy, at this URL.
    Healthy(String),
    /// It says that it is not, at this URL.
    Unhealthy(String),
    /// No URL answered, or it advertises none (not started yet).
    Unreachable,
}

/// One member's check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    member: Member,
    status: Status,
    /// What it says is wrong, with itself or with others.
    alarms: Vec<Alarm>,
    /// The same in its own words; empty if nothing is.
    reason: String,
    /// `(URL, why)` for each URL that did not answer.
    failures: Vec<(String, String)>,
}

#[derive(Serialize)]
struct ReportJson<'a> {
    healthy: bool,
    members_total: usize,
    members_healthy: usize,
    members: Vec<MemberJson<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alarms: Vec<AlarmJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct AlarmJson {
    alarm: String,
    advice: &'static str,
}

#[derive(Serialize)]
struct MemberJson<'a> {
    id: &'a str,
    name: &'a str,
    client_urls: &'a [String],
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    answered: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Runs `cli health`.
///
/// # Errors
/// Those of `out`; everything about the store is in the report and the exit code.
pub(crate) async fn run(
    args: &HealthArgs,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> io::Result<Exit> {
    if args.store.output == Format::Extended {
        writeln!(err, "Error:  --output extended is for key commands; health has simple and json")?;
        return Ok(Exit::Usage);
    }
    let client = match connect::client(&args.store) {
        Ok(client) => client,
        Err(error) => {
            writeln!(err, "Error:  {error}")?;
            return Ok(Exit::Usage);
        }
    };
    let limit = connect::total_timeout(&args.store);
    let members = match tokio::time::timeout(limit, client.members()).await {
        Ok(Ok(members)) => members,
        Ok(Err(error)) => return no_members(&error.to_string(), args.store.output, out, err),
        Err(_) => {
            let why = format!("no answer within {limit:?} from {}", client.endpoints().join(","));
            return no_members(&why, args.store.output, out, err);
        }
    };
    let checks = join_all(members.into_iter().map(|member| check(&client, member))).await;
    match args.store.output {
        Format::Json => print_json(out, &checks)?,
        Format::Simple | Format::Extended => print_text(out, &checks)?,
    }
    Ok(if is_healthy(&checks) { Exit::Success } else { Exit::Failure })
}

fn no_members(
    why: &str,
    format: Format,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> io::Result<Exit> {
    if format == Format::Json {
        let error = Some(format!("failed to list members: {why}"));
        write_json(
            out,
            &ReportJson {
                healthy: false,
                members_total: 0,
                members_healthy: 0,
                members: vec![],
                alarms: vec![],
                error,
            },
        )?;
    } else {
        writeln!(out, "cluster may be unhealthy: failed to list members")?;
        writeln!(err, "Error:  {why}")?;
    }
    Ok(Exit::Failure)
}

async fn check(client: &Client, member: Member) -> Check {
    let mut failures = Vec::new();
    for url in &member.client_urls {
        match client.health(url).await {
            Ok(health) => {
                let status = if health.healthy {
                    Status::Healthy(url.clone())
                } else {
                    Status::Unhealthy(url.clone())
                };
                return Check { member, status, alarms: health.alarms, reason: health.reason, failures };
            }
            Err(error) => failures.push((url.clone(), reason(error))),
        }
    }
    Check { member, status: Status::Unreachable, alarms: vec![], reason: String::new(), failures }
}

/// The reason alone: the URL stands beside it already.
fn reason(error: ClientError) -> String {
    match error {
        ClientError::Unavailable { attempts } => {
            attempts.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join("; ")
        }
        ClientError::Config { field: "tls.ca", .. } => {
            "https needs a CA file to verify the server: give --ca-file".to_owned()
        }
        other @ (ClientError::Api { .. }
        | ClientError::Unanswered { .. }
        | ClientError::Http { .. }
        | ClientError::Decode { .. }
        | ClientError::Config { .. }) => other.to_string(),
    }
}

/// etcdctl's rule, one healthy member is enough; but there must be no alarm.
fn is_healthy(checks: &[Check]) -> bool {
    healthy_count(checks) > 0 && alarms(checks).is_empty()
}

/// What members tell of, each once: in the words of the member that it is about, if it tells of it itself. The others
/// know what it said when it began.
fn alarms(checks: &[Check]) -> Vec<String> {
    let mut told: BTreeMap<(&str, &str, &str), (bool, &str)> = BTreeMap::new();
    for check in checks {
        for Alarm { member, alarm, text } in &check.alarms {
            // What has no name is known by its text alone.
            let unnamed = if alarm.is_empty() { text.as_str() } else { "" };
            let new = (*member == check.member.id, text.as_str());
            let known = told.entry((member, alarm, unnamed)).or_insert(new);
            if new.0 {
                *known = new;
            }
        }
    }
    let words = |((member, alarm, _), (_, text)): (_, (bool, &str))| match (member, alarm) {
        (_, "") => text.to_owned(),
        (member, alarm) => format!("ALARM {alarm} of member {member}: {text}"),
    };
    told.into_iter().map(words).collect()
}

/// What to do about it.
fn advice(alarm: &str) -> &'static str {
    if alarm.contains("CORRUPT") {
        "its state differs from the leader's: take it out of the clients' endpoints, keep its data directory, restart it, \
         and leave it stopped if the alarm comes back; if every other member has this alarm, it is the leader that differs; \
         see docs/consistency.md"
    } else if alarm.contains("NOSPACE") || alarm.contains("no space") {
        "make room on its disk; it goes on by itself"
    } else {
        "see the log of the member that says so"
    }
}

fn healthy_count(checks: &[Check]) -> usize {
    checks.iter().filter(|check| matches!(check.status, Status::Healthy(_))).count()
}

fn print_text(out: &mut dyn Write, checks: &[Check]) -> io::Result<()> {
    for Check { member, status, failures, .. } in checks {
        let id = &member.id;
        for (url, why) in failures {
            let url_path = format!("{}/health", url.trim_end_matches('/'));
            writeln!(out, "failed to check the health of member {id} on {url}: Get \"{url_path}\": {why}")?;
        }
        match status {
            Status::Healthy(url) => writeln!(out, "member {id} is healthy: got healthy result from {url}")?,
            Status::Unhealthy(url) => {
                writeln!(out, "member {id} is unhealthy: got unhealthy result from {url}")?;
            }
            Status::Unreachable if member.client_urls.is_empty() => {
                writeln!(out, "member {id} is unreachable: no available published client urls")?;
            }
            Status::Unreachable => {
                let urls = member.client_urls.join(" ");
                writeln!(out, "member {id} is unreachable: [{urls}] are all unreachable")?;
            }
        }
    }
    for alarm in alarms(checks) {
        writeln!(out, "{alarm}")?;
        writeln!(out, "  {}", advice(&alarm))?;
    }
    let (healthy, total) = (healthy_count(checks), checks.len());
    if healthy > 0 && healthy < total {
        writeln!(out, "{healthy} of {total} members are healthy")?;
    }
    writeln!(out, "cluster is {}", if is_healthy(checks) { "healthy" } else { "unhealthy" })
}

fn print_json(out: &mut dyn Write, checks: &[Check]) -> io::Result<()> {
    let members = checks.iter().map(member_json).collect();
    write_json(
        out,
        &ReportJson {
            healthy: is_healthy(checks),
            members_total: checks.len(),
            members_healthy: healthy_count(checks),
            members,
            alarms: alarms(checks)
                .into_iter()
                .map(|alarm| AlarmJson { advice: advice(&alarm), alarm })
                .collect(),
            error: None,
        },
    )
}

fn member_json(check: &Check) -> MemberJson<'_> {
    let failures =
        || check.failures.iter().map(|(url, why)| format!("{url}: {why}")).collect::<Vec<_>>().join("; ");
    let (status, answered, reason) = match &check.status {
        Status::Healthy(url) => ("healthy", Some(url.as_str()), None),
        Status::Unhealthy(url) if check.reason.is_empty() => {
            ("unhealthy", Some(url.as_str()), Some("the member says so".to_owned()))
        }
        Status::Unhealthy(url) => ("unhealthy", Some(url.as_str()), Some(check.reason.clone())),
        Status::Unreachable if check.member.client_urls.is_empty() => {
            ("unreachable", None, Some("no available published client urls".to_owned()))
        }
        Status::Unreachable => ("unreachable", None, Some(failures())),
    };
    let member = &check.member;
    MemberJson {
        id: &member.id,
        name: &member.name,
        client_urls: &member.client_urls,
        status,
        answered,
        reason,
    }
}

fn write_json(out: &mut dyn Write, report: &ReportJson) -> io::Result<()> {
    serde_json::to_writer(&mut *out, report)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const URL: &str = "http://127.0.0.1:22471";

    fn member(id: &str, urls: &[&str]) -> Member {
        let client_urls = urls.iter().map(|url| (*url).to_owned()).collect();
        Member { id: id.to_owned(), client_urls, ..Member::default() }
    }

    fn healthy() -> Check {
        Check {
            member: member("117b9266988c4966", &[URL]),
            status: Status::Healthy(URL.into()),
            alarms: vec![],
            reason: String::new(),
            failures: vec![],
        }
    }

    fn unhealthy() -> Check {
        Check { status: Status::Unhealthy(URL.into()), ..healthy() }
    }

    fn refused() -> Check {
        let url = "http://127.0.0.1:22473";
        let why = "dial tcp 127.0.0.1:22473: connect: connection refused";
        Check {
            member: member("592b2cf657ae2dd6", &[url]),
            status: Status::Unreachable,
            alarms: vec![],
            reason: String::new(),
            failures: vec![(url.into(), why.into())],
        }
    }

    fn unstarted() -> Check {
        let member = member("5d9ad8582841ecf5", &[]);
        Check { member, status: Status::Unreachable, alarms: vec![], reason: String::new(), failures: vec![] }
    }

    fn text(checks: &[Check]) -> String {
        let mut out = Vec::new();
        print_text(&mut out, checks).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_etcdctls() {
        assert_eq!(
            text(&[healthy(), unhealthy(), refused(), unstarted()]),
            "\
member 117b9266988c4966 is healthy: got healthy result from http://127.0.0.1:22471
member 117b9266988c4966 is unhealthy: got unhealthy result from http://127.0.0.1:22471
failed to check the health of member 592b2cf657ae2dd6 on http://127.0.0.1:22473: Get \"http://127.0.0.1:22473/health\": dial tcp 127.0.0.1:22473: connect: connection refused
member 592b2cf657ae2dd6 is unreachable: [http://127.0.0.1:22473] are all unreachable
member 5d9ad8582841ecf5 is unreachable: no available published client urls
1 of 4 members are healthy
cluster is healthy
"
        );
    }

    #[test]
    fn one_healthy_member_decides() {
        for (checks, verdict) in [
            (vec![healthy()], true),
            (vec![refused(), healthy(), unhealthy()], true),
            (vec![unhealthy(), refused()], false),
            (vec![], false),
        ] {
            assert_eq!(is_healthy(&checks), verdict);
            let last = text(&checks).lines().last().unwrap().to_owned();
            assert_eq!(last, if verdict { "cluster is healthy" } else { "cluster is unhealthy" });
        }
        assert_eq!(text(&[healthy(), healthy()]).lines().count(), 3, "no count where nothing is wrong");
    }

    fn alarm(member: &str, alarm: &str, text: &str) -> Alarm {
        Alarm { member: member.to_owned(), alarm: alarm.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn an_alarm_that_any_member_tells_of_is_shown_once_and_decides() {
        let corrupt = alarm("592b", "CORRUPT", "digest 1 at raft index 7, where the leader's is 2");
        let reason = "ALARM CORRUPT of member 592b: digest 1".to_owned();
        let checks = [
            Check { alarms: vec![corrupt.clone()], ..healthy() },
            Check { alarms: vec![corrupt.clone()], reason: reason.clone(), ..unhealthy() },
            Check { alarms: vec![corrupt, alarm("9", "NOSPACE", "full")], ..healthy() },
        ];
        assert!(!is_healthy(&checks));
        let text = text(&checks);
        assert_eq!(text.matches("ALARM CORRUPT of member 592b: digest 1 at raft").count(), 1, "{text}");
        assert!(text.contains("leave it stopped") && text.contains("make room on its disk"), "{text}");
        assert!(text.ends_with("cluster is unhealthy\n"), "{text}");
        let mut out = Vec::new();
        print_json(&mut out, &checks).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(report["healthy"], false);
        assert_eq!(report["alarms"].as_array().unwrap().len(), 2);
        assert!(report["alarms"][0]["advice"].as_str().unwrap().contains("docs/consistency.md"));
        assert_eq!(report["members"][1]["reason"], reason);
    }

    #[test]
    fn an_alarm_is_shown_in_the_words_of_its_member_whatever_is_in_them() {
        let id = healthy().member.id;
        let before = alarm(&id, "NOSPACE", "no space: /data has 30 MiB free");
        let now = alarm(&id, "NOSPACE", "no space: /data; /x has 2 MiB free");
        let other = || Check { alarms: vec![before.clone()], ..unstarted() };
        let own = Check { alarms: vec![now.clone()], ..unhealthy() };
        for checks in [[other(), own.clone()], [own, other()]] {
            assert_eq!(alarms(&checks), [format!("ALARM NOSPACE of member {id}: {}", now.text)]);
        }
        assert_eq!(alarms(&[other()]).len(), 1, "it is down, and the others tell of it");
        // etcd does not say what belongs to what.
        let reason = Check { alarms: vec![alarm("", "", "RAFT NO LEADER; x")], ..unhealthy() };
        assert_eq!(alarms(&[reason.clone(), reason]), ["RAFT NO LEADER; x"]);
    }

    #[test]
    fn json_has_counts_and_reasons() {
        let mut out = Vec::new();
        print_json(&mut out, &[healthy(), refused(), unstarted()]).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            (&report["healthy"], &report["members_total"], &report["members_healthy"]),
            (&true.into(), &3.into(), &1.into())
        );
        assert_eq!(report["members"][0]["status"], "healthy");
        assert!(report["members"][1]["reason"].as_str().unwrap().contains("connection refused"));
        assert_eq!(report["members"][2]["reason"], "no available published client urls");
        assert!(out.ends_with(b"}\n"));
    }
}
