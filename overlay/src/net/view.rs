//! What the status server sees of a data path: its owner changes it, the server looks.

#![expect(
    clippy::disallowed_methods,
    reason = "a shell: it reads the clock to say for how long it has counted"
)]

use std::fs;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::config::DatapathOptions;
use crate::datapath::capture::Capture;
use crate::datapath::counters::{Drop, Snapshot};
use crate::datapath::engine::Engine;
use crate::datapath::status::{self, Feature, Kind, Report, Source, TCP_INJECT};
use crate::datapath::table::{Shared, Table};
use crate::plan::LinkSpec;
use crate::types::{Subnet, Vni};

/// What there is to say of any data path.
pub(super) struct View(Mutex<Report>);

impl View {
    /// Of a data path whose device is `link`.
    pub(super) fn new(kind: Kind, link: &LinkSpec, vni: Vni, port: u16, underlay: Ipv4Addr) -> Self {
        Self(Mutex::new(Report {
            datapath: kind,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: link.name.clone(),
            mac: link.mac.to_string(),
            mtu: link.mtu.get(),
            vni: vni.get(),
            port,
            underlay,
            subnet: Subnet::ANY,
            peers: 0,
            engine: None,
        }))
    }

    pub(super) fn set_subnet(&self, subnet: Subnet) {
        lock(&self.0).subnet = subnet;
    }

    pub(super) fn set_peers(&self, peers: usize) {
        lock(&self.0).peers = peers;
    }
}

impl Source for View {
    fn report(&self) -> Report {
        lock(&self.0).clone()
    }

    fn capture(&self) -> Option<Arc<Capture>> {
        None
    }
}

/// What there is to say of our own, with everything that outlives a single engine.
pub(super) struct RustView {
    pub(super) view: View,
    pub(super) table: Arc<Shared>,
    pub(super) capture: Arc<Capture>,
    settings: status::Settings,
    since: Instant,
    workers: Mutex<Workers>,
}

/// The engine, while there is one, and what earlier ones counted.
#[derive(Default)]
struct Workers {
    engine: Option<Engine>,
    features: Vec<Feature>,
    past: Vec<Snapshot>,
    unread: Unread,
}

/// Packets that the device dropped because nobody had read those before them in time.
#[derive(Default)]
struct Unread {
    /// All that there were since the start.
    sum: u64,
    /// What the kernel's counter stood at.
    last: u64,
}

impl Unread {
    /// Takes in what the counter stands at now. It begins anew with a device that is made anew.
    fn update(&mut self, now: u64) -> u64 {
        self.sum += now.checked_sub(self.last).unwrap_or(now);
        self.last = now;
        self.sum
    }
}

impl Workers {
    /// Says of the feature that it was lost.
    fn inject_no_more(&mut self) {
        for feature in self.features.iter_mut().filter(|feature| feature.name == TCP_INJECT && feature.on) {
            *feature = Feature::new(TCP_INJECT, false, "the device took no more: see the log");
        }
    }

    fn counted(&self) -> Vec<Snapshot> {
        let mut all = self.past.clone();
        let counters = self.engine.as_ref().map(Engine::counters).unwrap_or_default();
        all.resize(all.len().max(counters.len()), Snapshot::default());
        for (sum, counters) in all.iter_mut().zip(counters) {
            sum.add(&counters.snapshot());
        }
        all
    }
}

impl RustView {
    /// Without an engine, and with an empty table.
    pub(super) fn new(view: View, options: &DatapathOptions) -> Self {
        // Of a device that was there before, what it has dropped until now is not ours.
        let unread = Unread { sum: 0, last: unread(&view.report().device).unwrap_or(0) };
        Self {
            view,
            table: Arc::new(Shared::new(Table::from_entries([]))),
            capture: Arc::new(Capture::new()),
            settings: status::Settings {
                queues: options.queues,
                spin_us: u64::try_from(options.spin.as_micros()).unwrap_or(u64::MAX),
                cpus: options.cpus.clone(),
                source_check: options.source_check,
                inject: options.inject,
            },
            since: Instant::now(),
            workers: Mutex::new(Workers { unread, ..Workers::default() }),
        }
    }

    /// Takes over a running engine.
    pub(super) fn start(&self, engine: Engine, features: Vec<Feature>) {
        let mut workers = lock(&self.workers);
        (workers.engine, workers.features) = (Some(engine), features);
    }

    /// Stops the engine, if there is one; it has ended when this returns. What it counted stays.
    pub(super) fn stop(&self) {
        let mut workers = lock(&self.workers);
        workers.past = workers.counted();
        workers.engine = None;
    }

    /// Whether there is an engine and none of its workers has given up.
    pub(super) fn is_running(&self) -> bool {
        lock(&self.workers).engine.as_ref().is_some_and(Engine::is_running)
    }

    /// See [`Engine::was_killed`].
    pub(super) fn was_killed(&self) -> bool {
        lock(&self.workers).engine.as_ref().is_some_and(Engine::was_killed)
    }
}

impl Source for RustView {
    fn report(&self) -> Report {
        let view = self.view.report();
        let (features, counted, unread) = {
            let mut workers = lock(&self.workers);
            if workers.engine.as_ref().is_some_and(Engine::cuts_again) {
                workers.inject_no_more();
            }
            let last = workers.unread.last;
            let unread = workers.unread.update(unread(&view.device).unwrap_or(last));
            (workers.features.clone(), workers.counted(), unread)
        };
        let engine = status::Engine {
            running: self.is_running(),
            uptime_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            capturing: self.capture.is_on(),
            settings: self.settings.clone(),
            features,
            ..status::Engine::default()
        };
        let engine = engine.with_workers(counted).with_dropped(Drop::QueueFull, unread);
        Report { engine: Some(engine.with_peers(&self.table.current())), ..view }
    }

    fn capture(&self) -> Option<Arc<Capture>> {
        Some(Arc::clone(&self.capture))
    }
}

/// What the kernel's counter of a device in this thread's network namespace stands at; `None` if there is none.
fn unread(device: &str) -> Option<u64> {
    dropped_by(&fs::read_to_string("/proc/thread-self/net/dev").ok()?, device)
}

/// `name: 8 numbers for what came in, then bytes packets errs drop ...` for what went out.
fn dropped_by(table: &str, device: &str) -> Option<u64> {
    let mut rows = table.lines().filter_map(|line| line.split_once(':'));
    let (_, numbers) = rows.find(|(name, _)| name.trim() == device)?;
    numbers.split_whitespace().nth(8 + 3)?.parse().ok()
}

/// Nothing that panics leaves these half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_row_is_found() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
             flannel.10: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
               flannel.1: 1 2 3 4 5 6 7 8 9 10 11 77 13 14 15 16\n";
        assert_eq!(dropped_by(table, "flannel.1"), Some(77));
        assert_eq!(dropped_by(table, "flannel"), None);
        assert_eq!(dropped_by("", "flannel.1"), None);
    }

    #[test]
    fn a_device_made_anew_counts_from_zero_and_we_go_on() {
        let mut unread = Unread { sum: 0, last: 100 };
        let seen: Vec<u64> = [100, 103, 2, 5].into_iter().map(|now| unread.update(now)).collect();
        assert_eq!(seen, [0, 3, 5, 8]);
    }
}
