# SPDX-License-Identifier: MIT
"""What the kernel is asked to do, and asked about, for one connection (Linux, tcp(7), poll(2))."""

import asyncio
import select
import socket

KEEPALIVE_SECONDS = 60  # of silence; then six probes over as long again
CLOSE_SECONDS_MAX = 10.0  # for a client to take its last replies

_KEEPALIVE_PROBES = 6


def keep_alive(transport: asyncio.Transport) -> None:
    """Notice within two minutes that a client's machine is gone: its lock keeps others out."""
    connection = transport.get_extra_info("socket")
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return  # the kernel tells of the end of a process at once
    interval = KEEPALIVE_SECONDS // _KEEPALIVE_PROBES
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


def peer_has_closed(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed its end, even if what it sent before has not been read."""
    connection = transport.get_extra_info("socket")
    if connection is None or transport.is_closing():  # its descriptor may be another's by now
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)  # POLLERR and POLLHUP come unasked
    return bool(poll.poll(0))


def close(transport: asyncio.Transport) -> None:
    """Close when what was written has left; a client that never takes it is cut off."""
    transport.close()
    if transport.get_write_buffer_size():
        asyncio.get_running_loop().call_later(CLOSE_SECONDS_MAX, transport.abort)
