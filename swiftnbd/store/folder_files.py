# SPDX-License-Identifier: MIT
"""Files that are replaced whole or not at all, and what remembers their ETags.

Temporary files live in one folder that listings ignore. Each is locked with flock(2) as long as
its writer lives, and the kernel drops that lock with the process however it ends: a file there
that can be locked is a leftover, whoever wrote it and in whichever PID namespace.
"""

import fcntl
import os
import secrets
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from swiftnbd.store.base import Buffer

TEMP_FOLDER = ".tmp"
ETAGS_MAX = 16_384  # some 3 MB; at 4 MiB per object that is a working set of 64 GiB
FILE_TIME_COARSEST_SECONDS = 3.0  # FAT counts in steps of two seconds, and nothing is coarser
READ_BYTES_MAX = 1 << 30  # one read(2) gives at most 2 GiB

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

COPY_BYTES = 1 << 20  # at once, where the kernel does not copy

_FICLONE = 1 << 30 | 4 << 16 | 0x94 << 8 | 9  # _IOW(0x94, 9, int)
_GENERATION = struct.Struct("l")
_FS_IOC_GETVERSION = 2 << 30 | _GENERATION.size << 16 | ord("v") << 8 | 1  # _IOR('v', 1, long)


@contextmanager
def opened(path: str, flags: int, dir_fd: int | None = None) -> Iterator[int]:
    """A descriptor that is closed at the end of the block."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o666, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def identity(fd: int) -> tuple[int, int, int] | None:
    """What no other file has or will have; None if the file system cannot tell.

    The inode number alone will not do: ext4 gives that of a removed folder to the next one. The
    generation, new each time, is known to ext4, XFS, Btrfs and F2FS, but not to tmpfs or NFS.
    """
    stat = os.fstat(fd)
    try:
        (generation,) = _GENERATION.unpack(
            fcntl.ioctl(fd, _FS_IOC_GETVERSION, bytes(_GENERATION.size))
        )
    except OSError:
        return None
    return (stat.st_dev, stat.st_ino, generation) if generation else None


@dataclass(slots=True)
class Temp:
    """A file in the making: ``fd`` to write to, ``path`` below the container's folder."""

    fd: int
    path: str
    keeps_nanoseconds: bool = False
    stat: os.stat_result | None = None

    def write(self, data: Buffer) -> None:
        """Add to what was written."""
        write_all(self.fd, data)

    def finish(self) -> None:
        """Make what was written durable.

        Its time is set to this very nanosecond: the kernel's own stamps move in steps of some
        milliseconds, in which an inode number can be used again.
        """
        now = time.time_ns()
        os.utime(self.fd, ns=(now, now))
        os.fsync(self.fd)
        self.stat = os.fstat(self.fd)
        self.keeps_nanoseconds = self.stat.st_mtime_ns == now


@contextmanager
def temp_file(top: int) -> Iterator[Temp]:
    """A fresh temporary file below the folder ``top``; gone at the end unless renamed."""
    with suppress(FileExistsError):
        os.mkdir(TEMP_FOLDER, dir_fd=top)
    while True:
        path = f"{TEMP_FOLDER}/{os.getpid()}-{secrets.token_hex(8)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=top)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink == 0:  # a cleaner was between our open and our flock
                continue
            yield Temp(fd, path)
            return
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path, dir_fd=top)
            os.close(fd)


def remove_stale_temps(top: int) -> None:
    """Remove the temporary files of writers that are no more."""
    try:
        with opened(TEMP_FOLDER, DIRECTORY, top) as folder:
            names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        path = f"{TEMP_FOLDER}/{name}"
        # Gone or locked: somebody is alive and busy with it.
        with (
            suppress(FileNotFoundError, BlockingIOError),
            opened(path, os.O_WRONLY, top) as fd,
        ):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path, dir_fd=top)


def write_all(fd: int, data: Buffer) -> None:
    """Write all of ``data``; the kernel may take it in parts."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(fd, rest) :]


def _clone(source: int, target: int) -> None:
    fcntl.ioctl(target, _FICLONE, source)


def copy_file(source: int, target: int, size: int) -> None:
    """Copy the first ``size`` bytes, inside the kernel; shared with the source if it can.

    What a file system does not support, such as sharing between two of them, is copied by hand.
    """
    with suppress(OSError):
        _clone(source, target)
        return
    done = 0
    with suppress(OSError):
        while done < size and (count := os.copy_file_range(source, target, size - done, done)):
            done += count
    os.lseek(target, done, os.SEEK_SET)
    while done < size and (part := read_range(source, done, min(size - done, COPY_BYTES))):
        write_all(target, part)
        done += len(part)


def read_range(fd: int, start: int, length: int) -> bytes:
    """Up to ``length`` bytes from ``start``; fewer only at the end of the file."""
    parts = []
    while length and (part := os.pread(fd, min(length, READ_BYTES_MAX), start)):
        parts.append(part)
        start += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass(slots=True)
class Etags:
    """The ETags of files already hashed, by (inode, time, size). Bounded; safe in threads."""

    _known: OrderedDict[tuple[int, int, int], str] = field(default_factory=OrderedDict)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def recall(self, stat: os.stat_result) -> str | None:
        """The ETag of the file with this stat, if known."""
        with self._mutex:
            etag = self._known.get(_key(stat))
            if etag is not None:
                self._known.move_to_end(_key(stat))
            return etag

    def remember(self, stat: os.stat_result, etag: str, *, exact: bool = False) -> None:
        """Remember an ETag; without an ``exact`` time only if the file was left alone a while.

        Two files one after the other can share inode, size and, if the clock of the file
        system is coarse, the time. A file older than the coarsest step cannot have a successor
        with its time any more.
        """
        if not exact and time.time() - stat.st_mtime < FILE_TIME_COARSEST_SECONDS:
            return
        with self._mutex:
            self._known[_key(stat)] = etag
            if len(self._known) > ETAGS_MAX:
                self._known.popitem(last=False)


def _key(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
