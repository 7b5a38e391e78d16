# SPDX-License-Identifier: MIT
"""The local file that holds what was written to a disk, and which blocks these are.

A file that stays::

    0            header, 64 bytes
    4096         bitmap: bit N % 8 (from the lowest) of byte N // 8 is set if block N is here
    data offset  block N at N * block size, a hole if it is not here

A file that is thrown away has no name, and no header and no bitmap in it either: it is gone when
the process is, however that ends.

The bitmap is in memory, and goes to the file in `Overlay.flush` between two fdatasyncs: a block
is said to be here only when it is. After a crash what was not flushed may be missing, as on
any disk.
"""

import ctypes
import fcntl
import os
import struct
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from errno import EAGAIN, EINVAL, EIO, ENOTTY, ENXIO, EOPNOTSUPP
from pathlib import Path
from typing import Final

from swiftnbd.api import Buffer, ExportError, hole
from swiftnbd.errors import ExportUnusable, afresh

BITMAP_OFFSET: Final = 4096
BITMAP_BYTES_MAX: Final = 64 * 1024 * 1024  # in memory: 32 TiB in blocks of 64 KiB
PAGE_BYTES: Final = 4096  # of the bitmap, written at once
_FULL, _EMPTY = b"\xff" * PAGE_BYTES, bytes(PAGE_BYTES)
_ZEROS_BYTES: Final = 1024 * 1024

_MAGIC: Final = b"swiftnbd overlay"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<16sIIQQ")  # magic, version, block size, size, data offset

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # linux/falloc.h
_CANNOT: Final = (EOPNOTSUPP, EINVAL, ENOTTY)

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate


class Overlay:
    """Blocks of ``block_bytes`` of a disk of ``size`` bytes.

    `here`, `run`, `mark`, `forget` and `changed` are about the bitmap, and are for one thread; the
    others work on the file, may take long, and may be called in several.
    """

    def __init__(self, size: int, block_bytes: int, path: Path | None, folder: Path) -> None:
        """The file at ``path``, made if there is none; None: a new one in ``folder``, to be
        thrown away. Raises OSError and `ExportUnusable`."""
        self.size, self.block_bytes = size, block_bytes
        self.stays = path is not None
        blocks = -(-size // block_bytes)
        self._bitmap = bytearray(_bitmap_bytes(blocks))
        self._changed: set[int] = set()  # pages of the bitmap
        self._start = 0
        self._failure: OSError | None = None
        self._reads_now = True
        if path is None:
            with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                self._descriptor = os.dup(file.fileno())
        else:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.shown = "the overlay" if path is None else str(path)
        try:
            self._set_up(blocks)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _set_up(self, blocks: int) -> None:
        if not self.stays:
            os.ftruncate(self._descriptor, self.size)
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportUnusable(f"{self.shown} is in use as the overlay of another disk") from None
        unit = max(self.block_bytes, PAGE_BYTES)
        self._start = -(-(BITMAP_OFFSET + len(self._bitmap)) // unit) * unit
        header = _HEADER.pack(_MAGIC, _VERSION, self.block_bytes, self.size, self._start)
        length, expected = os.fstat(self._descriptor).st_size, self._start + self.size
        found = os.pread(self._descriptor, _HEADER.size, 0)
        if not length or (length == expected and not any(found)):  # new, or cut short when it was
            self._make(header, expected)
            return
        self._check(found)
        if found != header or length < expected:
            raise ExportUnusable(f"{self.shown} is damaged: its header and its length do not fit")
        self._read_into(BITMAP_OFFSET, memoryview(self._bitmap))
        if int.from_bytes(self._bitmap[blocks // 8 :], "little") >> (blocks % 8):
            raise ExportUnusable(f"{self.shown} is damaged: it has blocks beyond its end")

    def _make(self, header: bytes, length: int) -> None:
        os.ftruncate(self._descriptor, length)
        os.posix_fallocate(self._descriptor, 0, self._start)  # flushing needs no more room
        os.fdatasync(self._descriptor)
        os.pwrite(self._descriptor, header, 0)
        os.fdatasync(self._descriptor)

    def _check(self, found: bytes) -> None:
        if found[: len(_MAGIC)] != _MAGIC or len(found) < _HEADER.size:
            raise ExportUnusable(f"{self.shown} is no overlay: it was not written by this filter")
        _, version, block_bytes, size, _ = _HEADER.unpack(found)
        if version != _VERSION:
            raise ExportUnusable(
                f"{self.shown} is an overlay of version {version}, and only {_VERSION} is known"
            )
        if (block_bytes, size) != (self.block_bytes, self.size):
            raise ExportUnusable(
                f"{self.shown} is the overlay of a disk of {size} bytes in blocks of "
                f"{block_bytes}, and this one has {self.size} in blocks of {self.block_bytes}"
            )

    # Which blocks are here

    def here(self, block: int) -> bool:
        return bool(self._bitmap[block >> 3] >> (block & 7) & 1)

    def mark(self, start: int, end: int) -> None:
        """Blocks ``[start, end)`` are here from now on: their bytes have been written."""
        for block in range(start, end):
            if not self.here(block):
                self._bitmap[block >> 3] |= 1 << (block & 7)
                self._changed.add(block // 8 // PAGE_BYTES)

    def run(self, block: int, end: int) -> tuple[bool, int]:
        """Whether a block is here, and where before ``end`` that becomes different."""
        is_here = self.here(block)
        block += 1
        while block < end and self.here(block) is is_here:
            block += 1
            if not block & 7:
                block = 8 * self._same(block >> 3, end >> 3, is_here)
        return is_here, min(block, end)

    def _same(self, byte: int, end: int, is_here: bool) -> int:
        """Where the bitmap's bytes are not all set, or all clear, any more; ``end`` at most."""
        bitmap, page = self._bitmap, _FULL if is_here else _EMPTY
        while byte < end and bitmap[byte] == page[0]:
            byte += 1
            while byte + PAGE_BYTES <= end and bitmap[byte : byte + PAGE_BYTES] == page:
                byte += PAGE_BYTES
        return byte

    def forget(self) -> None:
        """No block is here any more."""
        pages = range(len(self._bitmap) // PAGE_BYTES)
        self._changed.update(page for page in pages if self._page(page) != _EMPTY)
        self._bitmap = bytearray(len(self._bitmap))

    # What is in them

    def read_now(self, offset: int, length: int) -> bytearray | None:
        """`read`, if the kernel has it at hand."""
        if not self._reads_now:
            return None
        data = bytearray(length)
        try:
            got = os.preadv(self._descriptor, [data], self._start + offset, os.RWF_NOWAIT)
        except OSError as error:
            self._reads_now = error.errno == EAGAIN  # else the file system does not know that
            return None
        return data if got == length else None

    def read(self, offset: int, length: int) -> bytearray:
        data = bytearray(length)
        self._read_into(self._start + offset, memoryview(data))
        return data

    def _read_into(self, place: int, view: memoryview) -> None:
        while view:
            got = os.preadv(self._descriptor, [view], place)
            if not got:
                raise ExportError(EIO, f"{self.shown} has become shorter")
            place, view = place + got, view[got:]

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        place = self._start + offset
        for piece in pieces:
            view = memoryview(piece)
            while view:
                done = os.pwrite(self._descriptor, view, place)
                place, view = place + done, view[done:]

    def clear(self, offset: int, length: int) -> None:
        """Zeros, which take no room if the file system can do that."""
        begin, size = ctypes.c_longlong(self._start + offset), ctypes.c_longlong(length)
        if not _fallocate(self._descriptor, _KEEP_SIZE | _PUNCH_HOLE, begin, size):
            return
        number = ctypes.get_errno()
        if number not in _CANNOT:
            raise OSError(number, os.strerror(number), self.shown)
        for at in range(0, length, _ZEROS_BYTES):
            self.write(offset + at, [hole(min(_ZEROS_BYTES, length - at))])

    def holes(self, offset: int, length: int, count: int) -> list[tuple[int, bool]]:
        """Lengths of what takes room and what does not, from ``offset`` on."""
        found: list[tuple[int, bool]] = []
        end = offset + length
        while offset < end and len(found) < count:
            data = min(self._seek(offset, os.SEEK_DATA), end)
            is_hole = data > offset
            if not is_hole:
                data = min(self._seek(offset, os.SEEK_HOLE), end)
            if data > offset:  # else a hole was made between the two looks
                found.append((data - offset, is_hole))
            offset = data
        return found

    def _seek(self, offset: int, what: int) -> int:
        try:
            return os.lseek(self._descriptor, self._start + offset, what) - self._start
        except OSError as error:
            if error.errno == ENXIO:
                return self.size
            if error.errno in _CANNOT:
                return offset if what == os.SEEK_DATA else self.size
            raise

    # Making it durable

    def changed(self) -> dict[int, bytes]:
        """What of the bitmap is to be flushed: taken in the thread that marks blocks."""
        pages = {page: self._page(page) for page in self._changed}
        self._changed.clear()
        return pages

    def _page(self, page: int) -> bytes:
        return bytes(self._bitmap[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])

    def flush(self, pages: dict[int, bytes]) -> None:
        """All that was written before `changed` gave these pages is durable on return."""
        # After a failure the kernel takes what it could not write for written.
        if self._failure is not None:
            raise afresh(self._failure)
        try:
            os.fdatasync(self._descriptor)
            for page, data in pages.items():
                os.pwrite(self._descriptor, data, BITMAP_OFFSET + page * PAGE_BYTES)
            if pages:
                os.fdatasync(self._descriptor)
        except OSError as error:
            self._failure = afresh(error)
            raise

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)


def _bitmap_bytes(blocks: int) -> int:
    """Whole pages. Raises `ExportUnusable` if there are too many blocks."""
    length = -(-blocks // 8 // PAGE_BYTES) * PAGE_BYTES
    if length > BITMAP_BYTES_MAX:
        raise ExportUnusable(
            f"cow: {blocks} blocks are too many to remember: give a larger cow-block-size"
        )
    return length
