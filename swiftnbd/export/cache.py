# SPDX-License-Identifier: MIT
"""Which blocks are in memory: a bounded number of them.

A block is *idle* when it is clean and nobody has it pinned; only idle blocks are evicted, and
which of them goes first is a matter of `swiftnbd.export.eviction`.

Nothing dirty is ever dropped to make room: who finds none waits until a block becomes idle,
without a pin of its own.
"""

from collections.abc import Callable, Iterator, Sequence

from swiftnbd.export.block import Block, State
from swiftnbd.export.eviction import Eviction
from swiftnbd.metrics import Counters


class BlockCache:
    """At most ``capacity`` blocks of ``block_size`` bytes each.

    ``blocks`` may be looked at, not changed, from outside. ``on_idle`` is called when there may
    be room again.
    """

    def __init__(
        self,
        capacity: int,
        block_size: int,
        on_idle: Callable[[], None],
        counters: Counters | None = None,
    ) -> None:
        assert capacity > 0
        self.capacity = capacity
        self.block_size = block_size
        self.blocks: dict[int, Block] = {}
        self._on_idle = on_idle
        self._counters = Counters() if counters is None else counters
        self._eviction = Eviction[Block](capacity)

    def __len__(self) -> int:
        return len(self.blocks)

    def within(self, first: int, end: int) -> Iterator[Block]:
        """The blocks of ``[first, end)`` that are in memory now, ascending."""
        if end - first < len(self.blocks):
            found = (self.blocks.get(index) for index in range(first, end))
            return (block for block in found if block is not None)
        return iter([self.blocks[index] for index in sorted(self.blocks) if first <= index < end])

    def admit(self, index: int) -> Block | None:
        """A new block, EMPTY, to be pinned or changed before anything is awaited.

        None if everything here is needed.
        """
        assert index not in self.blocks
        if len(self.blocks) >= self.capacity and not self._evict():
            return None
        block = self.blocks[index] = Block(index, self.block_size)
        return block

    def pin_all(self, indexes: Sequence[int]) -> list[Block] | None:
        """Pin these blocks, admitting those that are not here; all of them or none.

        Whoever held some and waited for others could wait for somebody who does the same.
        """
        assert len(indexes) <= self.capacity
        here = [block for index in indexes if (block := self.blocks.get(index)) is not None]
        needed = len(indexes) - len(here) - (self.capacity - len(self.blocks))
        if needed > len(self._eviction) - sum(map(self.is_idle, here)):
            return None
        for block in here:
            self.pin(block)
        for index in indexes:
            if index not in self.blocks:
                block = self.admit(index)
                assert block is not None  # there is as much room as was counted
                self.pin(block)
        return [self.blocks[index] for index in indexes]

    def pin(self, block: Block) -> None:
        """One more who relies on a block of the cache staying in it."""
        assert self.blocks.get(block.index) is block
        if self.is_idle(block):
            self._eviction.remove(block)
        block.pins += 1

    def unpin(self, block: Block) -> None:
        """Let go."""
        assert block.pins > 0
        block.pins -= 1
        self.settle(block)

    def settle(self, block: Block) -> None:
        """The block has become idle, dirty, or useless: after any change of its state."""
        assert self.blocks.get(block.index) is block
        if block.pins:
            return
        if block.state is State.EMPTY:
            del self.blocks[block.index]
        elif block.dirty:
            self._eviction.remove(block)
            return
        else:
            self._eviction.insert_idle(block)
        self._on_idle()

    def drop(self, block: Block) -> None:
        """Forget an idle block at once."""
        assert self.is_idle(block)
        self._eviction.remove(block)
        del self.blocks[block.index]
        self._on_idle()

    def is_idle(self, block: Block) -> bool:
        """Whether it could be evicted."""
        return not block.pins and block.state is State.CLEAN

    def _evict(self) -> bool:
        block = self._eviction.victim()
        if block is not None:
            del self.blocks[block.index]
            self._counters.evictions += 1
        return block is not None
