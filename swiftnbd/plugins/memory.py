# SPDX-License-Identifier: MIT
"""``swiftnbd-server memory 1G``"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from swiftnbd.api import SIZE, Buffer, Device, Extent, Opening, Plugin, holes, parameter

PAGE_BYTES: Final = 64 * 1024  # a hole is a whole page; a page for every sector would cost more
PAGES_PER_TURN_MAX: Final = 8192  # looked at, some milliseconds; then others have a turn


@dataclass(frozen=True)
class Memory(Plugin):
    """A disk in memory, empty at first and lost at the end."""

    size: int = parameter(SIZE, "How large it is; only what is written takes memory.", main=True)

    async def open(self, opening: Opening) -> Device:
        return MemoryDevice(self.size)


class MemoryDevice(Device):
    """``size`` bytes in pages that are made when they are written to."""

    can_fua = True
    can_fast_zero = True
    block_size = PAGE_BYTES

    def __init__(self, size: int) -> None:
        self.size = size
        self._pages: dict[int, bytearray] = {}

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return self._pieces(offset, length)

    def _pieces(self, offset: int, length: int) -> list[Buffer]:
        pieces: list[Buffer] = []
        for index, start, end in _parts(offset, length):
            page = self._pages.get(index)
            if page is None:
                pieces += holes(end - start)
            else:
                pieces.append(bytes(memoryview(page)[start:end]))  # the page may change
        return pieces

    def write_now(self, offset: int, data: Buffer) -> bool:
        view, at = memoryview(data), 0
        for index, start, end in _parts(offset, len(view)):
            page = self._pages.get(index)
            if page is None:
                page = self._pages[index] = bytearray(PAGE_BYTES)
            page[start:end] = view[at : at + end - start]
            at += end - start
        return True

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        return self._pieces(offset, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        self.write_now(offset, data)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        self._clear(offset, length, keep=no_hole)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        self._clear(offset, length, keep=False)

    async def flush(self) -> None:
        pass

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        found: list[Extent] = []
        for index, start, end in islice(_parts(offset, length), PAGES_PER_TURN_MAX):
            absent = index not in self._pages
            if found and found[-1].hole is absent:
                found[-1] = Extent(found[-1].length + end - start, absent, absent)
            elif len(found) == count:
                break
            else:
                found.append(Extent(end - start, absent, absent))
        return found

    def _clear(self, offset: int, length: int, *, keep: bool) -> None:
        for index, start, end in _parts(offset, length):
            page = self._pages.get(index)
            if page is not None and end - start < PAGE_BYTES:
                page[start:end] = bytes(end - start)
            elif keep:
                self._pages[index] = bytearray(PAGE_BYTES)
            else:
                self._pages.pop(index, None)


def _parts(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """The pages of a range: the number of each, and from where to where in it."""
    end = offset + length
    while offset < end:
        index, start = divmod(offset, PAGE_BYTES)
        stop = min(PAGE_BYTES, start + end - offset)
        yield index, start, stop
        offset += stop - start
