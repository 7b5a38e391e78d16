# SPDX-License-Identifier: MIT
"""The filters xz and gzip: what was compressed is read, in any order, and no file hurts us."""

import asyncio
import gzip
import lzma
import random
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import pytest

from swiftnbd.api import Buffer, Device, ExportError, FilterPlugin, Opening
from swiftnbd.errors import ExportUnusable
from swiftnbd.filters.gzip import PLACES_MAX, Gzip, GzipFilter
from swiftnbd.filters.xz import Xz, XzFilter
from swiftnbd.filters.xz.container import _packed
from swiftnbd.plugins.memory import MemoryDevice
from tests.support.clients import find

KiB, MiB = 1024, 1024 * 1024
OPENING = Opening("disk")


class Blocks(MemoryDevice):
    """A file in whole blocks, with zeros at its end where the last one is not full."""

    block_size_min = 512
    block_size_max = 64 * KiB

    def __init__(self, data: bytes) -> None:
        super().__init__(-(-len(data) // 512) * 512)
        super().write_now(0, data)
        self.reads = 0

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        assert not (offset | length) % 512
        assert length <= 64 * KiB
        self.reads += length
        await asyncio.sleep(0)
        return self._pieces(offset, length)


def image(size: int, seed: int = 1) -> bytes:
    """Some of it random, some of it zeros, some text."""
    chance, data = random.Random(seed), bytearray()
    while len(data) < size:
        length = chance.randrange(1, 200_000)
        data += chance.choice((chance.randbytes(length), bytes(length), b"abcdefg" * (length // 7)))
    return bytes(data[:size])


def xz(data: bytes, *arguments: str) -> bytes:
    command = [str(find("xz")), "-0", "-T1", *arguments]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


async def check(device: Device, data: bytes, reads: int = 60) -> None:
    assert device.size == len(data)
    assert device.read_only
    chance = random.Random(5)

    async def read() -> None:
        offset = chance.randrange(len(data))
        length = min(chance.choice((1, 511, 4096, 70_000, 600_000)), len(data) - offset)
        expected = data[offset : offset + length]
        pieces = device.read_now(offset, length)
        assert pieces is None or b"".join(pieces) == expected
        assert b"".join(await device.read(offset, length)) == expected

    for _ in range(reads // 6):
        await asyncio.gather(*(read() for _ in range(6)))
    assert b"".join(await device.read(0, len(data))) == data
    await device.close()


@pytest.mark.parametrize("size", ["one", "many", "streams"])
async def test_image_is_read_from_an_xz_file(size: str) -> None:
    data = image(3 * MiB + 5)
    if size == "streams":
        parts = (data[: 7 * KiB], b"", data[7 * KiB : MiB], data[MiB:])
        stored = b"".join(xz(part, "-C", "sha256") + bytes(8) for part in parts)
    else:
        stored = xz(data, *(["--block-size=100000"] if size == "many" else []))
    device = await Xz(xz_max_depth=3).wrap(Blocks(stored + bytes(-len(stored) % 4)), OPENING)
    assert isinstance(device, XzFilter)
    await check(device, data)
    assert len(device._kept) <= 3


@pytest.mark.parametrize("members", [1, 3])
async def test_image_is_read_from_a_gzip_file(members: int) -> None:
    data = image(5 * MiB + 5)
    part = len(data) // members + 1
    stored = b"".join(gzip.compress(data[at : at + part], 1) for at in range(0, len(data), part))
    device = await Gzip().wrap(Blocks(stored), OPENING)
    await check(device, data, reads=30)


async def test_reading_on_decompresses_nothing_twice() -> None:
    data = image(8 * MiB)
    inner = Blocks(gzip.compress(data, 1))
    device = await Gzip().wrap(inner, OPENING)
    inner.reads = 0
    for at in range(0, len(data), 128 * KiB):
        assert b"".join(await device.read(at, 128 * KiB)) == data[at : at + 128 * KiB]
    assert inner.reads < 2 * inner.size
    inner.reads = 0
    await device.read(7 * MiB, 1)  # kept
    assert not inner.reads
    await device.close()


async def test_places_in_a_gzip_file_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swiftnbd.filters.gzip.PLACES_MAX", 4)
    data = image(12 * MiB)
    device = await Gzip().wrap(Blocks(gzip.compress(data, 1)), OPENING)
    assert isinstance(device, GzipFilter)
    assert 2 <= len(device._places) <= 4 < PLACES_MAX
    await check(device, data, reads=12)


async def test_reader_that_gives_up_leaves_the_others_what_they_want() -> None:
    data = image(4 * MiB)
    for plugin, stored in ((Gzip(), gzip.compress(data, 1)), (Xz(), xz(data, "--block-size=1MiB"))):
        device = await plugin.wrap(Blocks(stored), OPENING)
        for seed in range(10):
            reading = [asyncio.create_task(device.read(at * MiB, MiB)) for at in (0, 3, 0, 1, 2)]
            for _ in range(seed * 3):
                await asyncio.sleep(0)
            reading[seed % 4].cancel()
            got = await asyncio.gather(*reading, return_exceptions=True)
            for at, pieces in zip((0, 3, 0, 1, 2), got, strict=True):
                if not isinstance(pieces, BaseException):
                    assert b"".join(pieces) == data[at * MiB : (at + 1) * MiB]
            assert isinstance(got[4], list)
        await device.close()


@pytest.mark.parametrize("plugin", [Gzip(), Xz()])
@pytest.mark.parametrize("data", [b"", b"x", b"not compressed at all" * 100, bytes(100_000)])
async def test_other_files_are_told_of(plugin: FilterPlugin, data: bytes) -> None:
    with pytest.raises(ExportUnusable, match=r"it does not end like an xz file|gzip: "):
        await plugin.wrap(MemoryDevice(len(data)) if not any(data) else Blocks(data), OPENING)


async def test_gzip_file_that_is_cut_short_or_followed_by_others_is_told_of() -> None:
    stored = gzip.compress(image(300_000))
    for data in (stored[:-9], stored + b"!"):
        with pytest.raises(ExportUnusable, match="gzip: "):
            await Gzip().wrap(MemoryFile(data), OPENING)


class MemoryFile(MemoryDevice):
    """A file as long as it is."""

    def __init__(self, data: bytes) -> None:
        super().__init__(len(data))
        self.write_now(0, data)


@pytest.mark.parametrize("seed", range(60))
async def test_damage_is_an_error_or_does_not_matter(seed: int) -> None:
    """Never other bytes: xz and gzip have checksums, and they are looked at."""
    chance, data = random.Random(seed), image(200_000)
    plugin: FilterPlugin = Gzip() if seed % 2 else Xz()
    stored = bytearray(gzip.compress(data, 1) if seed % 2 else xz(data, "--block-size=50000"))
    match seed % 3:
        case 0:
            stored[chance.randrange(len(stored))] ^= 1 << chance.randrange(8)
        case 1:  # where all the structure is
            place = chance.choice((chance.randrange(12), -1 - chance.randrange(60)))
            stored[place] = chance.randrange(256)
        case _:
            del stored[chance.randrange(len(stored)) :]
    said = ""
    try:
        device = await plugin.wrap(MemoryFile(bytes(stored)), OPENING)
        found = b"".join(await device.read(0, device.size))
        said = "as it was" if found == data else ""
    except (ExportUnusable, ExportError) as error:
        said = str(error)
    assert said
    assert said.startswith(("as it was", "xz: ", "gzip: "))


def with_index(records: bytes, blocks: bytes = b"") -> bytes:
    """A file whose index says that."""
    flags = b"\0\1"
    head = b"\xfd7zXZ\0" + flags + struct.pack("<I", crc32(flags))
    index = b"\0" + records
    index += bytes(-len(index) % 4)
    index += struct.pack("<I", crc32(index))
    backward = struct.pack("<I", len(index) // 4 - 1)
    return head + blocks + index + footer(backward)


def footer(backward: bytes) -> bytes:
    return struct.pack("<I", crc32(backward + b"\0\1")) + backward + b"\0\1YZ"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (with_index(b"\xff" * 9 + b"\1"), "a number of an index is too long"),
        (with_index(b"\xff\xff\xff\xff\x0f"), "it has more than 262144 blocks"),
        (with_index(b"\1\0\4"), "takes no room"),
        (with_index(b"\1\x80\x80\x80\x80\1\4"), "its blocks are larger than it is"),
        (with_index(b"\1\4" + b"\xff" * 8 + b"\x7f", bytes(4)), "more than xz-max-block"),
        (with_index(b"\0\1\1\1\1\1\1\1\1\1\1"), "an index is longer than its blocks"),
        (with_index(b"\1\x04\x04", bytes(8)), "does not begin where its index says"),
        (bytes(48) + footer(b"\xff" * 4), "an index has 17179869184 bytes"),
    ],
)
async def test_index_that_lies_is_told_of(data: bytes, sentence: str) -> None:
    with pytest.raises(ExportUnusable, match=sentence):
        await Xz().wrap(MemoryFile(data), OPENING)


async def test_block_that_is_not_what_the_index_says_is_an_error() -> None:
    """16 bytes that it says are 1 KiB, and 64 MiB of zeros that it says are 16 bytes."""
    for size, said in ((16, KiB), (64 * MiB, 16)):
        stored = lzma.compress(bytes(size), check=lzma.CHECK_CRC32, preset=0)
        good = await Xz().wrap(MemoryFile(stored), OPENING)
        assert isinstance(good, XzFilter)
        block = good._index[0]
        body = stored[block.offset : block.offset + -(-block.stored // 4) * 4]
        told = b"\1" + _packed(block.stored) + _packed(said)
        lying = await Xz().wrap(MemoryFile(with_index(told, body)), OPENING)
        with pytest.raises(ExportError, match="xz: block 0 cannot be decompressed"):
            await lying.read(0, 1)
        await good.close()
        await lying.close()


async def test_dictionary_that_takes_too_much_memory_is_refused() -> None:
    stored = bytearray(lzma.compress(b"small", check=lzma.CHECK_CRC32, preset=0))
    length = (stored[12] + 1) * 4  # of the block's header: "3.1. Block Header"
    stored[16] = 37  # 1.5 GiB: "5.3.1. LZMA2"
    stored[12 + length - 4 : 12 + length] = struct.pack("<I", crc32(stored[12 : 12 + length - 4]))
    device = await Xz().wrap(MemoryFile(bytes(stored)), OPENING)
    with pytest.raises(ExportError, match="Memory usage limit exceeded"):
        await device.read(0, 1)
    await device.close()


async def test_large_block_is_refused_with_a_cure(tmp_path: Path) -> None:
    stored = xz(bytes(3 * MiB))
    with pytest.raises(ExportUnusable, match="compress it anew with xz --block-size=16MiB"):
        await Xz(xz_max_block=MiB).wrap(Blocks(stored), OPENING)
