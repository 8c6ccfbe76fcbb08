//! `cli get|set|ls|mk|mkdir|setdir|updatedir|rm|rmdir|update|watch` and `cli member`: the v2 keys with
//! etcdctl's flags, output and exit codes (its v2 mode, observed with etcdctl 3.4).
//!
//! What differs: words too many are refused rather than ignored, an unknown output format is an error rather than
//! a success, endpoints are tried in the order given rather than shuffled, and the list of failed endpoints is
//! printed once rather than twice.

mod args;

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use store::client::{Client, ClientError, DeleteOptions, GetOptions, PutOptions, Response};

use crate::{
    args::{Format, StoreArgs},
    connect::{self, ConnectError},
    exit::Exit,
    output,
};

use args::{DirArgs, LsArgs, MemberCommand, ValueArgs, WatchArgs};
pub(crate) use args::{KeyCommand, MemberArgs};

/// Pause after a poll that the server ended without a change, lest a confused server be hammered.
const POLL_AGAIN: Duration = Duration::from_millis(100);

/// Why a command on keys or members failed. Each has its exit code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Bad arguments, in etcdctl's words.
    #[error("Error:  {0}")]
    Arguments(String),
    /// Not a file.
    #[error("{0}: is a directory")]
    Directory(String),
    /// No client.
    #[error("Error:  {0}")]
    Connect(#[from] ConnectError),
    /// The store's error.
    #[error("Error:  {0}")]
    Server(#[from] ClientError),
    /// No leader to mark.
    #[error("Failed to get leader:  {0}")]
    NoLeader(ClientError),
    /// Too slow.
    #[error("Error:  no result within {0:?}; raise --total-timeout to wait longer")]
    TotalTimeout(Duration),
    /// The terminal or pipe.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl StoreError {
    /// etcdctl's exit code for it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Arguments(_)
            | Self::Directory(_)
            | Self::NoLeader(_)
            | Self::Io(_)
            | Self::Connect(ConnectError::Settings(_)) => Exit::Failure,
            Self::Connect(ConnectError::Sync(_)) => Exit::BadConnection,
            Self::Server(_) | Self::TotalTimeout(_) => Exit::ServerError,
        }
    }
}

/// Runs a command on keys.
///
/// # Errors
/// [`StoreError`], after which nothing else is to be printed.
pub(crate) async fn run(
    command: KeyCommand,
    stdin: &mut (dyn Read + Send),
    out: &mut (dyn Write + Send),
) -> Result<(), StoreError> {
    if let KeyCommand::Watch(args) = &command {
        // No limit in time.
        return tokio::select! {
            done = watch(args, out) => done,
            // As etcdctl: interrupting a watch is how it ends.
            signal = tokio::signal::ctrl_c() => signal.map_err(StoreError::Io),
        };
    }
    let limit = connect::total_timeout(command.store());
    tokio::time::timeout(limit, act(&command, stdin, out))
        .await
        .unwrap_or(Err(StoreError::TotalTimeout(limit)))
}

async fn act(
    command: &KeyCommand,
    stdin: &mut (dyn Read + Send),
    out: &mut (dyn Write + Send),
) -> Result<(), StoreError> {
    let format = command.store().output;
    let print = |out: &mut dyn Write, response: &Response| output::print_key(out, response, format);
    let print_unless_simple = |out: &mut dyn Write, response: &Response| {
        if format == Format::Simple { Ok(()) } else { output::print_key(out, response, format) }
    };
    match command {
        KeyCommand::Get(args) => {
            let key = required(args.key.as_deref(), "key")?;
            let options = GetOptions { sorted: args.sort, quorum: args.quorum, recursive: false };
            let response = connect::synced_client(&args.store).await?.get(key, options).await?;
            match &response.node {
                Some(node) if node.dir => return Err(StoreError::Directory(node.key.clone())),
                _ => print(out, &response)?,
            }
        }
        KeyCommand::Set(args) => {
            let (key, value) = key_and_value(&args.value, stdin)?;
            let options = PutOptions {
                value: Some(value),
                ttl: positive(args.value.ttl),
                prev_value: Some(args.swap_with_value.clone()).filter(|value| !value.is_empty()),
                prev_index: Some(args.swap_with_index).filter(|index| *index > 0),
                ..PutOptions::default()
            };
            print(out, &connect::synced_client(&args.value.store).await?.put(key, options).await?)?;
        }
        KeyCommand::Mk(args) => {
            let (key, value) = key_and_value(&args.value, stdin)?;
            let client = connect::synced_client(&args.value.store).await?;
            let ttl = positive(args.value.ttl);
            let response = if args.in_order {
                client.post(key, &value, ttl).await?
            } else {
                let options =
                    PutOptions { value: Some(value), ttl, prev_exist: Some(false), ..PutOptions::default() };
                client.put(key, options).await?
            };
            print(out, &response)?;
        }
        KeyCommand::Update(args) => {
            let (key, value) = key_and_value(args, stdin)?;
            let options = PutOptions {
                value: Some(value),
                ttl: positive(args.ttl),
                prev_exist: Some(true),
                ..PutOptions::default()
            };
            print(out, &connect::synced_client(&args.store).await?.put(key, options).await?)?;
        }
        KeyCommand::Ls(args) => ls(args, out).await?,
        KeyCommand::Mkdir(args) => print_unless_simple(out, &put_dir(args, Some(false)).await?)?,
        KeyCommand::Setdir(args) => print_unless_simple(out, &put_dir(args, None).await?)?,
        KeyCommand::Updatedir(args) => print_unless_simple(out, &put_dir(args, Some(true)).await?)?,
        KeyCommand::Rm(args) => {
            let options = DeleteOptions {
                dir: args.dir,
                recursive: args.recursive,
                prev_value: Some(args.with_value.clone()).filter(|value| !value.is_empty()),
                prev_index: Some(args.with_index).filter(|index| *index > 0),
            };
            let response = delete(args.key.as_deref(), options, &args.store).await?;
            print_removed(out, &response, format)?;
        }
        KeyCommand::Rmdir(args) => {
            let options = DeleteOptions { dir: true, ..DeleteOptions::default() };
            let response = delete(args.key.as_deref(), options, &args.store).await?;
            print_removed(out, &response, format)?;
        }
        KeyCommand::Watch(args) => watch(args, out).await?,
    }
    Ok(())
}

fn required<'a>(word: Option<&'a str>, what: &str) -> Result<&'a str, StoreError> {
    word.ok_or_else(|| StoreError::Arguments(format!("{what} required")))
}

/// The key and the value, which stdin supplies when the command line does not.
fn key_and_value<'a>(
    args: &'a ValueArgs,
    stdin: &mut (dyn Read + Send),
) -> Result<(&'a str, String), StoreError> {
    let key = required(args.key.as_deref(), "key")?;
    if let Some(value) = &args.value {
        return Ok((key, value.clone()));
    }
    let mut bytes = Vec::new();
    stdin.read_to_end(&mut bytes)?;
    match String::from_utf8(bytes) {
        Ok(value) if value.is_empty() => Err(StoreError::Arguments("value required".to_owned())),
        Ok(value) => Ok((key, value)),
        Err(_) => {
            Err(StoreError::Arguments("the value on stdin is not UTF-8, which v2 cannot carry".to_owned()))
        }
    }
}

/// etcdctl sends no TTL where none is given, and 0 and less count as none.
fn positive(ttl: i64) -> Option<u64> {
    u64::try_from(ttl).ok().filter(|ttl| *ttl > 0)
}

async fn put_dir(args: &DirArgs, prev_exist: Option<bool>) -> Result<Response, StoreError> {
    let key = required(args.key.as_deref(), "key")?;
    let options = PutOptions { dir: true, ttl: positive(args.ttl), prev_exist, ..PutOptions::default() };
    Ok(connect::synced_client(&args.store).await?.put(key, options).await?)
}

async fn delete(
    key: Option<&str>,
    options: DeleteOptions,
    store: &StoreArgs,
) -> Result<Response, StoreError> {
    let key = required(key, "key")?;
    Ok(connect::synced_client(store).await?.delete(key, options).await?)
}

fn print_removed(out: &mut dyn Write, response: &Response, format: Format) -> io::Result<()> {
    let was_dir = response.node.as_ref().is_some_and(|node| node.dir);
    if was_dir && format == Format::Simple { Ok(()) } else { output::print_key(out, response, format) }
}

async fn ls(args: &LsArgs, out: &mut (dyn Write + Send)) -> Result<(), StoreError> {
    let options = GetOptions { sorted: args.sort, recursive: args.recursive, quorum: args.quorum };
    let response = connect::synced_client(&args.store).await?.get(&args.key, options).await?;
    if args.store.output != Format::Simple {
        return Ok(output::print_key(out, &response, args.store.output)?);
    }
    let Some(node) = &response.node else { return Ok(()) };
    if !node.dir {
        writeln!(out, "{}", node.key)?;
    }
    // A stack, not recursion: how deep the tree goes is the server's choice.
    let mut ahead: Vec<_> = node.nodes.iter().rev().collect();
    while let Some(node) = ahead.pop() {
        let slash = if node.dir && args.slash { "/" } else { "" };
        writeln!(out, "{}{slash}", node.key)?;
        ahead.extend(node.nodes.iter().rev());
    }
    Ok(())
}

async fn watch(args: &WatchArgs, out: &mut (dyn Write + Send)) -> Result<(), StoreError> {
    let key = required(args.key.as_deref(), "key")?;
    let client = connect::synced_client(&args.store).await?;
    let mut wait_index = Some(args.after_index).filter(|index| *index > 0).map(|index| index + 1);
    loop {
        let Some(response) = client.watch_once(key, wait_index, args.recursive).await? else {
            tokio::time::sleep(POLL_AGAIN).await;
            continue;
        };
        let Some(node) = &response.node else { continue };
        wait_index = Some(node.modified_index + 1);
        if node.dir {
            continue;
        }
        if args.recursive {
            writeln!(out, "[{}] {}", response.action, node.key)?;
        }
        output::print_key(out, &response, args.store.output)?;
        out.flush()?;
        if !args.forever {
            return Ok(());
        }
    }
}

/// Runs `cli member`.
///
/// # Errors
/// [`StoreError`], after which nothing else is to be printed.
pub(crate) async fn run_member(args: &MemberArgs, out: &mut (dyn Write + Send)) -> Result<(), StoreError> {
    let MemberCommand::List = args.command;
    let limit = connect::total_timeout(&args.store);
    let listing = async {
        let client = connect::synced_client(&args.store).await?;
        list_members(&client, out).await
    };
    tokio::time::timeout(limit, listing).await.unwrap_or(Err(StoreError::TotalTimeout(limit)))
}

async fn list_members(client: &Client, out: &mut (dyn Write + Send)) -> Result<(), StoreError> {
    let members = client.members().await.map_err(ConnectError::Sync)?;
    let leader = client.leader().await.map_err(StoreError::NoLeader)?;
    for member in members {
        let peers = member.peer_urls.join(",");
        if member.name.is_empty() {
            writeln!(out, "{}[unstarted]: peerURLs={peers}", member.id)?;
            continue;
        }
        let clients = member.client_urls.join(",");
        let is_leader = member.id == leader.id;
        writeln!(
            out,
            "{}: name={} peerURLs={peers} clientURLs={clients} isLeader={is_leader}",
            member.id, member.name
        )?;
    }
    Ok(())
}
