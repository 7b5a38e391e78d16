# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter partition PLUGIN partition=1``

Tables as in UEFI 2.10, chapter 5 (GPT), and as the PC has them (MBR, with logical partitions in a
chain from an extended one). Numbers are those that Linux gives. All of it is hostile: nothing is
followed further, or made larger, than there are limits for here.
"""

import logging
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from swiftnbd.api import (
    Buffer,
    ConfigError,
    Device,
    ExportUnusable,
    FilterPlugin,
    Opening,
    integer,
    parameter,
    size,
)
from swiftnbd.filters.offset import Window

SECTOR_BYTES: Final = (512, 4096)
LOGICAL_MAX: Final = 251  # up to number 255, as Linux has it; and a chain may be a ring
ENTRIES_BYTES_MAX: Final = 1024 * 1024  # of a GPT; the usual 128 entries have 16 KiB

_MBR_ENTRY: Final = struct.Struct("<4xB3xII")  # type, first sector, sectors
_MBR_ENTRIES_AT: Final = 446
_MBR_SIGNATURE: Final = b"\x55\xaa"
_PROTECTIVE: Final = 0xEE
_EXTENDED: Final = (0x05, 0x0F, 0x85)

_GPT_SIGNATURE: Final = b"EFI PART"
# signature, size and CRC of the header; its sector; sector, number, size and CRC of the entries
_GPT_HEADER: Final = struct.Struct("<8s4xII4xQ8x8x8x16xQIII")
_GPT_ENTRY: Final = struct.Struct("<16s16xQQ")  # type, first sector, last sector

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Partition(FilterPlugin):
    """One partition of the disk, by its number in the MBR or GPT."""

    partition: int = parameter(integer(1), "Its number; logical ones begin at 5.")
    partition_sectorsize: int | None = parameter(
        size(512), "The table's sectors, 512 or 4K; without it, 512 unless a GPT says so.",
        default=None,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.partition_sectorsize not in (None, *SECTOR_BYTES):
            raise ConfigError("partition-sectorsize is neither 512 nor 4K")

    async def wrap(self, device: Device, opening: Opening) -> Device:
        given = self.partition_sectorsize
        found = await partitions(device, SECTOR_BYTES if given is None else (given,))
        if self.partition not in found:
            numbers = ", ".join(map(str, found)) or "none"
            raise ExportUnusable(f"there is no partition {self.partition}; there are: {numbers}")
        part = found[self.partition]
        if not 0 < part.start < part.end <= device.size:
            raise ExportUnusable(
                f"partition {self.partition}, bytes {part.start} to {part.end}, is not inside the "
                f"disk of {device.size} bytes"
            )
        return Window(device, part.start, part.end - part.start)


class Range(NamedTuple):
    """Where a partition lies, in bytes, as the table has it: perhaps nowhere."""

    start: int
    end: int


class _Entry(NamedTuple):
    """One of the four of an MBR, or of the sector that stands before a logical partition."""

    type: int
    first: int
    sectors: int


class _DamagedError(Exception):
    """A GPT that is not as it was written; says how."""


async def partitions(device: Device, sector_bytes: tuple[int, ...]) -> dict[int, Range]:
    """All of them, by number. Raises `ExportUnusable` if there is no table, or none that holds."""
    mbr = await _read(device, 0, 512)
    entries = _mbr_entries(mbr)
    # An old GPT may be left behind a table that was made later: then the MBR is in force.
    is_protective = any(entry.type == _PROTECTIVE for entry in entries or ())
    if entries is None or is_protective:
        for sector in sector_bytes:
            if (await _read(device, sector, len(_GPT_SIGNATURE))) == _GPT_SIGNATURE:
                return await _gpt(device, sector)
            if is_protective and (await _read_last(device, sector))[:8] == _GPT_SIGNATURE:
                return await _gpt(device, sector)
    if entries is None:
        raise ExportUnusable("there is no partition table on the disk")
    if is_protective:
        raise ExportUnusable("the MBR says that there is a GPT on the disk, and there is none")
    return await _mbr(device, entries, sector_bytes[0])


# MBR


def _mbr_entries(sector: bytes) -> list[_Entry] | None:
    """Those that are in use have a type and sectors; None if it is no such sector."""
    if sector[510:512] != _MBR_SIGNATURE:
        return None
    return [_Entry(*each) for each in _MBR_ENTRY.iter_unpack(sector[_MBR_ENTRIES_AT:510])]


async def _mbr(device: Device, entries: list[_Entry], sector: int) -> dict[int, Range]:
    found: dict[int, Range] = {}
    logical: list[Range] = []
    for number, entry in enumerate(entries, 1):
        if entry.type in _EXTENDED:
            logical += await _logical(device, entry, sector, LOGICAL_MAX - len(logical))
        elif entry.type and entry.sectors:
            found[number] = _range(entry.first, entry.sectors, sector)
    return found | dict(enumerate(logical, 5))


async def _logical(device: Device, extended: _Entry, sector: int, most: int) -> list[Range]:
    """Each is described by a sector of its own, which also says where the next such sector is."""
    found: list[Range] = []
    at: int | None = extended.first
    for _ in range(most):
        if at is None:
            break
        entries = _mbr_entries(await _read(device, at * sector, 512))
        if entries is None:
            raise ExportUnusable(f"the chain of logical partitions is broken at sector {at}")
        following = None
        for entry in entries[:2]:
            if entry.type in _EXTENDED and entry.sectors:
                following = extended.first + entry.first
            elif entry.type and entry.sectors:
                found.append(_range(at + entry.first, entry.sectors, sector))
        at = following
    return found


def _range(first: int, sectors: int, sector: int) -> Range:
    return Range(first * sector, (first + sectors) * sector)


# GPT


async def _gpt(device: Device, sector: int) -> dict[int, Range]:
    """The table at the start, or if that is damaged the other one, at the end."""
    last = device.size // sector - 1
    try:
        return dict(await _gpt_at(device, 1, sector))
    except _DamagedError as error:
        reason = str(error)
    try:
        found = dict(await _gpt_at(device, last, sector))
    except _DamagedError as error:
        raise ExportUnusable(
            f"both partition tables (GPT) are damaged: {reason}; at the end of the disk, {error}"
        ) from None
    log.warning("the partition table (GPT) is damaged: %s; using that at the end", reason)
    return found


async def _gpt_at(device: Device, at: int, sector: int) -> Iterator[tuple[int, Range]]:
    header = await _read(device, at * sector, sector)
    if len(header) < sector or header[:8] != _GPT_SIGNATURE:
        raise _DamagedError("it has no signature")
    _, length, crc, own, entries_at, count, each, entries_crc = _GPT_HEADER.unpack_from(header)
    if not _GPT_HEADER.size <= length <= sector:
        raise _DamagedError(f"a header of {length} bytes cannot be")
    if zlib.crc32(header[:16] + bytes(4) + header[20:length]) != crc or own != at:
        raise _DamagedError("the checksum of its header is wrong")
    if not 128 <= each <= sector or each % 8 or not 0 < count * each <= ENTRIES_BYTES_MAX:
        raise _DamagedError(f"{count} entries of {each} bytes cannot be")
    entries = await _read(device, entries_at * sector, count * each)
    if zlib.crc32(entries) != entries_crc or len(entries) < count * each:
        raise _DamagedError("the checksum of its entries is wrong")
    return _gpt_entries(entries, each, sector)


def _gpt_entries(entries: bytes, each: int, sector: int) -> Iterator[tuple[int, Range]]:
    for number, at in enumerate(range(0, len(entries), each), 1):
        kind, first, last = _GPT_ENTRY.unpack_from(entries, at)
        if any(kind):
            yield number, Range(first * sector, (last + 1) * sector)


# Reading


async def _read_last(device: Device, sector: int) -> bytes:
    return await _read(device, max(device.size // sector - 1, 0) * sector, sector)


async def _read(device: Device, offset: int, length: int) -> bytes:
    """So many bytes, or fewer at the end of the device; whatever its smallest block is."""
    end = min(offset + length, device.size)
    at = start = offset - offset % device.block_size_min
    pieces: list[Buffer] = []
    while at < end:
        here = min(end - at, device.block_size_max)
        here += -here % device.block_size_min
        pieces += await device.read(at, here)
        at += here
    return b"".join(pieces)[offset - start :][: max(end - offset, 0)]
