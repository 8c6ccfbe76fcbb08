//! A demo that stays up: the record of it, names for its namespaces, how to look around, and `--down`.

#![expect(clippy::disallowed_methods, reason = "a shell: it reads the clock")]

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde::{Deserialize, Serialize};

use super::control::{Held, Plan};
use super::leftovers;
use super::privilege::Privilege;
use super::report::Reporter;
use super::topology::{Paths, endpoints};

/// Where `ip netns` looks for names.
const NAMES_DIR: &str = "/run/netns";
/// Time for the stage to end its programs and itself.
const DOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// A demo that was left up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The stage's process id.
    pid: u32,
    /// When it started, in clock ticks since boot: tells it from a later process of the same id.
    start_ticks: u64,
    work_dir: PathBuf,
    /// This program, for the instructions.
    cli: PathBuf,
    networks: Vec<Held>,
    /// The containers' addresses, in the order of the hosts.
    containers: Vec<Ipv4Addr>,
    /// Mounted names of the networks; none without root.
    names: Vec<PathBuf>,
    user_namespace: bool,
    /// The file this record is in.
    #[serde(skip)]
    file: PathBuf,
}

/// Where the record of a kept demo is. One at a time per user.
fn record_path() -> PathBuf {
    if geteuid().is_root() {
        return PathBuf::from("/run/weft-demo.json");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(dir) if dir.is_dir() => dir.join("weft-demo.json"),
        _ => std::env::temp_dir().join(format!("weft-demo-{}.json", geteuid())),
    }
}

/// Sees that no other demo is up by `--keep`; where to record this one. To be called before
/// [`super::privilege::enter`], which may change who the process thinks it is.
///
/// # Errors
/// When one is, or the record of an earlier one is still there.
pub(crate) fn claim() -> Result<PathBuf> {
    let path = record_path();
    ensure!(
        !path.exists(),
        "a demo is still up ({}): take it down first with `cli demo --down`",
        path.display()
    );
    Ok(path)
}

/// Writes down in `file` that the stage `pid` stays up and, as root, gives its networks names for `ip netns`.
///
/// # Errors
/// When the record or a name cannot be made; nothing of them is left then.
pub(crate) fn record(
    file: &Path,
    pid: u32,
    plan: &Plan,
    networks: &[Held],
    containers: Vec<Ipv4Addr>,
    privilege: Privilege,
) -> Result<Kept> {
    let user_namespace = privilege == Privilege::UserNamespace;
    let start_ticks = start_ticks(pid).context("the demo's inner process is gone")?;
    let names =
        if user_namespace { Vec::new() } else { networks.iter().map(|held| name_of(&held.name)).collect() };
    let kept = Kept {
        pid,
        start_ticks,
        work_dir: plan.work_dir.clone(),
        cli: plan.cli.clone(),
        networks: networks.to_vec(),
        containers,
        names,
        user_namespace,
        file: file.to_owned(),
    };
    let mut output = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| format!("{}: cannot record the demo", file.display()))?;
    output.write_all(&serde_json::to_vec_pretty(&kept)?)?;
    if let Err(err) = mount_names(&kept) {
        forget(&kept)?;
        return Err(err);
    }
    Ok(kept)
}

/// Takes the names and the record away.
///
/// # Errors
/// What could not be removed, after everything else was.
pub(crate) fn forget(kept: &Kept) -> Result<()> {
    let mut complaints = Vec::new();
    for name in &kept.names {
        complaints.extend(unname(name));
    }
    complaints.extend(remove(&kept.file));
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}

/// Takes a name away; what went wrong.
fn unname(name: &Path) -> Option<String> {
    // Not mounted when it was never made or already taken away; the file is what counts.
    let _ = umount2(name, MntFlags::MNT_DETACH);
    remove(name)
}

fn remove(file: &Path) -> Option<String> {
    match fs::remove_file(file) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Some(format!("{}: {err}", file.display())),
        _ => None,
    }
}

fn name_of(network: &str) -> PathBuf {
    Path::new(NAMES_DIR).join(format!("weft-demo-{network}"))
}

/// Makes the names as `ip netns` does: a file for each, with the namespace mounted over it.
fn mount_names(kept: &Kept) -> Result<()> {
    if kept.names.is_empty() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(NAMES_DIR).context(NAMES_DIR)?;
    for (name, held) in kept.names.iter().zip(&kept.networks) {
        // There was no record, so a name that is there belongs to no demo: its record was removed by hand.
        if let Some(why) = unname(name) {
            bail!("{why}");
        }
        File::create_new(name).with_context(|| format!("{}", name.display()))?;
        let source = PathBuf::from(format!("/proc/{}/fd/{}", kept.pid, held.fd));
        mount(Some(&source), name, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("{}: cannot mount the namespace", name.display()))?;
    }
    Ok(())
}

/// How to look around in a kept demo, for its user.
pub(crate) fn instructions(kept: &Kept) -> String {
    let paths = Paths::new(&kept.work_dir);
    let enter = |name: &str| {
        let fd = kept.networks.iter().find(|held| held.name == name).map_or(0, |held| held.fd);
        if kept.user_namespace {
            let proc = format!("/proc/{}", kept.pid);
            format!("nsenter --user={proc}/ns/user --preserve-credentials --net={proc}/fd/{fd}")
        } else {
            format!("ip netns exec weft-demo-{name}")
        }
    };
    let (host, container) = (enter("host1"), enter("container1"));
    let other = kept.containers.last().map_or_else(String::new, ToString::to_string);
    let store = format!(
        "--endpoints={} --ca-file={} --cert-file={} --key-file={}",
        endpoints().join(","),
        paths.ca().display(),
        paths.certificate("admin").display(),
        paths.key("admin").display()
    );
    format!(
        "\nThe cluster stays up: namespaces fabric, host1 to host3, container1 to container3 (process {pid}).\n\
         Look around:\n  \
           {host} ip addr\n  \
           {host} ip route\n  \
           {container} ping {other}\n  \
           {host} {cli} health {store}\n  \
           {host} {cli} ping-mesh {store}\n  \
           less {logs}/*\n\
         Take it down:\n  \
           {cli} demo --down",
        cli = kept.cli.display(),
        pid = kept.pid,
        logs = paths.logs().display(),
    )
}

/// Takes down what `--keep` left up.
///
/// # Errors
/// When nothing is up, or something of it cannot be removed.
pub(crate) fn down() -> Result<ExitCode> {
    let reporter = Reporter::new(false);
    let kept = read(&record_path())?;
    if is_alive(&kept) {
        end(&kept)?;
    } else {
        reporter.line(&format!("Process {} had ended before.", kept.pid));
    }
    let mut complaints = Vec::new();
    if let Err(err) = fs::remove_dir_all(&kept.work_dir)
        && err.kind() != io::ErrorKind::NotFound
    {
        complaints.push(format!("{}: {err}", kept.work_dir.display()));
    }
    if let Err(err) = forget(&kept) {
        complaints.push(format!("{err:#}"));
    }
    let networks: BTreeSet<u64> = kept.networks.iter().map(|held| held.inode).collect();
    complaints.extend(leftovers::find(&networks, &kept.work_dir));
    ensure!(complaints.is_empty(), "the demo has left behind:\n{}", complaints.join("\n"));
    reporter.line(&format!(
        "Down in {:.1} s. Nothing is left: no process, namespace, device or file.",
        reporter.elapsed().as_secs_f64()
    ));
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Kept> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            bail!("no demo is up ({} does not exist); `cli demo --keep` leaves one up", path.display())
        }
        Err(err) => return Err(err).with_context(|| format!("{}", path.display())),
    };
    // The directory may be open to all: a record by someone else would have us kill and remove what they name.
    ensure!(file.metadata()?.uid() == geteuid().as_raw(), "{} belongs to another user", path.display());
    let mut kept: Kept = serde_json::from_reader(file).with_context(|| format!("{}", path.display()))?;
    path.clone_into(&mut kept.file);
    Ok(kept)
}

/// Asks the stage to end, then makes it.
fn end(kept: &Kept) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(kept.pid).context("process id")?);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        kill(pid, signal).with_context(|| format!("{signal} to process {pid}"))?;
        let deadline = Instant::now() + DOWN_TIMEOUT;
        while Instant::now() < deadline {
            if !is_alive(kept) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    bail!("process {pid} does not end, not even by SIGKILL")
}

fn is_alive(kept: &Kept) -> bool {
    start_ticks(kept.pid) == Some(kept.start_ticks)
}

/// When the process started, in clock ticks since boot; none for a process that has ended.
fn start_ticks(pid: u32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The start time in the text of `/proc/PID/stat` (proc(5), field 22); none for a zombie (field 3).
fn parse_stat(text: &str) -> Option<u64> {
    // The name in parentheses, field 2, may hold blanks and parentheses itself.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn stat(name: &str, state: &str) -> String {
        let rest: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        format!("77 ({name}) {state} {}\n", rest.join(" "))
    }

    #[test]
    fn the_start_time_is_field_22_whatever_the_name() {
        assert_eq!(parse_stat(&stat("cli", "S")), Some(22));
        assert_eq!(parse_stat(&stat("a) Z 9 (b", "S")), Some(22));
        assert_eq!(parse_stat(&stat("cli", "Z")), None);
        assert_eq!(parse_stat(""), None);
        assert!(start_ticks(std::process::id()).is_some());
    }

    fn held(name: &str, fd: i32) -> Held {
        Held { name: name.into(), fd, inode: 1 }
    }

    fn kept(user_namespace: bool) -> Kept {
        Kept {
            pid: 77,
            start_ticks: 1,
            work_dir: "/tmp/weft-demo-x".into(),
            cli: "/opt/weft/cli".into(),
            containers: vec![Ipv4Addr::new(172, 17, 9, 2), Ipv4Addr::new(172, 17, 71, 2)],
            networks: vec![held("host1", 9), held("container1", 11)],
            names: Vec::new(),
            user_namespace,
            file: PathBuf::new(),
        }
    }

    #[test]
    fn the_way_in_fits_the_privilege() {
        let root = instructions(&kept(false));
        assert!(root.contains("ip netns exec weft-demo-host1 ip addr"), "{root}");
        assert!(root.contains("ip netns exec weft-demo-container1 ping 172.17.71.2"), "{root}");
        assert!(root.contains("/opt/weft/cli demo --down"), "{root}");
        let user = instructions(&kept(true));
        assert!(user.contains("--user=/proc/77/ns/user --preserve-credentials --net=/proc/77/fd/9 ip addr"));
    }

    #[test]
    fn a_record_is_read_back_and_a_missing_one_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("record.json");
        let mut written = kept(true);
        fs::write(&file, serde_json::to_vec(&written).unwrap()).unwrap();
        written.file.clone_from(&file);
        assert_eq!(read(&file).unwrap(), written);
        let missing = format!("{:#}", read(&dir.path().join("none")).unwrap_err());
        assert!(missing.contains("no demo is up"), "{missing}");
    }
}
