# SPDX-License-Identifier: MIT
"""``swiftnbd-server split part1 part2``"""

import asyncio
from bisect import bisect_right
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from errno import ENOTSUP
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, NamedTuple

from swiftnbd.api import (
    PATH,
    Buffer,
    ConfigError,
    Device,
    ExportError,
    Extent,
    Opening,
    Plugin,
    integer,
    parameter,
)
from swiftnbd.api.threads import Threads
from swiftnbd.plugins.file import THREADS_DEFAULT, THREADS_MAX, FileDevice

FILES_MAX: Final = 512  # each is open all the time; systems allow 1024 without being asked


@dataclass(frozen=True)
class Split(Plugin):
    """Several files or block devices, one after the other, as one disk.

    Each is as with the plugin file: holes are shown and kept, and the size is that at the start.
    """

    file: tuple[Path, ...] = parameter(PATH, "The next file.", main=True, repeated=True)
    threads: int = parameter(
        integer(1, THREADS_MAX), "How many requests are at work at once.", default=THREADS_DEFAULT
    )

    def __post_init__(self) -> None:
        if not 1 <= len(self.file) <= FILES_MAX:
            raise ConfigError(f"{len(self.file)} files: there have to be 1 to {FILES_MAX}")

    async def open(self, opening: Opening) -> Device:
        threads = Threads(self.threads, "split")
        files: list[FileDevice] = []
        try:
            for path in self.file:
                files.append(FileDevice(path, threads, read_only=opening.read_only))
        except BaseException:
            for file in files:
                await file.close()
            threads.stop()
            raise
        return SplitDevice(files, threads, read_only=opening.read_only)


class _Part(NamedTuple):
    """A range of one of the files; ``at`` is its place in the whole range."""

    file: FileDevice
    offset: int
    length: int
    at: int


class SplitDevice(Device):
    """``files`` one after the other; they and ``threads``, which they use, are closed with it."""

    can_fast_zero = True

    def __init__(self, files: Sequence[FileDevice], threads: Threads, *, read_only: bool) -> None:
        self._files = [file for file in files if file.size]
        self._empty = [file for file in files if not file.size]
        self._ends = list(accumulate(file.size for file in self._files))
        self._threads = threads
        self.size = self._ends[-1] if self._ends else 0
        self.read_only = read_only

    def _parts(self, offset: int, length: int) -> Iterator[_Part]:
        at, index = 0, bisect_right(self._ends, offset)
        while at < length:
            file, end = self._files[index], self._ends[index]
            begin = offset + at - (end - file.size)
            here = min(length - at, file.size - begin)
            yield _Part(file, begin, here, at)
            at, index = at + here, index + 1

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        pieces: list[Buffer] = []
        for part in self._parts(offset, length):
            found = part.file.read_now(part.offset, part.length)
            if found is None:
                return None
            pieces += found
        return pieces

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        found = await _all([part.file.read(part.offset, part.length)
                            for part in self._parts(offset, length)])  # fmt: skip
        return [piece for pieces in found for piece in pieces]

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        view = memoryview(data)
        await _all([part.file.write(part.offset, view[part.at : part.at + part.length])
                    for part in self._parts(offset, len(view))])  # fmt: skip

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        parts = list(self._parts(offset, length))
        if fast and len(parts) > 1:  # the second could decline when the first is done
            raise ExportError(ENOTSUP, "a range in several files")
        await _all([part.file.zero(part.offset, part.length, no_hole=no_hole, fast=fast)
                    for part in parts])  # fmt: skip

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await _all([part.file.trim(part.offset, part.length)
                    for part in self._parts(offset, length)])  # fmt: skip

    async def prefetch(self, offset: int, length: int) -> None:
        await _all([part.file.prefetch(part.offset, part.length)
                    for part in self._parts(offset, length)])  # fmt: skip

    async def flush(self) -> None:
        await _all([file.flush() for file in self._files])

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        """Those of the first file in the range; the caller asks again for the others."""
        part = next(self._parts(offset, length))
        return await part.file.extents(part.offset, part.length, count=count)

    async def close(self) -> None:
        try:
            await _all([file.close() for file in (*self._files, *self._empty)])
        finally:
            self._threads.stop()


async def _all(work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Their results when all are done; the first error is raised then, not while others go on."""
    if len(work) == 1:
        return [await work[0]]
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
