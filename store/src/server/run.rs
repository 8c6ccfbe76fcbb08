//! Start, in order, and stop.
//!
//! Everything that can be wrong is found before anything is changed: files, certificates, addresses. Then the
//! data directory is opened (or made); a member without a raft log asks the others whether it may start; the
//! threads start, the member publishes itself, and only then clients are served and the service manager is
//! told. SIGTERM and SIGINT hand leadership over, stop serving, write the image and end.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::apply::{Applier, TASK_QUEUE};
use super::disk::{self, Opened};
use super::driver::{Driver, INPUT_QUEUE, Input};
use super::handle::{Handle, Shared};
use super::http::{self, Api, CLUSTER_VERSION};
use super::image::{Imager, JOB_QUEUE};
use super::limits::Limits;
use super::peers::{self, Acceptor, Dialler, PeerLink, Peers, Spool};
use super::space::{self, Space};
use super::stats::PeerStats;
use super::tls;
use crate::config::{Config, Note, Url};
use crate::log::LogStore as _;
use crate::log::engine::EngineLog;
use crate::membership::Member;
use crate::node::{Core, CoreConfig};
use crate::replica::apply::Applying;
use crate::replica::backlog::MAX_UNAPPLIED;
use crate::replica::duties::EXPIRE_MOST;
use crate::replica::{CATCH_UP_ENTRIES, Settings};
use crate::state::Identity;
use crate::state::sled::SledState;
use crate::wire::command::Command;

/// How the store ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By a signal: its number.
    Signal(i32),
}

/// Runs the store until a signal or an error ends it. Clients are served on the runtime `clients`, everything else on
/// this one: however busy clients keep the member, it hears the others in time.
///
/// # Errors
/// What makes it impossible to start or to go on, with the flag, file or peer at fault.
pub async fn run(config: Config, clients: runtime::Handle) -> anyhow::Result<Ended> {
    for note in &config.notes {
        match note {
            Note::Info(text) => tracing::info!("{text}"),
            Note::Warn(text) => tracing::warn!("{text}"),
        }
    }
    let client_tls = tls::server_config(&config.client_tls, false, &[b"h2", b"http/1.1"])?;
    let peer_server_tls = tls::server_config(&config.peer_tls, true, &[])?;
    let peer_client_tls = tls::client_config(&config.peer_tls)?;
    let peer_listeners = bind(config.listen_peer.clone(), "listen-peer-urls").await?;
    // A socket belongs to the runtime on which it is opened.
    let client_listeners = clients.spawn(bind(config.listen_client.clone(), "listen-client-urls")).await??;
    let mut signals = Signals::new()?;
    let Opened { identity, machine, mut log, state, fresh, space, _lock } = disk::open(&config)?;
    let members: Vec<Member> = machine.membership.members().cloned().collect();
    let (me, start) = (identity.member_id, machine.applied);
    tracing::info!(
        member = format_args!("{me:x}"),
        cluster = format_args!("{:x}", identity.cluster_id),
        name = config.name,
        members = members.len(),
        raft_index = start.index,
        "starting"
    );
    let (inputs, input_queue) = sync_channel(INPUT_QUEUE);
    let others: Vec<&Member> = members.iter().filter(|member| member.id != me).collect();
    let limits = Arc::new(Limits::of_this_process(others.len()));
    let peer_stats: PeerTable = Arc::new(others.iter().map(|member| (member.id, Arc::default())).collect());
    let links = links(&others, &peer_stats)?;
    let dialler = Dialler { cluster: identity.cluster_id, me, tls: peer_client_tls };
    let mut shared = Shared::new(identity, config.name.clone(), machine);
    shared.room = Arc::clone(space.lock().room());
    let shared = Arc::new(shared);
    // Others are answered before this member starts: several new ones wait for each other.
    let spool_dir = config.data_dir.join("member").join("snap-in");
    let spool = Spool::open(&spool_dir, start.index)
        .with_context(|| format!("--data-dir: cannot prepare {}", spool_dir.display()))?;
    let acceptor = Acceptor::new(Arc::clone(&shared), Arc::clone(&peer_stats), inputs.clone(), spool);
    let acceptor = Arc::new(acceptor);
    for (listener, url) in peer_listeners {
        let tls = if is_https(&url) { peer_server_tls.clone() } else { None };
        tokio::spawn(peers::accept(listener, tls, Arc::clone(&acceptor)));
    }
    if fresh {
        tokio::select! {
            welcome = peers::until_welcome(&links, &dialler) => welcome?,
            ended = signals.next() => return Ok(ended),
        }
        // From here on this member promises; what it promises is in its log, which is no longer empty.
        log.reset(start, None)?;
    }
    let peers = Peers::start(links, dialler, inputs.clone(), runtime::Handle::current());
    let disk = Disk { log, state, identity, space };
    let (threads, mut failures) =
        start_threads(&config, disk, &shared, peers, (inputs.clone(), input_queue))?;
    let handle = Handle::new(Arc::clone(&shared), inputs.clone(), limits, rand::random(), config.election);
    let (stop_serving, stop) = watch::channel(false);
    let serve = move |listener, tls, api| drop(clients.spawn(http::serve(listener, tls, api, stop.clone())));
    let serving =
        serve_when_published(&config, handle.clone(), peer_stats, client_listeners, client_tls, serve);
    let ended = until_signal(serving, &mut failures, &mut signals).await?;

    tracing::info!("received a signal to stop, shutting down");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    hand_over(&shared, &inputs, config.election, !others.is_empty()).await;
    let _ = stop_serving.send(true);
    shared.room.stop();
    let joined = async {
        peers::insist(&inputs, Input::Stop).await;
        tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| drop(thread.join()))).await
    };
    if tokio::time::timeout(STOP_TIMEOUT, joined).await.is_err() {
        tracing::warn!("the threads do not end; leaving them (the raft log holds everything)");
    }
    match failures.try_recv() {
        Ok((thread, error)) => bail!("{error:#} (in the {thread} thread, while stopping)"),
        Err(_) => Ok(ended),
    }
}

/// What happens to the other members, by their ids.
type PeerTable = Arc<BTreeMap<u64, Arc<PeerStats>>>;
/// Why a thread ended, and which.
type Failures = mpsc::UnboundedReceiver<(&'static str, anyhow::Error)>;

/// Time for the threads to end after the last client.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

fn links(others: &[&Member], stats: &PeerTable) -> anyhow::Result<Vec<PeerLink>> {
    let link = |member: &&Member| {
        let urls: Result<Vec<Url>, _> = member.peer_urls.iter().map(|url| Url::parse(url)).collect();
        let urls = urls.with_context(|| format!("peer URLs of member {:x}", member.id))?;
        Ok(PeerLink { id: member.id, urls, stats: Arc::clone(&stats[&member.id]) })
    };
    others.iter().map(link).collect()
}

/// What is on disk, for the threads that own it.
struct Disk {
    log: EngineLog,
    state: SledState,
    identity: Identity,
    space: Arc<Mutex<Space>>,
}

fn start_threads(
    config: &Config,
    disk: Disk,
    shared: &Arc<Shared>,
    peers: Peers,
    (inputs, input_queue): (SyncSender<Input>, Receiver<Input>),
) -> anyhow::Result<(Vec<thread::JoinHandle<()>>, Failures)> {
    let (voters, applied) = {
        let machine = shared.machine.read();
        (machine.membership.voters.clone(), machine.applied)
    };
    let core_config = CoreConfig {
        id: shared.member_id,
        heartbeat_ticks: 1,
        election_ticks: usize::try_from(config.election.as_millis() / config.heartbeat.as_millis())?,
        fixed_election_ticks: None,
    };
    let alone = voters.is_only(shared.member_id);
    let mut core = Core::new(&core_config, voters, applied, disk.log)?;
    if alone {
        core.campaign();
    }
    let (tasks, task_queue) = sync_channel(TASK_QUEUE);
    let (jobs, job_queue) = sync_channel(JOB_QUEUE);
    let settings = Settings {
        member: shared.member_id,
        tick: config.heartbeat,
        start: rand::random(),
        cluster_version: CLUSTER_VERSION,
        check_period: config.check_period,
        catch_up_entries: CATCH_UP_ENTRIES,
        max_unapplied: MAX_UNAPPLIED,
        expire_most: EXPIRE_MOST,
    };
    let driver = Driver::new(core, input_queue, peers, tasks, Arc::clone(shared), settings);
    let applier = Applier {
        shared: Arc::clone(shared),
        tasks: task_queue,
        inputs: inputs.clone(),
        jobs,
        checkpointed: None,
        applying: Applying::new(shared.member_id, config.snapshot_count, applied.index)
            .since(driver.log_since_checkpoint()),
    };
    let watcher = (disk.space, Arc::clone(shared), inputs.clone());
    let imager = Imager::new(disk.state, disk.identity, Arc::clone(shared), job_queue, inputs);
    let (failed, failures) = mpsc::unbounded_channel();
    let threads = vec![
        spawn("raft", &failed, move || driver.run().map_err(Into::into))?,
        spawn("apply", &failed, move || applier.run().map_err(Into::into))?,
        spawn("image", &failed, move || imager.run().map_err(Into::into))?,
        spawn("space", &failed, move || {
            let (space, shared, inputs) = watcher;
            space::watch(&space, &shared, &inputs);
            Ok(())
        })?,
    ];
    Ok((threads, failures))
}

/// The signals that end the store.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Signals { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    /// Waits for one.
    async fn next(&mut self) -> Ended {
        let kind = tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        };
        Ended::Signal(kind.as_raw_value())
    }
}

/// Waits for a signal, and meanwhile lets `serving` get to where it serves.
async fn until_signal(
    serving: impl Future<Output = anyhow::Result<()>>,
    failures: &mut Failures,
    signals: &mut Signals,
) -> anyhow::Result<Ended> {
    tokio::pin!(serving);
    let mut served = false;
    loop {
        tokio::select! {
            result = &mut serving, if !served => {
                result?;
                served = true;
            }
            failure = failures.recv() => match failure {
                Some((thread, error)) => bail!(
                    "{error:#} (in the {thread} thread; this member stops so that it does not differ from the others)"
                ),
                None => bail!("all threads have ended"),
            },
            ended = signals.next() => return Ok(ended),
        }
    }
}

fn is_https(url: &Url) -> bool {
    url.scheme() == crate::config::Scheme::Https
}

fn spawn(
    name: &'static str,
    failed: &mpsc::UnboundedSender<(&'static str, anyhow::Error)>,
    body: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<thread::JoinHandle<()>> {
    let failed = failed.clone();
    let run = move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        let error = match result {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => anyhow::anyhow!("a panic, see above"),
        };
        let _ = failed.send((name, error));
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .with_context(|| format!("cannot start the {name} thread"))
}

async fn bind(urls: Vec<Url>, flag: &'static str) -> anyhow::Result<Vec<(TcpListener, Url)>> {
    let mut listeners = Vec::new();
    for url in urls {
        let addr = url
            .listen_addrs()
            .with_context(|| format!("--{flag}: expected IP in URL for binding ({url})"))?;
        let listener = TcpListener::bind(addr).await.map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "another process listens there",
                io::ErrorKind::AddrNotAvailable => "no interface of this host has that address",
                _ => "check the URL",
            };
            anyhow::anyhow!("--{flag}: cannot listen on {url}: {error}; {hint}")
        })?;
        listeners.push((listener, url));
    }
    Ok(listeners)
}

/// Publishes this member, as etcd does at every start, and then serves clients: each listener by `serve`.
async fn serve_when_published(
    config: &Config,
    handle: Handle,
    peers: Arc<BTreeMap<u64, Arc<PeerStats>>>,
    listeners: Vec<(TcpListener, Url)>,
    tls: Option<Arc<rustls::ServerConfig>>,
    serve: impl Fn(TcpListener, Option<Arc<rustls::ServerConfig>>, Arc<Api>),
) -> anyhow::Result<()> {
    let client_urls: Vec<String> = config.advertise_client.iter().map(|url| url.text().to_owned()).collect();
    let member = handle.shared().member_id;
    loop {
        let command =
            Command::Publish { member, name: config.name.clone(), client_urls: client_urls.clone() };
        match handle.propose(command).await {
            Ok(_) => break,
            Err(error) => {
                tracing::warn!(why = error.cause, "not yet published: waiting for a quorum of the members");
            }
        }
    }
    let api = Arc::new(Api { handle, peers });
    for (listener, url) in listeners {
        if is_https(&url) {
            tracing::info!(%url, "serving clients");
        } else {
            tracing::warn!(%url, "serving insecure client requests, this is strongly discouraged!");
        }
        let tls = if is_https(&url) { tls.clone() } else { None };
        serve(listener, tls, Arc::clone(&api));
    }
    tracing::info!("ready to serve client requests");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot tell the service manager that this member is ready");
    }
    Ok(())
}

/// Gives the leadership away and waits until another member has it, for one election at most.
async fn hand_over(shared: &Shared, inputs: &SyncSender<Input>, election: Duration, has_others: bool) {
    let mut leadership = shared.leadership.subscribe();
    if !has_others || !leadership.borrow().0.leads {
        return;
    }
    let _ = inputs.try_send(Input::HandOver(None));
    let other = leadership.wait_for(|(now, _)| !now.leads && now.leader != 0);
    if tokio::time::timeout(election, other).await.is_err() {
        tracing::warn!("no other member has taken the leadership over");
    }
}
