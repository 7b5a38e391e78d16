# SPDX-License-Identifier: MIT
"""``swiftnbd-server file disk.img``"""

import ctypes
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from errno import EAGAIN, EINVAL, EIO, ENOTSUP, ENOTTY, ENXIO, EOPNOTSUPP
from pathlib import Path
from typing import Final

from swiftnbd.api import (
    PATH,
    Buffer,
    ConfigError,
    Device,
    ExportError,
    Extent,
    Opening,
    Plugin,
    hole,
    integer,
    parameter,
)
from swiftnbd.api.threads import Threads
from swiftnbd.errors import afresh

THREADS_DEFAULT: Final = 16  # about as many requests as a disk takes at once
THREADS_MAX: Final = 256
EXTENTS_MAX: Final = 1024  # of one answer, two calls to the system each
ZEROS_BYTES: Final = 1024 * 1024  # written at once where nothing is faster

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
_CANNOT: Final = (EOPNOTSUPP, ENOTSUP, EINVAL, ENOTTY)  # the file system, or this range

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate


@dataclass(frozen=True)
class File(Plugin):
    """A file or a block device of this machine.

    Holes of files are shown and kept; zeros and trims punch them. What the kernel has cached is
    read without a thread. Nobody is kept from using the file at the same time.
    """

    file: Path = parameter(PATH, "The file or block device.", main=True)
    threads: int = parameter(
        integer(1, THREADS_MAX), "How many requests are at work at once.", default=THREADS_DEFAULT
    )

    async def open(self, opening: Opening) -> Device:
        return FileDevice(self.file, self.threads, read_only=opening.read_only)


class FileDevice(Device):
    """An open file. Its size is what it was when it was opened."""

    can_fast_zero = True

    def __init__(self, path: Path, threads: int | Threads, *, read_only: bool) -> None:
        """``threads``: so many of its own, or those of others. Raises OSError and `ConfigError`."""
        self._shown = str(path)
        self.read_only = read_only
        # a pipe would wait for its other end; of a file it means nothing
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = os.open(path, flags)
        try:
            self.size = _size(self._descriptor, path)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._failure: OSError | None = None
        self._reads_now = True
        self._owns_threads = isinstance(threads, int)
        self._threads = Threads(threads, "file") if isinstance(threads, int) else threads

    # Reading

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        if not self._reads_now:
            return None
        data = bytearray(length)
        try:
            got = os.preadv(self._descriptor, [data], offset, os.RWF_NOWAIT)
        except OSError as error:
            self._reads_now = error.errno == EAGAIN  # else the file system does not know that
            return None
        return (data,) if got == length else None

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        return (await self._threads.call(self._read, offset, length),)

    def _read(self, offset: int, length: int) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            got = os.preadv(self._descriptor, [view], offset)
            if not got:
                raise ExportError(EIO, f"{self._shown} has become shorter")
            offset, view = offset + got, view[got:]
        return data

    async def prefetch(self, offset: int, length: int) -> None:
        await self._threads.call(
            os.posix_fadvise, self._descriptor, offset, length, os.POSIX_FADV_WILLNEED
        )

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        return await self._threads.call(self._extents, offset, length, min(count, EXTENTS_MAX))

    def _extents(self, offset: int, length: int, count: int) -> list[Extent]:
        found: list[Extent] = []
        end = offset + length
        while offset < end and len(found) < count:
            data = min(self._seek(offset, os.SEEK_DATA), end)
            if data > offset:
                found.append(Extent(data - offset, hole=True, zero=True))
            else:
                data = min(self._seek(offset, os.SEEK_HOLE), end)
                if data > offset:  # else a hole was made between the two looks
                    found.append(Extent(data - offset, hole=False, zero=False))
            offset = data
        return found

    def _seek(self, offset: int, what: int) -> int:
        """Where the next data or hole begins; the end if there is none."""
        try:
            return os.lseek(self._descriptor, offset, what)
        except OSError as error:
            if error.errno == ENXIO:
                return self.size
            if error.errno in _CANNOT:  # a device, which knows no holes
                return offset if what == os.SEEK_DATA else self.size
            raise

    # Changing

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self._threads.call(self._write, offset, data)

    def _write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._descriptor, view, offset)
            offset, view = offset + done, view[done:]

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        await self._threads.call(self._zero, offset, length, no_hole, fast)

    def _zero(self, offset: int, length: int, no_hole: bool, fast: bool) -> None:
        mode = _ZERO_RANGE if no_hole else _PUNCH_HOLE
        try:
            self._allocate(mode | _KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            if fast:
                raise ExportError(ENOTSUP, f"{self._shown}: {error.strerror}") from None
            end = offset + length
            while offset < end:
                here = min(ZEROS_BYTES, end - offset)
                self._write(offset, hole(here))
                offset += here

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self._threads.call(self._trim, offset, length)

    def _trim(self, offset: int, length: int) -> None:
        try:
            self._allocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _CANNOT:  # it is a hint
                raise

    def _allocate(self, mode: int, offset: int, length: int) -> None:
        begin, size = ctypes.c_longlong(offset), ctypes.c_longlong(length)
        if _fallocate(self._descriptor, mode, begin, size):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), self._shown)

    # Making durable

    async def flush(self) -> None:
        await self._threads.call(self._flush)

    def _flush(self) -> None:
        # After a failure the kernel takes what it could not write for written, and a second try
        # would succeed.
        if self._failure is not None:
            raise afresh(self._failure)
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            if error.errno != EINVAL:  # it is a device that cannot be flushed
                self._failure = afresh(error)
                raise

    async def close(self) -> None:
        if self._descriptor < 0:
            return
        try:
            if not self.read_only:
                await self.flush()
        finally:
            if self._owns_threads:
                self._threads.stop()
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1


def _size(descriptor: int, path: Path) -> int:
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    if stat.S_ISBLK(found.st_mode):
        return os.lseek(descriptor, 0, os.SEEK_END)
    raise ConfigError(f"{path} is neither a file nor a block device")
