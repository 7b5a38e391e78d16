# SPDX-License-Identifier: MIT
"""Transmission phase of one connection: requests in, replies out, as fast as Python goes.

The transport reads straight into our buffer; every complete request in it is parsed in one
loop. What the device can answer at once (cache hits) is answered there, without a task; the rest
become tasks, whose replies are sent in whatever order they finish. All replies of one wake-up
leave in one ``writelines``. A WRITE's payload that is not there yet is received straight into
its own buffer and handed on when complete, so nobody ever sees half of it.

What bounds it: requests and bytes at work per connection, bytes at work per server (`Budget`),
requests parsed per turn of the event loop (so that a flood on one connection leaves time for the
others), and the transport's write buffer: a client that does not read its replies is not read
from either. Over a bound the connection *stalls*: it stops reading until there is room again.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from swiftnbd.errors import ExportError, ProtocolError, SwiftnbdError
from swiftnbd.export.device import Device
from swiftnbd.metrics import Counters
from swiftnbd.protocol.constants import (
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    Command,
    Error,
)
from swiftnbd.protocol.errors import wire_error
from swiftnbd.protocol.requests import (
    DRAIN_BYTES_MAX,
    REQUEST,
    SIMPLE_REPLY,
    ExportShape,
    Request,
    check,
    simple_reply,
)
from swiftnbd.server.budget import Budget, Share
from swiftnbd.server.perform import Described, perform
from swiftnbd.server.sockets import close, peer_has_closed
from swiftnbd.store.base import Buffer

RECEIVE_BYTES = 256 * 1024  # holds a deep queue of 4 KiB writes; larger payloads bypass it
REQUESTS_AT_WORK_MAX = 256  # per connection; the kernel client has 128 in flight, nbdcopy 64
BYTES_AT_WORK_MAX = 64 * 1024 * 1024  # per connection: two requests of the largest size
OWN_BYTES = 1024 * 1024  # of these, whatever others hold: requests of ordinary size go on
FAST_READ_BYTES_MAX = 256 * 1024  # larger cached reads take from the budget like all others
REQUESTS_PER_TURN_MAX = 512  # about 5 ms of cache hits, then the other connections have a turn
WRITE_BATCH_BYTES = 1024 * 1024  # replies collected before they are handed to the transport
UNSENT_BYTES_MAX = 2 * 1024 * 1024  # in the transport before we stop reading from this client

_HEADER_BYTES = REQUEST.size
_READ, _WRITE, _DISC = int(Command.READ), int(Command.WRITE), int(Command.DISC)
_FLUSH = int(Command.FLUSH)

log = logging.getLogger(__name__)


class Transmission(asyncio.BufferedProtocol):
    """Serves ``device`` on one connection until the client or the server ends it."""

    def __init__(
        self,
        device: Device,
        shape: ExportShape,
        budget: Budget,
        counters: Counters,
        peer: str,
        is_shared: Callable[[], bool] = lambda: False,
    ) -> None:
        """``is_shared`` says whether the export has other connections at the moment."""
        self._device = device
        self._is_shared = is_shared
        self._shape = shape
        self._share = Share(budget, BYTES_AT_WORK_MAX, OWN_BYTES, self._go_on)
        self._counters = counters
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self.ended = asyncio.Event()  # the connection is gone, and all that was at work for it
        self._transport: asyncio.Transport
        self._buffer = bytearray(RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        # the WRITE whose payload is being received, and where the next bytes go
        self._incoming: Request | None = None
        self._payload = bytearray()
        self._received = 0
        self._to_skip = 0  # of the payload of a refused WRITE
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes_unsent = 0
        self._out: list[Buffer] = []
        self._out_cost = 0  # bytes at work that leave with it
        self._send_scheduled = False
        self._reading = True
        self._writing = True
        self._ending = False

    # Life

    def start(self, transport: asyncio.Transport, received: bytes) -> None:
        """Take over a connection whose handshake is done; ``received`` came right behind it."""
        self._transport = transport
        self._reading = False
        transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        transport.set_protocol(self)
        assert len(received) <= RECEIVE_BYTES
        self._buffer[: len(received)] = received
        self._end = len(received)
        self._parse()

    async def run(self) -> None:
        """Return when the connection is gone and nothing of it is at work any more."""
        try:
            await asyncio.shield(self._lost)  # whoever cancels us must not cancel that
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self.ended.set()

    @property
    def is_leaving(self) -> bool:
        """Whether it will send no more requests, as far as anybody on this machine knows."""
        return self._ending or peer_has_closed(self._transport)

    def end(self) -> None:
        """Read no further request; close when those at work are answered."""
        if not self._ending:
            self._ending = True
            self._pause_reading()
            self._close_if_done()

    def abort(self) -> None:
        """Drop the connection now."""
        self._transport.abort()

    def _close_if_done(self) -> None:
        if self._ending and not self._tasks and not self._transport.is_closing():
            self._send()
            close(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            log.info("%s: connection lost: %s", self._peer, exc)
        self._ending = True
        self._share.close()
        self._share.give(self._bytes_unsent)
        self._bytes_unsent = 0
        if self._incoming is not None:
            self._share.give(self._incoming.length)
            self._incoming = None
        self._lost.set_result(None)

    def eof_received(self) -> bool:
        """The client may still read, so what is at work is answered.

        But a client with several connections may have given this one up, and have sent again
        elsewhere what is at work here: then none of it may take effect any more.
        """
        if self._is_shared() and self._tasks:
            self.abort()
        self.end()
        return True

    # Back-pressure

    def pause_writing(self) -> None:
        self._writing = False

    def resume_writing(self) -> None:
        self._writing = True
        self._share.give(self._bytes_unsent)
        self._bytes_unsent = 0
        self._go_on()

    def _pause_reading(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self._ending and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def _go_on(self) -> None:
        """Parse on after a stall, unless something else still holds us up."""
        if not self._ending and not self._reading:
            self._parse()

    # Receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._incoming is not None:
            return memoryview(self._payload)[self._received :]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start:
            rest = self._buffer[self._start : self._end]
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._incoming is None:
            self._end += nbytes
        else:
            self._received += nbytes
            if self._received < len(self._payload):
                return
            request, self._incoming = self._incoming, None
            payload, self._payload = self._payload, bytearray()
            self._work(request, payload)
        self._parse()

    def _parse(self) -> None:
        """Deal with every complete request in the buffer, or stall."""
        try:
            stalled = self._parse_requests()
        except ProtocolError as error:
            log.warning("%s: %s; closing the connection", self._peer, error)
            self.end()
        else:
            if stalled:
                self._pause_reading()
            else:
                self._resume_reading()
        self._send()

    def _parse_requests(self) -> bool:
        """Returns whether it stalled: there may be requests left that must wait."""
        unpack, pack, read_now = REQUEST.unpack_from, SIMPLE_REPLY.pack, self._device.read_now
        buffer, out, size = self._buffer, self._out, self._shape.size
        left, batch = REQUESTS_PER_TURN_MAX, 0
        while self._has_header():
            if not self._writing:
                return True
            if not left:
                self._loop.call_soon(self._go_on)
                return True
            left -= 1
            magic, flags, command, cookie, offset, length = unpack(buffer, self._start)
            if magic != REQUEST_MAGIC:
                raise ProtocolError(f"request magic {magic:#010x} is wrong")
            if (
                command == _READ
                and not flags
                and 0 < length <= FAST_READ_BYTES_MAX
                and offset + length <= size
                and (pieces := read_now(offset, length)) is not None
            ):
                self._start += _HEADER_BYTES
                out.append(pack(SIMPLE_REPLY_MAGIC, 0, cookie))
                out.extend(pieces)
                self._counters.client_out += length
                batch += length
                if batch >= WRITE_BATCH_BYTES:
                    self._send()
                    batch = 0
            elif not self._begin(Request(command, flags, cookie, offset, length)):
                return True
        return False

    def _has_header(self) -> bool:
        """Whether the next request's header is in the buffer, after what is to be skipped."""
        if self._to_skip:
            here = min(self._to_skip, self._end - self._start)
            self._start += here
            self._to_skip -= here
        return (
            self._end - self._start >= _HEADER_BYTES and self._incoming is None and not self._ending
        )

    def _begin(self, request: Request) -> bool:
        """Start on one request; False, and nothing done, if there is no room for it now."""
        if request.command == _DISC:
            self._start += _HEADER_BYTES
            self.end()
            return True
        try:
            check(request, self._shape)
        except ExportError as error:
            self._refuse(request, error)
            return True
        if not request.length and request.command != _FLUSH:
            self._start += _HEADER_BYTES
            self._reply(request.cookie)  # allowed, and without effect
            return True
        moves_data = request.command in (_READ, _WRITE)
        if len(self._tasks) >= REQUESTS_AT_WORK_MAX:
            return False
        if not self._share.take(request.length if moves_data else 0):
            return False
        self._start += _HEADER_BYTES
        if request.command == _WRITE:
            self._receive(request)
        else:
            self._work(request, b"")
        return True

    def _refuse(self, request: Request, error: ExportError) -> None:
        """Answer at once; the payload that comes anyway is skipped ("MUST" stay in sync)."""
        log.debug("%s: refused: %s", self._peer, error)
        self._start += _HEADER_BYTES
        self._reply(request.cookie, wire_error(error.errno))
        if request.command == _WRITE:
            if request.length > DRAIN_BYTES_MAX:
                raise ProtocolError(f"a WRITE of {request.length} bytes")
            self._to_skip = request.length

    def _receive(self, request: Request) -> None:
        """Take the payload of a WRITE from the buffer, or what is there of it."""
        here = min(request.length, self._end - self._start)
        payload = self._view[self._start : self._start + here]
        self._start += here
        if here == request.length:
            self._work(request, bytes(payload))
            return
        self._payload = bytearray(request.length)
        self._payload[:here] = payload
        self._received = here
        self._incoming = request

    # Working

    def _work(self, request: Request, payload: Buffer) -> None:
        """Carry out a checked request as a task."""
        task = self._loop.create_task(self._serve(request, payload))
        self._tasks.add(task)
        task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._lost.done():
            self._close_if_done()
            self._go_on()

    async def _serve(self, request: Request, payload: Buffer) -> None:
        cost = request.length if request.command in (_READ, _WRITE) else 0
        described = Described(request)
        log.debug("%s: %s", self._peer, described)
        try:
            pieces = await perform(self._device, request, payload, self._counters)
        except SwiftnbdError as error:
            log.error("%s: %s failed: %s", self._peer, described, error)
            self._reply(request.cookie, wire_error(error.errno))
        except asyncio.CancelledError:
            self._share.give(cost)
            raise
        except Exception:
            log.exception("%s: %s failed", self._peer, described)
            self._reply(request.cookie, Error.EIO)
        else:
            self._reply(request.cookie, pieces=pieces)
        self._out_cost += cost

    # Replying

    def _reply(self, cookie: int, error: int = 0, pieces: Sequence[Buffer] = ()) -> None:
        """Queue a reply; what is queued in one turn of the loop leaves together."""
        self._out.append(simple_reply(cookie, error))
        self._out.extend(pieces)
        if not self._send_scheduled:
            self._send_scheduled = True
            self._loop.call_soon(self._send_later)

    def _send_later(self) -> None:
        self._send_scheduled = False
        self._send()

    def _send(self) -> None:
        """Hand the queued replies to the transport.

        The bytes at work are given back only when they have left, or a client that does not
        read could make us hold any number of them.
        """
        if self._out and not self._transport.is_closing():
            self._transport.writelines(self._out)
        self._out.clear()
        cost, self._out_cost = self._out_cost, 0
        if self._writing or self._lost.done():
            self._share.give(cost)
        else:
            self._bytes_unsent += cost
