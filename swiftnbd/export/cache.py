# SPDX-License-Identifier: MIT
"""Which blocks are in memory: a bounded set with second-chance eviction.

A block is *idle* when it is clean and nobody has it pinned; only idle blocks are evicted, in
the order in which they became idle, except that one that was read since is given another round
(CLOCK). So a hit costs one flag, and finding a victim does not depend on how much is dirty.

Nothing dirty is ever dropped to make room: who needs room waits until a block becomes idle.
Nobody waits for room with a block pinned, so this cannot deadlock as long as uploads end. A
block whose upload failed is *stuck*: dirty, and nobody stores it. Who needs room and finds one
has it stored, or fails for the same reason; a client that never flushes would wait for ever.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator

from swiftnbd.errors import ExportUnusable
from swiftnbd.export.block import Block, State
from swiftnbd.export.layout import Geometry

CACHE_BLOCKS_MIN = 4  # fewer could not hold one request's neighbours and a read-modify-write


class BlockCache:
    """At most ``capacity`` blocks. ``blocks`` may be looked at, not changed, from outside.

    ``store`` is asked to make a stuck block clean; it pins it meanwhile, and raises if it cannot.
    """

    def __init__(self, capacity: int, store: Callable[[Block], Awaitable[None]]) -> None:
        assert capacity > 0
        self.capacity = capacity
        self.blocks: dict[int, Block] = {}
        self._store = store
        self._idle: OrderedDict[int, Block] = OrderedDict()
        self._stuck: dict[int, Block] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self.blocks)

    def within(self, first: int, end: int) -> Iterator[int]:
        """Indexes of the blocks in ``[first, end)`` that are in memory now, ascending."""
        if end - first < len(self.blocks):
            return (index for index in range(first, end) if index in self.blocks)
        return iter(sorted(index for index in self.blocks if first <= index < end))

    async def pin(self, index: int) -> Block:
        """The block ``index``, put in if it is not there (then EMPTY), and kept until `unpin`."""
        waited = False
        while (block := self.blocks.get(index)) is None:
            if len(self.blocks) < self.capacity or self._evict():
                block = self.blocks[index] = Block(index)
                waited = False
                break
            if self._stuck:
                await self._store(next(iter(self._stuck.values())))
            else:
                await self._wait_for_room()
            waited = True
        if waited:
            self._wake_one()  # somebody else brought the block in: the room is still free
        self.hold(block)
        return block

    def hold(self, block: Block) -> None:
        """One more pin on a block that is in the cache."""
        assert self.blocks.get(block.index) is block
        block.pins += 1
        self._idle.pop(block.index, None)
        self._stuck.pop(block.index, None)

    def unpin(self, block: Block, *, cold: bool = False) -> None:
        """Let go. ``cold``: nobody is expected to want it, so it is the next to be evicted."""
        assert block.pins > 0
        assert self.blocks[block.index] is block
        block.pins -= 1
        if block.pins:
            return
        if block.state is State.EMPTY:
            del self.blocks[block.index]
        elif block.state is State.CLEAN:
            self._idle[block.index] = block
            if cold:
                self._idle.move_to_end(block.index, last=False)
                block.used = False
        else:
            assert block.state is State.DIRTY  # a fetch and an upload pin theirs
            self._stuck[block.index] = block
        self._wake_one()

    def _evict(self) -> bool:
        while self._idle:
            index, block = self._idle.popitem(last=False)
            if not block.used:
                del self.blocks[index]
                return True
            block.used = False
            self._idle[index] = block
        return False

    async def _wait_for_room(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._wake_one()  # we were given the room; pass it on
            raise

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


def check_cache(geometry: Geometry, cache_bytes: int) -> None:
    """Raise `ExportUnusable` if the cache is too small for a disk of this geometry."""
    least = CACHE_BLOCKS_MIN * geometry.object_size
    if cache_bytes < least:
        raise ExportUnusable(
            f"its objects of {geometry.object_size} bytes need a cache of at least {least} bytes, "
            f"and the limit is {cache_bytes}"
        )
