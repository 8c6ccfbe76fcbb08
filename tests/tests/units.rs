//! The files for a real installation: systemd accepts them, and they fit the programs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use weft_tests::cluster::Server;
use weft_tests::command;
use weft_tests::fabric::Fabric;
use weft_tests::process::one_at_a_time;
use weft_tests::programs;
use weft_tests::stage::Stage;
use weft_tests::systemd;
use weft_tests::tutorial::install_dir;

/// Where the units say that the programs are.
const PLACE: &str = "/opt/weft/bin/";

fn read(name: &str) -> Result<String> {
    let path = install_dir().join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Copies a unit, with the programs' paths being those of this build: `verify` wants them executable.
fn copy_for_verify(name: &str, to: &Path) -> Result<()> {
    let mut text = read(name)?;
    for (installed, built) in [("store", "store"), ("overlayd", "overlayd"), ("cli", "cli")] {
        let path = programs::ours(built)?;
        text = text.replace(&format!("{PLACE}{installed} "), &format!("{} ", path.display()));
    }
    ensure!(!text.contains(PLACE), "{name}: a program under {PLACE} that we do not build:\n{text}");
    let path = to.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, text)?;
    Ok(())
}

/// `systemd-analyze verify`, which must have nothing to say: an unknown key is only a warning to it.
fn verify(unit: &Path, unit_path: &Path) -> Result<()> {
    let mut analyze = Command::new(programs::tool("systemd-analyze")?);
    // The trailing colon adds the machine's own units, which ours refer to.
    analyze
        .env("SYSTEMD_UNIT_PATH", format!("{}:", unit_path.display()))
        .arg("verify")
        .arg("--man=no")
        .arg(unit);
    let out = command::run(&mut analyze)?;
    out.ok()?;
    ensure!(out.stderr.is_empty() && out.stdout.is_empty(), "systemd-analyze has something to say: {out}");
    Ok(())
}

#[test]
fn systemd_accepts_our_units() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for name in ["store.service", "overlayd.service"] {
        copy_for_verify(name, dir.path())?;
    }
    for name in ["store.service", "overlayd.service"] {
        verify(&dir.path().join(name), dir.path())?;
    }
    Ok(())
}

#[test]
fn systemd_accepts_the_docker_drop_in() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let docker = ["/lib/systemd/system/docker.service", "/usr/lib/systemd/system/docker.service"];
    let docker = docker.iter().find(|p| Path::new(p).is_file());
    let docker = docker.context("docker.service is not installed: run `apt-get install docker.io`")?;
    std::fs::copy(docker, dir.path().join("docker.service"))?;
    let lone = dir.path().join("docker.service");
    copy_for_verify("docker.service.d/weft.conf", dir.path())?;
    copy_for_verify("overlayd.service", dir.path())?;
    verify(&lone, dir.path())
}

#[test]
fn verify_would_notice_a_mistake() -> Result<()> {
    let dir = tempfile::tempdir()?;
    copy_for_verify("store.service", dir.path())?;
    let path = dir.path().join("store.service");
    let text = std::fs::read_to_string(&path)?.replace("Restart=", "Restrat=");
    std::fs::write(&path, text)?;
    let error = verify(&path, dir.path()).err().context("a misspelt key went through")?;
    ensure!(error.to_string().contains("Restrat"), "{error}");
    Ok(())
}

#[test]
fn units_are_supervised_and_know_their_files() -> Result<()> {
    for name in ["store.service", "overlayd.service"] {
        let unit = read(name)?;
        ensure!(systemd::values(&unit, "Type") == ["notify"], "{name}: Type");
        ensure!(systemd::values(&unit, "Restart") == ["on-failure"], "{name}: Restart");
        ensure!(systemd::values(&unit, "LimitNOFILE").len() == 1, "{name}: LimitNOFILE");
        for file in systemd::values(&unit, "EnvironmentFile") {
            let file = file.trim_start_matches('-');
            let shipped = file.rsplit('/').next().context("EnvironmentFile")?;
            // A file that is written at run time is not shipped.
            if !file.starts_with("/run/") {
                let text = read(&format!("{shipped}.env"))?;
                ensure!(!systemd::environment(&text)?.is_empty(), "{shipped}.env is empty");
            }
        }
    }
    // The drop-in gives dockerd what docker-opts leaves, from the file where overlayd.service has it put.
    let drop_in = read("docker.service.d/weft.conf")?;
    let files = systemd::values(&drop_in, "EnvironmentFile");
    let post = systemd::values(&read("overlayd.service")?, "ExecStartPost").join(" ");
    let [file] = &files[..] else { anyhow::bail!("one EnvironmentFile expected: {files:?}") };
    ensure!(post.contains(&format!("-d {file}")), "`{post}` does not write {file}");
    let start = systemd::values(&drop_in, "ExecStart");
    ensure!(start.len() == 2 && start[0].is_empty(), "the drop-in must reset ExecStart first: {start:?}");
    ensure!(start[1].contains("$DOCKER_NETWORK_OPTIONS"), "{start:?}");
    Ok(())
}

/// `docs/install/README.md`, sections 2 to 5, with its files as they are shipped.
#[test]
fn the_shipped_units_bring_a_cluster_up() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let stage = Stage::new(&fabric, Server::Weft)?;
    let (store, overlay) = (read("store.service")?, read("overlayd.service")?);
    let mut units = Vec::new();
    for (n, host) in stage.hosts.iter().enumerate() {
        host.install_weft(n + 1)?;
        units.push(stage.start_unit(n, "store", &store)?);
    }
    for unit in &mut units {
        unit.wait_ready()?;
    }
    stage.write_network_config()?;
    for host in [1, 2] {
        let mut unit = stage.start_unit(host, "overlayd", &overlay)?;
        unit.wait_ready()?;
        units.push(unit);
        let mut post = stage.hosts[host].unit_command(&overlay, "ExecStartPost")?;
        command::run(&mut post)?.ok()?;
        let bip = stage.subnet_env(host).context("subnet.env stays as it was")?.bip;
        let docker = std::fs::read_to_string(stage.hosts[host].file("/run/flannel/docker.env"))?;
        let expected = format!("DOCKER_NETWORK_OPTIONS=\" --bip={bip} --ip-masq=false --mtu=1450\"");
        ensure!(docker.lines().any(|l| l == expected), "no {expected} in {docker}");
    }
    stage.cli(0, &["health"])?.ok()?;
    Ok(())
}
