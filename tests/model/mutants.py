# SPDX-License-Identifier: MIT
"""Bugs to plant: each replaces one method by a version with a plausible mistake in it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

from swiftnbd.errors import SwiftnbdError
from swiftnbd.export import disk, export, parallel
from swiftnbd.export.block import Block, State
from swiftnbd.export.cache import BlockCache
from swiftnbd.export.disk import ObjectDevice
from swiftnbd.export.layout import object_name

Plant = Callable[[pytest.MonkeyPatch], None]

MUTANTS: list[Plant] = []


def mutant(plant: Plant) -> Plant:
    MUTANTS.append(plant)
    return plant


@mutant
def stored_is_marked_before_the_put(patch: pytest.MonkeyPatch) -> None:
    async def put(self: ObjectDevice, block: Block) -> None:
        data = block.begin_upload()
        block.end_upload(done=True)
        del self._dirty[block.index]
        await self._store.put(object_name(block.index), data)

    patch.setattr(ObjectDevice, "_put", put)


@mutant
def read_modify_write_is_not_atomic(patch: pytest.MonkeyPatch) -> None:
    async def write_part(self: ObjectDevice, index: int, start: int, data: memoryview) -> None:
        block = await self._cache.pin(index)
        try:
            await self._know(block)
            assert block.data is not None
            whole = bytearray(block.data)
            await asyncio.sleep(0)
            whole[start : start + len(data)] = data
            await self._store_change(block, block.write(0, whole))
        finally:
            self._cache.unpin(block)

    patch.setattr(ObjectDevice, "_write_part", write_part)


@mutant
def evicted_block_comes_back_stale(patch: pytest.MonkeyPatch) -> None:
    get = ObjectDevice._get
    seen: dict[tuple[int, int], bytes] = {}

    async def get_once(self: ObjectDevice, index: int) -> bytes:
        key = (id(self), index)
        if key not in seen:
            seen[key] = await get(self, index)
        return seen[key]

    patch.setattr(ObjectDevice, "_get", get_once)


@mutant
def flush_error_is_swallowed(patch: pytest.MonkeyPatch) -> None:
    flush = ObjectDevice.flush

    async def swallowing(self: ObjectDevice) -> None:
        with contextlib.suppress(SwiftnbdError):
            await flush(self)

    patch.setattr(ObjectDevice, "flush", swallowing)


@mutant
def copy_on_write_is_skipped(patch: pytest.MonkeyPatch) -> None:
    def own(self: Block) -> bytearray:
        if not isinstance(self.data, bytearray):
            assert self.data is not None
            self.data = bytearray(self.data)
        return self.data

    patch.setattr(Block, "_own", own)


@mutant
def dirty_block_is_evicted(patch: pytest.MonkeyPatch) -> None:
    unpin = BlockCache.unpin

    def forgetful(self: BlockCache, block: Block, *, cold: bool = False) -> None:
        unpin(self, block, cold=cold)
        if self._stuck.pop(block.index, None):
            self._idle[block.index] = block

    patch.setattr(BlockCache, "unpin", forgetful)


@mutant
def fetch_overwrites_a_newer_write(patch: pytest.MonkeyPatch) -> None:
    async def fetch(self: ObjectDevice, block: Block) -> None:
        data = await self._get(block.index)
        block.data, block.frozen = data, True
        if block.state is State.EMPTY:
            block.state = State.CLEAN

    async def store_change(self: ObjectDevice, block: Block, generation: int) -> None:
        self._dirty[block.index] = block  # and the fetch goes on
        await self._stored(block, generation)

    patch.setattr(ObjectDevice, "_fetch", fetch)
    patch.setattr(ObjectDevice, "_store_change", store_change)


@mutant
def failed_upload_counts_as_stored(patch: pytest.MonkeyPatch) -> None:
    end = Block.end_upload
    patch.setattr(Block, "end_upload", lambda self, *, done: end(self, done=True))


@mutant
def redirtied_block_becomes_clean(patch: pytest.MonkeyPatch) -> None:
    def end_upload(self: Block, *, done: bool) -> None:
        if done:
            self.stored = self.generation
        self.state = State.CLEAN if done else State.DIRTY

    patch.setattr(Block, "end_upload", end_upload)


@mutant
def failed_delete_is_ignored(patch: pytest.MonkeyPatch) -> None:
    async def put(self: ObjectDevice, block: Block) -> None:
        name, data = object_name(block.index), block.begin_upload()
        try:
            if data == self._zeros:
                block.end_upload(done=True)
                await self._store.delete(name)
            else:
                await self._store.put(name, data)
                block.end_upload(done=True)
        except SwiftnbdError:
            if data != self._zeros:
                block.end_upload(done=False)
                raise
        if block.state is State.CLEAN:
            self._dirty.pop(block.index, None)

    patch.setattr(ObjectDevice, "_put", put)


@mutant
def unreadable_block_reads_as_zeros(patch: pytest.MonkeyPatch) -> None:
    get = ObjectDevice._get

    async def careless(self: ObjectDevice, index: int) -> bytes:
        try:
            return await get(self, index)
        except SwiftnbdError:
            return self._zeros

    patch.setattr(ObjectDevice, "_get", careless)


@mutant
def short_body_is_padded(patch: pytest.MonkeyPatch) -> None:
    async def get(self: ObjectDevice, index: int) -> bytes:
        blob = await self._store.get(object_name(index))
        return self._zeros if blob is None else blob.data.ljust(self._object_size, b"\0")

    patch.setattr(ObjectDevice, "_get", get)


@mutant
def trim_rounds_outwards(patch: pytest.MonkeyPatch) -> None:
    trim = ObjectDevice.trim

    async def outwards(self: ObjectDevice, offset: int, length: int, *, fua: bool = False) -> None:
        start = offset // self._object_size * self._object_size
        await trim(self, start, offset + length - start)

    patch.setattr(ObjectDevice, "trim", outwards)


@mutant
def zero_of_a_part_takes_the_whole_block(patch: pytest.MonkeyPatch) -> None:
    def zero(self: Block, start: int, end: int, *, keep_zeros: bool) -> int:
        assert self.data is not None
        return self.clear(bytes(len(self.data)), keep_zeros=keep_zeros)

    patch.setattr(Block, "zero", zero)


@mutant
def error_of_a_part_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    for_each = parallel.for_each

    async def forgetful(
        items: Iterable[Any], work: Callable[[Any], Awaitable[None]], *, go_on: bool = False
    ) -> None:
        items = list(items)
        try:
            await for_each(items, work, go_on=go_on)
        except SwiftnbdError:
            if len(items) == 1:
                raise

    patch.setattr(disk, "for_each", forgetful)


@mutant
def pin_is_given_back_before_the_upload_ends(patch: pytest.MonkeyPatch) -> None:
    def spawn(self: ObjectDevice, work: Any, block: Block) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    patch.setattr(ObjectDevice, "_spawn", spawn)


@mutant
def last_client_leaves_without_writing_back(patch: pytest.MonkeyPatch) -> None:
    async def let_go(self: export.Export) -> None:
        if self.device is not None:
            await self.device._end_tasks()
            self.device = None
        if self._lock is not None:
            await self._unlock()

    patch.setattr(export.Export, "_let_go", let_go)
