//! What must hold for any text or datagram that overlayd reads from the store, the network, its files or its status
//! socket. The first byte chooses the reader, the rest is what it reads. The fuzz target `overlay` feeds this, and
//! `parsers_corpus.rs` what that found.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use overlay::config;
use overlay::datapath::recording::Limits;
use overlay::datapath::status::Report as DatapathReport;
use overlay::mesh::{self, Echo, Report, Request, Round, Target};
use overlay::types::{Mtu, Subnet};
use overlay::wire::env::{Previous, SubnetEnv, variables};
use overlay::wire::handover::Handover;
use overlay::wire::lease::{self, LeaseValue};
use overlay::wire::netconf::NetworkConfig;
use overlay::wire::vxlan;

/// The readers, in the order of the first byte.
pub(crate) const READERS: [fn(&[u8]); 10] = [
    lease_key,
    lease_value,
    network_config,
    subnet_env,
    handover,
    mesh_request,
    mesh_report,
    datagrams,
    status,
    flags,
];

/// One input.
pub(crate) fn overlay(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    READERS[usize::from(first) % READERS.len()](rest);
}

/// What reaches a text parser: the transports hand on UTF-8 only.
fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// A key stands for a subnet only if it is written as we would write it.
fn lease_key(data: &[u8]) {
    let Some(key) = text(data) else { return };
    if let Some(subnet) = lease::parse_subnet_key(key) {
        assert_eq!(key.rsplit('/').next(), Some(lease::subnet_key(subnet).as_str()));
    }
    if let Some(id) = mesh::parse_id(key) {
        assert_eq!(key.rsplit('/').next(), Some(mesh::format_id(id).as_str()));
    }
}

/// What is read means the same when it is written again, and a MAC in use is that of one host.
fn lease_value(data: &[u8]) {
    let Some(Ok(value)) = text(data).map(LeaseValue::parse) else { return };
    assert_eq!(LeaseValue::parse(&value.to_json()).as_ref(), Ok(&value));
    if let Ok(mac) = value.vtep_mac() {
        let again = LeaseValue::vxlan(value.public_ip, mac);
        assert_eq!(again.vtep_mac(), Ok(mac));
    }
}

/// A configuration that is accepted has room for a lease, and every lease that is chosen lies in it.
fn network_config(data: &[u8]) {
    let Some(Ok(config)) = text(data).map(NetworkConfig::parse) else { return };
    let range = config.range;
    assert!(config.network.contains(range.min) && config.network.contains(range.max));
    assert!(range.len > config.network.len() && range.len <= 30);
    let mut taken: Vec<Subnet> = Vec::new();
    for random in [0, 7, u64::MAX] {
        let Some(subnet) = overlay::alloc::choose(&range, &taken, random) else { break };
        assert!(
            range.fits(subnet)
                && config.network.contains(subnet.base())
                && config.network.contains(subnet.last())
        );
        assert!(!taken.contains(&subnet));
        taken.push(subnet);
    }
}

/// `subnet.env` and what was made of it: names are names, and a subnet that is found is found again.
fn subnet_env(data: &[u8]) {
    let Some(text) = text(data) else { return };
    for name in variables(text).keys() {
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
    }
    if let Previous { network: Some(network), subnet: Some(subnet) } = Previous::parse(text) {
        let mtu = Mtu::try_from(1450).expect("a usual MTU");
        let env = SubnetEnv { network, subnet, mtu, ip_masq: true };
        // A /32 has no host address but its base, and a /0 none that is a network's.
        if (1..=30).contains(&subnet.len()) {
            assert_eq!(
                Previous::parse(&env.render()),
                Previous { network: Some(network), subnet: Some(subnet) }
            );
        }
    }
}

fn handover(data: &[u8]) {
    let Some(Ok(handover)) = text(data).map(Handover::parse) else { return };
    assert_eq!(Handover::parse(&handover.render()).expect("what we write we read"), handover);
}

/// A request that is accepted is over before its keys expire.
fn mesh_request(data: &[u8]) {
    let Some(Ok(request)) = text(data).map(Request::parse) else { return };
    let total = u64::from(request.count) * request.interval_ms + request.timeout_ms;
    assert!(total < mesh::TTL_S * 1000, "{total} ms");
    let json = serde_json::to_string(&request).expect("numbers only");
    assert_eq!(Request::parse(&json).as_ref(), Ok(&request));
}

/// A report of another host, as `cli ping-mesh` reads it.
fn mesh_report(data: &[u8]) {
    let Ok(report) = serde_json::from_slice::<Report>(data) else { return };
    let json = serde_json::to_vec(&report).expect("strings and numbers");
    assert_eq!(serde_json::from_slice::<Report>(&json).expect("what we write we read"), report);
}

/// Datagrams to the probe's port and VXLAN payloads: one form per meaning, and no answer is counted twice.
fn datagrams(data: &[u8]) {
    if let Ok((vni, inner)) = vxlan::decode(data) {
        let again = [&vxlan::encode(vni)[..], inner].concat();
        assert_eq!(vxlan::decode(&again), Ok((vni, inner)));
    }
    if let Some(echo) = Echo::decode(data) {
        assert_eq!(echo.encode(), data);
    }
    let (subnet, public_ip) = (Subnet::containing([10, 1, 2, 0].into(), 24), [192, 0, 2, 1].into());
    let subnet = subnet.expect("a /24");
    let start = EPOCH.with(|epoch| *epoch);
    let mut round = Round::new(7, vec![Target { subnet, public_ip, skip: None }]);
    let sent = 3;
    for sequence in 0..sent {
        round.sent(subnet.base(), sequence, start);
    }
    for (at, datagram) in (1..).zip(data.chunks(mesh::ECHO_BYTES)) {
        round.received(subnet.base(), datagram, start + Duration::from_millis(at));
        round.received(subnet.base(), datagram, start + Duration::from_millis(at));
    }
    let probes = round.finish();
    assert!(probes.iter().all(|probe| probe.sent == sent && probe.received <= sent));
}

thread_local! {
    /// Some moment: nothing depends on which.
    #[allow(clippy::disallowed_methods, reason = "an Instant cannot be made up")]
    static EPOCH: Instant = Instant::now();
}

/// The query of a capture, and the report that `cli` reads from the socket.
fn status(data: &[u8]) {
    if let Some(Ok(limits)) = text(data).map(Limits::parse) {
        assert_eq!(Limits::parse(&limits.query()), Ok(limits));
    }
    if let Ok(report) = serde_json::from_slice::<DatapathReport>(data) {
        let json = serde_json::to_vec(&report).expect("strings and numbers");
        assert_eq!(serde_json::from_slice::<DatapathReport>(&json).expect("what we write we read"), report);
    }
}

/// The command line and the environment: a word a line, those with a `=` and no dash are variables.
fn flags(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let is_variable = |line: &&str| !line.starts_with('-') && line.contains('=');
    let (variables, words): (Vec<&str>, Vec<&str>) = text.lines().partition(is_variable);
    let env: BTreeMap<&str, &str> = variables.iter().filter_map(|line| line.split_once('=')).collect();
    let args: Vec<String> = words.into_iter().map(str::to_owned).collect();
    match config::parse(&args, &|name| env.get(name).map(|value| (*value).to_owned())) {
        Ok(_) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
