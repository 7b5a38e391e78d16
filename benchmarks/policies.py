# SPDX-License-Identifier: MIT
"""Orders of eviction to compare ours with, as their authors describe them, for idle blocks.

All are told of the same: a block became idle or busy, was hit, and room is needed.
"""

from collections import OrderedDict
from typing import Protocol

from swiftnbd.export.eviction import Eviction, Queue


class Block:
    """What a policy sees of a block; ``known`` once it was idle."""

    __slots__ = ("index", "known", "queue", "used")

    def __init__(self, index: int) -> None:
        self.index = index
        self.used = False
        self.known = False
        self.queue = Queue.NEW


class Policy(Protocol):
    """Made with the capacity in blocks."""

    def __init__(self, capacity: int) -> None: ...

    def insert_idle(self, block: Block) -> None:
        """It may be evicted from now on."""

    def remove(self, block: Block) -> None:
        """It is busy; it may not be idle now."""

    def hit(self, block: Block) -> None:
        """Somebody read or wrote it, idle or not."""

    def victim(self) -> Block | None:
        """Take out the next to go."""


class Ours(Eviction[Block]):
    """What the engine uses."""

    def hit(self, block: Block) -> None:
        block.used = True


class Lru:
    """The least recently used."""

    def __init__(self, capacity: int) -> None:
        self._blocks: OrderedDict[int, Block] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def insert_idle(self, block: Block) -> None:
        self._blocks[block.index] = block

    def remove(self, block: Block) -> None:
        self._blocks.pop(block.index, None)

    def hit(self, block: Block) -> None:
        if block.index in self._blocks:
            self._blocks.move_to_end(block.index)

    def victim(self) -> Block | None:
        return self._blocks.popitem(last=False)[1] if self._blocks else None


class Clock(Lru):
    """First in, first out; with another round for what was used."""

    def hit(self, block: Block) -> None:
        block.used = True

    def victim(self) -> Block | None:
        while (block := super().victim()) is not None and block.used:
            block.used = False
            self.insert_idle(block)
        return block


class TwoQueues:
    """2Q (Johnson and Shasha, 1994), with its suggested sizes; the second queue a CLOCK."""

    def __init__(self, capacity: int) -> None:
        self._in_max = max(1, capacity // 4)
        self._out_max = max(1, capacity // 2)
        self._in = Lru(capacity)
        self._out: OrderedDict[int, None] = OrderedDict()
        self._main = Clock(capacity)

    def insert_idle(self, block: Block) -> None:
        if block.queue is Queue.NEW:
            again = block.index in self._out
            self._out.pop(block.index, None)
            block.queue = Queue.MAIN if again else Queue.SMALL
            block.used = False
        (self._main if block.queue is Queue.MAIN else self._in).insert_idle(block)

    def remove(self, block: Block) -> None:
        self._in.remove(block)
        self._main.remove(block)

    def hit(self, block: Block) -> None:
        block.used = True

    def victim(self) -> Block | None:
        if len(self._in) <= self._in_max and (block := self._main.victim()) is not None:
            return block
        block = self._in.victim()
        if block is not None:
            self._out[block.index] = None
            if len(self._out) > self._out_max:
                self._out.popitem(last=False)
        return block


class S3Fifo:
    """S3-FIFO (Yang and others, 2023) with one bit of use; its small queue is a tenth."""

    def __init__(self, capacity: int) -> None:
        self._ghosts_max = capacity
        self._small: OrderedDict[int, Block] = OrderedDict()
        self._main: OrderedDict[int, Block] = OrderedDict()
        self._ghosts: OrderedDict[int, None] = OrderedDict()

    def insert_idle(self, block: Block) -> None:
        if block.queue is Queue.NEW:
            again = block.index in self._ghosts
            self._ghosts.pop(block.index, None)
            block.queue = Queue.MAIN if again else Queue.SMALL
            block.used = False
        (self._main if block.queue is Queue.MAIN else self._small)[block.index] = block

    def remove(self, block: Block) -> None:
        self._small.pop(block.index, None)
        self._main.pop(block.index, None)

    def hit(self, block: Block) -> None:
        block.used = True

    def victim(self) -> Block | None:
        while idle := len(self._small) + len(self._main):
            small = bool(self._small) and (len(self._small) * 10 >= idle or not self._main)
            index, block = (self._small if small else self._main).popitem(last=False)
            if block.used:
                block.used = False
                block.queue = Queue.MAIN
                self._main[index] = block
                continue
            if small:
                self._ghosts[index] = None
                if len(self._ghosts) > self._ghosts_max:
                    self._ghosts.popitem(last=False)
            return block
        return None


class Sieve:
    """SIEVE (Zhang and others, 2024): a hand goes from the oldest on; what was used stays."""

    def __init__(self, capacity: int) -> None:
        self._blocks: dict[int, Block] = {}  # oldest first
        self._passed: OrderedDict[int, Block] = OrderedDict()  # by the hand, in this round
        self._ahead: OrderedDict[int, Block] = OrderedDict()

    def insert_idle(self, block: Block) -> None:
        if not block.known:
            block.known, block.used = True, False
        self._ahead[block.index] = block

    def remove(self, block: Block) -> None:
        self._ahead.pop(block.index, None)
        self._passed.pop(block.index, None)

    def hit(self, block: Block) -> None:
        block.used = True

    def victim(self) -> Block | None:
        while self._ahead or self._passed:
            if not self._ahead:  # from the oldest again: those who stayed are the oldest
                self._ahead, self._passed = self._passed, self._ahead
            index, block = self._ahead.popitem(last=False)
            if not block.used:
                return block
            block.used = False
            self._passed[index] = block
        return None


POLICIES: dict[str, type[Policy]] = {
    "LRU": Lru,
    "CLOCK": Clock,
    "2Q": TwoQueues,
    "SIEVE": Sieve,
    "S3-FIFO": S3Fifo,
    "ours": Ours,
}
