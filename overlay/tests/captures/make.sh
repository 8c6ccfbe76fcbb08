#!/usr/bin/env bash
# Records what the kernel's vxlan device makes of the frames that a host sends through it, for tests/captures.rs.
#
#   namespace a: vx0 10.97.1.0 fd97::1 ── up0 10.98.0.1 ──── veth ──── up0 10.98.0.2 ── vx0 10.97.2.0 fd97::2 :b
#
# Per kind of traffic two files. NAME.device.pcap: frames sent through a's vx0, each behind the virtio-net header with
# which a TAP would have delivered it (link type 147, user-defined). NAME.underlay.pcap: what left a's up0, which has
# no offloads, so that the kernel itself cuts and sums.
#
# Needs root, iproute2, ethtool, nftables, tcpdump, ping and python3. Overwrites the files here. Identifications,
# sequence numbers and ports differ from run to run, the meaning does not.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

a=weft-cap-a b=weft-cap-b
cleanup() {
    jobs -p | xargs -r kill 2>/dev/null || true
    wait
    ip netns del $a 2>/dev/null || true
    ip netns del $b 2>/dev/null || true
}
trap cleanup EXIT
cleanup

host() { # namespace, number, the other's number
    ip -n "$1" link set lo up
    ip -n "$1" addr add "10.98.0.$2/24" dev up0
    ip -n "$1" link set up0 address "02:98:00:00:00:0$2" up
    ip -n "$1" link add vx0 address "02:97:00:00:00:0$2" mtu 1450 type vxlan id 1 dstport 8472 local "10.98.0.$2" \
        dev up0 nolearning noudpcsum
    ip netns exec "$1" sysctl -qw net.ipv6.conf.vx0.addr_gen_mode=1 net.ipv4.tcp_ecn=1
    ip -n "$1" link set vx0 up
    ip -n "$1" addr add "10.97.$2.0/32" dev vx0
    ip -n "$1" addr add "fd97::$2/128" dev vx0 nodad
    bridge -n "$1" fdb append "02:97:00:00:00:0$3" dev vx0 dst "10.98.0.$3"
    for address in "10.97.$3.0" "fd97::$3"; do
        ip -n "$1" route add "$address" dev vx0
        ip -n "$1" neigh replace "$address" lladdr "02:97:00:00:00:0$3" dev vx0 nud permanent
    done
}
ip netns add $a
ip netns add $b
ip link add up0 netns $a mtu 1500 type veth peer name up0 netns $b
host $a 1 2
host $b 2 1
ip -n $a neigh replace 10.98.0.2 lladdr 02:98:00:00:00:02 dev up0 nud permanent
ip -n $b neigh replace 10.98.0.1 lladdr 02:98:00:00:00:01 dev up0 nud permanent
ip netns exec $a ethtool -K up0 tx off sg off tso off gso off tx-udp-segmentation off \
    tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off >/dev/null

in_a() { ip netns exec $a python3 traffic.py "$@"; }

# Records while a command runs: name of the traffic, command.
record() {
    local name=$1
    shift
    ip netns exec $a python3 traffic.py record "$name.device.pcap" vx0 02:97:00:00:00:01 >recorder.ready &
    local device=$!
    ip netns exec $a tcpdump -i up0 -Q out -s 0 -U --immediate-mode -Z root -w "$name.underlay.pcap" udp dst port 8472 or "ip[6:2] & 0x1fff != 0" \
        2>tcpdump.log &
    local underlay=$!
    until grep -q ready recorder.ready && grep -q listening tcpdump.log; do sleep 0.05; done
    "$@"
    # Both have everything once they have the last packet.
    in_a marker 10.97.2.0
    for file in "$name.device.pcap" "$name.underlay.pcap"; do
        until grep -qa "end of the recording" "$file"; do sleep 0.05; done
    done
    kill $device $underlay
    wait $device $underlay || true
    rm -f recorder.ready tcpdump.log
}

serve() { # runs a server in b around a command in a
    local port=$1
    shift
    ip netns exec $b python3 traffic.py server "$port" &
    local server=$!
    until ip netns exec $b ss -Hltn | grep -q ":$port "; do sleep 0.05; done
    "$@"
    wait $server
}

record tcp4 serve 5201 in_a tcp 10.97.2.0 5201
record tcp6 serve 5202 in_a tcp fd97::2 5202
record crafted in_a crafted vx0 02:97:00:00:00:02 02:97:00:00:00:01
ip netns exec $a nft -f - <<'RULES'
table inet marks {
    chain out {
        type filter hook postrouting priority 0
        tcp dport 5203 ip ecn ect0 ip ecn set ce
    }
}
RULES
record ecn serve 5203 in_a tcp 10.97.2.0 5203
ip netns exec $a nft delete table inet marks
record udp_gso in_a udp 10.97.2.0 fd97::2
record fragments in_a fragments 10.97.2.0 fd97::2
record ping sh -c "ip netns exec $a ping -q -c 2 -i 0.2 -s 100 10.97.2.0 && ip netns exec $a ping -q -c 2 -i 0.2 -s 101 fd97::2" >/dev/null
ls -l -- *.pcap
