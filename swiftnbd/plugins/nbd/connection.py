# SPDX-License-Identifier: MIT
"""One connection to an NBD server: the handshake, then requests, many at once.

Up to TLS the handshake reads no byte more than it is to have (the socket is read by itself), so
that nothing that came in plain text is ever taken for something that came encrypted.
"""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from swiftnbd.buffers import Buffer
from swiftnbd.errors import ExportUnusable, ProtocolError, StoreUnavailable
from swiftnbd.protocol import client as wire
from swiftnbd.protocol.constants import (
    REQUEST_MAGIC,
    Command,
    HandshakeFlag,
    Option,
    OptionReply,
)
from swiftnbd.protocol.contexts import ALLOCATION
from swiftnbd.protocol.options import ZEROES, ExportInfo
from swiftnbd.protocol.requests import REQUEST, Request

CONNECT_SECONDS_MAX: Final = 10.0
HANDSHAKE_SECONDS_MAX: Final = 30.0
CLOSE_SECONDS_MAX: Final = 5.0
DEAD_SECONDS: Final = 60  # a peer that answers no packet for so long is gone
BUFFER_BYTES: Final = 1024 * 1024  # received and not read yet; twice that stops the peer
UNSENT_BYTES_MAX: Final = 4 * 1024 * 1024  # above that requests wait for their turn to be sent

_IN_PASSING: Final = (OptionReply.ERR_SHUTDOWN, OptionReply.ERR_PLATFORM)


log = logging.getLogger(__name__)


class TlsMode(Enum):
    """Whether the connection is encrypted: never, if the server can, or else there is none."""

    OFF = "off"
    ON = "on"
    REQUIRE = "require"


@dataclass(frozen=True)
class Server:
    """Where an export is. ``path`` is that of a Unix socket. ``shown`` is for people. ``timeout``
    seconds may pass without an answer to the request that has waited longest; 0: any time."""

    host: str
    port: int | str
    path: str
    export: str
    tls: TlsMode
    context: ssl.SSLContext | None
    shown: str
    timeout: float


class Lost(Exception):
    """The connection is no more."""


class Overdue(Lost):
    """It is no more because the server did not answer. Another try would take as long again."""


class Connection:
    """Made by `open`; ``info`` is what the server says of the export."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._cookie = 0
        self._answers: dict[int, tuple[wire.Answer, asyncio.Future[wire.Answer]]] = {}
        self._structured = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0  # when the request that has waited longest came to be that
        self.context: int | None = None  # the id of base:allocation, where there is one
        self.lost: Exception | None = None
        self.on_lost: Callable[[Exception], None] = lambda error: None
        self.info: ExportInfo
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, server: Server) -> "Connection":
        """Raises `StoreUnavailable`, or `ExportUnusable` where another try would not help."""
        connection = cls(server)
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS_MAX):
                await connection._open()
        except (ProtocolError, wire.OptionRefused, ssl.SSLCertVerificationError) as error:
            kind: type[Exception] = ExportUnusable
            if isinstance(error, wire.OptionRefused) and error.kind in _IN_PASSING:
                kind = StoreUnavailable
            raise kind(f"{server.shown}: {reason(error)}") from None
        except (OSError, EOFError) as error:
            raise StoreUnavailable(f"{server.shown}: {reason(error)}") from None
        connection._task = asyncio.get_running_loop().create_task(connection._receive())
        return connection

    # Handshake

    async def _open(self) -> None:
        sock = await _connect(self._server)
        try:
            flags = wire.parse_greeting(await _receive_exactly(sock, wire.GREETING_BYTES))
            await asyncio.get_running_loop().sock_sendall(sock, wire.client_flags(flags))
            context = self._server.context if await self._starts_tls(sock) else None
            streams = await asyncio.open_connection(
                sock=sock,
                ssl=context,
                server_hostname=(self._server.host or "localhost") if context else None,
                limit=BUFFER_BYTES,
            )
        except BaseException:
            sock.close()
            raise
        self._reader, self._writer = streams
        self._writer.transport.set_write_buffer_limits(UNSENT_BYTES_MAX)
        try:
            await self._choose(flags)
        except BaseException:
            self._writer.transport.abort()
            raise

    async def _starts_tls(self, sock: socket.socket) -> bool:
        if self._server.tls is TlsMode.OFF:
            return False
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, wire.option(Option.STARTTLS))
        header = await _receive_exactly(sock, wire.OPTION_REPLY_BYTES)
        kind, length = wire.parse_option_reply(Option.STARTTLS, header)
        data = await _receive_exactly(sock, length)
        if kind == OptionReply.ACK:
            return True
        if self._server.tls is TlsMode.REQUIRE:
            raise ProtocolError(f"it cannot encrypt: {wire.refusal(kind, data).text or kind}")
        return False

    async def _choose(self, flags: HandshakeFlag) -> None:
        """Agree on how to talk, and on the export."""
        name = self._server.export
        with contextlib.suppress(wire.OptionRefused):
            await self._option(Option.STRUCTURED_REPLY)
            self._structured = True
        if self._structured:
            with contextlib.suppress(wire.OptionRefused):
                asked = wire.context_data(name, ALLOCATION)
                for data in await self._option(Option.SET_META_CONTEXT, asked):
                    number, context = wire.parse_context(data)
                    if context == ALLOCATION:
                        self.context = number
        try:
            infos = await self._option(Option.GO, wire.go_data(name))
            self.info = wire.export_info(name, infos)
        except wire.OptionRefused as error:
            if error.kind != OptionReply.ERR_UNSUP:
                raise
            self._writer.write(wire.option(Option.EXPORT_NAME, name.encode()))
            data = await self._reader.readexactly(wire.EXPORT_NAME_BYTES)
            self.info = wire.parse_export_name(name, data)
            if not flags & HandshakeFlag.NO_ZEROES:
                await self._reader.readexactly(len(ZEROES))

    async def _option(self, kind: Option, data: bytes = b"") -> list[bytes]:
        """The data of the replies before the ACK. Raises `OptionRefused`."""
        self._writer.write(wire.option(kind, data))
        found: list[bytes] = []
        for _ in range(wire.OPTION_REPLIES_MAX):
            header = await self._reader.readexactly(wire.OPTION_REPLY_BYTES)
            reply, length = wire.parse_option_reply(kind, header)
            content = await self._reader.readexactly(length)
            if reply == OptionReply.ACK:
                return found
            if wire.is_error(reply):
                raise wire.refusal(reply, content)
            found.append(content)
        raise ProtocolError(f"its reply to option {kind} has no end")

    # Requests

    @property
    def at_work(self) -> int:
        """How many requests are not answered yet."""
        return len(self._answers)

    async def room(self) -> None:
        """Wait until a request can be sent. Raises `Lost`."""
        with contextlib.suppress(OSError):
            await self._writer.drain()
        if self.lost is not None:
            raise Lost(reason(self.lost))

    def send(
        self, command: Command, offset: int, length: int, flags: int = 0, data: Buffer = b""
    ) -> asyncio.Future[wire.Answer]:
        """Send a request whole; its answer, later: `Lost`, or whatever `Answer.check` raises."""
        assert self.lost is None
        self._cookie += 1
        request = Request(command, flags, self._cookie, offset, length)
        header = REQUEST.pack(REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        self._writer.write(header)
        if data:
            self._writer.write(data)
        answer = wire.Answer(request, structured=self._structured, context=self.context)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[wire.Answer] = loop.create_future()
        if not self._answers:
            self._since = loop.time()
        self._answers[self._cookie] = answer, future
        if self._timer is None and self._server.timeout:
            self._timer = loop.call_later(self._server.timeout, self._watch)
        return future

    def _watch(self) -> None:
        """End it if the server does not answer; look again later if it does."""
        self._timer = None
        if not self._answers:
            return
        loop, timeout = asyncio.get_running_loop(), self._server.timeout
        left = self._since + timeout - loop.time()
        if left > 0:
            self._timer = loop.call_later(left, self._watch)
        else:
            self.abort(Overdue(f"no answer in {timeout:g} s"))

    async def _receive(self) -> None:
        """Take replies until the connection ends."""
        try:
            while True:
                await self._receive_reply()
        except Exception as error:
            if not isinstance(error, (ProtocolError, OSError, EOFError)):
                log.exception("%s: a reply failed", self._server.shown)
            self.abort(error)

    async def _receive_reply(self) -> None:
        read = self._reader.readexactly
        header = wire.parse_reply(await read(wire.REPLY_BYTES))
        if header.cookie not in self._answers:
            raise ProtocolError("a reply to nothing")
        answer, future = self._answers[header.cookie]
        announced = 0
        if header.is_chunk:
            announced = wire.parse_chunk_length(await read(wire.CHUNK_LENGTH_BYTES))
        length = answer.payload_length(header, announced)
        answer.take(header, await read(length) if length else b"")
        if not header.is_done:
            return
        try:
            answer.check()
        except ProtocolError:
            raise  # nothing that comes from there is to be believed
        except Exception as error:
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():  # whoever asked may have gone
                future.set_result(answer)
        if header.cookie == next(iter(self._answers)):
            self._since = asyncio.get_running_loop().time()
        del self._answers[header.cookie]

    # The end

    def abort(self, error: Exception) -> None:
        """Be lost, for this reason."""
        if self.lost is not None:
            return
        self.lost = error
        if self._timer is not None:
            self._timer.cancel()
        self._writer.transport.abort()
        self.on_lost(error)
        answers, self._answers = self._answers, {}
        for _, future in answers.values():
            if not future.done():
                future.set_exception(error if isinstance(error, Lost) else Lost(reason(error)))
                future.exception()  # seen, if nobody waits for it any more

    async def close(self) -> None:
        """Say goodbye, if there is somebody to say it to."""
        self.on_lost = lambda error: None
        if self.lost is None:
            self.send(Command.DISC, 0, 0)
            self._writer.close()
            with contextlib.suppress(OSError):
                async with asyncio.timeout(CLOSE_SECONDS_MAX):
                    await self._writer.wait_closed()
            self.abort(ConnectionAbortedError("closed"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


def reason(error: Exception) -> str:
    """What went wrong, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, wire.OptionRefused):
        return error.text or f"it refused, with {error.kind & 0xFFFF}"
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, EOFError):
        return "it closed the connection"
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        number = error.errno or 0
        if number > 0:
            return os.strerror(number)  # what asyncio has instead is about its call
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


async def _connect(server: Server) -> socket.socket:
    """A socket to the first of its addresses that takes one. Raises OSError."""
    loop = asyncio.get_running_loop()
    places: list[tuple[int, Any]] = [(socket.AF_UNIX, server.path)]
    if not server.path:
        found = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
        places = [(family, address) for family, _, _, _, address in found]
    failure: OSError = ConnectionError("it has no address")
    for family, address in places:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            if family != socket.AF_UNIX:
                _notice_death(sock)
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await loop.sock_connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


def _notice_death(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_SECONDS // 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, DEAD_SECONDS // 6)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_SECONDS * 1000)


async def _receive_exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = await asyncio.get_running_loop().sock_recv(sock, length - len(data))
        if not more:
            raise EOFError
        data += more
    return data
