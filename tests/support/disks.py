# SPDX-License-Identifier: MIT
"""Disks of tiny objects over a faulty memory store, for the tests of the block engine."""

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from swiftnbd.export.block import Block
from swiftnbd.export.disk import ObjectDevice
from swiftnbd.export.layout import Geometry
from swiftnbd.export.settings import CacheSettings
from swiftnbd.store.base import Buffer
from swiftnbd.store.memory import MemoryAccount, MemoryObject, MemoryStore
from tests.store.contract import etag_of
from tests.support.faulty import Faulty, Plan, Script

SIZE = 512  # bytes of an object
TURNS = 50  # of the event loop: enough for whatever can go on without being let through a gate

T = TypeVar("T")


def caching(cached: int = 4, size: int = SIZE, **others: Any) -> CacheSettings:
    """A cache of ``cached`` objects that does nothing unasked, but for what ``others`` say.

    Half of it may be dirty; it begins to write back when a quarter is.
    """
    quiet = {"dirty_seconds": math.inf, "retry_seconds": 0.0, "read_ahead_bytes": 0}
    return CacheSettings(cache_bytes=cached * size, **(quiet | others))


class Disk:
    """``objects`` objects of `SIZE` bytes, at most ``cached`` of them in memory."""

    def __init__(
        self,
        objects: int = 8,
        *,
        cached: int = 4,
        size: int = SIZE,
        flush_seconds: float = 60.0,
        request_seconds: float = 65.0,
        settings: CacheSettings | None = None,
        plan: Plan | None = None,
    ) -> None:
        self.objects, self.object_size = objects, size
        self.script = Script()
        self.memory = MemoryStore("disk", MemoryAccount())
        self.store = Faulty(self.memory, plan or self.script)
        self.device = ObjectDevice(
            self.store,
            Geometry(objects, size),
            settings or caching(cached, size),
            flush_seconds=flush_seconds,
            request_seconds=request_seconds,
        )

    # the second witness: the store's dictionaries themselves

    @property
    def stored(self) -> dict[str, MemoryObject]:
        return self.memory.account.containers["disk"].objects

    def put(self, index: int, data: bytes) -> None:
        self.stored[name(index)] = MemoryObject(data, etag_of(data))

    def has(self, index: int) -> bytes | None:
        """What is stored of object ``index``."""
        found = self.stored.get(name(index))
        return None if found is None else found.data

    def image(self) -> bytes:
        """What a reader of the store sees."""
        parts = (self.has(index) or bytes(self.object_size) for index in range(self.objects))
        return b"".join(parts)

    # the device

    async def read(self, offset: int, length: int) -> bytes:
        return joined(await self.device.read(offset, length))

    @property
    def blocks(self) -> dict[int, Block]:
        return self.device._disk.cache.blocks

    def assert_quiet(self) -> None:
        """Nothing of a request is left: no task, no pin, no call, no room taken for ever."""
        assert not self.device._disk.tasks
        assert [block.index for block in self.blocks.values() if block.pins] == []
        assert self.store.at_once == 0
        assert len(self.blocks) <= self.device._disk.cache.capacity
        slots = self.device._disk.objects._slots
        assert slots.free == slots.total
        assert self.device._disk.writeback.blocks == sum(
            block.dirty for block in self.blocks.values()
        )


@asynccontextmanager
async def a_disk(*args: Any, **options: Any) -> AsyncIterator[Disk]:
    """A `Disk` that must be quiet at the end."""
    disk = Disk(*args, **options)
    await disk.memory.create_container()
    yield disk
    await turns()
    disk.assert_quiet()


def name(index: int) -> str:
    """Spelled out here, so that a mistake in the layout is seen."""
    return "disk.part/" + str(index).rjust(8, "0")


def joined(pieces: Sequence[Buffer]) -> bytes:
    return b"".join(pieces)


async def turns(count: int = TURNS) -> None:
    """Let everything go on as far as it can."""
    for _ in range(count):
        await asyncio.sleep(0)


def begin(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a request, as a connection would."""
    return asyncio.get_running_loop().create_task(work)


async def begun(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a request and let it come as far as it can."""
    task = begin(work)
    await turns()
    return task
