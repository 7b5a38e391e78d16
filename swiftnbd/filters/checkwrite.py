# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter checkwrite PLUGIN``"""

from collections.abc import Iterator
from dataclasses import dataclass
from errno import EIO
from typing import Final

from swiftnbd.api import Buffer, Device, ExportError, Filter, FilterPlugin, Opening
from swiftnbd.buffers import is_zeros

COMPARED_BYTES: Final = 1024 * 1024  # at once
EXTENTS: Final = 64  # asked for at once


@dataclass(frozen=True)
class CheckWrite(FilterPlugin):
    """Writes nothing: what is written must be what is there, else it fails with EIO.

    So it finds programs that copy wrongly. Zeros and trims must find zeros.
    """

    async def wrap(self, device: Device, opening: Opening) -> Device:
        return CheckWriteFilter(device)


class CheckWriteFilter(Filter):
    """The device is only read, so it may be a read-only one."""

    read_only = False
    can_flush = can_fua = can_trim = can_zero = True
    can_fast_zero = False
    multi_conn = True  # nothing ever changes

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        if not await holds(self.device, offset, data):
            raise ExportError(EIO, f"what is written at {offset}+{len(data)} is not what is there")

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        if not await holds_zeros(self.device, offset, length):
            raise ExportError(EIO, f"there are not only zeros at {offset}+{length}")

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self.zero(offset, length)

    async def flush(self) -> None:
        pass


async def holds(device: Device, offset: int, data: Buffer) -> bool:
    """Whether these bytes are there. The range need not be in whole blocks of the device."""
    start, view = offset, memoryview(data)
    for at, length in _parts(device, offset, len(view)):
        there = b"".join(await device.read(at, length))
        skipped = max(start - at, 0)
        wanted = view[max(at - start, 0) : at + length - start]
        if there[skipped : skipped + len(wanted)] != bytes(wanted):
            return False
    return True


async def holds_zeros(device: Device, offset: int, length: int) -> bool:
    """`holds`, for zeros: what is known to be zeros is not read."""
    end = offset + length
    while offset < end:
        start = offset - offset % device.block_size_min
        stop = end + -end % device.block_size_min
        for extent in await device.extents(start, stop - start, count=EXTENTS):
            upto = max(min(start + extent.length, end), offset)
            if (
                upto > offset
                and not extent.zero
                and not await _is_zeros(device, offset, upto - offset)
            ):
                return False
            start, offset = start + extent.length, upto
    return True


async def _is_zeros(device: Device, offset: int, length: int) -> bool:
    end = offset + length
    for at, here in _parts(device, offset, length):
        pieces = await device.read(at, here)
        if at < offset or at + here > end:
            pieces = [b"".join(pieces)[max(offset - at, 0) : end - at]]
        if not all(map(is_zeros, pieces)):
            return False
    return True


def _parts(device: Device, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """The range in whole blocks of the device, in pieces that it may be asked for."""
    most = min(COMPARED_BYTES, device.block_size_max)
    at, end = offset - offset % device.block_size_min, offset + length
    end += -end % device.block_size_min
    while at < end:
        here = min(most, end - at)
        yield at, here
        at += here
