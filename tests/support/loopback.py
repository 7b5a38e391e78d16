# SPDX-License-Identifier: MIT
"""A server in this process, on a real socket, and a client on the same event loop.

Layouts and numbers of the client are `tests.support.nbd_client`'s or written out: nothing comes
from `swiftnbd.protocol`.
"""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Self, TypeVar

from swiftnbd.export.base import BaseExport
from swiftnbd.export.export import Export
from swiftnbd.server.config import ServerConfig, TcpAddress
from swiftnbd.server.listeners import Place
from swiftnbd.server.server import Server
from swiftnbd.store.base import Store
from tests.support import nbd_client as nbd
from tests.support.nbd_client import Chunk, NbdError, Refused

SECONDS_MAX = 30.0  # nothing takes so long, but on a machine with much else to do

T = TypeVar("T")


async def soon(awaitable: Awaitable[T]) -> T:
    """What is awaited, or a failed test instead of a hanging one."""
    return await asyncio.wait_for(awaitable, SECONDS_MAX)


async def until(condition: Callable[[], bool]) -> None:
    """Turn the event loop until something that other tasks bring about is so."""
    async with asyncio.timeout(SECONDS_MAX):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def request_bytes(
    command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 0
) -> bytes:
    """A request header."""
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


def option_bytes(option: int, data: bytes = b"") -> bytes:
    """One option."""
    return b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data


def query_bytes(name: bytes, *wanted: int) -> bytes:
    """The data of INFO and GO."""
    return struct.pack(f">I{len(name)}sH{len(wanted)}H", len(name), name, len(wanted), *wanted)


class Peer:
    """One connection, anywhere in the protocol."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._cookie = 0

    @classmethod
    async def connect(cls, port: int, source: str = "", *, receive_buffer: int = 0) -> Self:
        """Connect from the address ``source``; a small ``receive_buffer`` fills early."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            sock.bind((source, 0))
        try:
            await soon(asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port)))
        except BaseException:
            sock.close()
            raise
        return await cls.on(sock)

    @classmethod
    async def on(cls, sock: socket.socket) -> Self:
        """On a connected socket, of any family."""
        sock.setblocking(False)
        return cls(*await asyncio.open_connection(sock=sock, limit=2**16))

    @classmethod
    async def connect_unix(cls, path: str) -> Self:
        return cls(*await soon(asyncio.open_unix_connection(path, limit=2**16)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def receive(self, length: int) -> bytes:
        return await soon(self.reader.readexactly(length))

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await soon(self.writer.wait_closed())

    async def reset(self) -> None:
        """Drop the connection with a RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.close()

    async def ended(self) -> bytes:
        """What the server still sends before it closes."""
        try:
            return await soon(self.reader.read())
        except ConnectionResetError:
            return b""

    async def closed_by_server(self) -> bool:
        return await self.ended() == b""

    # Handshake

    async def greet(self, flags: int = 3) -> None:
        assert await self.receive(18) == b"NBDMAGICIHAVEOPT\0\x03"
        self.send(struct.pack(">I", flags))

    async def replies(self, option: int) -> list[tuple[int, bytes]]:
        """The replies to one option, the final one included."""
        found: list[tuple[int, bytes]] = []
        while not found or found[-1][0] in (nbd.SERVER, nbd.REP_INFO, nbd.META_CONTEXT):
            header = await self.receive(20)
            magic, answered, kind, length = struct.unpack(">QIII", header)
            assert (magic, answered) == (0x3E889045565A9, option)
            found.append((kind, await self.receive(length)))
        return found

    async def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        self.send(option_bytes(option, data))
        return await self.replies(option)

    async def go(self, name: bytes = b"", *wanted: int, option: int = nbd.GO) -> dict[int, bytes]:
        """GO (or INFO): the information items. `Refused` if the server says no."""
        replies = await self.option(option, query_bytes(name, *wanted))
        kind, text = replies.pop()
        if kind != nbd.ACK:
            raise Refused(kind, text.decode())
        return {int.from_bytes(data[:2]): data[2:] for _, data in replies}

    async def abort(self) -> None:
        """ABORT, and the end of the connection."""
        assert await self.option(nbd.ABORT) == [(nbd.ACK, b"")]
        assert await self.closed_by_server()
        await self.close()

    # Transmission

    def request(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: bytes = b"",
        cookie: int | None = None,
    ) -> int:
        """Send one request; its cookie."""
        if cookie is None:
            self._cookie += 1
            cookie = self._cookie
        self.send(request_bytes(command, offset, length, flags=flags, cookie=cookie), data)
        return cookie

    async def reply(self, length: int = 0) -> tuple[int, int, bytes]:
        """Cookie, error and (without error) ``length`` bytes."""
        magic, error, cookie = struct.unpack(">IIQ", await self.receive(16))
        assert magic == 0x67446698, hex(magic)
        return cookie, error, b"" if error else await self.receive(length)

    async def chunks(self) -> list[Chunk]:
        """One whole reply, simple or structured; others must not be mixed with it."""
        chunks: list[Chunk] = []
        while not chunks or not chunks[-1].done:
            magic = int.from_bytes(await self.receive(4))
            if magic == 0x67446698:
                error, cookie = struct.unpack(">IQ", await self.receive(12))
                chunks.append(Chunk(-1, cookie, struct.pack(">I", error)))
            else:
                assert magic == 0x668E33EF, hex(magic)
                chunk, length = Chunk.parse(await self.receive(Chunk.HEADER.size))
                chunks.append(replace(chunk, data=await self.receive(length)))
            assert chunks[-1].cookie == chunks[0].cookie
        return chunks

    async def ask_chunks(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: bytes = b"",
    ) -> list[Chunk]:
        """One request and the chunks of its reply, errors or not."""
        sent = self.request(command, offset, length, flags=flags, data=data)
        chunks = await self.chunks()
        assert chunks[0].cookie == sent
        return chunks

    async def ask(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: bytes = b"",
    ) -> bytes:
        """One request and its reply. `NbdError` if that is an error."""
        sent = self.request(command, offset, length, flags=flags, data=data)
        cookie, error, answer = await self.reply(length if command == nbd.READ else 0)
        assert cookie == sent
        if error:
            raise NbdError(error)
        return answer

    async def read(self, offset: int, length: int) -> bytes:
        return await self.ask(nbd.READ, offset, length)

    async def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        await self.ask(nbd.WRITE, offset, len(data), flags=flags, data=data)

    async def flush(self) -> None:
        await self.ask(nbd.FLUSH)

    async def disconnect(self) -> None:
        """DISC, and the end of the connection."""
        self.request(nbd.DISC)
        assert await self.closed_by_server()
        await self.close()


@dataclass
class Serving:
    """A server that is up."""

    server: Server
    exports: dict[str, Export]
    places: list[Place]

    @property
    def port(self) -> int:
        port = self.places[0].port
        assert port is not None
        return port

    async def connect(self, source: str = "", *, receive_buffer: int = 0) -> Peer:
        """A connection whose greeting has not been read."""
        if path := self.places[0].path:
            return await Peer.connect_unix(path)
        return await Peer.connect(self.port, source, receive_buffer=receive_buffer)

    async def greeted(self, source: str = "", flags: int = 3) -> Peer:
        """A connection in the option phase."""
        peer = await self.connect(source)
        await peer.greet(flags)
        return peer

    async def attached(
        self, name: bytes = b"", source: str = "", *, receive_buffer: int = 0
    ) -> Peer:
        """A connection in transmission."""
        peer = await self.connect(source, receive_buffer=receive_buffer)
        await peer.greet()
        await peer.go(name)
        return peer

    async def idle(self) -> None:
        """Return when the server has dealt with the end of every connection."""
        while self.server._connections:
            await soon(asyncio.wait(set(self.server._connections)))

    async def check_full_service(self, name: bytes = b"") -> None:
        """Every connection before is over and forgotten, and a new client gets everything."""
        await self.idle()
        assert self.server._budget.left == self.server._budget.limit
        async with await self.attached(name) as peer:
            await peer.write(1000, b"served!")
            await peer.flush()
            assert await peer.read(1000, 7) == b"served!"
            await peer.ask(nbd.WRITE_ZEROES, 1000, 7)
            await peer.disconnect()
        await self.idle()


def exports_of(*stores: Store, read_only: bool = False, multi_conn: bool = True) -> list[Export]:
    """Exports that lock without the wait for racers."""
    return [
        Export(
            store.label.rpartition(":")[2],
            store,
            read_only,
            multi_conn=multi_conn,
        )
        for store in stores
    ]


@asynccontextmanager
async def serving(
    *exports: BaseExport,
    stops_whole: bool = True,
    config: ServerConfig = ServerConfig((TcpAddress(port=0),)),  # noqa: B008
) -> AsyncIterator[Serving]:
    """Serve these for as long as the block lasts; then nothing of it may be left."""
    for export in exports:
        await export.load()
    (await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)).close()
    tasks, descriptors = asyncio.all_tasks(), _descriptors()  # the loop has opened its own now
    server = Server({export.name: export for export in exports}, config)
    places = await server.start()
    try:
        yield Serving(server, server._exports, places)  # type: ignore[arg-type]
    finally:
        whole = await soon(server.stop())
    assert whole is stops_whole
    assert server._budget.left == server._budget.limit
    await _gone(tasks, descriptors)


def _descriptors() -> dict[str, str]:
    """What each open descriptor is of."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


async def _gone(tasks: set[asyncio.Task[object]], descriptors: dict[str, str]) -> None:
    """Fail unless tasks and descriptors go back to what they were, a few turns allowed."""
    for _ in range(100):
        left = asyncio.all_tasks() - tasks - {asyncio.current_task()}
        if not left and len(_descriptors()) <= len(descriptors):
            return
        await asyncio.sleep(0.01)
    assert not left, f"tasks are left: {left}"
    raise AssertionError(f"descriptors are left: {_descriptors().items() - descriptors.items()}")
