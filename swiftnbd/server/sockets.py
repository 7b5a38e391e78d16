# SPDX-License-Identifier: MIT
"""What the kernel is asked to do, and asked about, for one connection (Linux, tcp(7), poll(2))."""

import asyncio
import fcntl
import select
import socket
import sys
import termios

KEEPALIVE_SECONDS = 60  # of silence; then six probes over as long again
CLOSE_SECONDS_MAX = 10.0  # for a client to take its last replies
GOODBYE_SECONDS = 1.0  # more, for it to close its end; its bytes may be under way
DISCARDED_BYTES_MAX = 1024 * 1024  # of what it sends meanwhile; a flood is no reason to wait

_KEEPALIVE_PROBES = 6
_NOBODYS = memoryview(bytearray(16 * 1024))  # filled, never looked at


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
    """Close so that what was written arrives; a client that never takes it is cut off.

    Can be called again. `closed` waits for the end.
    """
    if not transport.can_write_eof():  # TLS: it says so itself, and closes what is below it
        transport.close()
    elif not transport.is_closing() and not isinstance(transport.get_protocol(), _Closing):
        _Closing(transport).start()


async def closed(transport: asyncio.Transport) -> None:
    """Close, and return when the connection is gone."""
    close(transport)
    protocol = transport.get_protocol()
    if isinstance(protocol, _Closing):
        await asyncio.shield(protocol.lost)


class _Closing(asyncio.BufferedProtocol):
    """The last of a connection: says that nothing more will come, and waits for the client's end.

    A socket that is closed with unread input is reset by the kernel, which then throws away what
    the client has not taken of our last replies (RFC 1122, 4.2.2.13). So what still comes is
    read away, a little of it, for a little while.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._transport = transport
        self._owner = transport.get_protocol()
        self._left = DISCARDED_BYTES_MAX
        self._deadline = loop.time() + CLOSE_SECONDS_MAX
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Take the connection over from its protocol, which is told of its end all the same."""
        self._transport.set_protocol(self)
        if _nothing_more_comes(self._transport):
            self._transport.close()
        else:
            try:
                self._transport.write_eof()
            except OSError:  # reset meanwhile
                self._transport.abort()
                return
            if not self._transport.is_reading():
                self._transport.resume_reading()
        self._wait()

    def _wait(self, *, arrived: bool = False) -> None:
        """Give the client time to take all, then a little more to close its end."""
        loop = asyncio.get_running_loop()
        if arrived or loop.time() >= self._deadline:
            self._transport.abort()
            return
        now = not self._transport.get_write_buffer_size() and _all_arrived(self._transport)
        self._timer = loop.call_later(GOODBYE_SECONDS, lambda: self._wait(arrived=now))

    def get_buffer(self, sizehint: int) -> memoryview:
        return _NOBODYS

    def buffer_updated(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left < 0:
            self._transport.pause_reading()

    def eof_received(self) -> None:  # and the transport closes
        pass

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.lost.set_result(None)
        self._owner.connection_lost(exc)


def _nothing_more_comes(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed its end, and all that it sent has been read."""
    return peer_has_closed(transport) and _queued(transport, termios.FIONREAD) == 0


def _all_arrived(transport: asyncio.Transport) -> bool:
    """Whether the peer's kernel has all that ours was given, unless we closed already."""
    return transport.is_closing() or _queued(transport, termios.TIOCOUTQ) == 0


def _queued(transport: asyncio.Transport, what: int) -> int:
    """How many bytes the kernel holds for the reader (FIONREAD) or the peer (TIOCOUTQ)."""
    connection = transport.get_extra_info("socket")
    return int.from_bytes(fcntl.ioctl(connection.fileno(), what, bytes(4)), sys.byteorder)
