# SPDX-License-Identifier: MIT
"""``swiftnbd-server pattern 1T``"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EIO
from typing import Final

from swiftnbd.api import SIZE, Buffer, Device, ExportError, Opening, Plugin, parameter

WORD_BYTES: Final = 8


@dataclass(frozen=True)
class Pattern(Plugin):
    """Each eight bytes are their own offset, big-endian, so that a reader can tell what it got.

    What is written must be what is there already; anything else fails with EIO and says where. So
    it finds clients and filters that put bytes in the wrong place.
    """

    size: int = parameter(SIZE, "How large it is.", main=True)

    async def open(self, opening: Opening) -> Device:
        return PatternDevice(self.size)


class PatternDevice(Device):
    """Has nothing but its size."""

    can_fua = True

    def __init__(self, size: int) -> None:
        self.size = size

    def read_now(self, offset: int, length: int) -> Sequence[Buffer]:
        return (pattern(offset, length),)

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        return (pattern(offset, length),)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        check_written(offset, data, pattern(offset, len(data)))

    async def flush(self) -> None:
        pass


def pattern(offset: int, length: int) -> bytes:
    """The bytes ``[offset, offset + length)`` of it."""
    first, end = offset // WORD_BYTES, -(-(offset + length) // WORD_BYTES)
    words = range(first * WORD_BYTES, end * WORD_BYTES, WORD_BYTES)
    start = offset - first * WORD_BYTES
    return struct.pack(f">{len(words)}Q", *words)[start : start + length]


def check_written(offset: int, data: Buffer, expected: bytes) -> None:
    """Fail with EIO at the first byte of ``data`` that is not what belongs there."""
    if data != expected:
        pairs = enumerate(zip(bytes(data), expected, strict=True), offset)
        place = next(at for at, (byte, right) in pairs if byte != right)
        raise ExportError(EIO, f"the byte written at {place} is not what belongs there")
