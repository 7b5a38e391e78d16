# SPDX-License-Identifier: MIT
"""The local disk cache and its file against the store: crashes, power cuts, damage, strangers.

Whatever has happened, a block that is called proven is the object's, and any other is the one
its ETag belongs to, so that who asks the store for the ETag is not misled.
"""

import asyncio
import random
import tempfile
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swiftnbd.export.disk_cache import DiskCache

SIZE, SECTOR = 2048, 512
BLOCKS = 6
LIMIT = 8192 + 4 * (SIZE + 64)  # fewer slots than there are blocks

ACTIONS = st.sampled_from(
    ["write", "write and put", "put", "put", "trim", "read", "confirm", "race", "wait"]
)


@dataclass(frozen=True)
class Session:
    """What happens between two openings of the cache."""

    work: list[tuple[str, int]]
    end: str
    between: str
    seed: int


SESSIONS = st.builds(
    Session,
    work=st.lists(st.tuples(ACTIONS, st.integers(0, BLOCKS - 1)), max_size=12),
    end=st.sampled_from(["close", "close", "kill", "power cut"]),
    between=st.sampled_from(["nothing", "nothing", "somebody else writes", "damage", "cut short"]),
    seed=st.integers(0, 2**32),
)


def content(index: int, version: int) -> bytes:
    """Every sector differs from every other of any block and version."""
    return b"".join((b"%3d %6d %d." % (index, version, part) * 43)[:SECTOR] for part in range(4))


class World:
    """The store's objects, and the cache's file through all sessions."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.versions = [0] * BLOCKS
        self.binding = 0

    def object(self, index: int) -> bytes:
        return content(index, self.versions[index])

    def etag(self, index: int) -> str:
        return md5(self.object(index)).hexdigest()

    @property
    def file(self) -> Path:
        (path,) = self.directory.iterdir()
        return path

    async def session(self, session: Session) -> None:
        cache = await DiskCache.open(
            self.directory,
            "disk",
            label="disk",
            object_size=SIZE,
            block_size=SIZE,
            limit_bytes=LIMIT,
            binding=str(self.binding),
        )
        durable = self.file.read_bytes()
        for index in range(BLOCKS):
            await self.check(cache, index)
        for action, index in session.work:
            await self.act(cache, action, index)
            assert self.file.stat().st_size <= LIMIT
        if session.end == "close":
            self.binding += 1
            await cache.close(str(self.binding))
        else:
            await self.crash(cache, durable, session)
        self.meanwhile(session)

    async def check(self, cache: DiskCache, index: int) -> None:
        found = await cache.get(index)
        if found is not None:
            assert md5(found.data).hexdigest() == found.etag
            assert not found.proven or found.data == self.object(index)

    async def act(self, cache: DiskCache, action: str, index: int) -> None:
        match action:
            case "write" | "write and put":
                cache.drop(index)
                self.versions[index] += 1
            case "trim":
                cache.drop_range(index, BLOCKS)
                for dropped in range(index, BLOCKS):
                    self.versions[dropped] += 1
            case "race":
                read = asyncio.ensure_future(cache.get(index))
                await asyncio.sleep(0)
                cache.drop(index)
                self.versions[index] += 1
                cache.put(index, self.object(index), self.etag(index))
                assert await read is None
            case "confirm":
                cache.confirm(index, self.etag(index))
            case "wait":
                await written(cache)
        if action in ("put", "write and put"):
            cache.put(index, self.object(index), self.etag(index))
        await self.check(cache, index)

    async def crash(self, cache: DiskCache, durable: bytes, session: Session) -> None:
        """Killed; or power fails, and each sector is as it was at the last fsync or as it is.

        The binding stays: nothing but the file itself says that it is out of date.
        """
        left = bytearray(self.file.read_bytes())
        await written(cache)
        await asyncio.to_thread(cache._let_go)
        chance = random.Random(session.seed)
        for at in range(0, len(left), SECTOR):
            if session.end == "power cut" and chance.random() < 0.5:
                before = durable[at : at + SECTOR].ljust(SECTOR, b"\0")
                left[at : at + SECTOR] = before[: len(left) - at]
        self.file.write_bytes(left)

    def meanwhile(self, session: Session) -> None:
        chance = random.Random(session.seed)
        data = bytearray(self.file.read_bytes())
        match session.between:
            case "somebody else writes":
                self.binding += 1
                self.versions[chance.randrange(BLOCKS)] += 1
            case "damage":
                for _ in range(chance.randrange(1, 5)):
                    at = chance.choice([4096, 8192, 8192 + SIZE]) + chance.randrange(4 * 64)
                    data[at : at + 2] = chance.randbytes(2)
                if chance.random() < 0.2 and data:  # killed early, it may be empty
                    data[chance.randrange(min(200, len(data)))] ^= 1
            case "cut short":
                del data[chance.randrange(len(data) + 1) :]
        self.file.write_bytes(data)


async def written(cache: DiskCache) -> None:
    """Wait until what was put is written."""
    while cache._writes:
        await asyncio.wait(cache._writes)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sessions=st.lists(SESSIONS, min_size=2, max_size=6))
def test_no_wrong_byte_is_ever_proven(sessions: list[Session]) -> None:
    async def everything() -> None:
        with tempfile.TemporaryDirectory(prefix="swiftnbd-cache-") as directory:
            world = World(Path(directory))
            for session in sessions:
                await world.session(session)

    asyncio.run(everything())
