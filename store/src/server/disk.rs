//! The data directory: opened and checked, or made at the first start.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use parking_lot::Mutex;

use super::space::{self, Space};
use crate::config::{Config, Url};
use crate::log::engine::EngineLog;
use crate::machine::{Machine, Position};
use crate::membership::{Member, Membership};
use crate::node::{self, CoreError, Misfit};
use crate::state::sled::SledState;
use crate::state::{Identity, StateStore};

/// A data directory, opened and checked.
pub(super) struct Opened {
    /// Who this member is.
    pub(super) identity: Identity,
    /// The applied state.
    pub(super) machine: Machine,
    /// The raft log.
    pub(super) log: EngineLog,
    /// Where the applied state is kept.
    pub(super) state: SledState,
    /// Whether the raft log is still empty: this member has promised nothing yet, or has lost what it promised.
    /// It stays empty until the other members have been asked which.
    pub(super) fresh: bool,
    /// Whether there is room on it.
    pub(super) space: Arc<Mutex<Space>>,
    /// Keeps a second process out.
    pub(super) _lock: nix::fcntl::Flock<fs::File>,
}

/// Opens the data directory, or makes it at the first start.
pub(super) fn open(config: &Config) -> anyhow::Result<Opened> {
    let member_dir = config.data_dir.join("member");
    let log_dir = config.wal_dir.clone().unwrap_or_else(|| member_dir.join("log"));
    let state_dir = member_dir.join("state");
    if member_dir.join("snap").exists() || member_dir.join("wal").exists() {
        bail!(
            "--data-dir: {} was written by etcd, whose files this store cannot read; give it a directory of its own",
            config.data_dir.display()
        );
    }
    make_dirs(&log_dir, if config.wal_dir.is_some() { "wal-dir" } else { "data-dir" })?;
    make_dirs(&state_dir, "data-dir")?;
    let lock = lock(&member_dir)?;
    let space = Arc::new(Mutex::new(Space::open(&log_dir, &state_dir)));
    let mut log = EngineLog::open(&log_dir)?;
    log.when_full(space::when_full(&space));
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
        check_fit(&log, &state, machine.applied)?;
        state.accept();
        tracing::debug!(dir = %config.data_dir.display(), "the initial-* flags are ignored: the data directory knows");
        (identity, machine)
    } else {
        if !log.is_empty() {
            return Err(state.missing("there is a raft log, so this member has been running").into());
        }
        let (identity, machine) = bootstrap(config)?;
        state.replace(identity, &machine.freeze())?;
        (identity, machine)
    };
    for dir in [&member_dir, &config.data_dir] {
        sync_dir(dir, "data-dir")?;
    }
    space.lock().look();
    let fresh = log.is_empty();
    Ok(Opened { identity, machine, log, state, fresh, space, _lock: lock })
}

/// Whether log and applied state belong together, said with the names of files.
fn check_fit(log: &EngineLog, state: &SledState, applied: Position) -> anyhow::Result<()> {
    match node::fit(log, applied) {
        Ok(_) => Ok(()),
        Err(CoreError::Misfit(gap @ Misfit::Gap { .. })) => Err(state.lacking(&gap.to_string()).into()),
        Err(CoreError::Misfit(misfit)) => Err(log.damaged(misfit.to_string()).into()),
        Err(error) => Err(error.into()),
    }
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

/// Makes a directory and its parents, private as etcd's. A new directory is on disk only when the one that
/// holds it is, so that one is synced.
fn make_dirs(dir: &Path, flag: &str) -> anyhow::Result<()> {
    let missing: Vec<&Path> =
        dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("--{flag}: cannot make {}", dir.display()))?;
    missing.into_iter().filter_map(Path::parent).try_for_each(|parent| sync_dir(parent, flag))
}

fn sync_dir(dir: &Path, flag: &str) -> anyhow::Result<()> {
    // The parent of a relative path of one part.
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let synced = fs::File::open(dir).and_then(|file| file.sync_all());
    synced.with_context(|| format!("--{flag}: cannot sync {}", dir.display()))
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::BTreeMap;

    use raft::eraftpb::Entry;

    use super::*;
    use crate::config::Asked;
    use crate::log::LogStore as _;
    use crate::state::Delta;
    use crate::tree::Op;

    fn config(dir: &Path, more: &[&str]) -> Config {
        let mut args = vec!["--name=a".to_owned(), format!("--data-dir={}", dir.join("x/y/data").display())];
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        args.push("--initial-cluster=a=http://localhost:2380,b=http://127.0.0.1:3380".to_owned());
        match Config::read(&args, &BTreeMap::new()).unwrap() {
            Asked::Run(config) => *config,
            _ => unreachable!("nothing else is asked for"),
        }
    }

    #[test]
    fn a_new_directory_stays_fresh_until_the_log_is_started() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &[]);
        let first = open(&config).unwrap();
        assert!(first.fresh);
        let id = first.identity.member_id;
        drop(first);
        // As after a crash while it waited for the others.
        let mut second = open(&config).unwrap();
        assert!(second.fresh && second.identity.member_id == id);
        second.log.reset(second.machine.applied, None).unwrap();
        drop(second);
        assert!(!open(&config).unwrap().fresh);
    }

    #[test]
    fn a_log_directory_that_was_lost_makes_it_fresh_again() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("wal/of/a");
        let config = config(dir.path(), &[&format!("--wal-dir={}", wal.display())]);
        let mut opened = open(&config).unwrap();
        opened.log.reset(opened.machine.applied, None).unwrap();
        drop(opened);
        fs::remove_dir_all(&wal).unwrap();
        assert!(open(&config).unwrap().fresh);
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_image_that_nothing_names_is_kept_and_missed() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &[]);
        stopped(&config, 3);
        let state = dir.path().join("x/y/data/member/state");
        fs::remove_file(state.join("current")).unwrap();
        let left = names(&state);
        for _ in 0..2 {
            let refused = open(&config).err().unwrap().to_string();
            assert!(
                refused.contains("member/state/current: missing although it names the image"),
                "{refused}"
            );
            assert!(refused.contains("there is a raft log") && refused.contains("image-2"), "{refused}");
            assert_eq!(names(&state), left, "a refused start has removed something");
        }
    }

    #[test]
    fn a_first_image_that_was_not_finished_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &[]);
        drop(open(&config).unwrap());
        let state = dir.path().join("x/y/data/member/state");
        fs::remove_file(state.join("current")).unwrap();
        assert!(open(&config).unwrap().fresh);
        assert_eq!(names(&state), ["changes-2", "current", "image-2"]);
    }

    /// An image that the log begins after, for its changes are damaged, is refused with the byte, and is left as it is.
    #[test]
    fn changes_that_the_log_no_longer_has_are_not_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &[]);
        stopped(&config, 3);
        let mut opened = open(&config).unwrap();
        for value in ["one", "two", "three"] {
            let since = opened.machine.tree.index();
            let (path, value) = ("/1/k".to_owned(), value.to_owned());
            let op = Op::Set { path, dir: false, value, expires_ns: None, refresh: false };
            opened.machine.tree.apply(&op).unwrap();
            opened.machine.applied.index += 1;
            let (index, term) = (opened.machine.applied.index, 1);
            opened.log.append(vec![Entry { index, term, ..Entry::default() }], None, true).unwrap();
            opened.state.write(&Delta::take(&mut opened.machine, since)).unwrap();
        }
        let applied = opened.machine.applied.index;
        drop(opened);
        let changes = dir.path().join("x/y/data/member/state/changes-2");
        let mut bytes = fs::read(&changes).unwrap();
        let second = bytes.len() / 3 + 40;
        bytes[second] ^= 1;
        fs::write(&changes, &bytes).unwrap();
        // The log holds it all: nothing is lost.
        let mut opened = open(&config).unwrap();
        assert_eq!(opened.machine.applied.index, applied - 2);
        opened.log.compact(applied - 1).unwrap();
        drop(opened);
        for _ in 0..2 {
            let refused = open(&config).err().unwrap().to_string();
            let names = |text: &str| assert!(refused.contains(text), "{text}: {refused}");
            names("member/state/changes-2: the record at byte ");
            names("is damaged, a whole one follows at byte ");
            names(&format!("the raft log begins after entry {}", applied - 1));
            assert!(fs::read(&changes).unwrap() == bytes, "a refused start has cut it");
        }
    }

    /// A member that has applied `entries` entries of a log of its own, each its own record, and has then stopped in good
    /// order.
    fn stopped(config: &Config, entries: u64) {
        let mut opened = open(config).unwrap();
        opened.log.reset(opened.machine.applied, None).unwrap();
        let first = opened.machine.applied.index + 1;
        for index in first..first + entries {
            let entry = Entry { index, term: 1, data: vec![7; 100].into(), ..Entry::default() };
            opened.log.append(vec![entry], None, true).unwrap();
        }
        opened.machine.applied.index += entries;
        opened.state.replace(opened.identity, &opened.machine.freeze()).unwrap();
    }

    #[test]
    fn a_log_that_has_lost_its_end_is_no_snapshot_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &[]);
        stopped(&config, 40);
        let log = dir.path().join("x/y/data/member/log/0000000000000001.raftlog");
        let mut bytes = fs::read(&log).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        // Where sectors begin, so that it looks like a write that was cut short.
        bytes[end / 512 * 512 - 1024..].fill(0);
        fs::write(&log, bytes).unwrap();
        for start in ["first", "second"] {
            let refused = open(&config).err().expect(start).to_string();
            let names = |text: &str| assert!(refused.contains(text), "the {start} start: {refused}");
            names("0000000000000001.raftlog is damaged at byte ");
            names("it has held entry 42, which was applied");
            names("Otherwise leave this member stopped");
        }
    }

    #[test]
    fn a_second_process_is_kept_out_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &[]);
        let first = open(&config).unwrap();
        let refused = open(&config).err().unwrap().to_string();
        assert!(refused.contains("another process uses") && refused.contains("x/y/data/member"), "{refused}");
        drop(first);
        assert!(open(&config).is_ok());
    }
}
