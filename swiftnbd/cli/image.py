# SPDX-License-Identifier: MIT
"""A disk image being written: a sparse file that gets its name when complete, or a device.

What an interrupted download has written stays, as ``IMAGE.part`` and beside it ``IMAGE.part.from``,
which says of which container. Nothing is believed of such a file but what its own bytes prove, so
it does not matter how it was interrupted.
"""

import fcntl
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ENXIO
from pathlib import Path
from types import TracebackType
from typing import Self

from swiftnbd.errors import SwiftnbdError
from swiftnbd.units import exact_size

STDOUT = "-"
_HOLE_BYTES = 4096  # a file system's usual block: smaller holes save nothing
_ZEROS = bytes(_HOLE_BYTES)
_CLEAR_BYTES = 1024 * 1024  # read at once, to see whether it is zeros already


class Image(ABC):
    """What a disk is written to. The methods block and may be called from threads."""

    path: Path
    _descriptor = -1

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    @abstractmethod
    def set_size(self, size: int) -> None:
        """Make room for ``size`` bytes, keeping what is there."""

    @abstractmethod
    def may_hold(self, start: int, length: int) -> bool:
        """Whether anything but zeros may be there."""

    @abstractmethod
    def commit(self) -> None:
        """Make it durable, under its name."""

    def read(self, start: int, length: int) -> bytes:
        """What is there, zeros behind the end."""
        with self._failing("read"):
            data = bytearray(length)
            view = memoryview(data)
            while view and (got := os.preadv(self._descriptor, [view], start)):
                start, view = start + got, view[got:]
        return bytes(data)

    def write(self, start: int, data: bytes) -> None:
        """Write ``data``; where it is zeros and nothing else was there, leave holes."""
        view = memoryview(data)
        with self._failing("write"):
            # Mostly there is no hole in it, which is quickly seen.
            if _ZEROS not in data or self.may_hold(start, len(data)):
                self._write_all(start, view)
                return
            for first, end in data_runs(data):
                self._write_all(start + first, view[first:end])

    def clear(self, start: int, length: int) -> None:
        """Make it zeros, where it is not."""
        while length and self.may_hold(start, length):
            part = min(length, _CLEAR_BYTES)
            if self.may_hold(start, part):
                zeros = bytes(part)
                if self.read(start, part) != zeros:
                    with self._failing("write"):
                        self._write_all(start, memoryview(zeros))
            start, length = start + part, length - part

    def sync(self) -> None:
        """Make what was written so far durable, and let the kernel forget it.

        A large image would push out of memory what other programs need, and taking a page that is
        in use already is cheaper for the kernel than a new one, in a virtual machine many times.
        """
        with self._failing("write"):
            os.fdatasync(self._descriptor)
        with suppress(OSError):  # it is only advice
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def _write_all(self, offset: int, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            offset += written
            data = data[written:]

    @contextmanager
    def _failing(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SwiftnbdError(f"cannot {verb} {self._shown()}: {error.strerror}") from None

    def _shown(self) -> Path:
        return self.path


class ImageFile(Image):
    """``IMAGE.part`` while it is written, ``IMAGE`` after `commit`.

    ``container`` is whose download may go on with an ``IMAGE.part`` that is there.
    """

    def __init__(self, image: str, *, force: bool, container: str = "") -> None:
        self.path = Path(os.path.realpath(image))  # replace what a link names, not the link
        self.part = self.path.with_name(self.path.name + ".part")
        self.note = self.path.with_name(self.path.name + ".part.from")
        self.resumed = False
        self._container = container
        self._force = force
        self._committed = False

    def __enter__(self) -> Self:
        self._refuse_existing()
        with self._failing("create"):
            self.resumed = self._open_part()
            if not self.resumed:
                self._create_part()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._committed and not self.holds_any():
            for path in (self.part, self.note):
                with suppress(OSError):
                    path.unlink()
        os.close(self._descriptor)

    def holds_any(self) -> bool:
        """Whether anything was written that a later download can go on with."""
        return self.may_hold(0, 1 << 62)

    def set_size(self, size: int) -> None:
        with self._failing("write"):
            os.ftruncate(self._descriptor, size)

    def may_hold(self, start: int, length: int) -> bool:
        try:
            return os.lseek(self._descriptor, start, os.SEEK_DATA) < start + length
        except OSError as error:
            return error.errno != ENXIO  # there is none, or this file system cannot tell

    def commit(self) -> None:
        with self._failing("write"):
            os.fsync(self._descriptor)
            self._refuse_existing()
            self.part.rename(self.path)
            self._committed = True
            with suppress(OSError):
                self.note.unlink()
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _open_part(self) -> bool:
        """Open what an interrupted download has left; False if there is nothing such."""
        try:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            self._descriptor = os.open(self.part, flags)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = self._container and self._read_note() == self._container
            if is_ours and stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                return True
            if not self._force:
                raise SwiftnbdError(
                    f"{self.part} exists, and not from a download of this container; "
                    f"to replace it, use --force"
                )
            self.part.unlink()
        except BlockingIOError:
            os.close(self._descriptor)
            raise SwiftnbdError(f"{self.part} is being written by another download") from None
        except BaseException:
            os.close(self._descriptor)
            raise
        os.close(self._descriptor)
        return False

    def _create_part(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self.part, flags, 0o666)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            self.note.unlink()
        note = os.open(self.note, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.write(note, self._container.encode(errors="surrogateescape"))
        finally:
            os.close(note)

    def _read_note(self) -> str:
        try:
            return self.note.read_bytes()[:1024].decode(errors="surrogateescape")
        except OSError:
            return ""

    def _refuse_existing(self) -> None:
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISREG(mode):
            raise SwiftnbdError(f"{self.path} is neither a regular file nor a block device")
        if not self._force:
            raise SwiftnbdError(f"{self.path} exists; to replace it, use --force")

    def _shown(self) -> Path:
        return self.part


class ImageDevice(Image):
    """A block device, written in place. Only by force, and not if it is mounted."""

    def __init__(self, image: str, *, force: bool) -> None:
        self.path = Path(image)
        self._force = force

    def __enter__(self) -> Self:
        if not self._force:
            raise SwiftnbdError(f"{self.path} is a block device; to write over it, use --force")
        with self._failing("open"):
            # O_EXCL: whoever has mounted it keeps us out
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def set_size(self, size: int) -> None:
        with self._failing("read"):
            room = os.lseek(self._descriptor, 0, os.SEEK_END)
        if room < size:
            raise SwiftnbdError(
                f"{self.path} has {exact_size(room)}, too little for {exact_size(size)}"
            )

    def may_hold(self, start: int, length: int) -> bool:
        return True

    def commit(self) -> None:
        with self._failing("write"):
            os.fsync(self._descriptor)


def open_image(image: str, *, force: bool, container: str) -> Image:
    """What the name stands for, not opened yet."""
    try:
        is_device = stat.S_ISBLK(os.stat(image).st_mode)
    except OSError:
        is_device = False
    if is_device:
        return ImageDevice(image, force=force)
    return ImageFile(image, force=force, container=container)


def data_runs(data: bytes) -> Iterator[tuple[int, int]]:
    """The ranges ``[start, end)`` of ``data`` that are not holes."""
    start = None
    for at in range(0, len(data), _HOLE_BYTES):
        piece = data[at : at + _HOLE_BYTES]
        is_hole = piece == _ZEROS[: len(piece)]
        if is_hole and start is not None:
            yield start, at
            start = None
        elif not is_hole and start is None:
            start = at
    if start is not None:
        yield start, len(data)
