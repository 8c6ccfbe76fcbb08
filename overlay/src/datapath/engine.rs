//! The running data plane: its worker threads, from start to stop.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::{error, info, warn};

use super::capture::Capture;
use super::counters::Counters;
use super::decap::DecapSettings;
use super::encap::EncapSettings;
use super::io::Sockets;
use super::table::Shared;
use super::tap::Tap;
use super::thread::Thread;
use super::wait::{EventFd, pin_this_thread};
use super::worker::{Common, Worker};
use crate::types::{Mtu, Vni, VtepMac};

/// Datagrams that one send may carry: `UDP_MAX_SEGMENTS` of kernels before 6.9.
const SEGMENTS: u16 = 64;

/// How the engine works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The network.
    pub vni: Vni,
    /// The peers' UDP port.
    pub port: u16,
    /// The device's hardware address.
    pub mac: VtepMac,
    /// The device's MTU.
    pub mtu: Mtu,
    /// The most time a worker looks for packets before it sleeps; zero means never.
    pub spin: Duration,
    /// CPUs for the workers in turn; empty leaves them to the scheduler.
    pub cpus: Vec<usize>,
    /// Whether frames must come from a known VTEP's hardware address and that VTEP's underlay address.
    pub source_check: bool,
    /// Whether the sockets cut sends (`UDP_SEGMENT`).
    pub cut_sends: bool,
    /// Whether the TAP takes UDP super-frames.
    pub udp_super_frames: bool,
}

/// One queue of the device and its sockets; one worker each.
#[derive(Debug)]
pub struct Queue {
    /// The device's side.
    pub tap: Tap,
    /// The underlay's side.
    pub sockets: Sockets,
}

/// A running data plane. Dropping it stops and joins the workers; the device stays.
pub struct Engine {
    workers: Vec<Handle>,
    stop: Arc<AtomicBool>,
    cuts: Arc<AtomicBool>,
}

struct Handle {
    thread: Thread,
    wake: Arc<EventFd>,
    counters: Arc<Counters>,
}

impl Engine {
    /// Starts a worker for each queue.
    ///
    /// # Errors
    /// No threads or file descriptors are left.
    pub fn start(
        settings: &Settings,
        queues: Vec<Queue>,
        table: &Arc<Shared>,
        capture: &Arc<Capture>,
    ) -> io::Result<Engine> {
        let mut engine =
            Engine { workers: Vec::with_capacity(queues.len()), stop: Arc::default(), cuts: Arc::default() };
        for (number, queue) in queues.into_iter().enumerate() {
            let common = Common {
                table: table.clone(),
                capture: capture.clone(),
                stop: engine.stop.clone(),
                cuts: engine.cuts.clone(),
            };
            let (counters, wake) = (Arc::new(Counters::default()), Arc::new(EventFd::new()?));
            let cpu = settings.cpus.get(number % settings.cpus.len().max(1)).copied();
            let encap = EncapSettings {
                vni: settings.vni,
                mtu: settings.mtu,
                mac: settings.mac,
                sockets: u32::try_from(queue.sockets.transmit.len()).unwrap_or(1).max(1),
                segments: if settings.cut_sends { SEGMENTS } else { 1 },
                inject: queue.sockets.injects(),
            };
            let decap = DecapSettings {
                vni: settings.vni,
                mtu: settings.mtu,
                mac: settings.mac,
                source_check: settings.source_check,
                udp_super_frames: settings.udp_super_frames,
            };
            let (spin, port) = (settings.spin, settings.port);
            let shared = (counters.clone(), wake.clone());
            let thread = Thread::start(format!("datapath-{number}"), move || {
                pin(number, cpu);
                // Made here, so that its memory is local to the CPU it runs on.
                let ports = (queue.tap, queue.sockets);
                let worker = Worker::new(ports, encap, decap, (spin, port), common, shared);
                if let Err(error) = worker.run() {
                    error!(worker = number, "the data path's worker stops: {error}");
                }
            })?;
            engine.workers.push(Handle { thread, wake, counters });
        }
        info!(workers = engine.workers.len(), "data path running");
        Ok(engine)
    }

    /// False once a worker gave up, which it does when its device is deleted, or was killed.
    pub fn is_running(&self) -> bool {
        self.workers.iter().all(|worker| worker.thread.is_running())
    }

    /// Whether the kernel has killed a worker, after a fault of its own. What the worker had open stays open, so no
    /// other engine of this process can take its place.
    pub fn was_killed(&self) -> bool {
        self.workers.iter().any(|worker| worker.thread.was_killed())
    }

    /// Whether a worker that sent super-frames whole can do so no more.
    pub fn cuts_again(&self) -> bool {
        self.cuts.load(Ordering::Relaxed)
    }

    /// The counters of each worker.
    pub fn counters(&self) -> Vec<Arc<Counters>> {
        self.workers.iter().map(|worker| worker.counters.clone()).collect()
    }
}

fn pin(worker: usize, cpu: Option<usize>) {
    if let Some(cpu) = cpu
        && let Err(error) = pin_this_thread(cpu)
    {
        warn!(
            worker,
            cpu, "flag -datapath-cpus: the worker cannot run on CPU {cpu}, it runs anywhere: {error}"
        );
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in &self.workers {
            worker.wake.wake();
        }
        // All have been told to end; dropping each waits for it.
    }
}
