//! What the status server sees of a data path: its owner changes it, the server looks.

#![expect(
    clippy::disallowed_methods,
    reason = "a shell: it reads the clock to say for how long it has counted"
)]

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::config::DatapathOptions;
use crate::datapath::capture::Capture;
use crate::datapath::counters::Snapshot;
use crate::datapath::engine::Engine;
use crate::datapath::status::{self, Feature, Kind, Report, Source};
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
}

impl Workers {
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
        Self {
            view,
            table: Arc::new(Shared::new(Table::from_entries([]))),
            capture: Arc::new(Capture::new()),
            settings: status::Settings {
                queues: options.queues,
                spin_us: u64::try_from(options.spin.as_micros()).unwrap_or(u64::MAX),
                cpus: options.cpus.clone(),
                source_check: options.source_check,
            },
            since: Instant::now(),
            workers: Mutex::default(),
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
}

impl Source for RustView {
    fn report(&self) -> Report {
        let (features, counted) = {
            let workers = lock(&self.workers);
            (workers.features.clone(), workers.counted())
        };
        let engine = status::Engine {
            running: self.is_running(),
            uptime_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            capturing: self.capture.is_on(),
            settings: self.settings.clone(),
            features,
            ..status::Engine::default()
        };
        let engine = engine.with_workers(counted).with_peers(&self.table.current());
        Report { engine: Some(engine), ..self.view.report() }
    }

    fn capture(&self) -> Option<Arc<Capture>> {
        Some(Arc::clone(&self.capture))
    }
}

/// Nothing that panics leaves these half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
