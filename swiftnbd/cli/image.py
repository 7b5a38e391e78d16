# SPDX-License-Identifier: MIT
"""A disk image being written: sparse, and under its own name only when it is complete."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from swiftnbd.errors import SwiftnbdError

_HOLE_BYTES = 4096  # a file system's usual block: smaller holes save nothing
_ZEROS = bytes(_HOLE_BYTES)


class ImageFile:
    """``IMAGE.part`` while it is written, ``IMAGE`` after `commit`, nothing at all otherwise.

    The methods block and may be called from threads.
    """

    def __init__(self, image: str, *, force: bool) -> None:
        self.path = Path(os.path.realpath(image))  # replace what a link names, not the link
        self.part = self.path.with_name(self.path.name + ".part")
        self._force = force
        self._descriptor = -1
        self._committed = False

    def __enter__(self) -> Self:
        self._refuse_existing()
        with self._failing("create"):
            if self._force:
                self.part.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self.part, flags, 0o666)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)
        if not self._committed:
            with suppress(OSError):
                self.part.unlink()

    def set_size(self, size: int) -> None:
        """Make it one hole of ``size`` bytes."""
        with self._failing("write"):
            os.ftruncate(self._descriptor, size)

    def write(self, offset: int, data: bytes) -> None:
        """Write ``data``, leaving holes where it is zeros."""
        with self._failing("write"):
            for start, end in data_runs(data):
                self._write_all(offset + start, memoryview(data)[start:end])

    def commit(self) -> None:
        """Make it durable and give it its name."""
        with self._failing("write"):
            os.fsync(self._descriptor)
            self._refuse_existing()
            self.part.rename(self.path)
            self._committed = True
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _write_all(self, offset: int, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            offset += written
            data = data[written:]

    def _refuse_existing(self) -> None:
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and not stat.S_ISREG(mode):
            raise SwiftnbdError(f"{self.path} is not a regular file")
        if mode is not None and not self._force:
            raise SwiftnbdError(f"{self.path} exists; to replace it, use --force")
        if not self._force and self._descriptor < 0 and self.part.exists():
            raise SwiftnbdError(
                f"{self.part} exists, left by another download; to replace it, use --force"
            )

    @contextmanager
    def _failing(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SwiftnbdError(f"cannot {verb} {self.part}: {error.strerror}") from None


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
