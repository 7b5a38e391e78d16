# SPDX-License-Identifier: MIT
"""The partition filter: tables written out here byte by byte, whole ones and hostile ones."""

import random
import struct
import zlib

import pytest

from swiftnbd.api import ConfigError, Device, ExportUnusable, Opening
from swiftnbd.filters.partition import Partition
from swiftnbd.plugins.memory import MemoryDevice
from tests.support.log_watch import Announce

DISK_BYTES = 1024 * 1024
OPENING = Opening("disk")

Entry = tuple[int, int, int]  # type, first sector, sectors


def mbr(*entries: Entry) -> bytes:
    sector = bytearray(512)
    for number, (kind, first, sectors) in enumerate(entries):
        struct.pack_into("<II", sector, 446 + 16 * number + 8, first, sectors)
        sector[446 + 16 * number + 4] = kind
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def gpt(
    sector: int, own: int, entries_at: int, parts: dict[int, tuple[int, int]], **changed: int
) -> tuple[bytes, bytes]:
    """Header and entries; ``parts`` are first and last sector by number."""
    entries = bytearray(128 * 128)
    for number, (first, last) in parts.items():
        at = 128 * (number - 1)
        entries[at : at + 16] = b"a type, not none"
        struct.pack_into("<QQ", entries, at + 32, first, last)
    told = {"size": 92, "count": 128, "each": 128, "crc": zlib.crc32(entries)} | changed
    header = bytearray(sector)
    struct.pack_into(
        "<8sIIIIQQQQ16sQIII",
        header, 0,
        b"EFI PART", 0x10000, told["size"], 0, 0, own, 0, 0, 0, bytes(16),
        entries_at, told["count"], told["each"], told["crc"],
    )  # fmt: skip
    struct.pack_into("<I", header, 16, zlib.crc32(header[: told["size"]]))
    return bytes(header), bytes(entries)


def disk(*contents: tuple[int, bytes], size: int = DISK_BYTES) -> MemoryDevice:
    device = MemoryDevice(size)
    for at, data in contents:
        device.write_now(at, data)
    return device


def gpt_disk(sector: int = 512, **changed: int) -> MemoryDevice:
    """Partitions 1 and 3, with a table at either end."""
    parts = {1: (40, 47), 3: (100, 199)}
    last = DISK_BYTES // sector - 1
    entries_last = last - 16384 // sector
    first = gpt(sector, 1, 2, parts, **changed)
    backup = gpt(sector, last, entries_last, parts)
    return disk(
        (0, mbr((0xEE, 1, 2047))),
        (sector, first[0]),
        (2 * sector, first[1]),
        (entries_last * sector, backup[1]),
        (last * sector, backup[0]),
    )


async def found(device: Device, number: int, sector: int | None = None) -> tuple[int, int]:
    """Where a partition begins, and its size: asked by writing to its start."""
    before = b"".join(await device.read(0, device.size))
    part = await Partition(partition=number, partition_sectorsize=sector).wrap(device, OPENING)
    mark = random.Random(number).randbytes(32)
    assert part.write_now(0, mark)
    after = b"".join(await device.read(0, device.size))
    start = after.index(mark)
    assert after == before[:start] + mark + before[start + 32 :]
    device.write_now(start, before[start : start + 32])
    return start, part.size


async def refusal(device: Device, number: int = 1) -> str:
    with pytest.raises(ExportUnusable) as caught:
        await Partition(partition=number).wrap(device, OPENING)
    return str(caught.value)


async def test_primary_partitions_are_numbered_by_their_entry() -> None:
    device = disk((0, mbr((0x83, 1, 2), (0, 0, 0), (0x07, 10, 20), (0x83, 2047, 1))))
    assert await found(device, 1) == (512, 1024)
    assert await found(device, 3) == (5120, 10240)
    assert await found(device, 4) == (DISK_BYTES - 512, 512)
    assert await refusal(device, 2) == "there is no partition 2; there are: 1, 3, 4"
    assert await found(disk((0, mbr((0x83, 1, 2)))), 1, 4096) == (4096, 8192)


async def test_logical_partitions_follow_from_5_on() -> None:
    device = disk(
        (0, mbr((0x83, 1, 2), (0x05, 100, 900))),
        (100 * 512, mbr((0x83, 1, 50), (0x05, 200, 100))),
        (300 * 512, mbr((0, 0, 0), (0x05, 400, 100))),  # an empty one has no number
        (500 * 512, mbr((0x83, 2, 7))),
    )
    assert await found(device, 5) == (101 * 512, 50 * 512)
    assert await found(device, 6) == (502 * 512, 7 * 512)
    assert await refusal(device, 2) == "there is no partition 2; there are: 1, 5, 6"


async def test_chain_that_is_a_ring_ends() -> None:
    device = disk((0, mbr((0x05, 100, 900))), (100 * 512, mbr((0x83, 1, 50), (0x05, 0, 100))))
    assert (await refusal(device, 300)).endswith(", 254, 255")


async def test_broken_chain_is_refused() -> None:
    for at in (100, 0xFFFFFFFF):
        text = await refusal(disk((0, mbr((0x05, at, 900)))), 5)
        assert text == f"the chain of logical partitions is broken at sector {at}"


@pytest.mark.parametrize("sector", [512, 4096])
async def test_gpt_of_either_sector_size_is_found(sector: int) -> None:
    assert await found(gpt_disk(sector), 1) == (40 * sector, 8 * sector)
    assert await found(gpt_disk(sector), 3, sector) == (100 * sector, 100 * sector)
    assert await refusal(gpt_disk(sector), 2) == "there is no partition 2; there are: 1, 3"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"size": 91}, "a header of 91 bytes cannot be"),
        ({"size": 513}, "a header of 513 bytes cannot be"),
        ({"count": 0}, "0 entries of 128 bytes cannot be"),
        ({"count": 1 << 31}, "2147483648 entries of 128 bytes cannot be"),
        ({"each": 64}, "128 entries of 64 bytes cannot be"),
        ({"each": 132}, "128 entries of 132 bytes cannot be"),
        ({"crc": 1}, "the checksum of its entries is wrong"),
    ],
)
async def test_damaged_gpt_is_replaced_by_that_at_the_end(
    changed: dict[str, int], reason: str, expects_log: Announce
) -> None:
    device = gpt_disk(**changed)
    expects_log(f"the partition table \\(GPT\\) is damaged: {reason}; using that at the end")
    assert await found(device, 3) == (100 * 512, 100 * 512)
    device.write_now(DISK_BYTES - 512 + 40, b"damage")
    assert await refusal(device) == (
        f"both partition tables (GPT) are damaged: {reason}; at the end of the disk, "
        f"the checksum of its header is wrong"
    )


async def test_gpt_whose_start_was_wiped_is_found_at_the_end(expects_log: Announce) -> None:
    device = gpt_disk()
    device.write_now(512, bytes(512))
    expects_log("is damaged: it has no signature")
    assert await found(device, 1) == (40 * 512, 8 * 512)


async def test_old_gpt_behind_a_newer_mbr_is_not_used() -> None:
    device = gpt_disk()
    device.write_now(0, mbr((0x83, 7, 2)))
    assert await found(device, 1) == (7 * 512, 1024)
    device.write_now(0, bytes(512))  # and without any MBR it is
    assert await found(device, 1) == (40 * 512, 8 * 512)


@pytest.mark.parametrize("size", [0, 100, 511, 512, 520, 4096])
async def test_disk_without_a_table_is_refused(size: int) -> None:
    assert await refusal(disk(size=size)) == "there is no partition table on the disk"


async def test_protective_mbr_alone_is_no_partition() -> None:
    text = await refusal(disk((0, mbr((0xEE, 1, 2047)))))
    assert text == "the MBR says that there is a GPT on the disk, and there is none"


@pytest.mark.parametrize("entry", [(0x83, 0, 5), (0x83, 2000, 49), (0x83, 0xFFFFFFFF, 0xFFFFFFFF)])
async def test_partition_outside_the_disk_is_refused(entry: Entry) -> None:
    assert "is not inside the disk of 1048576 bytes" in await refusal(disk((0, mbr(entry))))


async def test_garbage_is_refused_in_one_sentence() -> None:
    chance, good = random.Random(4), gpt_disk()
    table = bytearray(b"".join(await good.read(0, 3 * 512)))
    for _ in range(300):
        broken = bytearray(table)
        for _ in range(chance.choice((1, 5, 100))):
            broken[chance.randrange(440, len(broken))] = chance.randrange(256)
        device = disk((0, bytes(broken)), size=4096 * chance.choice((1, 3, 100)))
        try:
            part = await Partition(partition=1).wrap(device, OPENING)
        except ExportUnusable:
            continue
        assert 0 < part.size < device.size


async def test_sector_size_is_one_that_there_is() -> None:
    with pytest.raises(ConfigError, match="neither 512 nor 4K"):
        Partition(partition=1, partition_sectorsize=1024)
