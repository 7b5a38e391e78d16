# SPDX-License-Identifier: MIT
"""TLS on a connection that has begun in the clear: a transport on top of a transport.

Not `asyncio.loop.start_tls`, for what the NBD server has to do and the event loops' own TLS does
not: answer what is at work after the client has said that it will send no more (close_notify or
FIN; theirs drop those replies), tell a client by a TLS alert why its handshake failed, and put
all replies of one wake-up into full records. The cryptography is `ssl`'s all the same.

Bytes are decrypted only when the protocol above wants some, and the connection is read from only
when nothing is left to decrypt. What is written is encrypted at once, so the write buffer, its
limits and its back-pressure are those of the transport below.

TLS has messages of its own (new keys, RFC 8446, section 4.6.3), which cost us time and mostly an
answer, and no byte of which the protocol above ever sees. So records are counted, and beyond a
few in a turn of the event loop the others go first; what TLS answers is not piled up for a
client that does not read; and one that sends nothing else is cut off.

::

    HANDSHAKE --> OPEN --close()--> CLOSED (close_notify was sent, the transport below closes)
        `--failed (an alert was sent)--> CLOSED
"""

import asyncio
import enum
import logging
import ssl
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

from swiftnbd.errors import ProtocolError
from swiftnbd.server.peers import peer_of
from swiftnbd.server.sockets import close

RECEIVE_BYTES = 128 * 1024  # encrypted, taken in one go; more waits in the kernel
ENCRYPT_BYTES = 64 * 1024  # in one go: OpenSSL's buffer is costly to grow, this halves the time
# What a connection takes for TLS at most: what was received, the same on its way to be decrypted,
# and the buffers of OpenSSL.
TLS_BYTES_MAX = 2 * RECEIVE_BYTES + 2 * ENCRYPT_BYTES + 128 * 1024
RECORDS_PER_TURN_MAX = 256  # 5 ms of new keys, then the other connections have a turn
# Received without one byte for the protocol above: four of the largest records. A client changes
# its keys after gigabytes; this is room for 2400 changes in a row.
BARREN_BYTES_MAX = 64 * 1024
# What TLS answers while the client does not read: 600 times new keys. It must be some, or a client
# that reads our replies only after its own long payload would be waited for in vain.
ANSWERS_UNSENT_MAX = 16 * 1024

_HEADER = struct.Struct(">3xH")  # of a record: type, version, length
_Bytes = bytes | bytearray | memoryview

log = logging.getLogger(__name__)


class _State(enum.Enum):
    HANDSHAKE = enum.auto()
    OPEN = enum.auto()
    CLOSED = enum.auto()


class TlsTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """The server's side of TLS over ``transport``, which it takes over. Begins with `handshake`.

    The transport below must not be reading, and nothing must have been read from it that its
    peer may have meant for TLS.
    """

    def __init__(self, transport: asyncio.Transport, context: ssl.SSLContext) -> None:
        super().__init__()
        self._below = transport
        self._protocol: asyncio.BaseProtocol = asyncio.BaseProtocol()
        self._loop = asyncio.get_running_loop()
        self._encrypted_in, self._encrypted_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._encrypted_in, self._encrypted_out, server_side=True)
        # what typeshed says of it goes for its other form
        self._read = cast(Callable[[int, memoryview], int], self._ssl.read)
        self._client = peer_of(transport).client
        self._received = memoryview(bytearray(RECEIVE_BYTES))
        self._start = self._end = 0  # of what OpenSSL has not been given
        self._record_left = 0  # bytes of a record of which it has the beginning
        self._records_left = RECORDS_PER_TURN_MAX
        self._barren = 0
        self._answers_unsent = 0
        self._writable = True  # the transport below
        self._shaken: asyncio.Future[None] = self._loop.create_future()
        self._state = _State.HANDSHAKE
        self._wanted = False  # the protocol above reads
        self._end_received = False  # nothing comes from below any more
        self._end_told = False
        self._turn_scheduled = False
        transport.set_protocol(self)

    async def handshake(self, seconds_max: float) -> None:
        """Agree on keys; then it does not read until told to. Raises `ProtocolError`."""
        self._below.resume_reading()
        try:
            async with asyncio.timeout(seconds_max):
                await self._shaken
        except TimeoutError:
            raise ProtocolError("the TLS handshake takes too long") from None

    @property
    def peer_certificate(self) -> bytes | None:
        """The client's certificate in DER, if one was asked for and verified."""
        return self._ssl.getpeercert(binary_form=True)

    @property
    def peer_names(self) -> Mapping[str, Any]:
        """What `ssl.SSLSocket.getpeercert` says of a verified certificate; else nothing."""
        return self._ssl.getpeercert() or {}

    def __str__(self) -> str:
        cipher = self._ssl.cipher()
        return f"{self._ssl.version()} {cipher[0] if cipher else ''}".strip()

    # asyncio.Transport, for the protocol above

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._below.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._state is _State.CLOSED or self._below.is_closing()

    def is_reading(self) -> bool:
        return self._wanted

    def pause_reading(self) -> None:
        self._wanted = False
        if not self.is_closing():
            self._below.pause_reading()

    def resume_reading(self) -> None:
        self._wanted = True
        self._schedule_turn()  # later: the caller need not expect bytes in this call

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._take_turn)

    def write(self, data: _Bytes) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[_Bytes]) -> None:
        if self.is_closing():
            return
        data = memoryview(b"".join(list_of_data))  # few full records instead of many small ones
        encrypted = []
        try:
            while data:
                data = data[self._ssl.write(data[:ENCRYPT_BYTES]) :]
                encrypted.append(self._encrypted_out.read())
        except ssl.SSLError as error:
            self._fail(_reason(error))
        else:
            self._below.writelines(encrypted)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._below.get_write_buffer_size()

    def close(self) -> None:
        """Say that nothing more will come, and close once all has left.

        "The peer's close_notify need not be waited for" (RFC 8446, section 6.1).
        """
        if self._state is _State.OPEN and not self._below.is_closing():
            with suppress(ssl.SSLError):  # that the client's close_notify has not come
                self._ssl.unwrap()
            self._send_encrypted()
        self._state = _State.CLOSED
        close(self._below)

    def can_write_eof(self) -> bool:
        return False  # TLS 1.2 cannot; `close` says it

    def abort(self) -> None:
        self._state = _State.CLOSED
        self._below.abort()

    # asyncio.BufferedProtocol, for the transport below

    def get_buffer(self, sizehint: int) -> memoryview:
        rest = bytes(self._received[self._start : self._end])  # less than a header
        self._received[: len(rest)] = rest
        self._start, self._end = 0, len(rest)
        return self._received[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        if self._end < RECEIVE_BYTES:  # or uvloop may have more for us in this same turn
            self._records_left = RECORDS_PER_TURN_MAX
        self._work()
        if not (self._may_feed or self.is_closing()):
            self._below.pause_reading()
            if self._records_left <= 0:
                self._schedule_turn()

    def eof_received(self) -> bool:
        self._end_received = True
        if self._state is _State.HANDSHAKE:
            self._end_handshake(ProtocolError("the client left during the TLS handshake"))
        else:
            self._decrypt()
        return True  # we may still have something to say

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = _State.CLOSED
        self._received = memoryview(b"")  # what refers to us may be collected later
        self._start = self._end = 0
        self._end_handshake(ProtocolError("the connection was lost during the TLS handshake"))
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._writable = False
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._writable = True
        self._answers_unsent = 0
        self._protocol.resume_writing()
        self._schedule_turn()

    # The work

    @property
    def _may_feed(self) -> bool:
        """Whether OpenSSL may be given more now: in this turn, and before the client reads."""
        return self._records_left > 0 and self._answers_unsent <= ANSWERS_UNSENT_MAX

    def _feed(self, records_max: int) -> bool:
        """Give OpenSSL at most so many records, the last maybe in part; False if it got none."""
        position, left, records = self._start, self._record_left, 0
        while position + left <= self._end:
            position, left = position + left, 0
            if records == records_max or self._end - position < _HEADER.size:
                break
            left = _HEADER.size + _HEADER.unpack_from(self._received, position)[0]
            records += 1
        else:
            position, left = self._end, left - (self._end - position)
        amount = self._encrypted_in.write(self._received[self._start : position])
        self._start, self._record_left = position, left
        self._records_left -= records
        self._barren += amount
        return bool(amount)

    def _work(self) -> None:
        if self._state is _State.HANDSHAKE:
            while not self._shaken.done() and self._may_feed and self._feed(1):
                self._shake()
        else:
            self._decrypt()

    def _shake(self) -> None:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._end_handshake(ProtocolError(f"the TLS handshake failed: {_reason(error)}"))
        else:
            self._below.pause_reading()
            self._state = _State.OPEN
            self._barren = 0
            self._end_handshake(None)
        self._send_encrypted()  # an alert, too

    def _end_handshake(self, error: ProtocolError | None) -> None:
        if self._shaken.done():
            return
        if error is None:
            self._shaken.set_result(None)
        else:
            self._shaken.set_exception(error)

    def _take_turn(self) -> None:
        self._turn_scheduled = False
        if self.is_closing():
            return
        self._records_left = RECORDS_PER_TURN_MAX
        self._work()
        if self._records_left <= 0:
            self._schedule_turn()
        elif self._may_feed and self._is_needy and not self.is_closing():
            self._below.resume_reading()

    @property
    def _is_needy(self) -> bool:
        """Whether bytes from below are of use."""
        if self._state is _State.HANDSHAKE:
            return not self._shaken.done()
        return self._wanted and not self._end_received

    def _decrypt(self) -> None:
        """Give the protocol above what there is, for as long as it wants it."""
        try:
            while self._wanted and not self._end_told and not self.is_closing():
                if not self._decrypt_some():
                    break
        except ssl.SSLError as error:
            self._fail(_reason(error))
        if not self._writable:
            self._answers_unsent += self._encrypted_out.pending
        self._send_encrypted()  # what TLS itself answers, such as new keys
        if self._barren > BARREN_BYTES_MAX and not self.is_closing():
            self._fail(f"{self._barren} bytes in a row were not for us")

    def _decrypt_some(self) -> bool:
        """Fill the buffer of the protocol above once; False if there was nothing for it."""
        protocol = self._protocol
        if self._may_feed and not (self._encrypted_in.pending or self._ssl.pending()):
            self._feed(self._records_left)
        if isinstance(protocol, asyncio.BufferedProtocol):
            buffer = protocol.get_buffer(-1)
            amount = self._decrypt_into(memoryview(buffer))
            if amount:
                protocol.buffer_updated(amount)
        else:
            assert isinstance(protocol, asyncio.Protocol)
            data = memoryview(bytearray(self._encrypted_in.pending + self._ssl.pending()))
            amount = self._decrypt_into(data)
            if amount:
                protocol.data_received(bytes(data[:amount]))
        if amount:
            self._barren = 0
        elif self._end_received and self._may_feed:
            self._tell_end()
        return bool(amount)

    def _decrypt_into(self, buffer: memoryview) -> int:
        """How many bytes there were. A close_notify sets `_end_received`."""
        filled = 0
        try:
            while filled < len(buffer) and (self._encrypted_in.pending or self._ssl.pending()):
                amount = self._read(len(buffer) - filled, buffer[filled:])
                if not amount:
                    self._end_received = True
                    self._start = self._end  # what is behind it "MUST be ignored" (RFC 8446, 6.1)
                    break
                filled += amount
        except ssl.SSLWantReadError:  # half a record
            pass
        return filled

    def _tell_end(self) -> None:
        self._end_told = True
        if not self.is_closing():
            self._below.pause_reading()
        assert isinstance(self._protocol, asyncio.Protocol | asyncio.BufferedProtocol)
        if not self._protocol.eof_received():
            self.close()

    def _send_encrypted(self) -> None:
        if self._encrypted_out.pending and not self._below.is_closing():
            self._below.write(self._encrypted_out.read())

    def _fail(self, reason: str) -> None:
        """What came is no TLS, or not from our peer, or of no use: nothing more can be said."""
        log.info("%s: TLS failed: %s", self._client, reason)
        self._send_encrypted()  # an alert, if anything
        self._state = _State.CLOSED
        close(self._below)


def _reason(error: ssl.SSLError) -> str:
    """Why, in words: OpenSSL's name for it, and what is wrong with a certificate."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"client certificate: {error.verify_message}"
    return (error.reason or str(error)).replace("_", " ").lower()
