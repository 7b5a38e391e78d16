# SPDX-License-Identifier: MIT
"""Transmission phase of one connection: requests in, replies out, as fast as Python goes.

The transport reads straight into our buffer; every complete request in it is parsed in one
loop. What the device can do at once (cache hits) is done there, without a task; the rest
become tasks, whose replies are sent in whatever order they finish. All replies of one wake-up
leave in one ``writelines``. A WRITE's payload that is not there yet is received straight into
its own buffer and handed on when complete, so nobody ever sees half of it.

Order: the device gets the requests on any one byte in the order in which they came. Tasks begin
in that order, and what could be done at once becomes a task too if it would overtake one that
has not begun. Each block is read and changed atomically, so overlapping writes do not tear; but
which of two that are at work together comes last is the device's affair: a client that cares
waits for the first one's reply.

What bounds it: requests and bytes at work per connection, bytes at work per server (`Budget`),
requests parsed per turn of the event loop (so that a flood on one connection leaves time for the
others), and the transport's write buffer: a client that does not read its replies is not read
from either. Over a bound the connection *stalls*: it stops reading until there is room again.
"""

import asyncio
import logging
from collections.abc import Callable
from errno import ESHUTDOWN

from swiftnbd.api import Device, is_hole
from swiftnbd.errors import ExportError, ProtocolError
from swiftnbd.metrics import Counters
from swiftnbd.protocol.constants import (
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    Command,
    Error,
)
from swiftnbd.protocol.errors import wire_error
from swiftnbd.protocol.replies import (
    OFFSET_BYTES,
    SIMPLE_REPLY,
    Replies,
    SimpleReplies,
    StructuredReplies,
    pack_only_data,
)
from swiftnbd.protocol.requests import (
    DRAIN_BYTES_MAX,
    REQUEST,
    ExportShape,
    OutOfRange,
    Request,
    check,
)
from swiftnbd.server.budget import Budget, Share
from swiftnbd.server.incoming import Incoming, Refused
from swiftnbd.server.outbox import Outbox
from swiftnbd.server.patience import Progress
from swiftnbd.server.perform import AtWork, bytes_held
from swiftnbd.server.sockets import close, peer_has_closed

RECEIVE_BYTES = 256 * 1024  # holds a deep queue of 4 KiB writes; larger payloads bypass it
REQUESTS_AT_WORK_MAX = 256  # per connection; the kernel client has 128 in flight, nbdcopy 64
BYTES_AT_WORK_MAX = 12 * 1024 * 1024  # per connection, or one request: this keeps a store busy
OWN_BYTES = 1024 * 1024  # of these, whatever others hold: requests of ordinary size go on
FAST_READ_BYTES_MAX = 256 * 1024  # larger cached reads take from the budget like all others
REQUESTS_PER_TURN_MAX = 512  # about 5 ms of cache hits, then the other connections have a turn
ANSWER_SECONDS_MAX = 90.0  # for all that a client which sends no more has asked for
WRITE_BATCH_BYTES = 1024 * 1024  # replies collected before they are handed to the transport
UNSENT_BYTES_MAX = 2 * 1024 * 1024  # in the transport before we stop reading from this client

# What a connection takes at most beyond its part of the budget: its buffer, what is its own,
# replies under way (which take as much again beside their bytes), and requests as tasks of 8 KiB.
CONNECTION_BYTES_MAX = (
    RECEIVE_BYTES
    + OWN_BYTES
    + 2 * UNSENT_BYTES_MAX
    + WRITE_BATCH_BYTES
    + REQUESTS_AT_WORK_MAX * 8 * 1024
)

_HEADER_BYTES = REQUEST.size
_unpack, _pack = REQUEST.unpack_from, SIMPLE_REPLY.pack
_READ, _WRITE, _DISC = int(Command.READ), int(Command.WRITE), int(Command.DISC)
_FLUSH = int(Command.FLUSH)
_SHUTTING_DOWN = "the server is shutting down"

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
        check_lock: Callable[[], None] = lambda: None,
    ) -> None:
        """``is_shared`` says whether the export has other connections at the moment.

        ``check_lock`` is called before anything is answered at once: this process may have stood
        still for so long that the device has to be suspended first.
        """
        self._device = device
        self._check_lock, self._is_shared = check_lock, is_shared
        self._shape = shape
        self._counters = counters
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self.ended = asyncio.Event()  # the connection is gone, and all that was at work for it
        self._transport: asyncio.Transport
        self._buffer = bytearray(RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._incoming: Incoming | None = None
        self._payloads_received = 0  # bytes of those that came this way
        self._refused: Refused | None = None
        self._replies: Replies = StructuredReplies(is_hole) if shape.structured else SimpleReplies()
        self._share = Share(budget, BYTES_AT_WORK_MAX, OWN_BYTES, self._go_on)
        self._outbox = Outbox(self._share)
        self.at_work = self._at_work = AtWork(
            device, self._replies, self._outbox, self._share, counters, peer, self._worked
        )
        self._read_now, self._write_now = device.read_now, device.write_now
        self._size = shape.size
        self._fast_read_max = min(FAST_READ_BYTES_MAX, shape.block_size_max)
        self._takes_fast_writes = not shape.read_only and shape.block_size_max >= RECEIVE_BYTES
        self._reading = True
        self._ending = self._shutting_down = False
        self._last_call: asyncio.TimerHandle | None = None

    def __str__(self) -> str:
        return self._peer

    # Life

    def start(self, transport: asyncio.Transport, received: bytes, writable: bool = True) -> None:
        """Take over a connection whose handshake is done; ``received`` came right behind it.

        Not ``writable``: the transport has paused writing, which it says only once.
        """
        self._transport = transport
        self._outbox.start(transport, writable=writable)
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
            await self._at_work.cancel()
            self.ended.set()

    @property
    def is_leaving(self) -> bool:
        """Whether it will send no more requests, as far as anybody on this machine knows."""
        return self._ending or peer_has_closed(self._transport)

    def end(self) -> None:
        """Read no further request; close when those at work are answered."""
        if not self._ending:
            self._ending = True
            self._share.close()
            self._pause_reading()
            self._close_if_done()

    def shut_down(self) -> None:
        """The server ends: finish what is at work, refuse what comes till then, and close."""
        self._shutting_down = True
        self._fast_read_max, self._takes_fast_writes = 0, False
        self._share.close()
        self._go_on()
        self._close_if_done()

    def abort(self) -> None:
        """Drop the connection now."""
        self._transport.abort()

    def _close_if_done(self) -> None:
        ending = self._ending or self._shutting_down
        if ending and not self._at_work and not self._transport.is_closing():
            self._ending = True
            self._outbox.send()
            close(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            log.info("%s: connection lost: %s", self._peer, exc)
        self._ending = True
        if self._last_call is not None:
            self._last_call.cancel()
        self._share.close()
        self._outbox.resume()
        if self._incoming is not None:
            self._share.give(self._incoming.request.length)
            self._incoming = None
        # now: what else refers to us may be found only by the next garbage collection
        self._buffer, self._view = bytearray(), memoryview(b"")
        self._lost.set_result(None)

    def eof_received(self) -> bool:
        """The client may still read, so what is at work is answered, within limits.

        But a client with several connections may have given this one up, and have sent again
        elsewhere what is at work here: then none of it may take effect any more.
        """
        if self._is_shared() and self._at_work:
            self.abort()
        else:
            self._last_call = self._loop.call_later(ANSWER_SECONDS_MAX, self.abort)
        self.end()
        return True

    # Back-pressure

    def progress(self) -> Progress | None:
        """How far the client has come with what it has to do before anything goes on."""
        if self._incoming is None and self._outbox.writable:
            return None
        received = self._incoming.received if self._incoming else 0
        moved = self._payloads_received + received + self._outbox.taken
        return Progress(moved, self._share.shared)

    def pause_writing(self) -> None:
        self._outbox.pause()

    def resume_writing(self) -> None:
        self._outbox.resume()
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

    def _take(self, request: Request) -> bool:
        """Room for one more request at work; if there is none, `_go_on` comes later."""
        return len(self._at_work) < REQUESTS_AT_WORK_MAX and self._share.take(bytes_held(request))

    def _worked(self) -> None:
        """A request is no longer at work."""
        if not self._lost.done():
            self._close_if_done()
            self._go_on()

    # Receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._incoming is not None:
            return self._incoming.space()
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
        elif not self._incoming.add(nbytes):
            return
        else:
            self._check_lock()
            self._received_payload(self._incoming)
        self._parse()

    def _parse(self) -> None:
        """Deal with every complete request in the buffer, or stall."""
        self._check_lock()
        begin = self._counters.now()
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
        self._outbox.send()
        self._counters.answered_now(begin)

    def _parse_requests(self) -> bool:
        """Returns whether it stalled: there may be requests left that must wait."""
        # Whatever costs time for each wake-up or request was found by measuring.
        buffer, outbox, size = self._buffer, self._outbox, self._size
        read_now, out, counters = self._read_now, outbox.pieces, self._counters
        unbegun = self._at_work.unbegun
        left, batch = REQUESTS_PER_TURN_MAX, 0
        while (
            self._end - self._start >= _HEADER_BYTES
            and not (self._refused or self._incoming or self._ending)
        ) or self._has_header():  # the usual case without a call
            if not outbox.writable:
                return True
            if not left:
                self._loop.call_soon(self._go_on)
                return True
            left -= 1
            magic, flags, command, cookie, offset, length = _unpack(buffer, self._start)
            if magic != REQUEST_MAGIC:
                raise ProtocolError(f"request magic {magic:#010x} is wrong")
            if (
                command == _READ
                and not flags
                and 0 < length <= self._fast_read_max
                and offset + length <= size
                and not (unbegun and self._at_work.would_overtake(offset, length))
                and (pieces := read_now(offset, length)) is not None
            ):
                self._start += _HEADER_BYTES
                if self._shape.structured:
                    for piece in pieces:
                        if type(piece) is memoryview and is_hole(piece):  # mostly not a view
                            request = Request(command, flags, cookie, offset, length)
                            out.extend(self._replies.content(request, pieces))
                            break
                    else:
                        payload = OFFSET_BYTES + length
                        out.append(pack_only_data(cookie, payload, offset))
                        out.extend(pieces)
                else:
                    out.append(_pack(SIMPLE_REPLY_MAGIC, 0, cookie))
                    out.extend(pieces)
                counters.client_out += length
                counters.reads_now += 1
                batch += length
                if batch >= WRITE_BATCH_BYTES:
                    outbox.send()
                    batch = 0
            elif (
                command == _WRITE
                and not flags
                and 0 < length <= self._end - (payload := self._start + _HEADER_BYTES)
                and offset + length <= size
                and self._takes_fast_writes
                and not (unbegun and self._at_work.would_overtake(offset, length))
                and self._write_now(offset, self._view[payload : payload + length])
            ):
                self._start = payload + length
                out.append(_pack(SIMPLE_REPLY_MAGIC, 0, cookie))
                counters.client_in += length
                counters.writes_now += 1
            elif not self._begin(Request(command, flags, cookie, offset, length)):
                return True
        return False

    def _has_header(self) -> bool:
        """Whether the next request's header is in the buffer, after what is to be skipped."""
        if self._refused is not None:
            self._start += self._refused.skip(self._end - self._start)
            if self._refused.left:
                return False
            self._outbox.add(self._refused.reply)
            self._refused = None
        return self._end - self._start >= _HEADER_BYTES and not (self._incoming or self._ending)

    def _begin(self, request: Request) -> bool:
        """Start on one request; False, and nothing done, if there is no room for it now."""
        if request.command == _DISC:
            self._start += _HEADER_BYTES
            self.end()
            return True
        try:
            if self._shutting_down:
                raise ExportError(ESHUTDOWN, _SHUTTING_DOWN)
            check(request, self._shape)
        except ExportError as error:
            self._refuse(request, error)
            return True
        if not request.length and request.command != _FLUSH:
            self._start += _HEADER_BYTES
            self._outbox.add(self._replies.done(request))  # allowed, and without effect
            return True
        if not self._take(request):
            return False
        self._start += _HEADER_BYTES
        if request.command == _WRITE:
            self._receive(request)
        else:
            self._at_work.begin(request, b"")
        return True

    def _refuse(self, request: Request, error: ExportError) -> None:
        """Answer, behind the payload that comes anyway ("MUST" stay in sync)."""
        log.debug("%s: refused: %s", self._peer, error)
        self._start += _HEADER_BYTES
        where = error.offset if isinstance(error, OutOfRange) else None
        number = wire_error(error.errno, request)
        reply = self._replies.failure(request, number, str(error), where)
        payload = request.length if request.command == _WRITE else 0
        if 0 < payload <= DRAIN_BYTES_MAX:
            self._refused = Refused(payload, reply)
            return
        self._outbox.add(reply)
        if payload:
            raise ProtocolError(f"a WRITE of {payload} bytes")

    def _receive(self, request: Request) -> None:
        """Take the payload of a WRITE from the buffer, or what is there of it."""
        here = min(request.length, self._end - self._start)
        payload = self._view[self._start : self._start + here]
        self._start += here
        if here == request.length:
            self._at_work.begin(request, bytes(payload))
            return
        self._incoming = Incoming(request, payload)

    def _received_payload(self, incoming: Incoming) -> None:
        """Carry out the WRITE whose payload is complete now; at once, if that is possible."""
        request, payload, self._incoming = incoming.request, incoming.payload, None
        self._payloads_received += request.length
        if self._shutting_down:
            reply = self._replies.failure(request, Error.ESHUTDOWN, _SHUTTING_DOWN)
        elif (
            request.flags
            or self._at_work.would_overtake(request.offset, request.length)
            or not self._device.write_now(request.offset, payload)
        ):
            self._at_work.begin(request, payload)
            return
        else:
            self._counters.client_in += request.length
            self._counters.writes_now += 1
            reply = self._replies.done(request)
        self._outbox.add(reply, request.length)
