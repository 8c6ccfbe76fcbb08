//! The mesh as a matrix for people and as JSON for programs.

use std::{
    io::{self, Write},
    net::Ipv4Addr,
};

use overlay::{mesh::Rtt, types::Subnet};
use serde::Serialize;

use super::verdict::{Mesh, Path};

/// Prints the matrix, then every problem, then the verdict.
pub(super) fn text(out: &mut dyn Write, mesh: &Mesh, prefix: &str) -> io::Result<()> {
    if mesh.nodes.len() < 2 {
        let found = match mesh.nodes.first() {
            None => "no lease".to_owned(),
            Some(only) => format!("only one lease ({}, {})", only.name, only.subnet),
        };
        return writeln!(out, "there is no mesh: {found} under {}/subnets", prefix.trim_end_matches('/'));
    }
    for row in table(mesh) {
        writeln!(out, "{}", row.trim_end())?;
    }
    for problem in mesh.problems() {
        writeln!(out, "{problem}")?;
    }
    let (reached, all) = mesh.reached();
    if mesh.is_complete() {
        writeln!(out, "mesh is complete: {} nodes, {all} of {all} paths", mesh.nodes.len())
    } else {
        writeln!(out, "mesh is broken: {} nodes, {reached} of {all} paths", mesh.nodes.len())
    }
}

/// Columns are as wide as their widest cell.
fn table(mesh: &Mesh) -> Vec<String> {
    let head =
        std::iter::once("from \\ to".to_owned()).chain(mesh.nodes.iter().map(|node| node.name.clone()));
    let mut rows: Vec<Vec<String>> = vec![head.collect()];
    for (node, paths) in mesh.nodes.iter().zip(&mesh.paths) {
        rows.push(
            std::iter::once(node.name.clone()).chain(paths.iter().map(|path| cell(path.as_ref()))).collect(),
        );
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..=mesh.nodes.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let first = format!("{:<1$}", row[0], widths[0]);
        row.iter().zip(&widths).skip(1).fold(first, |line, (cell, width)| format!("{line}  {cell:>width$}"))
    };
    rows.iter().map(line).collect()
}

fn cell(path: Option<&Path>) -> String {
    match path {
        None => "-".to_owned(),
        Some(Path::Reached { sent, received, rtt }) => {
            let time = rtt.map_or_else(|| "?".to_owned(), |rtt| milliseconds(rtt.median));
            match lost_percent(*sent, *received) {
                0 => time,
                percent => format!("{time} {percent}% lost"),
            }
        }
        Some(Path::Unreachable { .. }) => "unreachable".to_owned(),
        Some(Path::NotProbed) => "not probed".to_owned(),
        Some(Path::NoReport) => "no report".to_owned(),
    }
}

fn milliseconds(us: u64) -> String {
    format!("{}.{:03} ms", us / 1000, us % 1000)
}

/// Rounded, but neither nothing nor all unless it is.
fn lost_percent(sent: u32, received: u32) -> u32 {
    let lost = sent.saturating_sub(received);
    match lost {
        0 => 0,
        _ if received == 0 => 100,
        _ => (lost.saturating_mul(100).saturating_add(sent / 2) / sent).clamp(1, 99),
    }
}

#[derive(Serialize)]
struct MeshJson<'a> {
    complete: bool,
    nodes: Vec<NodeJson<'a>>,
    paths: Vec<PathJson<'a>>,
    problems: Vec<String>,
}

#[derive(Serialize)]
struct NodeJson<'a> {
    public_ip: Ipv4Addr,
    subnet: Subnet,
    hostname: Option<&'a str>,
    reported: bool,
}

#[derive(Serialize)]
struct PathJson<'a> {
    from: Ipv4Addr,
    from_subnet: Subnet,
    to: Ipv4Addr,
    to_subnet: Subnet,
    status: &'static str,
    sent: u32,
    received: u32,
    lost_percent: u32,
    rtt_us: Option<Rtt>,
    error: Option<&'a str>,
}

/// Prints one JSON object on one line.
pub(super) fn json(out: &mut dyn Write, mesh: &Mesh) -> io::Result<()> {
    let nodes = mesh.nodes.iter().map(|node| NodeJson {
        public_ip: node.public_ip,
        subnet: node.subnet,
        hostname: node.hostname.as_deref(),
        reported: node.silent.is_none(),
    });
    let paths = mesh.pairs().map(|(from, to, path)| {
        let (status, sent, received, rtt_us, error) = match path {
            Path::Reached { sent, received, rtt } => ("reached", *sent, *received, *rtt, None),
            Path::Unreachable { sent, why } => ("unreachable", *sent, 0, None, why.as_deref()),
            Path::NotProbed => ("not probed", 0, 0, None, None),
            Path::NoReport => ("no report", 0, 0, None, from.silent.as_deref()),
        };
        PathJson {
            from: from.public_ip,
            from_subnet: from.subnet,
            to: to.public_ip,
            to_subnet: to.subnet,
            status,
            sent,
            received,
            lost_percent: lost_percent(sent, received),
            rtt_us,
            error,
        }
    });
    let report = MeshJson {
        complete: mesh.is_complete(),
        nodes: nodes.collect(),
        paths: paths.collect(),
        problems: mesh.problems(),
    };
    serde_json::to_writer(&mut *out, &report)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ping_mesh::{
        Reports,
        verdict::{
            judge,
            tests::{lease, probe, report},
        },
    };

    fn shown(mesh: &Mesh) -> String {
        let mut out = Vec::new();
        text(&mut out, mesh, "/coreos.com/network/").unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_matrix_lines_up() {
        let reports = [
            report(63, vec![probe(65, 3, 3), probe(66, 3, 2)]),
            report(65, vec![probe(63, 3, 3), probe(66, 3, 0)]),
        ]
        .into();
        assert_eq!(
            shown(&judge(&[lease(63), lease(65), lease(66)], &reports)),
            "\
from \\ to      192.168.31.63  192.168.31.65      192.168.31.66
192.168.31.63              -       0.365 ms  0.366 ms 33% lost
192.168.31.65       0.363 ms              -        unreachable
192.168.31.66      no report      no report                  -
192.168.31.66 (172.17.66.0/24): no report: overlayd is down there or cannot reach the store, or it is a flanneld
192.168.31.63 -> 192.168.31.66: 1 of 3 probes lost
192.168.31.65 -> 192.168.31.66: unreachable: none of 3 probes answered
mesh is broken: 3 nodes, 3 of 6 paths
"
        );
    }

    #[test]
    fn a_whole_mesh_and_none_end_in_their_sentence() {
        let reports = [report(1, vec![probe(2, 3, 3)]), report(2, vec![probe(1, 3, 3)])].into();
        assert!(
            shown(&judge(&[lease(1), lease(2)], &reports))
                .ends_with("\nmesh is complete: 2 nodes, 2 of 2 paths\n")
        );
        assert_eq!(
            shown(&judge(&[], &Reports::new())),
            "there is no mesh: no lease under /coreos.com/network/subnets\n"
        );
        assert_eq!(
            shown(&judge(&[lease(1)], &Reports::new())),
            "there is no mesh: only one lease (192.168.31.1, 172.17.1.0/24) under /coreos.com/network/subnets\n"
        );
    }

    #[test]
    fn loss_is_never_rounded_to_nothing_or_all() {
        for (sent, received, percent) in
            [(3, 3, 0), (3, 2, 33), (3, 1, 67), (3, 0, 100), (1000, 999, 1), (1000, 1, 99), (0, 0, 0)]
        {
            assert_eq!(lost_percent(sent, received), percent, "{received} of {sent}");
        }
    }

    #[test]
    fn json_holds_every_pair_once() {
        let reports = [report(1, vec![probe(2, 4, 3)])].into();
        let mut out = Vec::new();
        json(&mut out, &judge(&[lease(1), lease(2)], &reports)).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["complete"], false);
        assert_eq!(value["nodes"][1]["reported"], false);
        assert_eq!(value["paths"].as_array().unwrap().len(), 2);
        let path = &value["paths"][0];
        assert_eq!(
            (&path["status"], &path["lost_percent"], &path["rtt_us"]["median"]),
            (&"reached".into(), &25.into(), &302.into())
        );
        assert_eq!(value["paths"][1]["status"], "no report");
    }
}
