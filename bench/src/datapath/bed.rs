//! Two pairs of nodes on one underlay and in one overlay, and the turns they take.
//!
//! ```text
//!   fabric: bridge, store
//!     .65 overlayd -datapath=kernel, container      .67 overlayd -datapath=rust, container
//!     .66 overlayd -datapath=kernel, container      .68 overlayd -datapath=rust, container
//! ```

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use weft_tests::fabric::{Container, Fabric, ping};
use weft_tests::flows::Path;
use weft_tests::nodes::{Node, Overlay, overlayd_knows};
use weft_tests::wait::wait_for;

use super::metric::{FLANNEL_UDP_GBIT_PER_SECOND, Measurement, Side};
use super::{cpu, pingpong};
use crate::traffic;

/// The hosts: the kernel pair, then the Rust pair.
pub(super) const HOSTS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(192, 168, 31, 65),
    Ipv4Addr::new(192, 168, 31, 66),
    Ipv4Addr::new(192, 168, 31, 67),
    Ipv4Addr::new(192, 168, 31, 68),
];
const NETWORK_CONFIG: &str = r#"{"Network": "172.17.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const KIB: f64 = 1024.0;

/// Everything that traffic runs through.
pub(super) struct Bed<'f> {
    kernel: Pair<'f>,
    rust: Pair<'f>,
    _overlay: Overlay<'f>,
}

/// Two nodes of a kind with a container on each.
struct Pair<'f> {
    nodes: Vec<Node<'f>>,
    containers: Vec<Container>,
}

impl<'f> Bed<'f> {
    /// Starts the store, four daemons and four containers, and waits until all can reach each other. With
    /// `both_kernel` the Rust pair is a kernel pair as well, which shows how much of a difference is noise.
    ///
    /// # Errors
    /// When something does not start, or overlayd has no data plane of its own.
    pub(super) fn new(fabric: &'f Fabric, both_kernel: bool, rust_flags: &[String]) -> Result<Self> {
        let overlay = Overlay::new(fabric, NETWORK_CONFIG)?;
        let known = overlayd_knows("datapath")?;
        if !known && !both_kernel {
            bail!("this overlayd has no flag -datapath: build one that has");
        }
        let kernel_flags: &[&str] = if known { &["-datapath=kernel"] } else { &[] };
        let mut of_rust = vec!["-datapath=rust"];
        of_rust.extend(rust_flags.iter().map(String::as_str));
        let bed = Self {
            kernel: Pair::new(&overlay, [0, 1], kernel_flags)?,
            rust: Pair::new(&overlay, [2, 3], if both_kernel { kernel_flags } else { &of_rust })?,
            _overlay: overlay,
        };
        for path in [bed.within(Side::Kernel), bed.within(Side::Rust), bed.out(), bed.back()] {
            wait_for("the first echo", Duration::from_secs(15), || ping(path.from, path.address, 56))?;
        }
        Ok(bed)
    }

    fn pair(&mut self, side: Side) -> &mut Pair<'f> {
        match side {
            Side::Kernel => &mut self.kernel,
            Side::Rust => &mut self.rust,
        }
    }

    /// Between the two containers of a pair.
    fn within(&self, side: Side) -> Path<'_> {
        let pair = match side {
            Side::Kernel => &self.kernel,
            Side::Rust => &self.rust,
        };
        between(&pair.containers[0], &pair.containers[1])
    }

    /// From a Rust node's container to a kernel node's.
    fn out(&self) -> Path<'_> {
        between(&self.rust.containers[0], &self.kernel.containers[1])
    }

    /// From a kernel node's container to a Rust node's.
    fn back(&self) -> Path<'_> {
        between(&self.kernel.containers[0], &self.rust.containers[1])
    }

    /// One turn of one pair; the figures by their metric's key.
    ///
    /// # Errors
    /// When no traffic gets through or a daemon is gone.
    pub(super) fn turn(
        &mut self,
        what: Measurement,
        side: Side,
        seconds: u64,
    ) -> Result<Vec<(&'static str, f64)>> {
        let path = self.within(side);
        let stream =
            |path, streams| Ok::<_, anyhow::Error>(traffic::tcp(path, streams, seconds)?.gbit_per_second);
        Ok(match what {
            Measurement::Tcp1 => {
                let speed = stream(path, 1)?;
                vec![("tcp1", speed), ("tcp1_flannel_udp", speed / FLANNEL_UDP_GBIT_PER_SECOND)]
            }
            Measurement::Tcp4 => return self.four_streams(side, seconds),
            Measurement::Tcp16 => vec![("tcp16", stream(path, 16)?)],
            Measurement::Jumbo1 => vec![("jumbo1", stream(path, 1)?)],
            Measurement::Jumbo4 => vec![("jumbo4", stream(path, 4)?)],
            Measurement::Udp64 => vec![("udp64", traffic::udp(path, 64, seconds)?)],
            Measurement::Udp1400 => vec![("udp1400", traffic::udp(path, 1400, seconds)?)],
            Measurement::Ping => vec![("ping", traffic::flood_ping_us(path)?)],
            Measurement::Pingpong => {
                let took = pingpong::run(path, Duration::from_secs(seconds))?;
                vec![("pingpong_p50", took.p50_us), ("pingpong_p99", took.p99_us)]
            }
            Measurement::Interop => match side {
                // The reference of both directions is the kernel pair among itself.
                Side::Kernel => {
                    let speed = stream(path, 1)?;
                    vec![("interop_out", speed), ("interop_in", speed)]
                }
                Side::Rust => {
                    vec![("interop_out", stream(self.out(), 1)?), ("interop_in", stream(self.back(), 1)?)]
                }
            },
            Measurement::Memory => self.memory(side)?,
        })
    }

    fn four_streams(&mut self, side: Side, seconds: u64) -> Result<Vec<(&'static str, f64)>> {
        let (machine, daemons) = (cpu::machine_busy()?, self.pair(side).cpu_time()?);
        let moved = traffic::tcp(self.within(side), 4, seconds)?;
        let machine = cpu::machine_busy()?.saturating_sub(machine);
        let daemons = self.pair(side).cpu_time()?.saturating_sub(daemons);
        let gigabytes = moved.bytes / 1e9;
        Ok(vec![
            ("tcp4", moved.gbit_per_second),
            ("cpu_machine", machine.as_secs_f64() / gigabytes),
            ("cpu_daemons", daemons.as_secs_f64() / gigabytes),
        ])
    }

    /// Of the larger one of the pair's daemons, in MB (10^6 bytes).
    fn memory(&mut self, side: Side) -> Result<Vec<(&'static str, f64)>> {
        let (mut peak, mut end) = (0.0_f64, 0.0_f64);
        for node in &mut self.pair(side).nodes {
            let process = node.process()?;
            let megabytes = |kib: u64| Ok::<_, anyhow::Error>(f64::from(u32::try_from(kib)?) * KIB / 1e6);
            peak = peak.max(megabytes(process.peak_kib()?)?);
            end = end.max(megabytes(process.resident_kib()?)?);
        }
        Ok(vec![("memory_peak", peak), ("memory_end", end)])
    }
}

impl<'f> Pair<'f> {
    fn new(overlay: &Overlay<'f>, hosts: [usize; 2], flags: &[&str]) -> Result<Self> {
        let mut pair = Self { nodes: Vec::new(), containers: Vec::new() };
        for host in hosts {
            let node = overlay.node(host, flags).with_context(|| format!("overlayd {}", flags.join(" ")))?;
            pair.containers.push(node.container(&format!("box{host}"))?);
            pair.nodes.push(node);
        }
        Ok(pair)
    }

    fn cpu_time(&mut self) -> Result<Duration> {
        self.nodes.iter_mut().map(|n| n.process()?.cpu_time()).sum()
    }
}

fn between<'a>(from: &'a Container, to: &'a Container) -> Path<'a> {
    Path { from: &from.ns, to: &to.ns, address: to.address.into() }
}
