# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter gzip file disk.img.gz``"""

import asyncio
from bisect import bisect_right
from dataclasses import dataclass
from errno import EIO
from typing import Final

from swiftnbd.api import Device, ExportError, FilterPlugin, Opening
from swiftnbd.api.access import read_bytes
from swiftnbd.api.decoded import Decoded
from swiftnbd.api.threads import Threads
from swiftnbd.errors import ExportUnusable
from swiftnbd.filters.gzip.cursor import Cursor

WINDOW_BYTES: Final = 1024 * 1024  # decompressed and kept at once
WINDOWS_KEPT: Final = 16
PLACES_MAX: Final = 512  # remembered, each in 40 to 56 KiB
READ_BYTES: Final = 256 * 1024  # of the file at once
STEP_BYTES: Final = 16 * 1024  # given to zlib, which keeps what it did not need


@dataclass(frozen=True)
class Gzip(FilterPlugin):
    """Reads an image that was compressed with gzip."""

    async def wrap(self, device: Device, opening: Opening) -> Device:
        threads = Threads(1, "gzip")
        try:
            places, size = await _look_through(device, threads)
        except BaseException:
            threads.stop()
            raise
        return GzipFilter(device, threads, places, size)


class GzipFilter(Decoded):
    """``size`` bytes, made from the nearest of ``places`` before what is wanted.

    One window is made at a time. Where the last one ended is a place, too: who reads on from
    there need not begin anew.
    """

    def __init__(self, device: Device, threads: Threads, places: list[Cursor], size: int) -> None:
        super().__init__(device, [*range(0, size, WINDOW_BYTES), size], WINDOWS_KEPT)
        self._threads, self._places = threads, places
        self._positions = [each.position for each in places]
        self._last = places[0].copy()
        self._turn = asyncio.Lock()

    async def decode(self, block: int) -> bytes:
        start, end = self._starts[block], self._starts[block + 1]
        async with self._turn:
            near = self._places[bisect_right(self._positions, start) - 1]
            if not near.position <= self._last.position <= start:
                self._last = near.copy()
            source = _Source(self.device, self._threads, self._last)
            try:
                while self._last.position < start:
                    await source.read(min(start - self._last.position, WINDOW_BYTES))
                found = []
                while self._last.position < end:
                    found.append(await source.read(end - self._last.position))
            except ExportUnusable as error:  # it was whole when it was opened
                self._last = self._places[0].copy()
                raise ExportError(EIO, str(error)) from None
        return b"".join(found)

    async def close(self) -> None:
        self._threads.stop()
        await super().close()


class _Source:
    """The file behind a cursor."""

    def __init__(self, device: Device, threads: Threads, cursor: Cursor) -> None:
        self._device, self._threads, self._cursor = device, threads, cursor
        self._data, self._offset = b"", 0

    async def read(self, most: int) -> bytes:
        """Some bytes, or none, which is no end: that is where the cursor is at the file's."""
        at = self._cursor.offset - self._offset
        if not 0 <= at < len(self._data):
            at, self._offset = 0, self._cursor.offset
            rest = self._device.size - self._offset
            if not rest:
                raise ExportUnusable("gzip: the file ends too early")
            self._data = await read_bytes(self._device, self._offset, min(READ_BYTES, rest))
        step = self._data[at : at + STEP_BYTES]
        return await self._threads.call(self._cursor.step, step, most)


async def _look_through(device: Device, threads: Threads) -> tuple[list[Cursor], int]:
    """Decompress all of it once: its size, and places to begin at, not too many of them."""
    cursor = Cursor()
    places, apart = [cursor.copy()], WINDOW_BYTES
    source = _Source(device, threads, cursor)
    while cursor.is_inside or cursor.offset < device.size:
        await source.read(WINDOW_BYTES)
        if cursor.position - places[-1].position >= apart:
            places.append(cursor.copy())
            if len(places) > PLACES_MAX:
                places, apart = places[::2], apart * 2
    return places, cursor.position
