# SPDX-License-Identifier: MIT
"""Places in a gzip file from which it can be decompressed."""

import zlib
from typing import Any, Final, Self

from swiftnbd.errors import ExportUnusable

_GZIP: Final = 31  # for zlib: a gzip header and checksum, the largest window


class Cursor:
    """A place: ``offset`` in the file, ``position`` in what is in it.

    A file has one or more members, and there may be zeros behind each of them.
    """

    def __init__(self, offset: int = 0, position: int = 0, member: Any = None) -> None:
        self.offset, self.position = offset, position
        self._member = member  # zlib's object, inside of one

    @property
    def is_inside(self) -> bool:
        """Whether the file must go on here."""
        return self._member is not None or not self.offset

    def copy(self) -> Self:
        """The same place. It takes about 40 KiB."""
        member = None if self._member is None else self._member.copy()
        return type(self)(self.offset, self.position, member)

    def step(self, data: bytes, most: int) -> bytes:
        """Go on with ``data``, which is what the file has here: at most ``most`` bytes of output.

        What was not needed is to be given again, from the new ``offset``. Raises `ExportUnusable`.
        """
        if self._member is None:
            rest = data.lstrip(b"\0") if self.offset else data
            self.offset += len(data) - len(rest)
            if not rest:
                return b""
            data, self._member = rest, zlib.decompressobj(_GZIP)
        try:
            out: bytes = self._member.decompress(data, most)
        except zlib.error as error:
            raise ExportUnusable(
                f"gzip: from byte {self.offset} on it is no gzip file, or a damaged one: {error}"
            ) from None
        left = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        self.offset += len(data) - len(left)
        self.position += len(out)
        if self._member.eof:
            self._member = None
        return out
