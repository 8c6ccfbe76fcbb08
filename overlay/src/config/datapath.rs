//! The flags that choose and tune the data path.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use store::flags::Parsed;

use super::{UsageError, number, text, value};
use crate::types::DatapathChoice;

/// The highest number of a CPU that a thread can be pinned to: the kernel's `cpu_set_t` has 1024 bits.
const MAX_CPU: usize = 1023;

/// What the command line says about how packets are carried. Everything but `choice` concerns the rust data path only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatapathOptions {
    /// `-datapath`; `None` leaves it to the network config.
    pub choice: Option<DatapathChoice>,
    /// `-datapath-spin-us`: the longest a thread stays awake for the next packet; zero is not at all.
    pub spin: Duration,
    /// `-datapath-queues`: queues of the device, each with a thread of its own; 1 to 16.
    pub queues: usize,
    /// `-datapath-cpus`: where each thread stays; empty, or as many as there are queues.
    pub cpus: Vec<usize>,
    /// `-datapath-source-check`: whether only known peers at their own underlay address are listened to.
    pub source_check: bool,
    /// `-datapath-inject`: whether TCP super-frames are sent whole where the kernel can cut them.
    pub inject: bool,
}

impl Default for DatapathOptions {
    fn default() -> Self {
        Self {
            choice: None,
            spin: Duration::from_micros(50),
            queues: 1,
            cpus: Vec::new(),
            source_check: true,
            inject: true,
        }
    }
}

pub(super) fn options(parsed: &Parsed) -> Result<DatapathOptions, UsageError> {
    let choice = parsed.value("datapath");
    let choice = choice.map(|c| c.parse().map_err(|_| value("datapath", c, "must be kernel, rust or auto")));
    let queues = usize::try_from(number(parsed, "datapath-queues", 16)?).unwrap_or(0);
    if queues == 0 {
        return Err(value("datapath-queues", "0", "must be 1 to 16"));
    }
    Ok(DatapathOptions {
        choice: choice.transpose()?,
        spin: Duration::from_micros(number(parsed, "datapath-spin-us", 1000)?),
        queues,
        cpus: cpus(parsed.value("datapath-cpus"), queues)?,
        source_check: parsed.bool("datapath-source-check"),
        inject: parsed.bool("datapath-inject"),
    })
}

fn cpus(given: Option<&str>, queues: usize) -> Result<Vec<usize>, UsageError> {
    let Some(given) = given else { return Ok(Vec::new()) };
    let wrong = |why: &str| value("datapath-cpus", given, why);
    let number = |word: &str| word.trim().parse().ok().filter(|cpu| *cpu <= MAX_CPU);
    let cpus: Option<Vec<usize>> = given.split(',').map(number).collect();
    let cpus = cpus.ok_or_else(|| wrong("must be numbers of CPUs, 0 to 1023, by comma"))?;
    if cpus.len() != queues {
        let why =
            format!("names {} CPUs, and -datapath-queues is {queues}: give one for each queue", cpus.len());
        return Err(wrong(&why));
    }
    Ok(cpus)
}

pub(super) fn status_socket(parsed: &Parsed) -> Option<PathBuf> {
    match parsed.value("status-socket") {
        Some("off") => None,
        Some(path) => Some(PathBuf::from(path)),
        None => Some(Path::new(text(parsed, "subnet-file")).with_file_name("overlayd.sock")),
    }
}

/// As in the start line.
impl fmt::Display for DatapathOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let choice = self.choice.map(|choice| choice.to_string()).unwrap_or_default();
        let cpus: Vec<String> = self.cpus.iter().map(usize::to_string).collect();
        write!(f, "datapath={choice} datapath-spin-us={}", self.spin.as_micros())?;
        write!(f, " datapath-queues={} datapath-cpus={}", self.queues, cpus.join(","))?;
        write!(f, " datapath-source-check={} datapath-inject={}", self.source_check, self.inject)
    }
}
