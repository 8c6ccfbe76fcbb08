//! From leases and reports to the matrix and what is wrong with it. Pure.

use std::{collections::BTreeMap, net::Ipv4Addr};

use overlay::{
    mesh::{Probe, Rtt},
    types::Subnet,
    wire::lease::Lease,
};

use super::Reports;

/// One lease's holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) subnet: Subnet,
    pub(super) public_ip: Ipv4Addr,
    /// What to call it: its public address, with the subnet where several leases share one address.
    pub(super) name: String,
    /// Known once it has reported.
    pub(super) hostname: Option<String>,
    /// Why there is no report of its own.
    pub(super) silent: Option<String>,
}

/// How well one node reaches another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Path {
    /// Probed: at least one answer. Some may be lost.
    Reached { sent: u32, received: u32, rtt: Option<Rtt> },
    /// Probed in vain.
    Unreachable { sent: u32, why: Option<String> },
    /// The probing node did not know the other's lease.
    NotProbed,
    /// The probing node has not reported.
    NoReport,
}

/// The whole mesh. `paths[from][to]` is `None` on the diagonal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mesh {
    pub(super) nodes: Vec<Node>,
    pub(super) paths: Vec<Vec<Option<Path>>>,
}

/// Judges: nodes in the order of their public addresses, then of their subnets.
pub(super) fn judge(leases: &[Lease], reports: &Reports) -> Mesh {
    let mut leases: Vec<&Lease> = leases.iter().collect();
    leases.sort_by_key(|lease| (lease.value.public_ip, lease.subnet));
    leases.dedup_by_key(|lease| lease.subnet);
    let mut holders: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
    for lease in &leases {
        *holders.entry(lease.value.public_ip).or_default() += 1;
    }
    let nodes: Vec<Node> = leases.iter().map(|lease| node(lease, reports, &holders)).collect();
    let paths = nodes
        .iter()
        .map(|from| {
            nodes.iter().map(|to| (from.subnet != to.subnet).then(|| path(from, to, reports))).collect()
        })
        .collect();
    Mesh { nodes, paths }
}

fn node(lease: &Lease, reports: &Reports, holders: &BTreeMap<Ipv4Addr, usize>) -> Node {
    let public_ip = lease.value.public_ip;
    let name = match holders.get(&public_ip) {
        Some(2..) => format!("{public_ip} ({})", lease.subnet),
        _ => public_ip.to_string(),
    };
    let (hostname, silent) = match reports.get(&lease.subnet) {
        Some(Ok(report)) => (Some(report.hostname.clone()), None),
        Some(Err(why)) => (None, Some(why.clone())),
        None => (
            None,
            Some(
                "no report: overlayd is down there or cannot reach the store, or it is a flanneld".to_owned(),
            ),
        ),
    };
    Node { subnet: lease.subnet, public_ip, name, hostname, silent }
}

fn path(from: &Node, to: &Node, reports: &Reports) -> Path {
    let Some(Ok(report)) = reports.get(&from.subnet) else { return Path::NoReport };
    let Some(probe) = report.probes.iter().find(|probe| probe.subnet == to.subnet) else {
        return Path::NotProbed;
    };
    let Probe { sent, received, rtt_us, error, .. } = probe;
    if *received > 0 {
        Path::Reached { sent: *sent, received: *received, rtt: *rtt_us }
    } else {
        Path::Unreachable { sent: *sent, why: error.clone() }
    }
}

impl Mesh {
    /// Whether there is a mesh at all and every node reaches every other. Loss alone does not spoil it.
    pub(super) fn is_complete(&self) -> bool {
        self.nodes.len() > 1 && self.pairs().all(|(_, _, path)| matches!(path, Path::Reached { .. }))
    }

    /// Every ordered pair of nodes with its path.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&Node, &Node, &Path)> {
        self.nodes.iter().zip(&self.paths).flat_map(move |(from, row)| {
            self.nodes.iter().zip(row).filter_map(move |(to, path)| Some((from, to, path.as_ref()?)))
        })
    }

    /// How many ordered pairs reach each other, and of how many.
    pub(super) fn reached(&self) -> (usize, usize) {
        let reached = self.pairs().filter(|(_, _, path)| matches!(path, Path::Reached { .. })).count();
        (reached, self.pairs().count())
    }

    /// One sentence for each thing that is wrong, silent nodes first. Lost probes are among them.
    pub(super) fn problems(&self) -> Vec<String> {
        let silent = self.nodes.iter().filter_map(|node| {
            let why = node.silent.as_ref()?;
            let whole = if node.name.contains('(') {
                node.name.clone()
            } else {
                format!("{} ({})", node.name, node.subnet)
            };
            Some(format!("{whole}: {why}"))
        });
        let broken = self.pairs().filter_map(|(from, to, path)| {
            let what = match path {
                Path::NoReport => return None,
                Path::Reached { sent, received, .. } if received >= sent => return None,
                Path::Reached { sent, received, .. } => format!("{} of {sent} probes lost", sent - received),
                Path::Unreachable { sent: 0, why } => {
                    format!("unreachable: not probed{}", because(why.as_ref()))
                }
                Path::Unreachable { sent, why } => {
                    format!("unreachable: none of {sent} probes answered{}", because(why.as_ref()))
                }
                Path::NotProbed => {
                    format!("not probed: overlayd on {} does not know the lease of {}", from.name, to.subnet)
                }
            };
            Some(format!("{} -> {}: {what}", from.name, to.name))
        });
        silent.chain(broken).collect()
    }
}

/// The daemon's own reason, unless it only says once more that nothing came back.
fn because(why: Option<&String>) -> String {
    why.filter(|why| *why != "no answer").map_or_else(String::new, |why| format!(" ({why})"))
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use overlay::{mesh::Report, types::VtepMac, wire::lease::LeaseValue};
    use proptest::prelude::*;

    use super::*;

    pub(in super::super) fn lease(number: u8) -> Lease {
        Lease {
            subnet: subnet(number),
            value: LeaseValue::vxlan(ip(number), VtepMac::locally_administered([0, 0, 0, 0, 0, number])),
            ttl_s: Some(86_400),
            modified_index: u64::from(number),
        }
    }

    pub(in super::super) fn subnet(number: u8) -> Subnet {
        format!("172.17.{number}.0/24").parse().unwrap()
    }

    pub(in super::super) fn ip(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 31, number)
    }

    pub(in super::super) fn probe(to: u8, sent: u32, received: u32) -> Probe {
        let rtt_us = (received > 0).then_some(Rtt { min: 200, median: 300 + u64::from(to), max: 900 });
        Probe { subnet: subnet(to), public_ip: ip(to), sent, received, rtt_us, error: None }
    }

    pub(in super::super) fn report(from: u8, probes: Vec<Probe>) -> (Subnet, Result<Report, String>) {
        let report = Report {
            version: 1,
            subnet: subnet(from),
            public_ip: ip(from),
            hostname: format!("host{from}"),
            probes,
        };
        (subnet(from), Ok(report))
    }

    #[test]
    fn a_whole_mesh_is_complete() {
        let leases = [lease(66), lease(63)];
        let reports = [report(63, vec![probe(66, 3, 3)]), report(66, vec![probe(63, 3, 3)])].into();
        let mesh = judge(&leases, &reports);
        assert!(mesh.is_complete());
        assert_eq!(mesh.problems(), [""; 0]);
        assert_eq!(
            mesh.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(),
            ["192.168.31.63", "192.168.31.66"]
        );
        assert_eq!(mesh.nodes[0].hostname.as_deref(), Some("host63"));
        assert!(mesh.paths[0][0].is_none() && mesh.paths[1][1].is_none());
        assert_eq!(mesh.reached(), (2, 2));
    }

    #[test]
    fn loss_is_told_but_does_not_break() {
        let reports = [report(1, vec![probe(2, 3, 2)]), report(2, vec![probe(1, 3, 3)])].into();
        let mesh = judge(&[lease(1), lease(2)], &reports);
        assert!(mesh.is_complete());
        assert_eq!(mesh.problems(), ["192.168.31.1 -> 192.168.31.2: 1 of 3 probes lost"]);
    }

    #[test]
    fn one_direction_broken_is_named_as_such() {
        let mut vain = probe(2, 3, 0);
        vain.error = Some("No route to host".to_owned());
        let reports = [report(1, vec![vain]), report(2, vec![probe(1, 3, 3)])].into();
        let mesh = judge(&[lease(1), lease(2)], &reports);
        assert!(!mesh.is_complete());
        assert_eq!(
            mesh.problems(),
            ["192.168.31.1 -> 192.168.31.2: unreachable: none of 3 probes answered (No route to host)"]
        );
        assert_eq!(mesh.reached(), (1, 2));
    }

    #[test]
    fn silence_and_unreadable_reports_and_unknown_leases_are_told_apart() {
        let reports =
            [report(1, vec![probe(2, 3, 3)]), (subnet(2), Err("its report cannot be read: x".to_owned()))]
                .into();
        let mesh = judge(&[lease(1), lease(2), lease(3)], &reports);
        assert!(!mesh.is_complete());
        let problems = mesh.problems();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert_eq!(problems[0], "192.168.31.2 (172.17.2.0/24): its report cannot be read: x");
        assert!(problems[1].starts_with("192.168.31.3 (172.17.3.0/24): no report: overlayd is down"));
        assert_eq!(
            problems[2],
            "192.168.31.1 -> 192.168.31.3: not probed: overlayd on 192.168.31.1 does not know the lease of 172.17.3.0/24"
        );
    }

    #[test]
    fn fewer_than_two_nodes_are_no_mesh() {
        assert!(!judge(&[], &Reports::new()).is_complete());
        let reports = [report(1, vec![])].into();
        assert!(!judge(&[lease(1)], &reports).is_complete());
    }

    #[test]
    fn two_leases_of_one_address_are_told_apart() {
        let mut second = lease(2);
        second.value.public_ip = ip(1);
        let mesh = judge(&[lease(1), second], &Reports::new());
        assert_eq!(mesh.nodes[0].name, "192.168.31.1 (172.17.1.0/24)");
        assert_eq!(mesh.nodes[1].name, "192.168.31.1 (172.17.2.0/24)");
    }

    proptest! {
        /// Complete exactly when every ordered pair was reached; every pair that was not is named in a problem.
        #[test]
        fn the_verdict_is_the_sum_of_its_pairs(
            answers in proptest::collection::vec(proptest::collection::vec(proptest::option::of(0u32..=3), 4), 4),
            reporting in proptest::collection::vec(any::<bool>(), 4),
        ) {
            let leases: Vec<_> = (0..4u8).map(|n| lease(n + 1)).collect();
            let mut reports = Reports::new();
            for from in 0..4u8 {
                let probes = (0..4u8).filter(|to| *to != from).filter_map(|to| {
                    let received = answers[usize::from(from)][usize::from(to)]?;
                    Some(probe(to + 1, 3, received))
                });
                if reporting[usize::from(from)] {
                    reports.extend([report(from + 1, probes.collect())]);
                }
            }
            let mesh = judge(&leases, &reports);
            let mut all = true;
            for from in 0..4usize {
                for to in (0..4usize).filter(|to| *to != from) {
                    let reached = reporting[from] && answers[from][to].is_some_and(|received| received > 0);
                    all &= reached;
                    let (a, b) = (mesh.nodes[from].name.clone(), mesh.nodes[to].name.clone());
                    let named = mesh.problems().iter().any(|p| {
                        p.starts_with(&format!("{a} -> {b}: un")) || p.starts_with(&format!("{a} -> {b}: not"))
                            || p.starts_with(&format!("{a} ("))
                    });
                    prop_assert_eq!(!reached, named);
                }
            }
            prop_assert_eq!(mesh.is_complete(), all);
        }
    }
}
