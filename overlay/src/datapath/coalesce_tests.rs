use super::super::packets::{self, ACK, FIN, PSH, Packet, SYN};
use super::*;

fn tcp() -> Packet {
    Packet { tcp: true, payload: vec![1; 100], ..Packet::default() }
}

fn udp() -> Packet {
    Packet { payload: vec![2; 100], ..Packet::default() }
}

fn begin(frame: &[u8]) -> Option<Run> {
    Run::begin(frame, Frame::parse(frame).unwrap())
}

/// Whether the second packet joins a run that the first one begins.
fn joins(first: &Packet, second: &Packet) -> bool {
    let (first, second) = (first.frame(), second.frame());
    let mut run = begin(&first).unwrap();
    begin(&second).is_some_and(|next| run.join(&first, &second, &next))
}

#[test]
fn a_checksum_is_right_unfilled_absent_or_wrong() {
    for packet in [tcp(), udp(), Packet { v6: true, ..tcp() }, Packet { v6: true, ..udp() }] {
        let (unfilled, start, offset) = packet.unfilled();
        let look = |frame: &[u8]| checksum(frame, &Frame::parse(frame).unwrap());
        assert_eq!(look(&packet.frame()), Checksum::Valid);
        assert_eq!(look(&unfilled), Checksum::Unfilled);
        let mut frame = packet.frame();
        frame[start + offset] ^= 1;
        assert_eq!(look(&frame), Checksum::Bad);
        frame[start + offset..][..2].fill(0);
        assert_eq!(look(&frame), if packet.tcp { Checksum::Bad } else { Checksum::Absent });
        // The complement of the pseudo-header's sum, as some libraries leave it, is not what the kernel leaves.
        let sum = !packets::pseudo_sum(&unfilled, packet.network_at(), start);
        frame[start + offset..][..2].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(look(&frame), Checksum::Bad);
    }
}

#[test]
fn padding_behind_the_packet_is_not_summed() {
    let mut frame = udp().frame();
    frame.extend([0xff; 9]);
    assert_eq!(checksum(&frame, &Frame::parse(&frame).unwrap()), Checksum::Valid);
}

#[test]
fn what_begins_a_run() {
    assert!(begin(&tcp().frame()).is_some_and(|run| !run.closed));
    assert!(begin(&udp().frame()).is_some_and(|run| !run.closed));
    assert!(begin(&Packet { flags: ACK | PSH, ..tcp() }.frame()).is_some_and(|run| run.closed));
    for flags in [0, PSH, SYN | ACK, FIN | ACK, ACK | 0x04, ACK | 0x20, ACK | 0x40, ACK | 0x80] {
        assert_eq!(begin(&Packet { flags, ..tcp() }.frame()), None, "{flags:#x}");
    }
    assert_eq!(begin(&Packet { payload: vec![], ..tcp() }.frame()), None);
    assert_eq!(begin(&Packet { payload: vec![], ..udp() }.frame()), None);
    let mut wrong = tcp().frame();
    wrong[24] ^= 1;
    assert_eq!(begin(&wrong), None, "IPv4 checksum");
    let mut shorter = udp().frame();
    shorter[39] -= 1;
    assert_eq!(begin(&shorter), None, "UDP length");
    let mut options = tcp().frame();
    options.splice(34..34, [1, 1, 1, 0]);
    options[14] = 0x46;
    options[17] += 4;
    options[24..26].fill(0);
    let sum = !packets::ones_sum(&[&options[14..38]]);
    options[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(Frame::parse(&options).unwrap().transport, Transport::Tcp);
    assert_eq!(begin(&options), None, "IPv4 options");
}

#[test]
fn what_joins_a_tcp_run() {
    for v6 in [false, true] {
        let first = Packet { v6, options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], ..tcp() };
        let next = Packet { sequence: first.sequence + 100, id: first.id + 1, ..first.clone() };
        assert!(joins(&first, &next));
        assert!(joins(&first, &Packet { flags: ACK | PSH, ..next.clone() }));
        assert!(joins(&first, &Packet { payload: vec![3; 1], ..next.clone() }));
        let others = [
            ("length", Packet { payload: vec![3; 101], ..next.clone() }),
            ("gap", Packet { sequence: next.sequence + 1, ..next.clone() }),
            ("again", first.clone()),
            ("acknowledgment", Packet { acknowledgment: 8, ..next.clone() }),
            ("window", Packet { window: 513, ..next.clone() }),
            ("timestamp", Packet { options: vec![1, 1, 8, 10, 0, 0, 0, 2, 0, 0, 0, 2], ..next.clone() }),
            ("options", Packet { options: vec![], ..next.clone() }),
            ("flags", Packet { flags: ACK | FIN, ..next.clone() }),
            ("hop limit", Packet { ttl: 63, ..next.clone() }),
            ("type of service", Packet { tos: 3, ..next.clone() }),
        ];
        for (what, other) in others {
            assert!(!joins(&first, &other), "{what}");
        }
    }
}

#[test]
fn identifications_count_only_where_the_packet_may_be_fragmented() {
    for first in [tcp(), udp()] {
        for (df, id, expected) in
            [(true, 7, true), (true, 0, true), (false, 0, true), (false, 0xffff, false), (false, 1, false)]
        {
            let first = Packet { id: 0xffff, dont_fragment: df, ..first.clone() };
            let next = Packet { sequence: first.sequence + 100, id, ..first.clone() };
            assert_eq!(joins(&first, &next), expected, "DF {df}, {id:#x} behind 0xffff");
        }
        let next = Packet {
            sequence: first.sequence + 100,
            id: first.id + 1,
            dont_fragment: false,
            ..first.clone()
        };
        assert!(!joins(&first, &next), "DF on one only");
    }
}

#[test]
fn a_run_ends_with_a_push_a_shorter_packet_or_at_its_limits() {
    let fed = |first: &Packet, more: &dyn Fn(usize, &mut Packet)| {
        let bytes = first.frame();
        let mut run = begin(&bytes).unwrap();
        for n in 1..2000 {
            let mut next =
                Packet { sequence: first.sequence + u32::try_from(run.payload).unwrap(), ..first.clone() };
            more(n, &mut next);
            let next = next.frame();
            if !run.join(&bytes, &next, &begin(&next).unwrap()) {
                break;
            }
        }
        (run.packets, run.payload, run.push)
    };
    assert_eq!(fed(&tcp(), &|n, p| p.flags |= if n == 3 { PSH } else { 0 }), (4, 400, true));
    assert_eq!(fed(&tcp(), &|n, p| p.payload.truncate(if n == 5 { 99 } else { 100 })), (6, 599, false));
    assert_eq!(fed(&udp(), &|_, _| ()), (UDP_SEGMENTS_MAX, 6400, false));
    assert_eq!(fed(&tcp(), &|_, _| ()), ((65_535 - 40) / 100, 65_400, false));
    assert_eq!(fed(&Packet { payload: vec![0; 9], ..tcp() }, &|_, _| ()), (PACKETS_MAX, 9000, false));
}

#[test]
fn a_flow_is_known_by_its_hosts_and_ports_and_tags() {
    let first = Packet { tags: vec![5], ..tcp() };
    let (bytes, run) = (first.frame(), begin(&first.frame()).unwrap());
    let same = |packet: &Packet| {
        let frame = packet.frame();
        let layout = Frame::parse(&frame).unwrap();
        (run.same_flow(&bytes, &frame, &layout), run.same_hosts(&bytes, &frame, &layout))
    };
    assert_eq!(same(&Packet { sequence: 99, flags: SYN, payload: vec![], ..first.clone() }), (true, true));
    assert_eq!(same(&Packet { port: 1, ..first.clone() }), (false, true));
    assert_eq!(same(&Packet { tcp: false, ..first.clone() }), (false, true));
    for other in [
        Packet { host: 2, ..first.clone() },
        Packet { tags: vec![6], ..first.clone() },
        Packet { tags: vec![], ..first.clone() },
        Packet { v6: true, ..first.clone() },
        Packet { source: [2, 0, 0, 0, 0, 9], ..first.clone() },
    ] {
        assert_eq!(same(&other), (false, false));
    }
}
