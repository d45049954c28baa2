"""Whose process is at the other end of a connection on this machine."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from urllib.parse import unquote

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))

Peer = tuple[str, int]  # address and port of a client


def peer_of(text: str) -> Peer | None:
    """gRPC's ``ipv4:127.0.0.1:5000`` or ``ipv6:%5B::1%5D:5000``; None for anything else."""
    kind, _, rest = unquote(text).partition(":")
    host, _, port = rest.rpartition(":")
    return (host.strip("[]"), int(port)) if kind in ("ipv4", "ipv6") and port.isdecimal() else None


def user_of(peer: Peer | None) -> int | None:
    """The id of the user whose process holds this socket; None where it is not on this machine, or nobody can say."""
    if peer is None:
        return None
    try:
        address = ipaddress.ip_address(peer[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        packed = [(address.ipv4_mapped or address).packed, address.packed]
    else:  # a socket of IPv6, too, may have an address of IPv4
        packed = [address.packed, bytes(10) + b"\xff\xff" + address.packed]
    wanted = {_printed(one) + f":{peer[1]:04X}" for one in packed}
    for table in _TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            # Established, by the kernel's number: what is left of a connection that was closed belongs to root.
            if fields[1] in wanted and fields[3] == "01":
                return int(fields[7])
    return None


def _printed(packed: bytes) -> str:
    """An address as the kernel prints it: words of 32 bits in its own byte order."""
    words = [int.from_bytes(packed[i : i + 4], "big") for i in range(0, len(packed), 4)]
    return "".join(f"{socket.ntohl(word):08X}" for word in words)
