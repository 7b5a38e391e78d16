# SPDX-License-Identifier: MIT
"""Who is at the other end of a connection, and where it comes from.

NBD has no client identity, yet several connections of one client must share an export while any
other client is kept out (`swiftnbd.export.export`). So a client is:

* on TCP, an address, whatever its ports;
* on a Unix socket, a process: what connects is all on this machine, so an address would make
  one client of everybody. The kernel tells its number (SO_PEERCRED), which nobody can forge; the
  user and the time it was started are part of the identity, since numbers are used again. It is
  the process that connected, even if it handed the socket on since.
* what the kernel does not know (a process of another PID namespace has the number 0 here, a peer
  that has gone already no address) is a client of its own at each connection.
"""

import asyncio
import ipaddress
import itertools
import socket
import struct
from dataclasses import dataclass

from swiftnbd.api.client import Client
from swiftnbd.server.access import Family, Origin
from swiftnbd.server.processes import start_ticks

_CREDENTIALS = struct.Struct("iII")  # struct ucred: process, user, group

_strangers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Peer:
    """One end of a connection: the client it belongs to, and what access rules look at."""

    client: Client
    origin: Origin


def peer_of(transport: asyncio.Transport) -> Peer:
    """Who is connected there."""
    connection = transport.get_extra_info("socket")
    if connection.family == socket.AF_UNIX:
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        return process_peer(*_CREDENTIALS.unpack(credentials))
    return address_peer(transport.get_extra_info("peername"))


def process_peer(process: int, user: int, group: int) -> Peer:
    """A process of this machine; in a mark, its number stands in the place of a port."""
    origin = Origin(Family.UNIX)
    if not process:
        return Peer(_stranger("a process", "localhost"), origin)
    identity = f"process {process} of {user} since {start_ticks(process)}"
    shown = f"process {process} (user {user})"
    client = Client(identity, "localhost", process, shown, process=process, user=user, group=group)
    return Peer(client, origin)


def address_peer(peername: tuple[str, int] | None) -> Peer:
    """A TCP peer: its address, however it is written."""
    if not peername:  # reset before we looked
        return Peer(_stranger("unknown", "unknown"), Origin())
    host = peername[0].partition("%")[0]
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    family = Family.IPV4 if address.version == 4 else Family.IPV6
    return Peer(Client(str(address), str(address), peername[1]), Origin(family, address))


def _stranger(what: str, host: str) -> Client:
    shown = f"{what} (connection {next(_strangers)})"
    return Client(shown, host, 0, shown)
