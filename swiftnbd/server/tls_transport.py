# SPDX-License-Identifier: MIT
"""TLS on a connection that has begun in the clear: a transport on top of a transport.

Not `asyncio.loop.start_tls`, for what the NBD server has to do and the event loops' own TLS does
not: answer what is at work after the client has said that it will send no more (close_notify or
FIN; theirs drop those replies), tell a client by a TLS alert why its handshake failed, and put
all replies of one wake-up into full records. The cryptography is `ssl`'s all the same.

Bytes are decrypted only when the protocol above wants some, and the connection is read from only
when nothing is left to decrypt. What is written is encrypted at once, so the write buffer, its
limits and its back-pressure are those of the transport below.

::

    HANDSHAKE --> OPEN --close()--> CLOSED (close_notify was sent, the transport below closes)
        `--failed (an alert was sent)--> CLOSED
"""

import asyncio
import enum
import logging
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, cast

from swiftnbd.errors import ProtocolError
from swiftnbd.server.sockets import close

RECEIVE_BYTES = 128 * 1024  # encrypted, taken in one go; more waits in the kernel
ENCRYPT_BYTES = 64 * 1024  # in one go: OpenSSL's buffer is costly to grow, this halves the time
# What a connection takes for TLS at most: what was received, the same on its way to be decrypted,
# and the buffers of OpenSSL.
TLS_BYTES_MAX = 2 * RECEIVE_BYTES + 2 * ENCRYPT_BYTES + 128 * 1024

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
        self._received = memoryview(bytearray(RECEIVE_BYTES))
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
        if not self._turn_scheduled:  # later: the caller need not expect bytes in this call
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
            self._fail(error)
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
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        self._encrypted_in.write(self._received[:nbytes])
        if self._state is _State.HANDSHAKE:
            self._shake()
        else:
            self._decrypt()

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
        self._end_handshake(ProtocolError("the connection was lost during the TLS handshake"))
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    # The work

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
        self._decrypt()
        if self._wanted and not self.is_closing() and not self._end_received:
            self._below.resume_reading()

    def _decrypt(self) -> None:
        """Give the protocol above what there is, for as long as it wants it."""
        try:
            while self._wanted and not self._end_told and not self.is_closing():
                if not self._decrypt_some():
                    break
        except ssl.SSLError as error:
            self._fail(error)
        self._send_encrypted()  # what TLS itself answers, such as new keys

    def _decrypt_some(self) -> bool:
        """Fill the buffer of the protocol above once; False if there was nothing for it."""
        protocol = self._protocol
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
        if not amount and self._end_received:
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

    def _fail(self, error: ssl.SSLError) -> None:
        """What came is no TLS, or not from our peer: nothing can be said or believed any more."""
        log.info("%s: TLS failed: %s", self.get_extra_info("peername"), _reason(error))
        self._send_encrypted()  # an alert, if anything
        self._state = _State.CLOSED
        close(self._below)


def _reason(error: ssl.SSLError) -> str:
    """Why, in words: OpenSSL's name for it, and what is wrong with a certificate."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"client certificate: {error.verify_message}"
    return (error.reason or str(error)).replace("_", " ").lower()
