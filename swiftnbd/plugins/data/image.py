# SPDX-License-Identifier: MIT
"""A few bytes here and there in a large nothing."""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from swiftnbd.api import ConfigError

STORED_BYTES_MAX: Final = 256 * 1024 * 1024  # what is written on a command line is less
LENGTH_MAX: Final = (1 << 63) - 1
_PIECE_BYTES: Final = 128  # what each piece takes beside its bytes, about


class Image:
    """``length`` bytes, zeros but for the pieces in it. They are in order and do not overlap."""

    def __init__(self, data: bytes = b"", length: int | None = None) -> None:
        self.length = len(data) if length is None else length
        self._starts: list[int] = [0] if data else []
        self._pieces: list[bytearray] = [bytearray(data)] if data else []
        self._stored = len(data)
        self._check()

    def __iter__(self) -> Iterator[tuple[int, bytearray]]:
        return zip(self._starts, self._pieces, strict=True)

    def _check(self) -> None:
        if self.length > LENGTH_MAX:
            raise ConfigError("what is written is longer than a disk can be")
        if self._stored + len(self._pieces) * _PIECE_BYTES > STORED_BYTES_MAX:
            raise ConfigError(f"what is written takes more than {STORED_BYTES_MAX} bytes of memory")

    def extend_to(self, length: int) -> None:
        """Be at least so long."""
        self.length = max(self.length, length)
        self._check()

    def paste(self, at: int, other: "Image") -> None:
        """Put ``other`` there, its zeros as well."""
        self._cut_out(at, at + other.length)
        self.extend_to(at + other.length)
        index = bisect_left(self._starts, at)
        for offset, piece in other:
            begin = at + offset
            if index and self._starts[index - 1] + len(self._pieces[index - 1]) == begin:
                self._pieces[index - 1] += piece
            else:
                self._starts.insert(index, begin)
                self._pieces.insert(index, bytearray(piece))
                index += 1
            self._stored += len(piece)
            self._check()

    def _cut_out(self, begin: int, end: int) -> None:
        """Nothing but zeros in this range."""
        if not self._starts or begin >= self._starts[-1] + len(self._pieces[-1]):
            return  # mostly one writes at the end
        first = max(0, bisect_left(self._starts, begin) - 1)
        last = bisect_left(self._starts, end)
        starts, pieces = [], []
        for start, piece in zip(self._starts[first:last], self._pieces[first:last], strict=True):
            self._stored -= len(piece)
            if start < begin:
                starts.append(start)
                pieces.append(piece[: begin - start])
            if start + len(piece) > end:
                starts.append(max(end, start))
                pieces.append(piece[max(0, end - start) :])
        self._stored += sum(map(len, pieces))
        self._starts[first:last], self._pieces[first:last] = starts, pieces

    def repeated(self, count: int) -> "Image":
        """It again and again."""
        if not self._pieces or not count:
            return Image(length=self.length * count)
        if self._stored * count > STORED_BYTES_MAX:
            raise ConfigError(f"what is written takes more than {STORED_BYTES_MAX} bytes of memory")
        if len(self._pieces[0]) == self.length:
            return Image(bytes(self._pieces[0]) * count)
        found = Image()
        for number in range(count):
            found.paste(number * self.length, self)
        return found

    def slice(self, begin: int, end: int) -> "Image":
        """Part of it."""
        found = Image(length=end - begin)
        for start, piece in self:
            part = piece[max(0, begin - start) : max(0, end - start)]
            if part:
                found.paste(max(start, begin) - begin, Image(bytes(part)))
        return found
