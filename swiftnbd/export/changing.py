# SPDX-License-Identifier: MIT
"""Changing blocks: writes, zeros, trims, and what an upload is made of.

A change is made in one step, without an await, as soon as there is room for it: in the cache
for its block, and below the limit of what may be changed and not stored. It needs none of the
bytes around it; they are fetched when the object is stored, unless they are known by then.
So a read-modify-write is atomic against every other request, on whichever connection.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from errno import ENOTSUP
from typing import Literal, TypeVar

from swiftnbd.buffers import Body, Buffer, Pieces, hole, is_hole
from swiftnbd.errors import ExportError
from swiftnbd.export.block import Block
from swiftnbd.export.disk_state import DiskState, Part
from swiftnbd.export.presence import State
from swiftnbd.export.reading import Reader
from swiftnbd.export.writeback import Change, DirtyObject

TRIM_UNLISTED_MAX = 16  # objects that are deleted without asking first which of them exist
# Of objects being stored at once, unless one is larger: what is fetched around the changes, and
# blocks that are written meanwhile, are held twice.
UPLOAD_BYTES_MAX = 16 * 1024 * 1024
UNSTORED_MAX = 1024  # objects whose being durable one request waits for together
# Objects that one zero or trim clears before those who wait behind it: as many requests as a write
# of 8 MiB in 64 KiB objects takes. One at a time, it would wait for all other writers each time.
CLEARED_TOGETHER_MAX = 128
LOOKED_AT_PER_TURN_MAX = 10_000  # objects that a trim asks whether they are changed, about 1 ms
RUNS_PER_TURN_MAX = 1000  # of a presence map, or objects, passed over between turns of the loop

Parts = deque[tuple[Part, Buffer | None]]  # what goes where in one block each; None: zeros

T = TypeVar("T")


class Writer:
    """Changes a disk through its cache. ``durable``: every change waits until it is stored.

    ``uploads``: how many objects are stored at once, unless they are so large that it is fewer.
    """

    def __init__(self, disk: DiskState, reader: Reader, *, durable: bool, uploads: int) -> None:
        self._disk = disk
        self._reader = reader
        self._durable = durable
        self._zeros = bytes(disk.block_size)
        bodies = max(1, UPLOAD_BYTES_MAX // disk.object_size)
        self._bodies = asyncio.Semaphore(bodies) if bodies < uploads else None

    # Writing

    def write_now(self, part: Part, data: Buffer | None) -> Change | None:
        """Copy ``data`` (None: zeros) into a block; None if there is no room for that now."""
        disk = self._disk
        block = disk.cache.blocks.get(part.block)
        if block is not None and block.dirty:
            _put(block, part, data)
            dirty = disk.writeback.objects[part.block // disk.per_object]
            disk.writeback.note_change(dirty)
            return dirty, dirty.generation
        if not disk.writeback.has_room:
            return None
        if block is None and (block := disk.cache.admit(part.block)) is None:
            return None
        _put(block, part, data)
        disk.cache.settle(block)
        number = part.block // disk.per_object
        dirty = disk.writeback.touch(number, absent=disk.objects.is_absent(number))
        disk.writeback.add(dirty, block)
        return dirty, dirty.generation

    def takes(self, part: Part) -> bool:
        """Whether a write there leaves its block with a sensible number of gaps."""
        block = self._disk.cache.blocks.get(part.block)
        return block is None or block.takes(part.start, part.end)

    async def write(self, offset: int, data: Buffer, *, fua: bool) -> None:
        """Accept ``data``; with ``fua`` it is durable on return."""
        view = memoryview(data)
        changes: list[Change] = []
        await self._disk.gate.passing()
        pieces: Parts = deque()
        for part in self._disk.parts(offset, len(view)):
            at = part.block * self._disk.block_size + part.start - offset
            pieces.append((part, view[at : at + part.end - part.start]))
        await self._write_pieces(pieces, changes)
        await self._settle(changes, fua)

    async def _write_pieces(
        self, pieces: Parts, changes: list[Change], *, keep_zeros: bool = False
    ) -> None:
        """All of them before those who wait behind us: they go on where we end.

        Taking turns block by block, many sequential writes would have as many objects half
        written at once, and all of them would have to be stored more than once.
        """
        while pieces:
            while not self.takes(pieces[0][0]):
                await self._know([self._disk.cache.blocks[pieces[0][0].block]])
            # a block that has become full of gaps while we waited takes one more all the same
            await self._when_room(lambda: self._write_some(pieces, changes, keep_zeros))

    def _write_some(
        self, pieces: Parts, changes: list[Change], keep_zeros: bool
    ) -> Literal[True] | None:
        """True when all are written or the next one's block is full of gaps; None: no room."""
        while (change := self.write_now(*pieces[0])) is not None:
            changes.append(change)
            change[0].keep_zeros |= keep_zeros
            pieces.popleft()
            if not pieces or not self.takes(pieces[0][0]):
                return True
        return None

    async def _know(self, blocks: Sequence[Block]) -> None:
        """Fetch what is missing of blocks that are in the cache, without waiting for room."""
        for block in blocks:
            self._disk.cache.pin(block)
        try:
            await self._reader.know(blocks, [Part(block.index, 0, block.size) for block in blocks])
        finally:
            self._reader.unpin(blocks)

    async def _when_room(self, attempt: Callable[[], T | None]) -> T:
        await self._disk.gate.passing()  # or we might wait for ever
        done = None if self._disk.writers else attempt()
        if done is None:
            self._disk.writeback.press()
            done = await self._disk.writers.wait(attempt, lambda _: None)
        return done

    async def _settle(self, changes: list[Change], fua: bool) -> None:
        """Return when the request may be answered."""
        if fua or self._durable:
            await self._disk.make_durable(
                self._disk.writeback.stored(changes), self._disk.flush_seconds
            )
        changes.clear()
        await self._disk.gate.passing()

    # Zeros

    async def zero(self, offset: int, length: int, *, no_hole: bool, fua: bool, fast: bool) -> None:
        """Make the range read as zeros."""
        await self._disk.gate.passing()
        size, stop = self._disk.object_size, offset + length
        if fast:
            await self._check_fast(offset, stop)
        changes: list[Change] = []
        while offset < stop:
            index, start = divmod(offset, size)
            count = 0 if start else min((stop - offset) // size, CLEARED_TOGETHER_MAX)
            if count:
                await self._disk.turnstile.passing()  # passing over holes waits for nothing
                await self._clear(range(index, index + count), changes, keep_zeros=no_hole)
                offset += count * size
            else:
                end = min(size, start + stop - offset)
                await self._zero_parts(offset, end - start, changes, keep_zeros=no_hole)
                offset += end - start
            if len(changes) >= UNSTORED_MAX:
                await self._settle(changes, fua)
        await self._settle(changes, fua)

    async def _check_fast(self, offset: int, stop: int) -> None:
        """ENOTSUP if anything of the range needs its surroundings fetched, or may not exist at all.

        Zeros all over a disk of which nothing is known would be a request for each object.
        """
        size = self._disk.object_size
        runs = self._disk.objects.presence.runs(offset // size, -(-stop // size))
        index = offset // size
        for number, (count, state) in enumerate(runs):
            if number % RUNS_PER_TURN_MAX == 0:
                await self._disk.turnstile.passing()
            if state is State.UNKNOWN and not self._all_changed(index, count):
                raise ExportError(ENOTSUP, "objects of which nothing is known")
            index += count
        edges = [offset] if offset % size or stop - offset < size else []
        edges += [stop - 1] if stop % size else []
        for position in edges:
            if not self._disk.reads_as_zeros(position // size):
                block = self._disk.cache.blocks.get(position // self._disk.block_size)
                if block is None or block.known is not None or self._disk.per_object > 1:
                    raise ExportError(ENOTSUP, "part of an object that is not in the cache")

    def _all_changed(self, first: int, count: int) -> bool:
        changed = self._disk.writeback.objects
        return count <= len(changed) and all(
            index in changed for index in range(first, first + count)
        )

    async def _zero_parts(
        self, offset: int, length: int, changes: list[Change], *, keep_zeros: bool
    ) -> None:
        """Zeros within one object."""
        if self._is_clean_hole(offset // self._disk.object_size) and not keep_zeros:
            return
        pieces: Parts = deque((part, None) for part in self._disk.parts(offset, length))
        await self._write_pieces(pieces, changes, keep_zeros=keep_zeros)

    async def _clear(
        self, indexes: Sequence[int], changes: list[Change], *, keep_zeros: bool
    ) -> None:
        """Zeros all over these objects, all of them before those who wait behind us."""
        todo = deque(each for each in indexes if keep_zeros or not self._is_clean_hole(each))
        if todo:
            await self._when_room(lambda: self._clear_some(todo, changes, keep_zeros))

    def _clear_some(
        self, indexes: deque[int], changes: list[Change], keep_zeros: bool
    ) -> Literal[True] | None:
        """True when all are cleared; None: no room."""
        while (change := self._clear_now(indexes[0], keep_zeros)) is not None:
            changes.append(change)
            indexes.popleft()
            if not indexes:
                return True
        return None

    def _is_clean_hole(self, index: int) -> bool:
        is_changed = index in self._disk.writeback.objects
        return not is_changed and self._disk.objects.is_absent(index)

    def _clear_now(self, index: int, keep_zeros: bool) -> Change | None:
        disk = self._disk
        if index not in disk.writeback.objects and not disk.writeback.has_room:
            return None
        dirty = disk.writeback.touch(index, absent=False)
        dirty.cleared = dirty.generation
        dirty.keep_zeros = keep_zeros
        first = index * disk.per_object
        for block in list(disk.cache.within(first, first + disk.per_object)):
            if disk.cache.is_idle(block):
                disk.cache.drop(block)
                continue
            was_dirty = block.dirty
            block.zero(0, block.size)
            if not was_dirty:
                disk.writeback.add(dirty, block)
        return dirty, dirty.generation

    # Trim

    async def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """Delete the objects that lie wholly inside the range.

        Being a hint, it may trust a listing for what exists: an object that the listing misses
        merely stays. So trimming a fresh disk takes at most a few requests, whatever its size.
        """
        await self._disk.gate.passing()
        size = self._disk.object_size
        first = -(-offset // size)
        end = max(first, (offset + length) // size)
        changes: list[Change] = []
        position = first
        looked_at = LOOKED_AT_PER_TURN_MAX
        for number, (count, state) in enumerate(self._disk.objects.presence.runs(first, end)):
            if number % CLEARED_TOGETHER_MAX == 0 or looked_at >= LOOKED_AT_PER_TURN_MAX:
                await self._disk.turnstile.passing()
                looked_at = 0
            looked_at += min(count, len(self._disk.writeback.objects))
            after = position + count
            if state is State.ABSENT or (state is State.UNKNOWN and count > TRIM_UNLISTED_MAX):
                await self._clear_all(self._changed_within(position, after), changes, fua)
            else:
                await self._clear_all(range(position, after), changes, fua)
            if state is State.UNKNOWN and count > TRIM_UNLISTED_MAX:
                async for found in self._disk.objects.listed(position, after):
                    await self._clear_all(found, changes, fua)
            position = after
        await self._settle(changes, fua)

    def _changed_within(self, first: int, end: int) -> list[int]:
        """Ascending. It looks at no more than there is, of either: runs may be many and short."""
        changed = self._disk.writeback.objects
        if end - first < len(changed):
            return [index for index in range(first, end) if index in changed]
        return sorted(index for index in changed if first <= index < end)

    async def _clear_all(self, indexes: Sequence[int], changes: list[Change], fua: bool) -> None:
        for first in range(0, len(indexes), CLEARED_TOGETHER_MAX):
            together = indexes[first : first + CLEARED_TOGETHER_MAX]
            await self._clear(together, changes, keep_zeros=False)
            if len(changes) >= UNSTORED_MAX:
                await self._settle(changes, fua)

    # Storing

    async def upload(self, dirty: DirtyObject) -> None:
        """Store all that changed in an object so far."""
        async with self._bodies or nullcontext():
            await self._disk.objects.in_turn(lambda: self._store(dirty))

    async def _store(self, dirty: DirtyObject) -> None:
        fetched: dict[int, Buffer] = {}
        while await self._fetch_missing(dirty, fetched):
            pass  # what was fetched may not be all any more
        blocks = dirty.begin_upload()
        body = self._body(dirty, fetched)
        assert all(block.known is None for block in blocks)
        if body is None:
            await self._disk.objects.delete(dirty.index)
            dirty.deleted = True
        else:
            changed = [block.index for block in blocks]
            await self._disk.objects.put(dirty.index, body, changed=changed)

    async def _fetch_missing(self, dirty: DirtyObject, fetched: dict[int, Buffer]) -> bool:
        """Fetch what is neither in the cache nor in ``fetched``; False if nothing was missing."""
        disk = self._disk
        first = dirty.index * disk.per_object
        partly: list[Block] = []
        nowhere: list[int] = []
        for index in range(first, first + disk.per_object):
            block = disk.cache.blocks.get(index)
            if block is None:
                if index not in fetched and not dirty.lies_on_zeros:
                    nowhere.append(index)
            elif block.known is not None and not block.unmark():
                if dirty.lies_on_zeros:
                    block.fill(hole(block.size))
                elif index in fetched:
                    block.fill(bytes(fetched[index]))  # a view would keep all of it alive
                else:
                    partly.append(block)
        if partly:
            await self._know(partly)
        if nowhere:
            await self._fetch(dirty.index, nowhere[0] - first, nowhere[-1] + 1 - first, fetched)
        return bool(partly or nowhere)

    async def _fetch(self, index: int, first: int, end: int, fetched: dict[int, Buffer]) -> None:
        """Blocks ``[first, end)`` of an object, past the cache: they are needed only once."""
        disk, size = self._disk, self._disk.block_size
        data = await disk.objects.get(
            index, lambda: (first * size, end * size), urgent=lambda: True
        )
        view = hole((end - first) * size) if data is None else memoryview(data)
        for number in range(end - first):
            block = index * disk.per_object + first + number
            fetched[block] = view[number * size : (number + 1) * size]

    def _body(self, dirty: DirtyObject, fetched: dict[int, Buffer]) -> Body | None:
        """The object's bytes; None if it need not exist.

        Not a copy: a write meanwhile leaves them as they are, and copies its block first.
        """
        disk = self._disk
        first = dirty.index * disk.per_object
        pieces: list[Buffer] = []
        for index in range(first, first + disk.per_object):
            block = disk.cache.blocks.get(index)
            if block is not None:
                pieces.append(block.hold())
            else:
                pieces.append(hole(disk.block_size) if dirty.lies_on_zeros else fetched[index])
        if not dirty.keep_zeros and all(is_hole(piece) or piece == self._zeros for piece in pieces):
            return None
        return pieces[0] if len(pieces) == 1 else Pieces(pieces)


def _put(block: Block, part: Part, data: Buffer | None) -> None:
    if data is None:
        block.zero(part.start, part.end)
    else:
        block.write(part.start, data)
