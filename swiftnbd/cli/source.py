# SPDX-License-Identifier: MIT
"""An image being read: a file or a block device with its holes, or a stream of unknown length."""

import os
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EINVAL, ENXIO
from functools import partial
from types import TracebackType
from typing import Self

from swiftnbd.cli.parallel import abandonable, in_thread
from swiftnbd.errors import ConfigError, SwiftnbdError

STDIN = "-"
SPAN_BYTES = 1024 * 1024  # read at once: the way to a thread and back costs as much as 64 KiB


@dataclass(frozen=True, slots=True)
class Span:
    """Objects ``[first, end)``: ``data``, the last of them filled up with zeros; None is a hole."""

    first: int
    end: int
    data: memoryview | None


class Source:
    """An open image. ``size`` is its bytes; of a stream, those that have been read so far.

    Read it once, from one task.
    """

    def __init__(self, image: str) -> None:
        self.name = "standard input" if image == STDIN else image
        self._image = image
        self._descriptor = -1
        self._before: os.stat_result | None = None
        self.is_stream = False
        self.size = 0

    def __enter__(self) -> Self:
        with self._failing():
            if self._image == STDIN:
                self._descriptor = self._open_stdin()
            else:
                self._descriptor = os.open(self._image, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._look()
            except BaseException:
                os.close(self._descriptor)
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.is_stream:  # an abandoned thread may still read it
            os.close(self._descriptor)

    @property
    def size_known(self) -> int | None:
        """Bytes of it, if that is known before all of it is read."""
        return None if self.is_stream else self.size

    async def spans(self, object_size: int) -> AsyncIterator[Span]:
        """All of it in order. Raises `SwiftnbdError` if it cannot be read."""
        spans = self._stream_spans if self.is_stream else self._file_spans
        async for span in spans(object_size):
            yield span

    def check_unchanged(self) -> None:
        """Raise if a file was written to since it was opened."""
        if self._before is not None:
            now = os.fstat(self._descriptor)
            if (now.st_size, now.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
                raise SwiftnbdError(
                    f"{self.name} was changed while it was read: upload it again once it is at rest"
                )

    def _open_stdin(self) -> int:
        if sys.stdin is None:  # a program may be started without
            raise ConfigError("there is no standard input: give the image's name")
        return os.dup(sys.stdin.fileno())

    def _look(self) -> None:
        found = os.fstat(self._descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise SwiftnbdError(f"cannot read {self.name}: it is a folder")
        if self._image == STDIN and os.isatty(self._descriptor):
            raise ConfigError("standard input is a terminal, not an image: give its file's name")
        if stat.S_ISREG(found.st_mode):
            self._before, self.size = found, found.st_size
            # whoever had standard input before may have read a part of it
            self.is_stream = os.lseek(self._descriptor, 0, os.SEEK_CUR) != 0
        elif stat.S_ISBLK(found.st_mode):
            self.size = os.lseek(self._descriptor, 0, os.SEEK_END)
        else:
            self.is_stream = True
        if self.is_stream:
            self.size, self._before = 0, None

    # A file or a device

    async def _file_spans(self, object_size: int) -> AsyncIterator[Span]:
        at = 0
        while at * object_size < self.size:
            span = await in_thread(partial(self._file_span, at, object_size))
            yield span
            at = span.end

    def _file_span(self, first: int, object_size: int) -> Span:
        """The hole at object ``first``, or the data, at most `SPAN_BYTES` of them."""
        with self._failing():
            objects = -(-self.size // object_size)
            start = self._seek(first * object_size, os.SEEK_DATA)
            if start >= (first + 1) * object_size:
                return Span(first, min(start // object_size, objects), None)
            stop = -(-self._seek(start, os.SEEK_HOLE) // object_size)
            end = min(stop, objects, first + max(1, SPAN_BYTES // object_size))
            data = bytearray((end - first) * object_size)
            length = min(len(data), self.size - first * object_size)
            self._read_at(first * object_size, memoryview(data)[:length])
            return Span(first, end, memoryview(data))

    def _seek(self, offset: int, what: int) -> int:
        """Where the next data or hole begins, from ``offset`` on, which is before the end."""
        try:
            return os.lseek(self._descriptor, offset, what)
        except OSError as error:
            if error.errno == ENXIO:
                return sys.maxsize  # no more data
            if error.errno == EINVAL:  # a device, which knows no holes
                return offset if what == os.SEEK_DATA else self.size
            raise

    def _read_at(self, offset: int, view: memoryview) -> None:
        while view:
            got = os.preadv(self._descriptor, [view], offset)
            if not got:
                raise SwiftnbdError(f"{self.name} became shorter while it was read")
            offset += got
            view = view[got:]

    # A stream

    async def _stream_spans(self, object_size: int) -> AsyncIterator[Span]:
        at = 0
        length = max(1, SPAN_BYTES // object_size) * object_size
        while True:
            data = bytearray(length)
            got = await abandonable(partial(self._read_stream, memoryview(data)))
            self.size += got
            count = -(-got // object_size)
            if count:
                yield Span(at, at + count, memoryview(data)[: count * object_size])
            at += count
            if got < length:
                return

    def _read_stream(self, view: memoryview) -> int:
        """Bytes read: all that were asked for, but at the end."""
        total = 0
        with self._failing():
            while view:
                got = os.readv(self._descriptor, [view])
                if not got:
                    break
                total += got
                view = view[got:]
        return total

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SwiftnbdError(f"cannot read {self.name}: {error.strerror}") from None
