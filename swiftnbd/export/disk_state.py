# SPDX-License-Identifier: MIT
"""What the readers and the writers of one disk share: its blocks, its objects, who waits."""

import asyncio
from collections.abc import Awaitable, Iterator
from errno import EIO
from typing import NamedTuple

from swiftnbd.errors import ExportError, SwiftnbdError
from swiftnbd.export.cache import BlockCache
from swiftnbd.export.gate import Gate
from swiftnbd.export.layout import Geometry
from swiftnbd.export.objects import DiskObjects
from swiftnbd.export.patience import Patience
from swiftnbd.export.settings import CacheSettings
from swiftnbd.export.tasks import Tasks
from swiftnbd.export.turnstile import Turnstile
from swiftnbd.export.waiters import Waiters
from swiftnbd.export.writeback import WriteBack
from swiftnbd.metrics import Counters


class Part(NamedTuple):
    """Bytes ``[start, end)`` of a block."""

    block: int
    start: int
    end: int


class DiskState:
    """A disk of ``geometry``, cut into blocks of ``block_size``, ``per_object`` to an object.

    ``flush_seconds``: how long changes are waited for while none is stored; None: for ever.
    """

    writeback: WriteBack

    def __init__(
        self,
        geometry: Geometry,
        objects: DiskObjects,
        settings: CacheSettings,
        counters: Counters,
        flush_seconds: float | None,
    ) -> None:
        self.object_size = geometry.object_size
        self.block_size = settings.block_size(geometry)
        self.per_object = self.object_size // self.block_size
        self.objects = objects
        self.counters = counters
        self.flush_seconds = flush_seconds
        self.patience = Patience()
        self.gate = Gate()
        self.turnstile = Turnstile()
        self.tasks = Tasks(objects.label)
        self.readers = Waiters(self.serve_soon)
        self.writers = Waiters(self.serve_soon)
        self.cache = BlockCache(
            settings.cache_bytes // self.block_size, self.block_size, self.serve_soon, counters
        )
        self._serves = False
        self._turns = (self.readers, self.writers)

    def parts(self, offset: int, length: int) -> Iterator[Part]:
        """Cut a range at block boundaries."""
        size = self.block_size
        position, stop = offset, offset + length
        while position < stop:
            index, start = divmod(position, size)
            end = min(size, start + stop - position)
            yield Part(index, start, end)
            position += end - start

    def reads_as_zeros(self, index: int) -> bool:
        """Whether those blocks of object ``index`` that are not in the cache are zeros."""
        dirty = self.writeback.objects.get(index)
        if dirty is not None:
            return dirty.lies_on_zeros
        return self.objects.is_absent(index)

    # What is not stored

    @property
    def dirty_bytes(self) -> int:
        """Bytes that are not durable."""
        return sum(end - start for start, end in self.dirty_ranges())

    def dirty_ranges(self) -> Iterator[tuple[int, int]]:
        """Byte ranges ``[start, end)`` that are not durable, in any order."""
        for dirty in self.writeback.objects.values():
            if dirty.is_cleared:
                yield dirty.index * self.object_size, (dirty.index + 1) * self.object_size
            else:
                for index in dirty.blocks:
                    yield index * self.block_size, (index + 1) * self.block_size

    async def make_durable(self, stored: Awaitable[None], seconds: float | None) -> None:
        """Wait for what is being ``stored``, as long as anything is; raise why not all could be."""
        try:
            async with self.patience.within(seconds):
                await stored
        except TimeoutError:
            raise ExportError(
                EIO,
                f"{self.objects.label}: {self.dirty_bytes} bytes are not stored, "
                f"and nothing was for {seconds or 0:.0f} s",
            ) from None

    # Waiting for room

    def serve_soon(self) -> None:
        """There may be room: let those who wait for it try, after whoever is at work now."""
        if not self._serves and (self.readers or self.writers):
            self._serves = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        self._serves = False
        self.writeback.relax()  # those who are served now need not have more stored
        for waiters in self._turns:
            waiters.serve()
        self._turns = self._turns[::-1]  # or those behind would wait while any come before them
        if self.readers or self.writers:
            self.writeback.press()

    def no_room(self, error: SwiftnbdError) -> None:
        """What would have made room failed: writers are told so; readers may still find some."""
        self.writers.fail(error)
        if not self.readers:
            self.writeback.relax()
