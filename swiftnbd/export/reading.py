# SPDX-License-Identifier: MIT
"""Bringing blocks into the cache: one fetch for all who wait for it, read-ahead, holes.

A request is served in chunks of at most a quarter of the cache. The blocks of a chunk are
pinned together, those of them that are not known are fetched (`swiftnbd.export.fetching`), and
when all are there their pieces are taken. What is known to be absent is read as a
`swiftnbd.export.device.hole` without a request.

Those who prefetch hold up nobody who reads: they have a quarter of the cache between
them, in smaller chunks, and their requests come after those of readers.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence

from swiftnbd.buffers import holes
from swiftnbd.errors import SwiftnbdError, afresh
from swiftnbd.export.allowance import Allowance
from swiftnbd.export.block import Block
from swiftnbd.export.disk_state import DiskState, Part
from swiftnbd.export.fetching import Fetcher
from swiftnbd.export.readahead import ReadAhead
from swiftnbd.store.base import Buffer

_CHUNKS_OF_CACHE = 4  # so that a few large requests fit in beside each other and what is dirty
_PREFETCHES_OF_CACHE = 4  # all of them at a time: readers have the rest, and the store is kept busy
_PREFETCH_CHUNKS_OF_CACHE = 16  # so that a few large ones go on beside each other


class Reader:
    """Reads blocks of a disk through its cache."""

    def __init__(self, disk: DiskState, read_ahead: ReadAhead | None) -> None:
        self._disk = disk
        self._cache = disk.cache
        self._fetcher = Fetcher(disk)
        self._read_ahead = read_ahead
        self._chunk = max(1, disk.cache.capacity // _CHUNKS_OF_CACHE)
        self._prefetch_chunk = max(1, disk.cache.capacity // _PREFETCH_CHUNKS_OF_CACHE)
        self._prefetches = Allowance(max(1, disk.cache.capacity // _PREFETCHES_OF_CACHE))

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        """The bytes in pieces, if all are at hand."""
        pieces: list[Buffer] = []
        zeros = 0  # read so far and not in ``pieces`` yet: neighbouring holes are one piece
        was_ahead = False
        for index, start, end in self._disk.parts(offset, length):
            block = self._cache.blocks.get(index)
            if block is None:
                if not self._disk.reads_as_zeros(index // self._disk.per_object):
                    return None
                zeros += end - start
                continue
            if block.known is not None:
                if not block.unmark():
                    return None
                was_ahead = True
            block.used = True
            if zeros:
                pieces += holes(zeros)
                zeros = 0
            pieces.append(block.piece(start, end))
        if zeros:
            pieces += holes(zeros)
        if was_ahead:
            self._look_ahead(offset, length)
        return pieces

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """The bytes in pieces."""
        pieces: list[Buffer] = []
        missed = False
        await self._disk.gate.passing()
        self._look_ahead(offset, length)
        for start, end in self._chunks(offset, length, self._chunk):
            await self._disk.gate.passing()
            now = self.read_now(start, end - start)
            if now is None and not missed:
                missed = True
                self._disk.counters.missed_reads += 1
            pieces += await self._read_chunk(start, end, urgent=True) if now is None else now
        await self._disk.gate.passing()
        return pieces

    async def prefetch(self, offset: int, length: int) -> None:
        """Bring the range in, or as much of it as leaves half the cache alone.

        Those of many ranges are brought in one after the other, a few at a time.
        """
        size = self._disk.block_size
        length = min(length, self._cache.capacity // 2 * size)
        blocks = -(-(offset + length) // size) - offset // size
        async with self._prefetches.holding(min(blocks, self._prefetch_chunk)):
            for start, end in self._chunks(offset, length, self._prefetch_chunk):
                await self._disk.turnstile.passing()
                await self._disk.gate.passing()
                if self.read_now(start, end - start) is None:
                    await self._read_chunk(start, end, urgent=False)
        await self._disk.gate.passing()

    def _chunks(self, offset: int, length: int, most: int) -> Iterator[tuple[int, int]]:
        """Cut ``[offset, offset + length)`` where so many blocks end."""
        size, stop = self._disk.block_size, offset + length
        while offset < stop:
            end = min(stop, (offset // size + most) * size)
            yield offset, end
            offset = end

    async def _read_chunk(self, start: int, end: int, *, urgent: bool) -> list[Buffer]:
        parts = list(self._disk.parts(start, end - start))
        blocks = await self.pin([index for index, _, _ in parts])
        try:
            await self.know(blocks, parts, urgent=urgent)
            pieces = []
            for block, (_, first, last) in zip(blocks, parts, strict=True):
                block.used = True
                pieces.append(block.piece(first, last))
            return pieces
        finally:
            self.unpin(blocks)

    async def pin(self, indexes: Sequence[int]) -> list[Block]:
        """The blocks, in the cache until `unpin`; waits for room."""
        await self._disk.gate.passing()  # or we might wait for ever
        pinned = None if self._disk.readers else self._cache.pin_all(indexes)
        if pinned is None:
            self._disk.writeback.press()
            pinned = await self._disk.readers.wait(lambda: self._cache.pin_all(indexes), self.unpin)
        return pinned

    def unpin(self, blocks: Iterable[Block]) -> None:
        """Let go of what `pin` gave."""
        for block in blocks:
            self._cache.unpin(block)

    async def know(
        self, blocks: Sequence[Block], parts: Sequence[Part], *, urgent: bool = True
    ) -> None:
        """Return when these parts of pinned blocks are known; raise why they cannot be."""
        error: Exception | None = None
        while missing := [
            block
            for block, (_, start, end) in zip(blocks, parts, strict=True)
            if not block.has(start, end)
        ]:
            if error is not None:
                raise afresh(error)
            await self._disk.gate.passing()
            self._fetcher.fetch(missing, urgent=urgent)
            error = await self._fetched_all(dict.fromkeys(block.fetch for block in missing))

    async def _fetched_all(self, fetches: Iterable[asyncio.Task[None] | None]) -> Exception | None:
        """Wait for fetches; the first error, unless it is only that we are suspended."""
        errors = []
        for fetch in fetches:
            if fetch is not None:  # else it was zeros
                try:
                    await self._disk.tasks.ended(fetch)
                except SwiftnbdError as error:
                    errors.append(error)
        return errors[0] if errors and self._disk.gate.is_open else None

    # Read-ahead

    def _look_ahead(self, offset: int, length: int) -> None:
        """Prefetch what a sequential reader will want next, as far as there is room."""
        for index, _, _ in self._disk.parts(
            offset, min(length, self._chunk * self._disk.block_size)
        ):
            block = self._cache.blocks.get(index)
            if block is not None:
                block.unmark()
        window = self._read_ahead.advise(offset, length) if self._read_ahead else None
        if window is None:
            return
        wanted = [part.block for part in self._disk.parts(*window) if self._is_missing(part.block)]
        blocks = None if self._disk.readers else self._cache.pin_all(wanted)
        if blocks is not None:
            self._fetcher.fetch(blocks, urgent=False)
            self.unpin(blocks)

    def _is_missing(self, index: int) -> bool:
        return index not in self._cache.blocks and not self._disk.reads_as_zeros(
            index // self._disk.per_object
        )
