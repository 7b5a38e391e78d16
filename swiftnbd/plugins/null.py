# SPDX-License-Identifier: MIT
"""``swiftnbd-server null 1T``"""

from collections.abc import Sequence
from dataclasses import dataclass

from swiftnbd.api import SIZE, Buffer, Device, Extent, Opening, Plugin, holes, parameter


@dataclass(frozen=True)
class Null(Plugin):
    """Zeros however often one writes, to measure what is not the disk."""

    size: int = parameter(SIZE, "How large it is.", main=True)

    async def open(self, opening: Opening) -> Device:
        return NullDevice(self.size)


class NullDevice(Device):
    """Forgets everything at once."""

    can_fua = True
    can_fast_zero = True

    def __init__(self, size: int) -> None:
        self.size = size

    def read_now(self, offset: int, length: int) -> Sequence[Buffer]:
        return holes(length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        return True

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        return holes(length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        pass

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        pass

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        pass

    async def flush(self) -> None:
        pass

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        return [Extent(length, hole=True, zero=True)]
