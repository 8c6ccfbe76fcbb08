//! The demo's steps, in the order of the tutorial: certificates, stores, network configuration, overlay,
//! containers. What then shows that it works is in [`super::traffic`].

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use pki::cluster::{self, ClusterSpec};
use pki::disk;
use pki::key::{KeySpec, RsaSize};
use store::client::{Client, Config, GetOptions, PutOptions, TlsFiles};

use super::control::{FromStage, Plan};
use super::daemon::{Daemon, clean_command, stop_all, wait_ready};
use super::fabric::Namespace;
use super::lab::Lab;
use super::report::Reporter;
use super::topology::{
    Attachment, CONFIG_KEY, HOSTS, Host, NETWORK_CONFIG, Paths, endpoints, overlayd_args, store_args,
};

/// Time for all programs of a kind to become ready; they take well under a second each.
const READY_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for the programs to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// Time for one answer of the store.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// A demo as far as it has come.
#[derive(Debug)]
pub(crate) struct Demo {
    plan: Plan,
    paths: Paths,
    pub(super) reporter: Reporter,
    stores: Vec<Daemon>,
    overlayds: Vec<Daemon>,
    // Last, so that the programs above end before their namespaces do.
    pub(super) lab: Lab,
}

impl Demo {
    /// Builds the network; `announce` is told of the namespaces as soon as they exist.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub(crate) fn begin(
        plan: Plan,
        reporter: &Reporter,
        announce: impl FnOnce(&FromStage) -> Result<()>,
    ) -> Result<Self> {
        let paths = Paths::new(&plan.work_dir);
        let lab =
            reporter.step("three hosts and three containers: network namespaces and a bridge", || {
                let lab = Lab::build()?;
                announce(&FromStage::Holding {
                    networks: lab.held()?,
                    pid_namespace: fs::metadata("/proc/self/ns/pid")?.ino(),
                })?;
                for site in &lab.sites {
                    reporter.detail(&format!("{}  {}", site.host.name, site.host.cidr()));
                }
                Ok(lab)
            })?;
        Ok(Self { plan, paths, reporter: reporter.clone(), stores: Vec::new(), overlayds: Vec::new(), lab })
    }

    /// Everything from the certificates to the last packet; the containers' addresses.
    ///
    /// # Errors
    /// The first step that fails; it has been printed.
    pub(crate) fn run(&mut self) -> Result<Vec<Ipv4Addr>> {
        let reporter = self.reporter.clone();
        reporter.step("certificates: a CA, the stores' and the clients'", || self.certificates())?;
        reporter.step("three stores, TLS among themselves and to clients", || self.start_stores())?;
        reporter.step("the network configuration", || quoting(self.configure_network(), &self.stores))?;
        let masquerade = self.masquerade_tool();
        reporter.step("overlayd on every host", || self.start_overlayds(&masquerade))?;
        let attachments =
            reporter.step("a container behind docker0 on every host", || self.attach_containers())?;
        reporter.step("cli health", || quoting(self.health(), &self.stores))?;
        reporter.step("cli ping-mesh: every node to every other over the overlay", || {
            quoting(self.mesh(), &self.overlayds)
        })?;
        reporter.step("ping from container to container, with the longest packets that fit", || {
            quoting(self.ping_containers(&attachments), &self.overlayds)
        })?;
        reporter.step("TCP from container to container, 1 MiB there and back", || {
            quoting(self.tcp(&attachments), &self.overlayds)
        })?;
        match masquerade {
            Ok(_) => {
                reporter.step("from the containers to the outside, masqueraded", || {
                    quoting(self.ping_outside(), &self.overlayds)
                })?;
            }
            Err(why) => reporter.detail(&format!("skipped: masquerading to the outside, as {why}")),
        }
        Ok(attachments.iter().map(|attachment| attachment.container().address).collect())
    }

    /// Ends the programs in good order.
    ///
    /// # Errors
    /// When one has ended before, does not end in time or ends with a failure.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut complaints = stop_all(&mut self.overlayds, STOP_TIMEOUT);
        complaints.extend(stop_all(&mut self.stores, STOP_TIMEOUT));
        ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
        Ok(())
    }

    fn certificates(&self) -> Result<()> {
        let spec = ClusterSpec {
            hosts: HOSTS.iter().map(|host| pki::host::Host::Ip(host.address.into())).collect(),
            key: KeySpec::Rsa(RsaSize::Bits2048),
            expiry: cluster::EXPIRY,
        };
        let now = time::OffsetDateTime::now_utc();
        let (ca, authority) = cluster::make_ca(&spec, now)?;
        let leaves = cluster::make_leaves(&spec, &authority, now)?;
        let dir = self.paths.certificates();
        make_dir(&dir)?;
        let files: Vec<_> =
            std::iter::once(&ca).chain(&leaves).flat_map(|identity| identity.files(&dir)).collect();
        disk::write_all(&files, false)?;
        let names: Vec<&str> = leaves.iter().map(|identity| identity.name).collect();
        self.reporter.detail(&format!("{}: ca, {}", dir.display(), names.join(", ")));
        Ok(())
    }

    fn start_stores(&mut self) -> Result<()> {
        make_dir(&self.paths.logs())?;
        for site in &self.lab.sites {
            let args = store_args(&site.host, &self.paths);
            let data = self.paths.data(&site.host);
            let parent = data.parent().unwrap_or(&data);
            make_dir(parent)?;
            self.trace_command(site.host.name, &self.plan.store, &args);
            let name = format!("store-{}", site.host.member);
            self.stores.push(Daemon::start(&name, &site.net, &self.plan.store, &args, &self.paths)?);
        }
        let reporter = self.reporter.clone();
        wait_ready(&mut self.stores, READY_TIMEOUT, |name| reporter.detail(&format!("{name} is ready")))
    }

    fn configure_network(&self) -> Result<()> {
        let (first, last) = (&self.lab.sites[0], &self.lab.sites[HOSTS.len() - 1]);
        let options = PutOptions { value: Some(NETWORK_CONFIG.to_owned()), ..PutOptions::default() };
        self.with_client(&first.net, &first.host, async |client| {
            Ok(client.put(CONFIG_KEY, options).await.map(drop)?)
        })
        .with_context(|| format!("set {CONFIG_KEY} at {}", first.host.client_url()))?;
        let read = self
            .with_client(&last.net, &last.host, async |client| {
                Ok(client.get(CONFIG_KEY, GetOptions { quorum: true, ..GetOptions::default() }).await?)
            })
            .with_context(|| format!("read {CONFIG_KEY} back at {}", last.host.client_url()))?;
        let value = read.node.and_then(|node| node.value);
        ensure!(
            value.as_deref() == Some(NETWORK_CONFIG),
            "{CONFIG_KEY} was set at {} but reads {value:?} at {}",
            first.host.client_url(),
            last.host.client_url()
        );
        self.reporter.detail(&format!("{CONFIG_KEY} = {NETWORK_CONFIG}"));
        Ok(())
    }

    /// Which packet filter program works here, or why overlayd has to do without masquerading.
    fn masquerade_tool(&self) -> Result<&'static str, String> {
        let mut refusals = Vec::new();
        for (program, args) in [("iptables", ["-t", "nat", "-S"]), ("nft", ["-a", "list", "tables"])] {
            let args = args.map(String::from);
            match run_in(&self.lab.sites[0].net, &mut clean_command(Path::new(program), &args)) {
                Ok(output) if output.status.success() => return Ok(program),
                Ok(output) => {
                    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                    refusals.push(format!("{program} does not work here ({text})"));
                }
                Err(_) => refusals.push(format!("{program} is not found in PATH")),
            }
        }
        Err(refusals.join(" and "))
    }

    fn start_overlayds(&mut self, masquerade: &Result<&'static str, String>) -> Result<()> {
        if let Err(why) = masquerade {
            self.reporter.detail(&format!("without --ip-masq, as {why}"));
        }
        for site in &self.lab.sites {
            let args = overlayd_args(&site.host, &self.paths, masquerade.is_ok(), self.plan.datapath);
            self.trace_command(site.host.name, &self.plan.overlayd, &args);
            let name = format!("overlayd-{}", site.host.name);
            self.overlayds.push(Daemon::start(&name, &site.net, &self.plan.overlayd, &args, &self.paths)?);
        }
        wait_ready(&mut self.overlayds, READY_TIMEOUT, |_| ())?;
        self.check_stores()
    }

    fn attach_containers(&self) -> Result<Vec<Attachment>> {
        let mut attachments = Vec::new();
        for site in &self.lab.sites {
            let file = self.paths.subnet_env(&site.host);
            let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
            let attachment = Attachment::parse(&text).with_context(|| format!("{}", file.display()))?;
            site.attach(&attachment)?;
            self.reporter.detail(&format!(
                "{}  docker0 {}  mtu {}  {} {}",
                site.host.name,
                attachment.bridge,
                attachment.mtu,
                site.container.name(),
                attachment.container()
            ));
            attachments.push(attachment);
        }
        Ok(attachments)
    }

    fn check_stores(&mut self) -> Result<()> {
        self.stores.iter_mut().try_for_each(Daemon::check_alive)
    }

    /// `cli COMMAND` with the options that reach the stores.
    pub(super) fn store_options(&self, command: &str) -> Vec<String> {
        vec![
            command.to_owned(),
            format!("--endpoints={}", endpoints().join(",")),
            format!("--ca-file={}", self.paths.ca().display()),
            format!("--cert-file={}", self.paths.certificate("admin").display()),
            format!("--key-file={}", self.paths.key("admin").display()),
        ]
    }

    /// Runs this program with other arguments; its standard output, or an error with all that it said.
    pub(super) fn run_cli(&self, namespace: &Namespace, args: &[String]) -> Result<String> {
        self.trace_command(namespace.name(), &self.plan.cli, args);
        let output = run_in(namespace, &mut clean_command(&self.plan.cli, args))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let said = format!("{stdout}{stderr}");
            bail!("`cli {}` ended with {}\n{}", args.join(" "), output.status, said.trim_end());
        }
        Ok(stdout)
    }

    fn with_client<T: Send>(
        &self,
        namespace: &Namespace,
        host: &Host,
        work: impl AsyncFnOnce(Client) -> Result<T> + Send,
    ) -> Result<T> {
        let tls = TlsFiles {
            ca: Some(self.paths.ca()),
            cert: Some(self.paths.certificate("admin")),
            key: Some(self.paths.key("admin")),
        };
        let config = Config {
            endpoints: vec![host.client_url()],
            tls,
            request_timeout: Some(STORE_TIMEOUT),
            ..Config::default()
        };
        namespace.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { work(Client::new(config)?).await })
        })?
    }

    fn trace_command(&self, place: &str, program: &Path, args: &[String]) {
        let program = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
        self.reporter.trace(&format!("{place}$ {program} {}", args.join(" ")));
    }
}

/// Adds the ends of the logs of those who may be at fault to an error that does not quote one yet.
/// Makes a directory in the demo's, and never that one: when something else has removed it, the demo is over, and nothing
/// must come to be after that.
fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir(dir).with_context(|| format!("{}", dir.display()))
}

fn quoting<T>(result: Result<T>, suspects: &[Daemon]) -> Result<T> {
    result.map_err(|err| {
        let logs: Vec<String> = suspects.iter().map(Daemon::log_tail).collect();
        anyhow!("{err:#}\n{}", logs.join("\n"))
    })
}

/// Runs a program inside `namespace` to its end.
fn run_in(namespace: &Namespace, command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    // A group of its own, as the daemons have: Ctrl-C is for the demo.
    command.process_group(0);
    namespace.run(|| command.output())?.with_context(|| format!("cannot run {program}"))
}
