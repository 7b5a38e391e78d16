# SPDX-License-Identifier: MIT
"""Bugs to plant: each replaces one method by a version with a plausible mistake in it."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from swiftnbd.buffers import hole
from swiftnbd.errors import SwiftnbdError
from swiftnbd.export import disk, export
from swiftnbd.export.block import Block, State
from swiftnbd.export.cache import BlockCache
from swiftnbd.export.changing import Parts, Writer
from swiftnbd.export.demand import Demand, Demands
from swiftnbd.export.disk import ObjectDevice
from swiftnbd.export.disk_state import Part
from swiftnbd.export.etags import Etags
from swiftnbd.export.fetching import Fetcher, _Fetch
from swiftnbd.export.local_blocks import Found, LocalBlocks
from swiftnbd.export.objects import DiskObjects, Span, Urgency
from swiftnbd.export.slot_file import SlotFile
from swiftnbd.export.writeback import Change, DirtyObject, WriteBack
from swiftnbd.store.base import Blob, Buffer

Plant = Callable[[pytest.MonkeyPatch], None]

MUTANTS: list[Plant] = []


def mutant(plant: Plant) -> Plant:
    MUTANTS.append(plant)
    return plant


# What counts as durable


@mutant
def stored_is_marked_before_the_put(patch: pytest.MonkeyPatch) -> None:
    begin = DirtyObject.begin_upload

    def begin_upload(self: DirtyObject) -> list[Block]:
        blocks = begin(self)
        self.stored = self.attempted
        return blocks

    patch.setattr(DirtyObject, "begin_upload", begin_upload)


@mutant
def put_is_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    put = DiskObjects.put

    async def begun(
        self: DiskObjects, index: int, data: Buffer, *, changed: Collection[int] = ()
    ) -> None:
        work = put(self, index, data, changed=changed)
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())

    patch.setattr(DiskObjects, "put", begun)


@mutant
def failed_upload_counts_as_done(patch: pytest.MonkeyPatch) -> None:
    upload = Writer.upload

    async def swallowing(self: Writer, dirty: DirtyObject) -> None:
        with contextlib.suppress(SwiftnbdError):
            await upload(self, dirty)

    patch.setattr(Writer, "upload", swallowing)


@mutant
def failed_delete_is_ignored(patch: pytest.MonkeyPatch) -> None:
    delete = DiskObjects.delete

    async def swallowing(self: DiskObjects, index: int) -> None:
        with contextlib.suppress(SwiftnbdError):
            await delete(self, index)

    patch.setattr(DiskObjects, "delete", swallowing)


@mutant
def upload_acknowledges_a_change_it_did_not_carry(patch: pytest.MonkeyPatch) -> None:
    ended = WriteBack._ended

    def generous(self: WriteBack, dirty: DirtyObject, task: asyncio.Task[None]) -> None:
        dirty.attempted = dirty.generation
        ended(self, dirty, task)

    patch.setattr(WriteBack, "_ended", generous)


@mutant
def redirtied_block_becomes_clean(patch: pytest.MonkeyPatch) -> None:
    def end_upload(self: Block, *, done: bool) -> None:
        self.state = State.CLEAN if done else State.DIRTY

    patch.setattr(Block, "end_upload", end_upload)


@mutant
def blocks_are_clean_after_an_upload_that_failed(patch: pytest.MonkeyPatch) -> None:
    end_upload = Block.end_upload
    patch.setattr(Block, "end_upload", lambda self, *, done: end_upload(self, done=True))


@mutant
def two_uploads_of_one_object_at_once(patch: pytest.MonkeyPatch) -> None:
    async def stored(self: WriteBack, changes: Iterable[Change]) -> None:
        for dirty, generation in changes:
            while dirty.stored < generation:
                await self._gate.passing()
                await self._upload(dirty)
                dirty.stored = dirty.attempted

    async def all_stored(self: WriteBack) -> None:
        await stored(self, [(dirty, dirty.generation) for dirty in self.objects.values()])

    patch.setattr(WriteBack, "stored", stored)
    patch.setattr(WriteBack, "all_stored", all_stored)


@mutant
def flush_shares_with_one_that_came_before_the_change(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Demands, "changed", lambda self: None)


@mutant
def flush_shares_across_a_clear_of_what_is_uploading(patch: pytest.MonkeyPatch) -> None:
    touch = WriteBack.touch

    def touched(self: WriteBack, index: int, *, absent: bool) -> DirtyObject:
        known, demand = index in self.objects, self._demands._of_all
        dirty = touch(self, index, absent=absent)
        if known:
            self._demands._of_all = demand
        return dirty

    patch.setattr(WriteBack, "touch", touched)


@mutant
def flush_error_is_swallowed(patch: pytest.MonkeyPatch) -> None:
    flush = ObjectDevice.flush

    async def swallowing(self: ObjectDevice) -> None:
        with contextlib.suppress(SwiftnbdError):
            await flush(self)

    patch.setattr(ObjectDevice, "flush", swallowing)


@mutant
def flush_leaves_out_what_is_uploading(patch: pytest.MonkeyPatch) -> None:
    async def flush(self: ObjectDevice) -> None:
        for dirty in list(self._disk.writeback.objects.values()):
            if dirty.upload is None:
                await self._disk.writeback.stored([(dirty, dirty.generation)])

    patch.setattr(ObjectDevice, "flush", flush)


@mutant
def error_of_a_part_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    met = WriteBack._met

    async def forgetful(self: WriteBack, demand: Demand) -> None:
        changes = len(demand._wanted)
        try:
            await met(self, demand)
        except SwiftnbdError:
            if changes == 1:
                raise

    patch.setattr(WriteBack, "_met", forgetful)


@mutant
def fua_is_ignored(patch: pytest.MonkeyPatch) -> None:
    settle = Writer._settle

    async def settle_later(self: Writer, changes: list[Change], fua: bool) -> None:
        await settle(self, changes, False)

    patch.setattr(Writer, "_settle", settle_later)


@mutant
def last_client_leaves_without_writing_back(patch: pytest.MonkeyPatch) -> None:
    async def let_go(self: export.Export) -> None:
        if self.device is not None:
            await self.device._disk.tasks.close()
            self.device = None
        await self._holding.release()

    patch.setattr(export.Export, "_let_go", let_go)


# What a block holds


@mutant
def read_modify_write_is_not_atomic(patch: pytest.MonkeyPatch) -> None:
    write_pieces = Writer._write_pieces

    async def slowly(
        self: Writer, pieces: Parts, changes: list[Change], *, keep_zeros: bool = False
    ) -> None:
        for part, data in pieces:
            whole = part, data
            if data is not None:
                whole = Part(part.block, 0, self._disk.block_size), await merged(self, part, data)
            await write_pieces(self, deque([whole]), changes, keep_zeros=keep_zeros)

    async def merged(self: Writer, part: Part, data: Buffer) -> Buffer:
        blocks = await self._reader.pin([part.block])
        try:
            await self._reader.know(blocks, [Part(part.block, 0, blocks[0].size)])
            whole = bytearray(blocks[0].data)
            await asyncio.sleep(0)
            whole[part.start : part.end] = data
            return whole
        finally:
            self._reader.unpin(blocks)

    patch.setattr(Writer, "_write_pieces", slowly)


@mutant
def fetch_overwrites_what_was_written_meanwhile(patch: pytest.MonkeyPatch) -> None:
    def fill(self: Block, data: Buffer) -> None:
        self._data, self.known, self.frozen = data, None, True
        if self.state is State.EMPTY:
            self.move(State.CLEAN)

    patch.setattr(Block, "fill", fill)


@mutant
def block_is_not_frozen_while_it_is_stored(patch: pytest.MonkeyPatch) -> None:
    def thawed(self: Block) -> Buffer:
        return self.data

    patch.setattr(Block, "hold", thawed)


@mutant
def gaps_are_filled_with_zeros(patch: pytest.MonkeyPatch) -> None:
    fill = Block.fill

    def careless(self: Block, data: Buffer) -> None:
        fill(self, data if self.state is State.EMPTY else hole(self.size))

    patch.setattr(Block, "fill", careless)


@mutant
def copy_on_write_is_skipped(patch: pytest.MonkeyPatch) -> None:
    def own(self: Block) -> bytearray:
        if not isinstance(self._data, bytearray):
            self._data = bytearray(self._data) or bytearray(self.size)
        return self._data

    patch.setattr(Block, "_own", own)


@mutant
def zero_of_a_part_takes_the_whole_block(patch: pytest.MonkeyPatch) -> None:
    zero = Block.zero
    patch.setattr(Block, "zero", lambda self, start, end: zero(self, 0, self.size))


@mutant
def dirty_block_is_evicted(patch: pytest.MonkeyPatch) -> None:
    settle = BlockCache.settle

    def careless(self: BlockCache, block: Block) -> None:
        settle(self, block)
        if block.dirty and not block.pins:
            self._eviction.insert_idle(block)

    patch.setattr(BlockCache, "settle", careless)


@mutant
def evicted_block_comes_back_stale(patch: pytest.MonkeyPatch) -> None:
    get = DiskObjects.get
    seen: dict[tuple[int, int, int, int], bytes | None] = {}

    async def get_once(
        self: DiskObjects, index: int, span: Span, *, urgent: Urgency
    ) -> bytes | None:
        start, end = span()
        key = (id(self), index, start, end)
        if key not in seen:
            seen[key] = await get(self, index, lambda: (start, end), urgent=urgent)
        return seen[key]

    patch.setattr(DiskObjects, "get", get_once)


# Zeros


@mutant
def clear_leaves_clean_blocks_in_the_cache(patch: pytest.MonkeyPatch) -> None:
    within = BlockCache.within

    def only_busy(self: BlockCache, first: int, end: int) -> Iterator[Block]:
        return (block for block in within(self, first, end) if not self.is_idle(block))

    patch.setattr(BlockCache, "within", only_busy)


@mutant
def clear_during_an_upload_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    ended = WriteBack._ended

    def forgetful(self: WriteBack, dirty: DirtyObject, task: asyncio.Task[None]) -> None:
        ended(self, dirty, task)
        dirty.cleared = 0

    patch.setattr(WriteBack, "_ended", forgetful)


@mutant
def keep_zeros_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    clear_now = Writer._clear_now
    patch.setattr(Writer, "_clear_now", lambda self, index, keep: clear_now(self, index, False))


@mutant
def trim_rounds_outwards(patch: pytest.MonkeyPatch) -> None:
    trim = ObjectDevice.trim

    async def outwards(self: ObjectDevice, offset: int, length: int, *, fua: bool = False) -> None:
        start = offset // self._disk.object_size * self._disk.object_size
        await trim(self, start, offset + length - start, fua=fua)

    patch.setattr(ObjectDevice, "trim", outwards)


@mutant
def extents_forget_what_was_written_over_a_hole(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(disk, "_kind_of", lambda dirty: (dirty.lies_on_zeros, dirty.lies_on_zeros))


# What is known of the store


@mutant
def absence_outlives_a_put_whose_reply_was_lost(patch: pytest.MonkeyPatch) -> None:
    change = DiskObjects._change

    async def trusting(
        self: DiskObjects, index: int, request: Callable[[], Awaitable[Any]]
    ) -> tuple[Any, set[int]]:
        before = self.presence.get(index)
        try:
            return await change(self, index, request)
        except SwiftnbdError:
            self.presence.set(index, before)
            raise

    patch.setattr(DiskObjects, "_change", trusting)


@mutant
def what_is_seen_before_a_late_change_lands_is_taken_for_final(patch: pytest.MonkeyPatch) -> None:
    change = DiskObjects._change

    async def forgetful(
        self: DiskObjects, index: int, request: Callable[[], Awaitable[Any]]
    ) -> tuple[Any, set[int]]:
        try:
            return await change(self, index, request)
        finally:
            self._doubtful.discard(index)

    patch.setattr(DiskObjects, "_change", forgetful)


@mutant
def etag_is_not_compared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Etags, "fits", lambda self, index, etag: True)


@mutant
def stale_absence_is_believed(patch: pytest.MonkeyPatch) -> None:
    fits = DiskObjects._fits
    patch.setattr(DiskObjects, "_fits", lambda self, i, blob: blob is None or fits(self, i, blob))


@mutant
def part_is_taken_from_the_wrong_place(patch: pytest.MonkeyPatch) -> None:
    get = DiskObjects.get

    async def from_the_start(
        self: DiskObjects, index: int, span: Span, *, urgent: Urgency
    ) -> bytes | None:
        def moved() -> tuple[int, int]:
            start, end = span()
            return 0, end - start

        return await get(self, index, moved, urgent=urgent)

    patch.setattr(DiskObjects, "get", from_the_start)


@mutant
def neighbours_join_a_fetch_that_was_sent(patch: pytest.MonkeyPatch) -> None:
    def span(self: Fetcher, index: int, fetch: _Fetch) -> tuple[int, int]:
        first = fetch.blocks[0].index - index * self._disk.per_object
        size = self._disk.block_size
        return first * size, (first + len(fetch.blocks)) * size

    patch.setattr(Fetcher, "_sent", span)


@mutant
def neighbours_before_a_fetch_join_it_behind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Fetch, "take", lambda self, run: self.blocks.extend(run))


@mutant
def unreadable_object_reads_as_zeros(patch: pytest.MonkeyPatch) -> None:
    get = DiskObjects.get

    async def careless(
        self: DiskObjects, index: int, span: Span, *, urgent: Urgency
    ) -> bytes | None:
        with contextlib.suppress(SwiftnbdError):
            return await get(self, index, span, urgent=urgent)
        return None

    patch.setattr(DiskObjects, "get", careless)


@mutant
def short_body_is_padded(patch: pytest.MonkeyPatch) -> None:
    get = DiskObjects._get

    async def padded(
        self: DiskObjects, index: int, start: int, end: int, *, newest: bool
    ) -> Blob | None:
        blob = await get(self, index, start, end, newest=newest)
        return blob and replace(blob, data=blob.data.ljust(end - start, b"\0"))

    patch.setattr(DiskObjects, "_get", padded)


# What is kept on a local disk


@mutant
def disk_cache_is_not_told_of_changes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LocalBlocks, "drop", lambda self, index: set())
    patch.setattr(LocalBlocks, "keep_changed", lambda self, index, data, etag, blocks: None)


@mutant
def what_a_crash_left_is_taken_for_proven(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Found, "is_proven", Found.is_whole)


@mutant
def torn_slot_is_believed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SlotFile, "_seal", lambda self, record, data: bytes(16))


# Suspended


@mutant
def write_is_accepted_while_suspended(patch: pytest.MonkeyPatch) -> None:
    def write_now(self: ObjectDevice, offset: int, data: Buffer) -> bool:
        index, start = divmod(offset, self._unit)
        part = Part(index, start, start + len(data))
        if not self._accepts_now or self._disk.writers or part.end > self._unit:
            return False
        return self._writer.takes(part) and self._writer.write_now(part, data) is not None

    patch.setattr(ObjectDevice, "write_now", write_now)


@mutant
def upload_goes_on_while_suspended(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WriteBack, "abort", lambda self: None)


@mutant
def upload_is_started_while_suspended(patch: pytest.MonkeyPatch) -> None:
    ended = WriteBack._ended

    def eager(self: WriteBack, dirty: DirtyObject, task: asyncio.Task[None]) -> None:
        ended(self, dirty, task)
        if dirty.index in self._waiting:
            self._start(dirty)

    patch.setattr(WriteBack, "_ended", eager)
