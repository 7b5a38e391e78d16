# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter cow file disk.img``"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from errno import ENOTSUP
from pathlib import Path
from typing import Final

from swiftnbd.api import (
    BOOLEAN,
    PATH,
    Buffer,
    ConfigError,
    Device,
    ExportError,
    Extent,
    Filter,
    FilterPlugin,
    Kind,
    Opening,
    hole,
    parameter,
    size,
)
from swiftnbd.api.access import read_bytes, write_bytes
from swiftnbd.api.ending import ENDING
from swiftnbd.errors import ExportUnusable
from swiftnbd.filters.cow.sharing import Overlays, Shared

BLOCK_BYTES_DEFAULT: Final = 64 * 1024
BLOCK_BYTES_MIN: Final = 4096
BLOCK_BYTES_MAX: Final = 16 * 1024 * 1024  # read and written for each byte that is written
COMMIT_BYTES: Final = 4 * 1024 * 1024  # at once
RUNS_MAX: Final = 256  # looked at for one answer of block status
ZEROS_BYTES: Final = 1024 * 1024
_FOLDER_DEFAULT: Final = Path("/var/tmp")  # noqa: S108 - the file has no name there


def _on_read(text: str) -> bool | Path:
    if text.startswith("/"):
        return Path(text)
    return bool(BOOLEAN.parse(text))


def _shown_on_read(value: bool | Path) -> str:
    return str(value) if isinstance(value, Path) else BOOLEAN.show(value)


ON_READ: Final = Kind(
    "yes|no|/PATH", "yes, no or the full path of a file", _on_read, _shown_on_read
)


@dataclass(frozen=True)
class Cow(FilterPlugin):
    """Makes a disk writable without changing it: what is written goes to a local file."""

    cow_block_size: int = parameter(
        size(BLOCK_BYTES_MIN), "Blocks of the overlay, a power of two.", default=BLOCK_BYTES_DEFAULT
    )
    cow_file: Path | None = parameter(
        PATH, "The overlay, which stays; without it, it is thrown away.", default=None
    )
    cow_commit: bool = parameter(
        BOOLEAN, "At the end, write the overlay back into the disk and empty it.", default=False
    )
    cow_on_cache: bool = parameter(
        BOOLEAN, "Put into the overlay what clients ask to be cached.", default=False
    )
    cow_on_read: bool | Path = parameter(
        ON_READ, "Put into the overlay what is read; or as long as a file exists.", default=False
    )
    cow_directory: Path = parameter(
        PATH, "Where an overlay is that is thrown away.", default=_FOLDER_DEFAULT
    )
    _overlays: Overlays = field(init=False, compare=False, repr=False, default_factory=Overlays)

    def __post_init__(self) -> None:
        if self.cow_block_size & (self.cow_block_size - 1) or self.cow_block_size > BLOCK_BYTES_MAX:
            raise ConfigError("cow-block-size is no power of two from 4K to 16M")
        if self.cow_commit and self.cow_file is None:
            raise ConfigError("cow-commit needs a cow-file, which is there if it is cut short")

    async def wrap(self, device: Device, opening: Opening) -> Device:
        if self.cow_commit and device.read_only:
            raise ExportUnusable("cow-commit: the disk is read-only")
        if self.cow_block_size < device.block_size_min:
            raise ExportUnusable(
                f"cow-block-size is less than the disk's smallest block, {device.block_size_min}"
            )
        shared = await self._overlays.join(
            opening.name, device.size, self.cow_block_size, self.cow_file, self.cow_directory
        )
        return CowFilter(device, shared, self, commits=self.cow_commit and not opening.only_look)

    async def stop(self) -> None:
        self._overlays.end_all()


class CowFilter(Filter):
    """Blocks that were written to are in ``overlay``, all others are those of ``device``.

    A block is in the overlay wholly or not at all. Who puts one there holds it, so that what it
    read of the rest of the block stays true until it is written.
    """

    block_size_min = 1
    read_only = False
    can_flush = True
    can_fua = False
    can_trim = True
    can_zero = True
    can_fast_zero = False
    multi_conn = None

    def __init__(self, device: Device, shared: Shared, told: Cow, *, commits: bool) -> None:
        """``commits``: whether it writes back, if it is the last one."""
        super().__init__(device)
        self.can_prefetch = device.can_prefetch or told.cow_on_cache
        self._overlay, self._threads, self._lock = shared.overlay, shared.threads, shared.lock
        self._shared, self._told, self._commits = shared, told, commits
        self._block = shared.overlay.block_bytes
        self._is_open = self._is_user = True

    def _blocks(self, offset: int, length: int) -> tuple[int, int]:
        """The blocks that a range touches."""
        return offset // self._block, -(-(offset + length) // self._block)

    def _place(self, block: int) -> int:
        """Where a block begins, or the disk ends."""
        return min(block * self._block, self.size)

    # Reading

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        is_here, end = self._run(offset, offset + length)
        if end < offset + length:
            return None
        if is_here:
            data = self._overlay.read_now(offset, length)
            return None if data is None else (data,)
        # unless reading is to change where it is
        return None if self._told.cow_on_read else self.device.read_now(offset, length)

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        if self._keeps_reads():
            await self._keep(offset, length)
        found: list[Buffer] = []
        end = offset + length
        while offset < end:
            is_here, stop = self._run(offset, end)
            if is_here:
                found.append(await self._threads.run(self._overlay.read, offset, stop - offset))
            elif self.device.block_size_min == 1:
                found += await self._read_device(offset, stop - offset)
            else:
                found.append(await read_bytes(self.device, offset, stop - offset))
            offset = stop
        return found

    async def _read_device(self, offset: int, length: int) -> Sequence[Buffer]:
        """As the device gives it, with its holes."""
        if length > self.device.block_size_max:
            return (await read_bytes(self.device, offset, length),)
        return await self.device.read(offset, length)

    def _run(self, offset: int, end: int) -> tuple[bool, int]:
        """Whether a byte is in the overlay, and where before ``end`` that changes."""
        first, last = self._blocks(offset, end - offset)
        is_here, stop = self._overlay.run(first, last)
        return is_here, min(self._place(stop), end)

    def _keeps_reads(self) -> bool:
        wanted = self._told.cow_on_read
        return wanted if isinstance(wanted, bool) else wanted.exists()

    async def _keep(self, offset: int, length: int) -> None:
        """Put the blocks of a range into the overlay, if there is room."""
        first, last = self._blocks(offset, length)
        async with self._lock.exclusive(self._place(first), self._place(last)):
            at = first
            with suppress(OSError):  # what is read is read from the device then
                while at < last:
                    is_here, stop = self._overlay.run(at, last)
                    if not is_here:
                        start, end = self._place(at), self._place(stop)
                        data = await read_bytes(self.device, start, end - start)
                        await self._threads.call(self._overlay.write, start, [data])
                        self._overlay.mark(at, stop)
                    at = stop

    async def prefetch(self, offset: int, length: int) -> None:
        if self._told.cow_on_cache:
            await self._keep(offset, length)
            return
        if not self.device.can_prefetch:
            return
        least, end = self.device.block_size_min, offset + length
        while offset < end:
            is_here, stop = self._run(offset, end)
            if not is_here:
                start = offset // least * least
                await self.device.prefetch(start, -(-stop // least) * least - start)
            offset = stop

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        found: list[Extent] = []
        at, end = offset, offset + length
        for _ in range(RUNS_MAX):
            is_here, stop = self._run(at, end)
            left = count - len(found)
            if is_here:
                told = await self._threads.run(self._overlay.holes, at, stop - at, left)
                # a block that is here and takes no room is zeros, whatever the device has there
                found += [Extent(length, is_hole, is_hole) for length, is_hole in told]
            else:
                found += await self._extents_below(at, stop, left)
            at = offset + sum(each.length for each in found)
            if at >= end or len(found) >= count:
                break
        return found

    async def _extents_below(self, offset: int, end: int, count: int) -> list[Extent]:
        """What the device says, asked in blocks that suit it."""
        least = self.device.block_size_min
        start, stop = offset // least * least, -(-end // least) * least
        found: list[Extent] = []
        for length, is_hole, zero in await self.device.extents(start, stop - start, count=count):
            here = min(start + length, end) - max(start, offset)
            start += length
            if here > 0:
                found.append(Extent(here, is_hole, zero))
        return found or [Extent(end - offset, hole=False, zero=False)]

    # Writing

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        first, last = self._blocks(offset, len(data))
        async with self._lock.exclusive(self._place(first), self._place(last)):
            await self._write(first, last, offset, data)

    async def _write(self, first: int, last: int, offset: int, data: Buffer) -> None:
        end = offset + len(data)
        start = offset if self._overlay.here(first) else self._place(first)
        stop = end if self._overlay.here(last - 1) else self._place(last)
        before = await read_bytes(self.device, start, offset - start)
        after = await read_bytes(self.device, end, stop - end)
        await self._threads.call(self._overlay.write, start, [before, data, after])
        self._overlay.mark(first, last)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        if fast:
            raise ExportError(ENOTSUP, "zeros may have to be written")
        end = offset + length
        start, stop = self._inside(offset, end)
        if no_hole or start >= stop:
            await self._write_zeros(offset, end)
            return
        await self._write_zeros(offset, start)
        await self._clear(start, stop)
        await self._write_zeros(stop, end)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        start, stop = self._inside(offset, offset + length)
        if start < stop:
            await self._clear(start, stop)

    def _inside(self, offset: int, end: int) -> tuple[int, int]:
        """The whole blocks of a range; the last of the disk is whole as it is."""
        stop = end if end == self.size else end // self._block * self._block
        return -(-offset // self._block) * self._block, stop

    async def _clear(self, start: int, stop: int) -> None:
        async with self._lock.exclusive(start, stop):
            await self._threads.call(self._overlay.clear, start, stop - start)
            self._overlay.mark(*self._blocks(start, stop - start))

    async def _write_zeros(self, start: int, end: int) -> None:
        for at in range(start, end, ZEROS_BYTES):
            await self.write(at, hole(min(ZEROS_BYTES, end - at)))

    # The end

    async def flush(self) -> None:
        if not self._overlay.stays:
            return
        # pages of an earlier flush must not come after those of a later
        async with self._shared.flushing:
            pages = self._overlay.changed()
            await self._threads.call(self._overlay.flush, pages)

    async def close(self) -> None:
        if self._is_user:
            self._is_user = False
            self._shared.users -= 1
        # nobody joins meanwhile: an export opens and closes its devices in turn
        if self._is_open and not self._shared.users:
            if self._commits:
                await self._commit()
            await self.flush()
            self._told._overlays.end(self._shared)
        self._is_open = False
        await super().close()

    async def _commit(self) -> None:
        """Write all blocks of the overlay to the device, and only then take them out of it."""
        at, last = 0, self._blocks(0, self.size)[1] if self.size else 0
        is_any = False
        while at < last:
            is_here, stop = self._overlay.run(at, last)
            if is_here:
                is_any = True
                await self._commit_run(self._place(at), self._place(stop))
            at = stop
        if is_any:
            await self.device.flush()
            self._overlay.forget()
            await self.flush()
            await self._threads.call(self._overlay.clear, 0, self.size)

    async def _commit_run(self, start: int, end: int) -> None:
        least = self.device.block_size_min
        while start < end:
            here = min(COMMIT_BYTES, end - start)
            length, is_hole = (await self._threads.run(self._overlay.holes, start, here, 1))[0]
            # a hole of the overlay's file system may be smaller than the device's blocks
            if is_hole and self.device.can_zero and length >= least:
                length -= length % least
                await self.device.zero(start, length)
            else:
                length = -(-length // least) * least
                data = await self._threads.run(self._overlay.read, start, length)
                await write_bytes(self.device, start, data)
            start += length
            ENDING.moved()
