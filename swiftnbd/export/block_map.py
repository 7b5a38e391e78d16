# SPDX-License-Identifier: MIT
"""A disk seen from far away: how many blocks of which kind lie in each of a few cells.

A disk may have 100 million objects, so a map is made in steps of a millisecond or two, with the
event loop in between; what changes meanwhile is seen or not. For 16 million objects in the worst
mix of states the steps take 30 ms together, in 4096 cells 90 ms; and 1 us for each block in the
cache.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from swiftnbd.export.block import State as BlockState
from swiftnbd.export.disk_state import DiskState
from swiftnbd.export.presence import PAGE_OBJECTS, State

CELLS_MAX = 4096  # of one map: more than a screen can show apart
_CELLS_PER_TURN = 64
_OBJECTS_PER_TURN = 16 * PAGE_OBJECTS  # 16 mixed pages of the presence map
_BLOCKS_PER_TURN = 1024


class Kind(StrEnum):
    """What is known of a block, and where its bytes are. Each block is of one kind."""

    UNKNOWN = "unknown"  # nobody has asked the store
    ABSENT = "absent"
    STORED = "stored"
    CACHED = "cached"  # in memory, as it is stored
    DIRTY = "dirty"  # in memory, not stored yet
    UPLOADING = "uploading"


_KINDS_BELOW = {State.UNKNOWN: Kind.UNKNOWN, State.ABSENT: Kind.ABSENT, State.PRESENT: Kind.STORED}
_KINDS = {
    BlockState.CLEAN: Kind.CACHED,
    BlockState.DIRTY: Kind.DIRTY,
    BlockState.UPLOADING: Kind.UPLOADING,
    BlockState.REDIRTIED: Kind.UPLOADING,
}  # an EMPTY block is only being fetched


@dataclass(frozen=True, slots=True)
class BlockMap:
    """Blocks ``[first, end)`` of ``blocks``, of ``block_size`` bytes each, in ``cells`` cells.

    Cell i begins at block ``first + i * (end - first) // cells``. ``counts``: of each kind, how
    many blocks there are in each cell.
    """

    blocks: int
    block_size: int
    first: int
    end: int
    cells: int
    counts: dict[Kind, list[int]]


async def draw(disk: DiskState, first: int, end: int, cells: int) -> BlockMap:
    """A map of the blocks ``[first, end)``, in so many cells or in one for each block."""
    blocks = disk.objects.presence.objects * disk.per_object
    assert 0 <= first < end <= blocks
    assert 0 < cells <= CELLS_MAX
    drawing = _Drawing(disk, first, end, min(cells, end - first))
    await drawing.count_below()
    await drawing.lay_over()
    return BlockMap(blocks, disk.block_size, first, end, drawing.cells, drawing.counts)


class _Drawing:
    def __init__(self, disk: DiskState, first: int, end: int, cells: int) -> None:
        self._disk = disk
        self._first, self._end = first, end
        self.cells = cells
        self.counts: dict[Kind, list[int]] = {kind: [0] * cells for kind in Kind}

    async def count_below(self) -> None:
        """What the store has, as far as that is known."""
        per = self._disk.per_object
        size = self._end - self._first
        left = _OBJECTS_PER_TURN
        for cell in range(self.cells):
            begin = self._first + cell * size // self.cells
            end = self._first + (cell + 1) * size // self.cells
            if cell % _CELLS_PER_TURN == _CELLS_PER_TURN - 1:
                await asyncio.sleep(0)
            while begin < end:
                if left <= 0:
                    await asyncio.sleep(0)
                    left = _OBJECTS_PER_TURN
                stop = min(end, begin + left * per)
                self._add(cell, self._below(begin, stop))
                left -= -(-(stop - begin) // per)
                begin = stop

    def _below(self, first: int, end: int) -> Sequence[int]:
        """How many of the blocks ``[first, end)`` lie in objects of each state."""
        per, presence = self._disk.per_object, self._disk.objects.presence
        begin, stop = first // per, -(-end // per)
        counts = [number * per for number in presence.tally(begin, stop)]
        counts[presence.get(begin)] -= first - begin * per
        counts[presence.get(stop - 1)] -= stop * per - end
        return counts

    def _add(self, cell: int, below: Sequence[int]) -> None:
        for state, kind in _KINDS_BELOW.items():
            self.counts[kind][cell] += below[state]

    async def lay_over(self) -> None:
        """What is in memory: it is of another kind than what is below it."""
        blocks = self._disk.cache.blocks
        for number, index in enumerate(list(blocks)):
            if number % _BLOCKS_PER_TURN == _BLOCKS_PER_TURN - 1:
                await asyncio.sleep(0)
            block = blocks.get(index) if self._first <= index < self._end else None
            if block is not None and block.state in _KINDS:
                self._move(index, _KINDS[block.state])
        await self._lay_over_whole()

    async def _lay_over_whole(self) -> None:
        """Objects that are to be all zeros need not be in the cache for that."""
        per, blocks = self._disk.per_object, self._disk.cache.blocks
        left = _BLOCKS_PER_TURN
        for dirty in list(self._disk.writeback.objects.values()):
            if not dirty.is_cleared:
                continue
            kind = Kind.DIRTY if dirty.upload is None else Kind.UPLOADING
            begin = max(self._first, dirty.index * per)
            for index in range(begin, min(self._end, (dirty.index + 1) * per)):
                if index not in blocks:
                    self._move(index, kind)
                left -= 1
            if left <= 0:
                await asyncio.sleep(0)
                left = _BLOCKS_PER_TURN

    def _move(self, index: int, kind: Kind) -> None:
        """One block, counted as what is below it so far, is of this kind."""
        position, size = index - self._first, self._end - self._first
        cell = ((position + 1) * self.cells - 1) // size
        below = _KINDS_BELOW[self._disk.objects.presence.get(index // self._disk.per_object)]
        # what the store has of it may have changed since that was counted
        for each in (below, *_KINDS_BELOW.values()):
            if self.counts[each][cell]:
                self.counts[each][cell] -= 1
                self.counts[kind][cell] += 1
                return
