"""Traffic and a recorder for make.sh: see there."""

import signal
import socket
import struct
import sys

UDP_SEGMENT = 103
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
MARK = b"end of the recording"


def pattern(size):
    """Bytes that differ from place to place and compress well."""
    return b"".join(b"%07d " % n for n in range(size // 8 + 1))[:size]


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def record(path, device, source):
    """Writes the frames that `device` sends from its hardware address `source`, each behind its virtio-net header."""
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    tap.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    tap.bind((device, 0))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    source = bytes.fromhex(source.replace(":", ""))
    with open(path, "wb", buffering=0) as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 147))
        print("ready", flush=True)
        while True:
            frame = tap.recv(1 << 17)
            if frame[16:22] == source:
                file.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)


def server(port):
    """Reads one TCP connection to its end, answering each line of `go` with a byte."""
    with socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        connection, _ = listener.accept()
        while data := connection.recv(1 << 16):
            if data.endswith(b"go"):
                connection.send(b"!")
        connection.close()


def tcp(host, port):
    """A super-frame, and after the answer another one; with it goes CWR if the first one was marked."""
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(pattern(3000) + b"go")
        connection.recv(1)
        connection.sendall(pattern(2000))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


def udp(*hosts):
    """Inner super-frames with a shorter last datagram and without one, a single datagram, all ECN codepoints."""
    for host in hosts:
        with socket.socket(family(host), socket.SOCK_DGRAM) as sender:
            level, option = (41, 67) if ":" in host else (0, 1)
            for tos, size, segment in ((0, 2500, 1000), (0, 1200, 600), (0, 1, 0), (1, 90, 0), (2, 90, 40), (0xB3, 90, 0)):
                sender.setsockopt(level, option, tos)
                sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, segment)
                sender.sendto(pattern(size), (host, 9))


def fragments(*hosts):
    """Datagrams that the host itself cuts into IP fragments."""
    for host in hosts:
        with socket.socket(family(host), socket.SOCK_DGRAM) as sender:
            if ":" not in host:
                sender.setsockopt(0, 10, 0)  # IP_MTU_DISCOVER: no DF
            sender.sendto(pattern(2000), (host, 9))
            sender.sendto(pattern(200), (host, 9))


def words(data):
    """The sum of 16-bit words, folded."""
    total = sum(struct.unpack(">%dH" % (len(data) // 2), data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def crafted(device, destination, source):
    """What sockets do not make here, given to the device as it is: VLAN tags, super-frames with FIN, PSH and CWR."""
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sender.bind((device, 0))
    link = bytes.fromhex((destination + source).replace(":", ""))
    for tags in (b"", b"\x81\x00\x20\x05", b"\x88\xa8\x00\x06\x81\x00\x20\x05"):
        for v6, tcp, size, segment in (
            (0, 1, 1300, 600), (1, 1, 1200, 600), (0, 0, 800, 400), (1, 0, 800, 300), (0, 1, 50, 0), (1, 0, 50, 0),
        ):
            # Ports 8080 to 80; sequence number about to wrap, header of 20 bytes, FIN PSH ACK CWR.
            transport = bytearray.fromhex("1f900050fffffe0000000002509902000000" "0000" if tcp else "1f90005000000000")
            length = len(transport) + size
            if v6:
                addresses = socket.inet_pton(socket.AF_INET6, "fd97::1") + socket.inet_pton(socket.AF_INET6, "fd97::2")
                ip = struct.pack(">IHBB", 0x6B3BEEF5, length, 6 if tcp else 17, 64) + addresses
            else:
                addresses = bytes([10, 97, 1, 0, 10, 97, 2, 0])
                ip = struct.pack(">BBHHHBBH", 0x45, 0xBA, 20 + length, 0xFFFE, 0, 64, 6 if tcp else 17, 0) + addresses
                ip = ip[:10] + struct.pack(">H", 0xFFFF - words(ip)) + ip[12:]
            field = 16 if tcp else 6
            if not tcp:
                transport[4:6] = struct.pack(">H", length)
            transport[field:field + 2] = struct.pack(">H", words(addresses + struct.pack(">II", length, 6 if tcp else 17)))
            head = link + tags + (b"\x86\xdd" if v6 else b"\x08\x00")
            start = len(head) + len(ip)
            gso = (5, 5, 0x81, 0x84)[tcp * 2 + v6] if segment else 0
            vnet = struct.pack("<BBHHHH", 1, gso, start + len(transport), segment, start, field)
            sender.send(vnet + head + ip + transport + pattern(size))


def marker(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(MARK, (host, 9))


if __name__ == "__main__":
    {f.__name__: f for f in (record, server, tcp, udp, fragments, crafted, marker)}[sys.argv[1]](*sys.argv[2:])
