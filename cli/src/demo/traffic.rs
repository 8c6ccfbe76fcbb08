//! What shows that the cluster works: health, the mesh, and packets between containers.

#![expect(clippy::disallowed_methods, reason = "a shell: it reads the clock")]

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::fabric::Namespace;
use super::probe::{Echoes, ping, tcp_exchange};
use super::steps::Demo;
use super::topology::{Attachment, GATEWAY};

/// Time for the overlay to carry the first packet once every overlayd is ready: a lease has to reach all others.
const TRAFFIC_TIMEOUT: Duration = Duration::from_secs(10);
const ECHO_COUNT: u16 = 3;
const ECHO_TIMEOUT: Duration = Duration::from_secs(1);
const TCP_BYTES: usize = 1 << 20;

impl Demo {
    /// What `cli health` says on the first host.
    ///
    /// # Errors
    /// When it does not work in time.
    pub(super) fn health(&self) -> Result<()> {
        let site = &self.lab.sites[0];
        let output = self.run_cli(&site.net, &self.store_options("health"))?;
        self.reporter.detail(&output);
        Ok(())
    }

    /// What `cli ping-mesh` says on the first host, once every node reaches every other.
    ///
    /// # Errors
    /// When it does not work in time.
    pub(super) fn mesh(&self) -> Result<()> {
        let site = &self.lab.sites[0];
        let args = self.store_options("ping-mesh");
        let output = until(TRAFFIC_TIMEOUT, || self.run_cli(&site.net, &args))?;
        self.reporter.detail(&output);
        Ok(())
    }

    /// Pings from every container to every other.
    ///
    /// # Errors
    /// When it does not work in time.
    pub(super) fn ping_containers(&self, attachments: &[Attachment]) -> Result<()> {
        for (from, attachment) in self.lab.sites.iter().zip(attachments) {
            for (to, target) in self.lab.sites.iter().zip(attachments) {
                if from.host == to.host {
                    continue;
                }
                let address = target.container().address;
                let median =
                    ping_until(&from.container, address, attachment.full_echo_len()).with_context(|| {
                        format!("{} to {} ({address})", from.container.name(), to.container.name())
                    })?;
                self.reporter.detail(&format!(
                    "{} {} -> {} {address}  {ECHO_COUNT}/{ECHO_COUNT}  {:.3} ms",
                    from.container.name(),
                    attachment.container().address,
                    to.container.name(),
                    median.as_secs_f64() * 1e3
                ));
            }
        }
        Ok(())
    }

    /// One TCP exchange between the containers that are furthest apart.
    ///
    /// # Errors
    /// When it does not work in time.
    pub(super) fn tcp(&self, attachments: &[Attachment]) -> Result<()> {
        let last = self.lab.sites.len() - 1;
        let (client, server) = (&self.lab.sites[0].container, &self.lab.sites[last].container);
        let address = attachments[last].container().address;
        let took = tcp_exchange(server, client, address, TCP_BYTES, TRAFFIC_TIMEOUT)?;
        let ms = took.as_secs_f64() * 1e3;
        self.reporter.detail(&format!("{} <-> {} {address}  {ms:.1} ms", client.name(), server.name()));
        Ok(())
    }

    /// The fabric has no route to the overlay: only a masqueraded echo request is answered.
    ///
    /// # Errors
    /// When it does not work in time.
    pub(super) fn ping_outside(&self) -> Result<()> {
        for site in &self.lab.sites {
            let median = ping_until(&site.container, GATEWAY.address, 56)
                .with_context(|| format!("{} to {}", site.container.name(), GATEWAY.address))?;
            let ms = median.as_secs_f64() * 1e3;
            self.reporter.detail(&format!(
                "{} -> {}  {ECHO_COUNT}/{ECHO_COUNT}  {ms:.3} ms",
                site.container.name(),
                GATEWAY.address
            ));
        }
        Ok(())
    }
}

/// Pings until a whole series is answered; the median of that series.
fn ping_until(from: &Namespace, target: Ipv4Addr, payload_len: usize) -> Result<Duration> {
    until(TRAFFIC_TIMEOUT, || {
        let echoes: Echoes = from.run(|| ping(target, ECHO_COUNT, payload_len, ECHO_TIMEOUT))??;
        ensure!(
            echoes.complete(),
            "{} of {} echo requests of {payload_len} bytes were answered within {} s",
            echoes.round_trips.len(),
            echoes.sent,
            ECHO_TIMEOUT.as_secs()
        );
        echoes.median().context("no echo request was sent")
    })
}

/// Tries until it works; the last error once `timeout` has passed.
fn until<T>(timeout: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(err) if Instant::now() >= deadline => return Err(err),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}
