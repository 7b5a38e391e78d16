# SPDX-License-Identifier: MIT
"""What the readers and the writers of one disk share: its blocks, its objects, who waits."""

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

from swiftnbd.errors import SwiftnbdError
from swiftnbd.export.cache import BlockCache
from swiftnbd.export.gate import Gate
from swiftnbd.export.layout import Geometry
from swiftnbd.export.objects import DiskObjects
from swiftnbd.export.settings import CacheSettings
from swiftnbd.export.tasks import Tasks
from swiftnbd.export.waiters import Waiters
from swiftnbd.export.writeback import WriteBack
from swiftnbd.metrics import Counters


class Part(NamedTuple):
    """Bytes ``[start, end)`` of a block."""

    block: int
    start: int
    end: int


class DiskState:
    """A disk of ``geometry``, cut into blocks of ``block_size``, ``per_object`` to an object."""

    writeback: WriteBack

    def __init__(
        self,
        geometry: Geometry,
        objects: DiskObjects,
        settings: CacheSettings,
        counters: Counters,
    ) -> None:
        self.object_size = geometry.object_size
        self.block_size = settings.block_size(geometry)
        self.per_object = self.object_size // self.block_size
        self.objects = objects
        self.counters = counters
        self.gate = Gate()
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
