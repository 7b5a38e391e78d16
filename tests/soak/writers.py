# SPDX-License-Identifier: MIT
"""Clients that read and change one disk at once, all over each other, and keep the book of it."""

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from tests.soak.book import Book
from tests.soak.connection import Connection, Gone
from tests.soak.diary import Diary
from tests.support.nbd_client import (
    CACHE,
    EIO,
    ESHUTDOWN,
    FLUSH,
    FUA,
    NO_HOLE,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    NbdError,
    Refused,
)

CONNECTIONS = 3
WORKERS = 6  # of each connection: so many of its requests are under way
ATTACH_SECONDS_MAX = 150.0
READ_ALL_BYTES = 1 << 20
SECTOR, PAGE = 512, 4096
WRITE_PAGES_MAX = 40
HOT_BYTES = 512 * 1024  # at the beginning of the disk: half of all requests go there
COMMANDS = {
    "write": 42,
    "write fua": 5,
    "burst": 3,
    "zero": 5,
    "zero, no hole": 2,
    "trim": 4,
    "read": 24,
    "scan": 2,
    "prefetch": 2,
    "flush": 5,
}
NAMES = {
    READ: "read",
    WRITE: "write",
    FLUSH: "flush",
    TRIM: "trim",
    CACHE: "prefetch",
    WRITE_ZEROES: "zero",
}


@dataclass
class Rules:
    """What a round allows: ``write_through``; whether a request may fail because Swift is away."""

    write_through: bool
    may_fail: bool


@dataclass
class Writers:
    """All clients of one round, on export ``name`` at ``port``.

    `run` goes on until `stop`, or after `expect_end` until the server is gone.
    """

    book: Book
    diary: Diary
    port: int
    name: str
    rules: Rules
    seed: str
    requests: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._connections: list[Connection | None] = [None] * CONNECTIONS
        self._stopping = False
        self._server_ends = False
        self._flushed = asyncio.Event()
        self._attaching = [asyncio.Lock() for _ in range(CONNECTIONS)]

    async def attach(self) -> None:
        """Have all connections."""
        await asyncio.gather(*map(self._connected, range(CONNECTIONS)))

    async def run(self) -> None:
        """Work, and let the last requests end."""
        async with asyncio.TaskGroup() as group:
            for number in range(CONNECTIONS):
                for worker in range(WORKERS):
                    chance = random.Random(f"{self.seed} worker {number}.{worker}")
                    group.create_task(self._work(number, chance))

    def stop(self) -> None:
        """Begin no more requests."""
        self._stopping = True

    def expect_end(self) -> None:
        """The server ends: go on until it is gone, and make no new connections."""
        self._server_ends = True

    async def cut(self, chance: random.Random) -> None:
        """Cut one connection, or all."""
        everyone = chance.random() < 0.2
        one, reset = chance.randrange(CONNECTIONS), chance.random() < 0.5
        numbers = range(CONNECTIONS) if everyone else [one]
        how = "reset" if reset else "closed"
        self.diary.note(f"connections {list(numbers)} are {how}", f"connections {how}")
        for number in numbers:
            if (connection := self._connections[number]) is not None:
                await connection.cut(reset=reset)

    async def leave(self) -> None:
        """Disconnect in order, with nothing under way."""
        for connection in self._connections:
            if connection is not None and not connection.ended:
                await connection.leave()

    async def wait_flushed(self, seconds_max: float) -> None:
        """Until a FLUSH has just been answered, or so long."""
        self._flushed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                await self._flushed.wait()

    async def drop(self) -> None:
        """Forget all connections."""
        for connection in self._connections:
            if connection is not None:
                await connection.cut(reset=False)

    async def flush(self) -> None:
        """Until it succeeds. Nothing else is under way."""
        deadline = time.monotonic() + ATTACH_SECONDS_MAX
        while not await self._flush(await self._connected(0)):
            assert time.monotonic() < deadline, "no FLUSH succeeds on a Swift that is well"

    async def read_all(self, size: int) -> bytes:
        """The whole disk, through the server."""
        connection = await self._connected(0)
        parts = [
            connection.request(READ, offset, min(READ_ALL_BYTES, size - offset))
            for offset in range(0, size, READ_ALL_BYTES)
        ]
        return b"".join(await asyncio.gather(*parts))

    async def _connected(self, number: int) -> Connection:
        async with self._attaching[number]:
            connection = self._connections[number]
            if connection is None or connection.ended:
                connection = self._connections[number] = await self._attach()
            return connection

    async def _attach(self) -> Connection:
        began = time.monotonic()
        while not self._server_ends:
            try:
                connection = await Connection.open(self.port, self.name)
            except (OSError, EOFError, Refused) as error:
                refusal = str(error)
            else:
                took = time.monotonic() - began
                self.diary.note(f"attached in {took:.2f} s", "attached")
                return connection
            waited = time.monotonic() - began
            self.diary.note(f"attaching: {refusal}", "attach refused")
            if waited > ATTACH_SECONDS_MAX and not self._server_ends:
                raise AssertionError(f"cannot attach for {waited:.0f} s: {refusal}")
            await asyncio.sleep(0.2)
        raise Gone

    async def _work(self, number: int, chance: random.Random) -> None:
        kinds, weights = list(COMMANDS), list(COMMANDS.values())
        while not self._stopping:
            kind = chance.choices(kinds, weights)[0]
            try:
                connection = await self._connected(number)
                if self._stopping:
                    return
                await self._do(kind, connection, chance)
            except Gone:
                if self._server_ends:
                    return
            await asyncio.sleep(chance.uniform(0, 0.02))

    async def _do(self, kind: str, connection: Connection, chance: random.Random) -> None:
        start, length = self._range(chance)
        match kind:
            case "write" | "write fua":
                await self._write(connection, start, length, FUA if kind == "write fua" else 0)
            case "burst":
                for at in range(start, min(start + 64 * PAGE, self.book.size - PAGE), PAGE):
                    await self._write(connection, at, PAGE, 0)
            case "zero" | "zero, no hole" | "trim":
                flags = NO_HOLE if kind == "zero, no hole" else 0
                flags |= FUA if chance.random() < 0.2 else 0
                start, length = self._wide_range(chance, start, length)
                await self._zero(
                    connection, TRIM if kind == "trim" else WRITE_ZEROES, start, length, flags
                )
            case "read":
                await self._read(connection, start, length)
            case "scan":
                for at in range(start, min(start + 32 * 8 * PAGE, self.book.size), 8 * PAGE):
                    await self._read(connection, at, min(8 * PAGE, self.book.size - at))
            case "prefetch":
                await self._request(connection, CACHE, start, length)
            case "flush":
                await self._flush(connection)

    def _range(self, chance: random.Random) -> tuple[int, int]:
        """Mostly pages, often sectors, sometimes any bytes; some places are hotter than others."""
        unit = chance.choices([PAGE, SECTOR, 1], [70, 25, 5])[0]
        few = chance.random() < 0.7
        length = chance.randrange(1, 3 * PAGE if few else WRITE_PAGES_MAX * PAGE)
        length = max(unit, length // unit * unit)
        reach = self.book.size if chance.random() < 0.5 else HOT_BYTES
        return chance.randrange(0, reach - length + 1) // unit * unit, length

    def _wide_range(self, chance: random.Random, start: int, length: int) -> tuple[int, int]:
        """As it is, or so wide that there are whole blocks in it."""
        if chance.random() < 0.5:
            return start, length
        start = start // self.book.block * self.book.block
        return start, min(chance.randrange(1, 5) * self.book.block, self.book.size - start)

    # One request, and what the book is told of it

    async def _write(self, connection: Connection, start: int, length: int, flags: int) -> None:
        change = self.book.begin_write(start, length, "FUA write" if flags else "write")
        done, fate = False, "cut off"
        try:
            done = (
                await self._request(connection, WRITE, start, length, flags=flags, data=change.data)
                is not None
            )
            fate = "acknowledged" if done else "failed"
        finally:
            durable = bool(flags & FUA) or self.rules.write_through
            self.book.end(change, fate, rules_out=done, durable=durable)

    async def _zero(
        self, connection: Connection, command: int, start: int, length: int, flags: int
    ) -> None:
        change = self.book.begin_zeros(start, length, "trim" if command == TRIM else "zeros")
        done, fate = False, "cut off"
        try:
            done = await self._request(connection, command, start, length, flags=flags) is not None
            fate = "acknowledged" if done else "failed"
        finally:
            durable = bool(flags & FUA) or self.rules.write_through
            self.book.end(change, fate, rules_out=done and command != TRIM, durable=durable)

    async def _read(self, connection: Connection, start: int, length: int) -> None:
        reading, data = self.book.begin_read(start, length), None
        try:
            data = await self._request(connection, READ, start, length)
        finally:
            self.book.end_read(reading, data)

    async def _flush(self, connection: Connection) -> bool:
        flushing, done = self.book.begin_flush(), False
        try:
            done = await self._request(connection, FLUSH) is not None
        finally:
            self.book.end_flush(flushing, done=done)
        self._flushed.set()
        return done

    async def _request(
        self, connection: Connection, command: int, start: int = 0, length: int = 0, **rest: object
    ) -> bytes | None:
        """None: it failed, which the rules allow."""
        self.requests[NAMES[command]] += 1
        try:
            return await connection.request(command, start, length, **rest)  # type: ignore[arg-type]
        except NbdError as error:
            legal = [EIO] if self.rules.may_fail else []
            legal += [ESHUTDOWN] if self._server_ends else []
            said = f"command {command} {start}+{length}: {error}"
            if error.number not in legal:
                raise AssertionError(said) from error
            self.diary.note(said, "requests failed")
            return None
