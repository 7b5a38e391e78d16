# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter truncate PLUGIN round-up=4K``"""

from collections.abc import Sequence
from dataclasses import dataclass
from errno import ENOSPC

from swiftnbd.api import (
    OFFSET,
    SIZE,
    Buffer,
    Device,
    ExportError,
    Extent,
    Filter,
    FilterPlugin,
    Opening,
    holes,
    parameter,
)
from swiftnbd.buffers import is_zeros
from swiftnbd.filters.offset import Window


@dataclass(frozen=True)
class Truncate(FilterPlugin):
    """Makes the disk smaller or larger.

    What is beyond its end reads as zeros, and nothing else can be written there.
    """

    truncate: int | None = parameter(OFFSET, "How large it is.", default=None)
    round_up: int | None = parameter(SIZE, "Up to a multiple of so many bytes.", default=None)
    round_down: int | None = parameter(SIZE, "Down to a multiple of so many bytes.", default=None)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        size = device.size if self.truncate is None else self.truncate
        if self.round_up is not None:
            size += -size % self.round_up
        if self.round_down is not None:
            size -= size % self.round_down
        if size > device.size:
            return Longer(device, size)
        return device if size == device.size else Window(device, 0, size)


class Longer(Filter):
    """``size`` bytes, those that the device does not have being zeros."""

    def __init__(self, device: Device, size: int) -> None:
        super().__init__(device)
        self.size = size

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        inside = self._inside(offset, length)
        if inside == length:
            return self.device.read_now(offset, length)
        pieces = self.device.read_now(offset, inside) if inside else ()
        return None if pieces is None else [*pieces, *holes(length - inside)]

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        inside = self._inside(offset, length)
        if inside == length:
            return await self.device.read(offset, length)
        pieces = await self.device.read(offset, inside) if inside else ()
        return [*pieces, *holes(length - inside)]

    def write_now(self, offset: int, data: Buffer) -> bool:
        inside = self._inside(offset, len(data))
        if inside == len(data):
            return self.device.write_now(offset, data)
        return False  # with what may have to be said about it

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        inside = self._inside(offset, len(data))
        if inside < len(data):
            # before anything is written
            if not is_zeros(memoryview(data)[inside:]):
                raise ExportError(
                    ENOSPC, f"only zeros can be written from {self.device.size} on: it is no room"
                )
            data = memoryview(data)[:inside]
        if inside:
            await super().write(offset, data, fua=fua)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        if inside := self._inside(offset, length):
            await super().zero(offset, inside, no_hole=no_hole, fua=fua, fast=fast)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        if inside := self._inside(offset, length):
            await super().trim(offset, inside, fua=fua)

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        if inside := self._inside(offset, length):
            return await self.device.extents(offset, inside, count=count)
        return [Extent(length, hole=True, zero=True)]

    async def prefetch(self, offset: int, length: int) -> None:
        if inside := self._inside(offset, length):
            await self.device.prefetch(offset, inside)

    def _inside(self, offset: int, length: int) -> int:
        """How many bytes of a range the device has."""
        return max(min(length, self.device.size - offset), 0)
