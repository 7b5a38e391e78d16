# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter offset PLUGIN offset=1M range=100M``"""

from collections.abc import Sequence
from dataclasses import dataclass

from swiftnbd.api import (
    OFFSET,
    SIZE,
    Buffer,
    ConfigError,
    Device,
    Extent,
    Filter,
    FilterPlugin,
    Opening,
    parameter,
)


@dataclass(frozen=True)
class Offset(FilterPlugin):
    """Only a range of the disk."""

    offset: int = parameter(OFFSET, "Where it begins.", default=0)
    range: int | None = parameter(SIZE, "How long it is; without it, to the end.", default=None)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        size = device.size - self.offset if self.range is None else self.range
        if size < 0 or self.offset + size > device.size:
            raise ConfigError(
                f"offset {self.offset} and range {max(size, 0)} reach beyond the {device.size} "
                f"bytes of the device"
            )
        return Window(device, self.offset, size)


class Window(Filter):
    """The ``size`` bytes of the device from ``start`` on, which it must have."""

    def __init__(self, device: Device, start: int, size: int) -> None:
        """Raises `ConfigError` if the device cannot be asked for what begins there."""
        super().__init__(device)
        if start % device.block_size_min:
            raise ConfigError(
                f"offset {start} is no multiple of {device.block_size_min} bytes, "
                f"the least that the device can be asked for"
            )
        self._start, self.size = start, size

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return self.device.read_now(self._start + offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        return self.device.write_now(self._start + offset, data)

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        return await self.device.read(self._start + offset, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await super().write(self._start + offset, data, fua=fua)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        await super().zero(self._start + offset, length, no_hole=no_hole, fua=fua, fast=fast)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await super().trim(self._start + offset, length, fua=fua)

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        return await self.device.extents(self._start + offset, length, count=count)

    async def prefetch(self, offset: int, length: int) -> None:
        await self.device.prefetch(self._start + offset, length)
