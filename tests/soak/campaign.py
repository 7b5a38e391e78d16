# SPDX-License-Identifier: MIT
"""One disk on a real Swift, round after round, each with trouble of its own and a full comparison.

A round: clients and fio work, trouble is made, and it ends in one of four ways:

* ``kill``: SIGKILL of the server, in the middle of everything; the next one takes the disk over
* ``term``: SIGTERM of it, likewise: all that was accepted must be stored
* ``leave``: all clients leave, and the server writes back and unlocks by itself
* ``flush``: the clients stop, flush, and stay

Then Swift is healed, and every byte is compared: through the server (a new one after ``kill``
and ``term``) and by plain HTTP.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.soak.book import Book
from tests.soak.connection import Connection
from tests.soak.diary import Diary
from tests.soak.fio import Fio
from tests.soak.trouble import Nature, SwiftTrouble, make_trouble
from tests.soak.witness import stored_image
from tests.soak.writers import Rules, Writers
from tests.support.backends import SwiftBackend
from tests.support.server_process import ServerProcess
from tests.support.swift_aio import DEFAULT_POLICY, SECOND_POLICY, RealSwift

KiB, MiB = 1024, 1024 * 1024
ENDS = ("kill", "leave", "kill", "flush", "kill", "term")
ROUND_SECONDS = (4.0, 9.0)
UNLOCK_SECONDS_MAX = 90.0
FLUSH_SECONDS_MAX = 3.0  # waited for before a kill
EXPECTED_LOG = r": (WARNING|ERROR): "  # trouble is made; a traceback is never expected


@dataclass(frozen=True)
class Shape:
    """Object size, objects, and the cache limit: a small part of the disk."""

    object_size: int
    objects: int
    cache_limit: str

    @property
    def size(self) -> int:
        return self.object_size * self.objects

    @property
    def book_size(self) -> int:
        """Of the disk, what our own clients use; the rest is fio's."""
        return self.object_size * (self.objects * 3 // 4)

    @property
    def block(self) -> int:
        """What is changed at once: see docs/durability.md."""
        return min(self.object_size, 64 * KiB)


SHAPES = (
    Shape(64 * KiB, 160, "1M"),
    Shape(4 * KiB, 512, "256K"),
    Shape(MiB, 20, "4M"),
)


@dataclass
class Campaign:
    """One disk. ``seed`` decides what happens to it."""

    swift: RealSwift
    shape: Shape
    container: str
    seed: str
    workdir: Path
    diary: Diary

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.book = Book(self.shape.book_size, self.shape.block, self.diary.began)
        self.trouble = SwiftTrouble(self.swift, random.Random(f"{self.seed} swift"), self.diary)
        self.hasty = False
        self.rounds = 0

    async def run(
        self, backend: SwiftBackend, launch: Callable[..., ServerProcess], seconds: float
    ) -> None:
        """So many seconds of rounds, and what has begun is finished.

        ``launch(name, extra=arguments)`` starts a server of container ``name`` on ``backend``.
        """
        self.backend, self.launch = backend, launch
        self._set_up()
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        server = await self._serve()
        await self._write_keepsake(server)
        while clock() < deadline:
            server = await self._round(server, ENDS[self.rounds % len(ENDS)])
            self.rounds += 1
        await self._verify_keepsake(server)
        code = await asyncio.to_thread(server.terminate)
        assert code == 0, f"the server ended with {code}"
        await self._compare_stored("after the end")

    def _set_up(self) -> None:
        shape = self.shape
        policy = self.chance.choice([DEFAULT_POLICY, SECOND_POLICY])
        self.backend.announce(self.container)
        self.backend.ctl(
            *("setup", self.container, str(shape.objects)),
            *("--object-size", str(shape.object_size), "--policy", policy),
        )
        self.diary.note(f"{self.container}: {shape}, {policy}, seed {self.seed!r}", "disks")

    async def _serve(self) -> ServerProcess:
        """A new server, with settings of its own. Swift is well."""
        chance = self.chance
        self.mode = chance.choice(["writeback", "writeback", "writethrough"])
        self.hasty = chance.random() < 0.3
        extra = [
            *("-c", self.shape.cache_limit, "--cache-mode", self.mode),
            *("--dirty-seconds", str(chance.choice([0, 0.5, 5]))),
            *("--requests", str(chance.choice([2, 8, 16]))),
            *("--read-ahead", str(chance.choice([0, 8]))),
        ]
        extra += ["--timeout", "3", "--lock-term", "5"] if self.hasty else []
        self.diary.note(f"server {' '.join(extra)}", "servers started")
        server = await asyncio.to_thread(self.launch, self.container, extra=tuple(extra))
        server.allows(EXPECTED_LOG)
        self.diary.servers.append(server)
        return server

    # A round

    async def _round(self, server: ServerProcess, end: str) -> ServerProcess:
        name = f"{self.seed} round {self.rounds}"
        seconds = self.chance.uniform(*ROUND_SECONDS)
        rules = Rules(write_through=self.mode == "writethrough", may_fail=self.hasty)
        writers = Writers(self.book, self.diary, server.port, self.container, rules, name)
        if self.hasty and end in ("leave", "term"):
            end = "flush"  # what is not stored in time is rightly lost, or kept
        self.diary.note(f"round {self.rounds}: {seconds:.1f} s, then {end}", "rounds")
        await writers.attach()
        try:
            async with self._fio(server, seconds) as fio:
                await self._work(seconds, server, end, writers)
                await fio.finish(must_succeed=end in ("leave", "flush") and not self.hasty)
            return await self._compare(server, end, writers)
        finally:
            await writers.drop()

    async def _work(
        self, seconds: float, server: ServerProcess, end: str, writers: Writers
    ) -> None:
        working = asyncio.create_task(writers.run())
        try:
            await self._trouble_for(seconds, server, writers, working)
            await self._end_work(server, end, writers, working)
        finally:
            working.cancel()
            await asyncio.wait([working])
            for kind, count in writers.requests.items():
                self.diary.counts[f"requests: {kind}"] += count

    async def _trouble_for(
        self,
        seconds: float,
        server: ServerProcess,
        writers: Writers,
        working: asyncio.Task[None],
    ) -> None:
        nature = Nature(7.0 if self.hasty else 2.5, stop_proxy=not self.hasty)
        chance = random.Random(f"{writers.seed} trouble")
        making = asyncio.create_task(
            make_trouble(nature, seconds, self.trouble, chance, self.diary, server, writers.cut)
        )
        await asyncio.wait([making, working], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            making.cancel()
            await asyncio.wait([making])
            working.result()
            raise AssertionError("the clients stopped by themselves")
        making.result()

    async def _end_work(
        self, server: ServerProcess, end: str, writers: Writers, working: asyncio.Task[None]
    ) -> None:
        if end == "kill":
            if self.chance.random() < 0.7:  # the worst moment: what was promised must be true now
                await writers.wait_flushed(FLUSH_SECONDS_MAX)
            writers.expect_end()
            server.kill()
            self.diary.note("the server is killed", "server killed")
            await working
            await writers.drop()
            self.book.crash()
            await self.trouble.heal(all_of_it=True)
            return
        await self.trouble.heal(all_of_it=True)
        if end == "term":
            writers.expect_end()
            code = await asyncio.to_thread(server.terminate)
            self.diary.note(f"the server was terminated: {code}", "server terminated")
            assert code == 0, f"the server ended with {code}"
            await working
            await writers.drop()
            return
        writers.stop()
        await working
        if end == "flush":
            await writers.flush()

    async def _compare(self, server: ServerProcess, end: str, writers: Writers) -> ServerProcess:
        """Every byte, by both ways; the server that goes on."""
        if end == "flush":
            await self._compare_given(writers)
            await writers.leave()
        elif end == "leave":
            await writers.leave()
            await self._unlocked()
            await self._compare_stored("after the clients left")
        else:
            if end == "term":
                await self._compare_stored("after SIGTERM")
            server = await self._serve()
            reader = replace(writers, port=server.port)
            try:
                await self._compare_given(reader)
                await reader.leave()
            finally:
                await reader.drop()
        return server

    async def _compare_given(self, reader: Writers) -> None:
        """As the server gives it, and as it is stored, which must be the same."""
        image = await reader.read_all(self.shape.size)
        self.book.compare(image[: self.book.size])
        self.diary.note("every byte is legal, as the server gives it")
        stored = await self._compare_stored("by plain HTTP")
        assert stored == image, "wrong bytes: fio's part is not given as it is stored"

    async def _compare_stored(self, when: str) -> bytes:
        shape = self.shape
        image = await asyncio.to_thread(
            stored_image, self.backend, self.container, shape.objects, shape.object_size
        )
        self.book.compare(image[: self.book.size])
        self.diary.note(f"every byte is legal, as it is stored: {when}")
        return image

    async def _unlocked(self) -> None:
        """All clients have left; now the server writes back and lets go."""
        deadline = time.monotonic() + UNLOCK_SECONDS_MAX
        while await asyncio.to_thread(self._holder):
            assert time.monotonic() < deadline, "all clients have left, and it is still locked"
            await asyncio.sleep(0.1)

    def _holder(self) -> str:
        return self.backend.metadata(self.container).get("client", "")

    # fio

    @property
    def _fio_place(self) -> tuple[int, int]:
        return self.book.size, (self.shape.size - self.book.size) // 2

    @asynccontextmanager
    async def _attached(self, server: ServerProcess) -> AsyncIterator[None]:
        """Locked all the time: fio connects again and again."""
        connection = await Connection.open(server.port, self.container)
        try:
            yield
            await connection.leave()
        finally:
            await connection.cut(reset=False)

    async def _write_keepsake(self, server: ServerProcess) -> None:
        """What fio wrote and flushed in the beginning must be there in the end."""
        self._keepsake_seed = self.chance.randrange(1 << 30)
        start, size = self._fio_place
        fio = Fio(server.uris()[self.container], start, size, self.workdir, self._keepsake_seed)
        async with self._attached(server):
            await fio.start()
            await fio.finish(must_succeed=True)

    async def _verify_keepsake(self, server: ServerProcess) -> None:
        start, size = self._fio_place
        fio = Fio(server.uris()[self.container], start, size, self.workdir, self._keepsake_seed)
        async with self._attached(server):
            await fio.start(only_verify=True)
            await fio.finish(must_succeed=True)
        self.diary.counts["fio: bytes kept to the end and verified"] += size

    @asynccontextmanager
    async def _fio(self, server: ServerProcess, seconds: float) -> AsyncIterator[Fio]:
        """fio at work beside a round, in a place of its own."""
        start, size = self._fio_place
        seed = self.chance.randrange(1 << 30)
        fio = Fio(server.uris()[self.container], start + size, size, self.workdir, seed)
        await fio.start(seconds=seconds)
        try:
            yield fio
            self.diary.counts["fio: runs beside the clients"] += 1
        finally:
            await fio.kill()
