# SPDX-License-Identifier: MIT
"""A client on the event loop that starts TLS, with every encrypted byte in its hands."""

import asyncio
import functools
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Self, TypeVar

from tests.support import nbd_client as nbd
from tests.support.loopback import Peer, Serving, soon

_STARTTLS = 5
_CHUNK_BYTES = 1 << 16

T = TypeVar("T")


class TlsPeer(Peer):
    """One connection; `start_tls` turns it from clear to encrypted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._ssl: ssl.SSLObject | None = None
        self._to_us, self._from_us = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._uncounted = bytearray()
        self.records_received = 0

    @classmethod
    async def greeted(cls, served: Serving, source: str = "") -> Self:
        """A connection in the option phase, in the clear."""
        peer = await cls.connect(served.port, source)
        await peer.greet()
        return peer

    @classmethod
    async def encrypted(cls, served: Serving, context: ssl.SSLContext, source: str = "") -> Self:
        """A connection in the option phase, inside TLS."""
        peer = await cls.greeted(served, source)
        try:
            await peer.start_tls(context)
        except BaseException:
            await peer.close()
            raise
        return peer

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """STARTTLS and the TLS handshake."""
        assert await self.option(_STARTTLS) == [(nbd.ACK, b"")]
        await self.shake_hands(context)

    async def shake_hands(self, context: ssl.SSLContext) -> None:
        """The TLS handshake."""
        self._ssl = context.wrap_bio(self._to_us, self._from_us, server_hostname="localhost")
        await self._do(self._ssl.do_handshake)

    @property
    def session(self) -> ssl.SSLObject:
        assert self._ssl is not None
        return self._ssl

    async def _do(self, work: Callable[[], T]) -> T:
        """Do it, for as long as it takes bytes from the server. EOFError if none come."""
        while True:
            try:
                return work()
            except ssl.SSLWantReadError:
                self.flush_encrypted()
                data = await soon(self.reader.read(_CHUNK_BYTES))
                if not data:
                    raise EOFError("the server closed below TLS") from None
                self._to_us.write(data)
                self._count_records(data)
            finally:
                self.flush_encrypted()

    def _count_records(self, data: bytes) -> None:
        """Type, version, u16 length, and then so many bytes."""
        self._uncounted += data
        while len(self._uncounted) >= 5:
            end = 5 + int.from_bytes(self._uncounted[3:5])
            if len(self._uncounted) < end:
                break
            del self._uncounted[:end]
            self.records_received += 1

    def flush_encrypted(self) -> None:
        if self._from_us.pending:
            self.writer.write(self._from_us.read())

    def encrypt(self, *data: bytes) -> bytes:
        """The records for this, to be sent with `send_raw` in any pieces."""
        self.session.write(b"".join(data))
        return self._from_us.read()

    def send_raw(self, data: bytes) -> None:
        """Send bytes below TLS."""
        self.writer.write(data)

    def send_close_notify(self) -> None:
        try:
            self.session.unwrap()
        except ssl.SSLWantReadError:
            self.flush_encrypted()

    # Peer's, inside TLS

    def send(self, *data: bytes) -> None:
        if self._ssl is None:
            super().send(*data)
        else:
            self.send_raw(self.encrypt(*data))

    async def receive(self, length: int) -> bytes:
        if self._ssl is None:
            return await super().receive(length)
        data = b""
        while len(data) < length:
            missing = length - len(data)
            piece = await self._do(functools.partial(self.session.read, missing))
            if not piece:
                raise EOFError(f"close_notify after {len(data)} of {length} bytes")
            data += piece
        return data

    async def ended(self) -> bytes:
        """What the server still sends before its close_notify. EOFError if there is none."""
        if self._ssl is None:
            return await super().ended()
        data = b""
        with suppress(ssl.SSLZeroReturnError):  # what read() says if we have sent one, too
            while piece := await self._do(lambda: self.session.read(_CHUNK_BYTES)):
                data += piece
        assert await super().ended() == b""
        return data
