# SPDX-License-Identifier: MIT
"""A server to be attacked with any bytes, and bytes that look like those of a client, or nearly."""

import asyncio
import logging
import random
import socket
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hypothesis import strategies as st

from swiftnbd.server.config import ServerConfig
from swiftnbd.server.listeners import Accepting
from swiftnbd.server.server import Server
from tests.support import nbd_client as nbd
from tests.support.gated_store import GatedStore
from tests.support.loopback import exports_of, option_bytes, query_bytes, request_bytes
from tests.support.stream_oracle import judge

OBJECT, OBJECTS = 4096, 64
SIZE = OBJECT * OBJECTS
SECONDS_MAX = 20.0  # of one attack, on a busy machine; a hang is a finding
FIXED = b"\0\0\0\3"
GO_DISK = FIXED + option_bytes(nbd.GO, query_bytes(b"disk"))
MARK = b"honest"


class Target:
    """One server in this process, with a disk to write and one that is read-only."""

    def __init__(self) -> None:
        self._errors: list[str] = []

    async def start(self) -> None:
        """Serve."""
        disk, fixed = GatedStore("disk", OBJECTS, OBJECT), GatedStore("fixed", OBJECTS, OBJECT)
        for store in (disk, fixed):
            await store.set_up()
        exports = exports_of(disk) + exports_of(fixed, read_only=True)
        for export in exports:
            await export.load()
        self._server = Server({x.name: x for x in exports}, ServerConfig(listen=()))
        await self._server.start()
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: self._errors.append(str(context))
        )
        logger = logging.getLogger("swiftnbd")
        logger.setLevel(logging.ERROR)  # what it says of peers out of their mind is no news
        logger.addHandler(_Errors(self._errors))

    async def stop(self) -> None:
        """Serve no more; nothing must be lost."""
        assert await self._server.stop()

    async def attack(self, pieces: Sequence[bytes]) -> str:
        """Send these; how far the server went along. Raises if it did anything wrong.

        All that was taken must have been given back, and no error be in the log.
        """
        sent, got = await self._exchange(pieces)
        while self._server._connections:
            await asyncio.wait(set(self._server._connections))
        assert self._server._budget.left == self._server._budget.limit
        assert not self._server._transmissions
        assert not self._errors, self._errors
        return judge(sent, got)

    async def check_service(self) -> None:
        """An honest client can write, and read on another connection what it wrote."""
        write = request_bytes(nbd.WRITE, 100, len(MARK), flags=nbd.FUA, cookie=1)
        _, got = await self._exchange([GO_DISK, write, MARK, request_bytes(nbd.DISC)])
        assert got.endswith(b"\x67\x44\x66\x98" + bytes(11) + b"\1"), got
        read = request_bytes(nbd.READ, 100, len(MARK), cookie=2)
        _, got = await self._exchange([GO_DISK, read, request_bytes(nbd.DISC)])
        assert got.endswith(b"\x67\x44\x66\x98" + bytes(11) + b"\2" + MARK), got

    async def _exchange(self, pieces: Sequence[bytes]) -> tuple[bytes, bytes]:
        """What could be sent, and all that came back."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours:
            for sock in (ours, theirs):
                sock.setblocking(False)
            await loop.connect_accepted_socket(lambda: Accepting(self._server.accept), theirs)
            async with asyncio.timeout(SECONDS_MAX):
                sent, got = await asyncio.gather(_send(ours, pieces), _receive(ours))
        return sent, got


class _Errors(logging.Handler):
    def __init__(self, errors: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        self._errors.append(self.format(record))


async def _send(sock: socket.socket, pieces: Sequence[bytes]) -> bytes:
    loop = asyncio.get_running_loop()
    sent = b""
    with suppress(OSError):  # the server has closed
        for piece in pieces:
            await loop.sock_sendall(sock, piece)
            sent += piece
            await asyncio.sleep(0)
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    return sent


async def _receive(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    got = bytearray()
    with suppress(OSError):
        while piece := await loop.sock_recv(sock, 1 << 16):
            got += piece
    return bytes(got)


# Seeds


def load_seed(path: Path) -> bytes:
    """A seed: lines of hexadecimal digits, with comments."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in path.read_text().splitlines()))


SEEDS = {
    path.stem: load_seed(path)
    for path in sorted((Path(__file__).parent.parent / "protocol" / "corpus").glob("*.hex"))
}

# What a client might say

_NAMES = st.sampled_from(
    [b"disk", b"disk", b"fixed", b"", b"other", b"disk\0", b"\xff", b"n" * 4096, b"n" * 4097]
)
_EDGES = [0, 1, 2, 27, 28, 512, OBJECT - 1, OBJECT, OBJECT + 1, SIZE - 1, SIZE, SIZE + 1]
_LENGTHS = st.sampled_from([*_EDGES, 1 << 25, (1 << 25) + 1, (1 << 32) - 1]) | st.integers(0, SIZE)
_OFFSETS = st.sampled_from([*_EDGES, 1 << 32, (1 << 64) - 1]) | st.integers(0, SIZE)
_U32 = st.sampled_from([0, 1, 5, 0xFFFF, 0x80000000, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF)


@st.composite
def _query(draw: st.DrawFn) -> bytes:
    """Data of INFO and GO; now and then it lies."""
    name = draw(_NAMES)
    kinds = draw(st.lists(st.integers(0, 5), max_size=5))
    length = draw(st.just(len(name)) | _U32)
    count = draw(st.just(len(kinds)) | st.integers(0, 0xFFFF))
    return struct.pack(f">I{len(name)}sH{len(kinds)}H", length, name, count, *kinds)


@st.composite
def _contexts(draw: st.DrawFn) -> bytes:
    """Data of LIST_META_CONTEXT and SET_META_CONTEXT; now and then it lies."""
    name = draw(_NAMES)
    words = st.sampled_from([b"base:allocation", b"base:", b"base:x", b"qemu:", b"", b"x", b"\0"])
    queries = draw(st.lists(words, max_size=4))
    data = struct.pack(f">I{len(name)}s", len(name), name)
    data += struct.pack(">I", draw(st.just(len(queries)) | _U32))
    for query in queries:
        data += struct.pack(">I", draw(st.just(len(query)) | _U32)) + query
    return data


def _option(kind: int, data: bytes, lie: int | None) -> bytes:
    length = len(data) if lie is None else lie
    return b"IHAVEOPT" + struct.pack(">II", kind, length) + data


_LIE = st.none() | st.none() | st.none() | _U32
_OPTIONS = st.one_of(
    st.builds(_option, st.sampled_from([nbd.INFO, nbd.GO]), _query(), _LIE),
    st.builds(_option, st.sampled_from([9, 10]), _contexts(), _LIE),
    st.builds(_option, st.sampled_from([3, 8]), st.just(b""), st.none()),
    st.builds(_option, st.integers(0, 12) | _U32, st.binary(max_size=40), _LIE),
)
_CHOICES = st.one_of(
    st.builds(option_bytes, st.just(nbd.GO), st.builds(query_bytes, _NAMES)),
    st.just(option_bytes(nbd.GO, query_bytes(b"disk"))),
    st.just(option_bytes(nbd.GO, query_bytes(b"fixed"))),
    st.builds(option_bytes, st.just(nbd.EXPORT_NAME), _NAMES),
    st.just(b""),
)


@st.composite
def _request(draw: st.DrawFn) -> bytes:
    command = draw(st.integers(0, 7) | st.integers(0, 0xFFFF))
    length, flags = draw(_LENGTHS), draw(st.just(0) | st.integers(0, 31) | st.integers(0, 0xFFFF))
    cookie = draw(st.integers(0, (1 << 64) - 1))
    header = request_bytes(command, draw(_OFFSETS), length, flags=flags, cookie=cookie)
    if command != nbd.WRITE:
        return header
    there = min(length, SIZE) if draw(st.integers(0, 9)) else draw(st.integers(0, 100))
    return header + draw(st.binary(min_size=1, max_size=32)).ljust(there, b"p")[:there]


@st.composite
def _conversations(draw: st.DrawFn) -> bytes:
    flags = draw(st.sampled_from([FIXED, FIXED, FIXED, b"\0\0\0\1", bytes(4), b"\0\0\0\4"]))
    options = draw(st.lists(_OPTIONS, max_size=6))
    requests = draw(st.lists(_request(), max_size=12))
    ending = draw(st.sampled_from([b"", request_bytes(nbd.DISC)]) | st.binary(max_size=64))
    return b"".join([flags, *options, draw(_CHOICES), *requests, ending])


@st.composite
def _damaged(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> bytes:
    """Some bytes changed, put in, left out or said twice, and the end cut off."""
    data = draw(streams)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 64)))
        new = draw(st.binary(max_size=8) | st.just(data[at:end] * 2))
        data = data[:at] + new + data[end:]
    return data[: draw(st.just(len(data)) | st.integers(0, len(data)))]


_STREAMS = _conversations() | st.sampled_from(sorted(SEEDS.values()))


@st.composite
def attacks(draw: st.DrawFn) -> list[bytes]:
    """The pieces in which an attacker sends what."""
    data = draw(_STREAMS | _damaged(_STREAMS) | st.binary(max_size=200))
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=6).map(sorted))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def variants(pieces: Sequence[bytes], count: int) -> Iterator[list[bytes]]:
    """The same, damaged in so many ways, always the same ones."""
    data = b"".join(pieces)
    chance = random.Random(zlib.crc32(data))
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            _damage(damaged, chance)
        cut = chance.randint(0, len(damaged))
        yield [bytes(damaged[:cut]), bytes(damaged[cut:])]


def _damage(data: bytearray, chance: random.Random) -> None:
    at = chance.randint(0, len(data))
    end = min(len(data), at + chance.choice([1, 2, 4, 8, 28]))
    way = chance.randrange(6)
    if way == 0:
        del data[at:end]
    elif way == 1:
        data[at:at] = data[at:end]
    elif way == 2:
        data[at:end] = chance.randbytes(end - at)
    elif way == 3:
        edge = chance.choice([*_EDGES, 255, 65535, (1 << 31) - 1, (1 << 32) - 1])
        data[at : at + 4] = edge.to_bytes(4)
    elif way == 4 and at < end:
        data[at] ^= 1 << chance.randrange(8)
    elif way == 5:
        del data[at:]
