//! How long a path was interrupted.

#![expect(clippy::disallowed_methods, reason = "measures real time")]

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use super::udp::Pair;
use super::{PATIENCE, Path};
use crate::wait::wait_for;

/// Echoes at a steady pace, to see for how long none came back.
#[derive(Debug)]
pub struct Pulse {
    stop: AtomicBool,
    echoes: AtomicU64,
}

impl Pulse {
    /// Time between two echoes: the measurement is no more exact than that.
    pub const INTERVAL: Duration = Duration::from_millis(10);

    /// How many have come back.
    pub fn echoes(&self) -> u64 {
        self.echoes.load(Ordering::Relaxed)
    }

    /// Waits until `more` further echoes have come back.
    ///
    /// # Errors
    /// When they do not within `limit`.
    pub fn wait_more(&self, more: u64, limit: Duration) -> Result<()> {
        let goal = self.echoes() + more;
        wait_for("echoes", limit, || {
            let now = self.echoes();
            ensure!(now >= goal, "{now} of {goal}");
            Ok(())
        })
    }

    /// Runs `scene` while echoes go to and fro; returns the longest time without one, the end included.
    ///
    /// # Errors
    /// When the scene fails, or not one echo came back.
    pub fn during(path: Path<'_>, scene: impl FnOnce(&Self) -> Result<()>) -> Result<Duration> {
        let pair = Pair::new(path)?;
        let pulse = Self { stop: AtomicBool::new(false), echoes: AtomicU64::new(0) };
        for socket in [&pair.near, &pair.far] {
            socket.set_read_timeout(Some(Self::INTERVAL))?;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| pulse.answer(&pair.far));
            let asking = scope.spawn(|| pulse.ask(&pair.near));
            let outcome = pulse.wait_more(1, PATIENCE).and_then(|()| scene(&pulse));
            pulse.stop.store(true, Ordering::Relaxed);
            let gap = asking.join().map_err(|_| anyhow!("the pulse panicked"))?;
            outcome.map(|()| gap)
        })
    }

    fn answer(&self, far: &UdpSocket) {
        let mut buffer = [0_u8; 16];
        while !self.stop.load(Ordering::Relaxed) {
            if let Ok((got, from)) = far.recv_from(&mut buffer) {
                far.send_to(&buffer[..got], from).ok();
            }
        }
    }

    /// Sends at its pace whatever happens, an error (no route for a moment) is a lost echo.
    fn ask(&self, near: &UdpSocket) -> Duration {
        let mut buffer = [0_u8; 16];
        let (mut last, mut longest) = (None::<Instant>, Duration::ZERO);
        let mut next = Instant::now();
        for n in 0_u64.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            near.send(&n.to_be_bytes()).ok();
            next += Self::INTERVAL;
            while let Some(left) = next.checked_duration_since(Instant::now()).filter(|l| !l.is_zero()) {
                near.set_read_timeout(Some(left)).ok();
                if near.recv(&mut buffer).is_ok() {
                    let now = Instant::now();
                    longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
                    last = Some(now);
                    self.echoes.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        longest.max(last.map_or(Duration::ZERO, |last| last.elapsed()))
    }
}
