# SPDX-License-Identifier: MIT
"""Which idle block is given up when room is needed: S3-FIFO with a time of grace.

::

    new ----> YOUNG ----> OLD --- used ---> MAIN <--+
              (10 %)     (10 %)              |      | used
      ^                    |                 +------+
      | back soon: to MAIN |                 |
      +----- ghost <-------+                 +---> gone
        (its number only)

A hit costs one store, ``block.used = True``, which is looked at when the block comes to the
head of its queue. In YOUNG it counts for nothing: many small reads of one block, one after the
other, are one use of it, not a reason to keep it. A block used while it was OLD, or wanted
again soon after it was given up, moves to MAIN, which is a CLOCK. So a block of a scan passes
through the small queues (a fifth of all) and MAIN keeps what is used again and again.

Only idle blocks are in the queues: clean, and relied on by nobody. One that becomes busy and
idle again goes back to where it was, as if it had just come there.

Chosen by ``python -m benchmarks eviction``: hits among reads in %, blocks of 64 KiB. *Database*:
zipf reads and writes, with two scans. *ext4*: a working set in a tree that is also searched,
copied and backed up. *Scans*: four readers in turns, 4 KiB at a time, past a working set of
2.5 MiB that is in use. *Kept*: what is left of one that was not used meanwhile. CLOCK is what
there was before.

=======  ====  ====  ====  ====  ====  ====  ====  ====  ====  ====
trace        database           ext4             scans         kept
-------  ----------------  ----------------  ----------------  ----
cache    16 M  64 M  128M  16 M  64 M  128M   3 M   4 M   8 M   6 M
=======  ====  ====  ====  ====  ====  ====  ====  ====  ====  ====
LRU      44.8  56.4  63.4  71.5  84.0  93.7  90.0  93.1  94.9     0
CLOCK    45.9  57.3  64.2  70.7  84.0  92.1  89.2  92.1  94.7     0
2Q       50.2  59.5  64.1  71.0  84.0  93.5  93.3  94.8  94.8     0
SIEVE    51.0  61.0  66.6  69.4  87.0  89.8  11.3  16.1  94.9     0
S3-FIFO  51.2  60.9  66.4  70.2  86.7  87.6  88.7  93.4  94.9     0
this     50.9  60.9  66.0  70.5  88.2  87.4  92.6  94.9  94.9    90
=======  ====  ====  ====  ====  ====  ====  ====  ====  ====  ====

So the grace costs next to nothing and is what makes a scan in small pieces harmless. The price
shows where the cache holds nearly all that is ever read (ext4, 128 MB): what was used in the
beginning is kept too long there. Other shares, of 10 to 30 %, differ by less than 1 mostly.
"""

import enum
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

SMALL_PERCENT = 20  # of the idle blocks are YOUNG or OLD
YOUNG_PERCENT = 10
GHOST_PERCENT = 50  # of the capacity, some 100 bytes each: on the traces 100 does not better
CHANCES_MAX = 1000  # blocks passed over for one victim, 0.5 ms: it runs in the event loop


class Queue(enum.Enum):
    """Where a block belongs when it is idle. The policy's own; NEW before it knows the block."""

    NEW = enum.auto()
    SMALL = enum.auto()
    MAIN = enum.auto()


class Evictable(Protocol):
    """What a block must have: a number, a flag that a hit sets, and a place for our mark."""

    index: int
    used: bool
    queue: Queue


BlockT = TypeVar("BlockT", bound=Evictable)


class Eviction(Generic[BlockT]):
    """The idle blocks of a cache of ``capacity`` blocks, in the order in which to give them up."""

    def __init__(self, capacity: int) -> None:
        assert capacity > 0
        self._ghosts_max = max(1, capacity * GHOST_PERCENT // 100)
        self._ghosts: OrderedDict[int, None] = OrderedDict()
        self._cold: OrderedDict[int, BlockT] = OrderedDict()
        self._young: OrderedDict[int, BlockT] = OrderedDict()
        self._old: OrderedDict[int, BlockT] = OrderedDict()
        self._main: OrderedDict[int, BlockT] = OrderedDict()

    def __len__(self) -> int:
        return len(self._cold) + len(self._young) + len(self._old) + len(self._main)

    def insert_idle(self, block: BlockT) -> None:
        """A block has become idle: clean, and relied on by nobody."""
        if block.queue is Queue.NEW:
            block.used = False  # by those who brought it in
            back = block.index in self._ghosts
            if back:
                del self._ghosts[block.index]
            block.queue = Queue.MAIN if back else Queue.SMALL
        queue = self._main if block.queue is Queue.MAIN else self._young
        queue[block.index] = block
        self._age()

    def remove(self, block: BlockT) -> None:
        """It is no longer idle. Nothing happens if it was not."""
        for queue in (self._young, self._old, self._main, self._cold):
            if queue.pop(block.index, None) is not None:
                return

    def cold(self, block: BlockT) -> None:
        """Nobody is expected to want this idle block: it is the next victim, unless used."""
        self.remove(block)
        block.used = False
        self._cold[block.index] = block

    def victim(self) -> BlockT | None:
        """Take out the block to give up. None if no block is idle."""
        chances = CHANCES_MAX
        while (queue := self._next_queue()) is not None:
            index, block = queue.popitem(last=False)
            if not block.used or not chances:
                if block.queue is Queue.SMALL and queue is not self._cold:
                    self._haunt(index)
                return block
            chances -= 1
            block.used = False
            block.queue = Queue.MAIN
            self._main[index] = block
        return None

    def _next_queue(self) -> OrderedDict[int, BlockT] | None:
        """The queue whose head is to be given up, or another chance; None if all are empty."""
        if self._cold:
            return self._cold
        small = len(self._young) + len(self._old)
        if self._main and small * 100 < SMALL_PERCENT * len(self):
            return self._main
        return self._old or self._main or self._young or None

    def _age(self) -> None:
        """Keep YOUNG to its share: called for each that comes, so two steps are enough."""
        for _ in range(2):
            if len(self._young) * 100 <= YOUNG_PERCENT * len(self):
                return
            index, block = self._young.popitem(last=False)
            block.used = False
            self._old[index] = block

    def _haunt(self, index: int) -> None:
        self._ghosts[index] = None
        if len(self._ghosts) > self._ghosts_max:
            self._ghosts.popitem(last=False)
