# SPDX-License-Identifier: MIT
"""An NBD connection with many requests under way: the handshake of `NbdClient`, then asyncio."""

import asyncio
import socket
import struct
from contextlib import suppress

from tests.support.nbd_client import READ, NbdClient, NbdError

_REPLY = struct.Struct(">IIQ")
_REQUEST = struct.Struct(">IHHQQI")
_BUFFER_BYTES = 1 << 20
ANSWER_SECONDS_MAX = 180.0  # longer than any outage that a server has to sit out


class Gone(Exception):
    """The connection ended before the reply."""


class Connection:
    """Requests and simple replies, in whatever order they come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._waiting: dict[int, tuple[int, asyncio.Future[bytes]]] = {}
        self._cookie = 0
        self._ended = False
        self._replies = asyncio.create_task(self._receive())

    @classmethod
    async def open(cls, port: int, name: str) -> "Connection":
        """In the transmission phase of export ``name``. `Refused` if the server says no."""

        def shake_hands() -> NbdClient:
            client = NbdClient(port)
            try:
                client.go(name.encode())
            except BaseException:
                client.close()
                raise
            return client

        sock = (await asyncio.to_thread(shake_hands)).socket
        sock.setblocking(False)
        return cls(*await asyncio.open_connection(sock=sock, limit=_BUFFER_BYTES))

    @property
    def ended(self) -> bool:
        """Whether no more requests can be sent."""
        return self._ended

    async def request(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> bytes:
        """One request and its reply. `NbdError`, `Gone`, or TimeoutError if there is none."""
        if self._ended:
            raise Gone
        self._cookie += 1
        expected = length if command == READ else 0
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[self._cookie] = expected, reply
        header = _REQUEST.pack(0x25609513, flags, command, self._cookie, offset, length)
        self._writer.write(header + data)
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            return await reply

    async def _receive(self) -> None:
        try:
            while True:
                magic, error, cookie = _REPLY.unpack(await self._reader.readexactly(_REPLY.size))
                assert magic == 0x67446698, hex(magic)
                expected, reply = self._waiting[cookie]
                data = b"" if error else await self._reader.readexactly(expected)
                del self._waiting[cookie]
                if reply.done():
                    continue  # nobody waits any more
                if error:
                    reply.set_exception(NbdError(error))
                else:
                    reply.set_result(data)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._writer.transport.abort()
        for _, reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(Gone())
                reply.exception()  # retrieved, even if nobody waits for it
        self._waiting.clear()

    async def cut(self, *, reset: bool) -> None:
        """End it in the middle of whatever goes on."""
        if reset and (sock := self._writer.get_extra_info("socket")) is not None:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self._close()

    async def leave(self) -> None:
        """DISC, with nothing under way."""
        assert not self._waiting
        self._writer.write(_REQUEST.pack(0x25609513, 0, 2, 0, 0, 0))
        with suppress(OSError):
            await self._writer.drain()
        await asyncio.wait([self._replies], timeout=ANSWER_SECONDS_MAX)  # the server closes
        await self._close()

    async def _close(self) -> None:
        self._end()
        self._replies.cancel()
        await asyncio.wait([self._replies])
        with suppress(OSError):
            await self._writer.wait_closed()
