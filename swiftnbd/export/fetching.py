# SPDX-License-Identifier: MIT
"""Fetching blocks: one request for neighbours that are wanted at about the same time.

A fetch is for a run of neighbouring blocks of one object. As long as it waits for its turn, the
neighbours of its blocks join it: a client that reads a large object from end to end with many
small requests under way (nbdcopy: 64 of 256 KiB) makes one request of them, not one of each.

Fetches belong to the device. They fill only what is not known: a write meanwhile is newer.
"""

import asyncio
from collections import deque
from collections.abc import Iterable

from swiftnbd.buffers import hole
from swiftnbd.export.block import Block, State
from swiftnbd.export.disk_state import DiskState

# Of a fetch that others join: those who came first wait for all of it. A request for so much takes
# little longer than one for a part, and by then its fixed cost is small beside that of its bytes.
JOINED_BYTES_MAX = 1024 * 1024


class _Fetch:
    """A run of neighbouring ``blocks``, in order, and the task that brings them."""

    __slots__ = ("blocks", "task")

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.blocks = deque(blocks)
        self.task: asyncio.Task[None]

    def can_take(self, run: list[Block], most: int) -> bool:
        """Whether ``run`` lies just before or behind it, and together they are not too many."""
        if len(self.blocks) + len(run) > most:
            return False
        return (
            run[0].index == self.blocks[-1].index + 1 or run[-1].index + 1 == self.blocks[0].index
        )

    def take(self, run: list[Block]) -> None:
        """Bring ``run`` as well."""
        if run[0].index > self.blocks[-1].index:
            self.blocks.extend(run)
        else:
            self.blocks.extendleft(reversed(run))


class Fetcher:
    """Brings blocks of a disk into its cache."""

    def __init__(self, disk: DiskState) -> None:
        self._disk = disk
        self._joined_max = JOINED_BYTES_MAX // disk.block_size
        self._unsent: dict[int, _Fetch] = {}  # the last one of each object, until its turn

    def fetch(self, blocks: Iterable[Block], *, urgent: bool) -> None:
        """Begin to fetch those that nobody fetches yet; fill those that are zeros.

        What is not ``urgent`` comes marked: the first read of it is told to the read-ahead.
        """
        run: list[Block] = []
        for block in blocks:
            if block.fetch is not None:
                if urgent and not block.wanted:
                    block.wanted = True
                    self._disk.objects.hurry(self._object(block))
                continue
            if self._disk.reads_as_zeros(self._object(block)):
                block.fill(hole(block.size))
                continue
            if run and not self._follows(run[-1], block):
                self._begin(run, urgent)
                run = []
            run.append(block)
        if run:
            self._begin(run, urgent)

    def _object(self, block: Block) -> int:
        return block.index // self._disk.per_object

    def _follows(self, block: Block, after: Block) -> bool:
        """Whether one request can bring both."""
        return after.index == block.index + 1 and bool(after.index % self._disk.per_object)

    def _begin(self, run: list[Block], urgent: bool) -> None:
        """Have a run of neighbours in one object fetched."""
        index = self._object(run[0])
        fetch = self._unsent.get(index)
        if fetch is not None and fetch.can_take(run, self._joined_max):
            fetch.take(run)
            if urgent:
                self._disk.objects.hurry(index)
        else:
            fetch = self._unsent[index] = self._spawn(index, run)
        for block in run:
            self._disk.cache.pin(block)
            block.fetch, block.wanted = fetch.task, urgent

    def _spawn(self, index: int, run: list[Block]) -> _Fetch:
        fetch = _Fetch(run)
        fetch.task = self._disk.tasks.spawn(self._bring(index, fetch))
        # not in the coroutine: a task that is cancelled before its first step runs nothing
        fetch.task.add_done_callback(lambda _: self._ended(index, fetch))
        return fetch

    def _sent(self, index: int, fetch: _Fetch) -> tuple[int, int]:
        """Its turn has come: nobody joins it any more. Which bytes of the object it is for."""
        if self._unsent.get(index) is fetch:
            del self._unsent[index]
        size = self._disk.block_size
        first = fetch.blocks[0].index - index * self._disk.per_object
        return first * size, (first + len(fetch.blocks)) * size

    def _ended(self, index: int, fetch: _Fetch) -> None:
        if self._unsent.get(index) is fetch:  # it never had its turn
            del self._unsent[index]
        for block in fetch.blocks:
            block.fetch = None
            block.wanted = False
            self._disk.cache.unpin(block)

    async def _bring(self, index: int, fetch: _Fetch) -> None:
        size, run = self._disk.block_size, fetch.blocks
        data = await self._disk.objects.get(
            index,
            lambda: self._sent(index, fetch),
            urgent=lambda: any(block.wanted for block in run),
        )
        for number, block in enumerate(run):
            if data is None:
                block.fill(hole(size))
            elif len(run) == 1:
                block.fill(data)
            else:  # a copy: a view would keep all of it in memory as long as one block lives
                block.fill(data[number * size : (number + 1) * size])
            if not block.wanted and block.state is State.CLEAN:
                block.mark()
