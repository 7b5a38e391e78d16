# SPDX-License-Identifier: MIT
"""Bytes on their way through, and the zeros of what is stored nowhere.

Bytes that are zeros because nothing is stored there are read as a `hole`: pieces of one shared
page of zeros, which cost nothing to make, to send as they are, or to recognise and leave out.
"""

from collections.abc import Iterator, Sequence
from typing import Final

Buffer = bytes | bytearray | memoryview

HOLE_BYTES_MAX: Final = 64 * 1024 * 1024  # of one piece: the largest object, twice a payload
_HOLE_PIECE_BYTES: Final = 256 * 1024
_NOTHING: Final = bytes(HOLE_BYTES_MAX)  # never written to, so it takes address space only
_HOLE: Final = memoryview(_NOTHING)


def hole(length: int) -> memoryview:
    """``length`` zeros, recognised by `is_hole`; at most `HOLE_BYTES_MAX`."""
    assert length <= HOLE_BYTES_MAX
    return _HOLE[:length]


def holes(length: int) -> list[memoryview]:
    """``length`` zeros in pieces of a size that a transport's progress can be seen in."""
    pieces = [_HOLE[:_HOLE_PIECE_BYTES]] * (length // _HOLE_PIECE_BYTES)
    if rest := length % _HOLE_PIECE_BYTES:
        pieces.append(_HOLE[:rest])
    return pieces


def is_hole(piece: Buffer) -> bool:
    """Whether a piece that a device returned came from `hole`, whole or cut."""
    return type(piece) is memoryview and piece.obj is _NOTHING


class Pieces:
    """Bytes that lie in several buffers, one after the other: they need not be put together."""

    __slots__ = ("_length", "_pieces")

    def __init__(self, pieces: Sequence[Buffer]) -> None:
        self._pieces = pieces
        self._length = sum(map(len, pieces))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Buffer]:
        return iter(self._pieces)

    def __bytes__(self) -> bytes:
        return b"".join(self._pieces)


Body = Buffer | Pieces


def pieces_of(body: Body) -> Iterator[Buffer]:
    """Its buffers, in order."""
    return iter(body if isinstance(body, Pieces) else (body,))


def in_one(body: Body) -> Buffer:
    """All of it in one buffer: a copy only if it is in pieces."""
    return bytes(body) if isinstance(body, Pieces) else body


def is_zeros(data: Buffer) -> bool:
    """Whether all of it is zeros."""
    return is_hole(data) or bytes(data) == bytes(len(data))  # which compares faster than any loop
