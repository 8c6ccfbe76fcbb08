//! Start, in order, and stop.
//!
//! Everything that can be wrong is found before anything is changed: files, certificates, addresses. Then the
//! data directory is opened (or made), the threads start, the member publishes itself, and only then clients
//! are served and the service manager is told. SIGTERM and SIGINT hand leadership over, stop serving, write
//! the image and end.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::apply::{Applier, TASK_QUEUE};
use super::driver::{Driver, INPUT_QUEUE, Input, Settings};
use super::handle::{Handle, Shared, now, wall_clock};
use super::http::{self, Api, CLUSTER_VERSION};
use super::image::{Imager, JOB_QUEUE};
use super::peers::{self, Acceptor, Dialler, PeerLink, Peers};
use super::stats::{PeerStats, StoreStats};
use super::tls;
use crate::config::{Config, Note, Url};
use crate::log::engine::EngineLog;
use crate::machine::{Machine, Position};
use crate::membership::{Member, Membership};
use crate::node::{Core, CoreConfig, Leadership};
use crate::state::sled::SledState;
use crate::state::{Identity, StateStore};
use crate::wire::command::Command;

/// How the store ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By a signal: its number.
    Signal(i32),
}

/// A data directory, opened and checked.
struct Opened {
    identity: Identity,
    machine: Machine,
    log: EngineLog,
    state: SledState,
    /// Keeps a second process out.
    _lock: nix::fcntl::Flock<fs::File>,
}

/// Runs the store until a signal or an error ends it.
///
/// # Errors
/// What makes it impossible to start or to go on, with the flag, file or peer at fault.
pub async fn run(config: Config) -> anyhow::Result<Ended> {
    for note in &config.notes {
        match note {
            Note::Info(text) => tracing::info!("{text}"),
            Note::Warn(text) => tracing::warn!("{text}"),
        }
    }
    let client_tls = tls::server_config(&config.client_tls, false, &[b"h2", b"http/1.1"])?;
    let peer_server_tls = tls::server_config(&config.peer_tls, true, &[])?;
    let peer_client_tls = tls::client_config(&config.peer_tls)?;
    let peer_listeners = bind(&config.listen_peer, "listen-peer-urls").await?;
    let client_listeners = bind(&config.listen_client, "listen-client-urls").await?;
    let opened = open(&config)?;

    let Opened { identity, machine, log, state, _lock } = opened;
    let members: Vec<Member> = machine.membership.members().cloned().collect();
    let me = identity.member_id;
    tracing::info!(
        member = format_args!("{me:x}"),
        cluster = format_args!("{:x}", identity.cluster_id),
        name = config.name,
        members = members.len(),
        raft_index = machine.applied.index,
        "starting"
    );
    let (inputs, input_queue) = sync_channel(INPUT_QUEUE);
    let others: Vec<&Member> = members.iter().filter(|member| member.id != me).collect();
    let peer_stats: PeerTable = Arc::new(others.iter().map(|member| (member.id, Arc::default())).collect());
    let dialler = Dialler { cluster: identity.cluster_id, me, tls: peer_client_tls };
    let peers = Peers::start(links(&others, &peer_stats)?, dialler, inputs.clone(), runtime());
    let shared = share(&config, identity, machine);
    let (threads, mut failures) =
        start_threads(&config, Disk { log, state, identity }, &shared, peers, (inputs.clone(), input_queue))?;

    for (listener, url) in peer_listeners {
        let tls = if is_https(&url) { peer_server_tls.clone() } else { None };
        let (cluster, members, inputs) = (identity.cluster_id, Arc::clone(&peer_stats), inputs.clone());
        tokio::spawn(peers::accept(listener, Acceptor { cluster, me, members, tls, inputs }));
    }
    let handle = Handle::new(Arc::clone(&shared), inputs.clone(), rand::random(), config.election);
    let (stop_serving, stop) = watch::channel(false);
    let serving =
        serve_when_published(&config, handle.clone(), peer_stats, client_listeners, client_tls, stop);
    let ended = until_signal(serving, &mut failures).await?;

    tracing::info!("received a signal to stop, shutting down");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    hand_over(&shared, &inputs, config.election, !others.is_empty()).await;
    let _ = stop_serving.send(true);
    let _ = inputs.send(Input::Stop);
    drop((inputs, handle));
    let joined =
        tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| drop(thread.join())));
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

fn runtime() -> tokio::runtime::Handle {
    tokio::runtime::Handle::current()
}

fn links(others: &[&Member], stats: &PeerTable) -> anyhow::Result<Vec<PeerLink>> {
    let link = |member: &&Member| {
        let urls: Result<Vec<Url>, _> = member.peer_urls.iter().map(|url| Url::parse(url)).collect();
        let urls = urls.with_context(|| format!("peer URLs of member {:x}", member.id))?;
        Ok(PeerLink { id: member.id, urls, stats: Arc::clone(&stats[&member.id]) })
    };
    others.iter().map(link).collect()
}

fn share(config: &Config, identity: Identity, machine: Machine) -> Arc<Shared> {
    Arc::new(Shared {
        member_id: identity.member_id,
        cluster_id: identity.cluster_id,
        name: config.name.clone(),
        started: wall_clock(),
        reads_wait: AtomicBool::new(false),
        has_expiries: AtomicBool::new(machine.tree.has_expiries()),
        applied: AtomicU64::new(machine.applied.index),
        machine: RwLock::new(machine),
        hub: Mutex::default(),
        waiters: Mutex::default(),
        snapshot: Mutex::default(),
        leadership: watch::Sender::new((Leadership::default(), now())),
        stats: StoreStats::default(),
        waiting_bytes: AtomicUsize::new(0),
    })
}

/// What is on disk, for the threads that own it.
struct Disk {
    log: EngineLog,
    state: SledState,
    identity: Identity,
}

fn start_threads(
    config: &Config,
    disk: Disk,
    shared: &Arc<Shared>,
    peers: Peers,
    (inputs, input_queue): (SyncSender<Input>, Receiver<Input>),
) -> anyhow::Result<(Vec<thread::JoinHandle<()>>, Failures)> {
    let (voters, applied, index) = {
        let machine = shared.machine.read();
        (machine.membership.ids(), machine.applied, machine.tree.index())
    };
    let core_config = CoreConfig {
        id: shared.member_id,
        heartbeat_ticks: 1,
        election_ticks: usize::try_from(config.election.as_millis() / config.heartbeat.as_millis())?,
        fixed_election_ticks: None,
    };
    let alone = voters.len() == 1;
    let mut core = Core::new(&core_config, voters, applied, disk.log)?;
    if alone {
        core.campaign();
    }
    let (tasks, task_queue) = sync_channel(TASK_QUEUE);
    let (jobs, job_queue) = sync_channel(JOB_QUEUE);
    let settings = Settings { tick: config.heartbeat, start: rand::random(), cluster_version: CLUSTER_VERSION };
    let driver = Driver::new(core, input_queue, peers, tasks, Arc::clone(shared), settings);
    let applier = Applier {
        shared: Arc::clone(shared),
        tasks: task_queue,
        inputs: inputs.clone(),
        jobs,
        snapshot_count: config.snapshot_count,
        checkpoint: applied.index,
    };
    let imager = Imager {
        state: disk.state,
        identity: disk.identity,
        shared: Arc::clone(shared),
        jobs: job_queue,
        inputs,
        written: index,
        applied: applied.index,
    };
    let (failed, failures) = mpsc::unbounded_channel();
    let threads = vec![
        spawn("raft", &failed, move || driver.run().map_err(Into::into))?,
        spawn("apply", &failed, move || applier.run().map_err(Into::into))?,
        spawn("image", &failed, move || imager.run().map_err(Into::into))?,
    ];
    Ok((threads, failures))
}

/// Waits for a signal, and meanwhile lets `serving` get to where it serves.
async fn until_signal(
    serving: impl Future<Output = anyhow::Result<()>>,
    failures: &mut Failures,
) -> anyhow::Result<Ended> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
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
            _ = terminate.recv() => return Ok(Ended::Signal(SignalKind::terminate().as_raw_value())),
            _ = interrupt.recv() => return Ok(Ended::Signal(SignalKind::interrupt().as_raw_value())),
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

async fn bind(urls: &[Url], flag: &str) -> anyhow::Result<Vec<(TcpListener, Url)>> {
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
        listeners.push((listener, url.clone()));
    }
    Ok(listeners)
}

/// Opens the data directory, or makes it at the first start.
fn open(config: &Config) -> anyhow::Result<Opened> {
    let member_dir = config.data_dir.join("member");
    let log_dir = config.wal_dir.clone().unwrap_or_else(|| member_dir.join("log"));
    let state_dir = member_dir.join("state");
    if member_dir.join("snap").exists() || member_dir.join("wal").exists() {
        bail!(
            "--data-dir: {} was written by etcd, whose files this store cannot read; give it a directory of its own",
            config.data_dir.display()
        );
    }
    for dir in [&log_dir, &state_dir] {
        make_dirs(dir)?;
    }
    let lock = lock(&member_dir)?;
    let mut log = EngineLog::open(&log_dir)?;
    let mut state = SledState::open(&state_dir)?;
    let (identity, machine) = if let Some((identity, machine)) = state.load()? {
        let bootstrap = Position { index: machine.membership.ids().len() as u64, term: 1 };
        if log.is_empty() && machine.applied != bootstrap {
            bail!(
                "the raft log in {} is missing although this member has been running: without it, it could \
                     forget what it has promised to the others; restore the directory",
                log_dir.display()
            );
        }
        tracing::debug!(dir = %config.data_dir.display(), "the initial-* flags are ignored: the data directory knows");
        (identity, machine)
    } else {
        if !log.is_empty() {
            bail!(
                "the applied state in {} is missing although there is a raft log; restore the directory",
                state_dir.display()
            );
        }
        let (identity, machine) = bootstrap(config)?;
        state.replace(identity, &machine)?;
        (identity, machine)
    };
    if log.is_empty() {
        use crate::log::LogStore as _;
        log.reset(machine.applied, None)?;
    }
    sync_dirs(&member_dir, &config.data_dir)?;
    Ok(Opened { identity, machine, log, state, _lock: lock })
}

fn bootstrap(config: &Config) -> anyhow::Result<(Identity, Machine)> {
    if config.existing {
        bail!(
            "--initial-cluster-state=existing: {} is empty, and this store cannot add members to a running cluster \
             yet; start a new cluster with all its members and --initial-cluster-state=new",
            config.data_dir.display()
        );
    }
    config.check_bootstrap()?;
    let member = |(name, urls): (&String, &Vec<Url>)| {
        let urls: Vec<String> = urls.iter().map(|url| url.text().to_owned()).collect();
        Member::bootstrap(name, &urls, &config.token)
    };
    let members: Vec<Member> = config.initial_cluster.iter().map(member).collect();
    let me = members.iter().find(|member| member.name == config.name).map(|member| member.id);
    let member_id = me.context("--name is not in --initial-cluster")?;
    let machine = Machine::bootstrap(Membership::bootstrap(members));
    Ok((Identity { cluster_id: machine.membership.cluster_id, member_id }, machine))
}

/// Makes a directory and its parents, private as etcd's.
fn make_dirs(dir: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("--data-dir: cannot make {}", dir.display()))
}

fn lock(dir: &Path) -> anyhow::Result<nix::fcntl::Flock<fs::File>> {
    let path: PathBuf = dir.join("lock");
    let file = fs::File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("--data-dir: cannot write {}", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!(
            "--data-dir: another process uses {} ({error}); stop it or use another directory",
            dir.display()
        )
    })
}

/// New directories are on disk only when the directories that hold them are.
fn sync_dirs(member_dir: &Path, data_dir: &Path) -> anyhow::Result<()> {
    for dir in [member_dir, data_dir] {
        let synced = fs::File::open(dir).and_then(|file| file.sync_all());
        synced.with_context(|| format!("--data-dir: cannot sync {}", dir.display()))?;
    }
    Ok(())
}

/// Publishes this member, as etcd does at every start, and then serves clients.
async fn serve_when_published(
    config: &Config,
    handle: Handle,
    peers: Arc<BTreeMap<u64, Arc<PeerStats>>>,
    listeners: Vec<(TcpListener, Url)>,
    tls: Option<Arc<rustls::ServerConfig>>,
    stop: watch::Receiver<bool>,
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
        tokio::spawn(http::serve(listener, tls, Arc::clone(&api), stop.clone()));
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
    let _ = inputs.try_send(Input::HandOver);
    let other = leadership.wait_for(|(now, _)| !now.leads && now.leader != 0);
    if tokio::time::timeout(election, other).await.is_err() {
        tracing::warn!("no other member has taken the leadership over");
    }
}
