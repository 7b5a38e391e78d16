# SPDX-License-Identifier: MIT
"""The filter luks: a disk behind it is a disk, what is stored is noise, and no header hurts us."""

import asyncio
import functools
import os
import random
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swiftnbd.api import Buffer, ConfigError, Device, ExportError, Opening
from swiftnbd.api.passphrases import PASSPHRASE, is_literal
from swiftnbd.api.range_lock import RangeLock
from swiftnbd.errors import ExportUnusable
from swiftnbd.filters.luks import Luks, LuksFilter
from swiftnbd.filters.luks import header as luks
from swiftnbd.filters.luks.xts import Xts
from swiftnbd.plugins.memory import MemoryDevice
from tests.support.device_oracle import is_array_of_bytes
from tests.support.writers_oracle import check_writers

SIZE = 100_000 // 512 * 512
OPENING = Opening("disk")
KEY = bytes(range(64))


class Slow(MemoryDevice):
    """A disk that takes whole blocks only and does nothing at once; what takes effect is late."""

    block_size_max = 32 * 1024

    def __init__(self, size: int, least: int, chance: random.Random) -> None:
        super().__init__(size)
        self.block_size_min = least
        self.chance = chance

    def check(self, offset: int, length: int) -> None:
        assert not (offset | length) % self.block_size_min
        assert length <= self.block_size_max
        assert 0 <= offset < offset + length <= self.size

    async def wait(self) -> None:
        for _ in range(self.chance.randrange(6)):
            await asyncio.sleep(0)

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return None if self.chance.random() < 0.5 else super().read_now(offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        return False if self.chance.random() < 0.5 else super().write_now(offset, data)

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """Half of it now and half of it later, as a disk may do."""
        self.check(offset, length)
        half = length // 2 // 8 * 8 + 8
        first = b"".join(await super().read(offset, length))[:half]
        await self.wait()
        return [first, b"".join(await super().read(offset, length))[half:]]

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        self.check(offset, len(data))
        await self.wait()
        half = len(data) // 2 // 8 * 8 + 8
        super().write_now(offset, memoryview(data)[:half])
        await self.wait()
        if half < len(data):
            super().write_now(offset + half, memoryview(data)[half:])


def noise(device: Device, payload: int) -> bytearray:
    """What an encrypted disk holds that nobody has written to: decrypted zeros."""
    return bytearray(Xts(KEY).decrypt(0, bytes(device.size - payload)))


@pytest.mark.parametrize("least", [1, 4096])
@pytest.mark.parametrize("seed", range(2))
async def test_encrypted_disk_is_an_array_of_bytes(seed: int, least: int) -> None:
    chance = random.Random(seed)
    size = SIZE // least * least
    inner = Slow(8192 + size, least, chance)
    device = LuksFilter(inner, Xts(KEY), 8192, RangeLock(), discards=seed == 1)
    model = noise(inner, 8192)
    await is_array_of_bytes(device, model, chance, 40)
    for _ in range(4):
        await check_writers(device, model, chance)
    stored = b"".join(await MemoryDevice.read(inner, 8192, size))
    assert Xts(KEY).decrypt(0, stored) == model
    assert not any(b"".join(await MemoryDevice.read(inner, 0, 8192)))


async def test_writers_of_one_sector_on_two_connections_lose_nothing() -> None:
    """Each connection has a filter of its own if one below is so."""
    told = Luks(passphrase=b"x", luks_format=True, luks_iter_time=0.01)
    inner = Slow(luks.PAYLOAD_BYTES + 64 * 1024, 4096, random.Random(1))
    one, two = await told.wrap(inner, OPENING), await told.wrap(inner, OPENING)
    for at in range(0, 8192, 1024):
        both = (one.write(at, b"a" * 512), two.write(at + 512, b"b" * 512))
        await asyncio.gather(*both)
    assert b"".join(await one.read(0, 8192)) == (b"a" * 512 + b"b" * 512) * 8


async def test_disk_is_not_formatted_only_to_tell_its_size() -> None:
    told = Luks(passphrase=b"x", luks_format=True, luks_iter_time=0.01)
    inner = MemoryDevice(luks.PAYLOAD_BYTES + 64 * 1024)
    seen = await told.wrap(inner, Opening("disk", only_look=True))
    assert seen.size == 64 * 1024
    assert not any(b"".join(await inner.read(0, inner.size)))
    await inner.write(5, b"data")
    with pytest.raises(ExportUnusable, match="something is there"):
        await told.wrap(inner, Opening("disk", only_look=True))


async def test_zeros_are_stored_as_noise() -> None:
    inner = MemoryDevice(1024 * 1024)
    device = LuksFilter(inner, Xts(KEY), 4096, RangeLock(), discards=False)
    await device.zero(0, 4096)
    stored = b"".join(await inner.read(4096, 4096))
    assert len({stored[at : at + 16] for at in range(0, 4096, 16)}) == 256
    assert (await device.extents(0, 4096, count=9))[0] == (4096, False, False)
    with pytest.raises(ExportError, match="zeros are written"):
        await device.zero(0, 4096, fast=True)


async def test_trim_is_kept_back_unless_it_is_allowed() -> None:
    for allowed in (False, True):
        inner = MemoryDevice(1024 * 1024)
        device = LuksFilter(inner, Xts(KEY), 64 * 1024, RangeLock(), discards=allowed)
        assert device.can_trim is allowed
        await device.write(0, b"x" * 200_000)
        await device.trim(1, 199_998)
        assert b"".join(await device.read(0, 1)) == b"x"
        holes = [each.hole for each in await inner.extents(64 * 1024, 256 * 1024, count=9)]
        assert holes == ([False, True, False] if allowed else [False])


@functools.cache
def formatted(passphrase: bytes) -> bytes:
    """The start of a disk that was formatted, up to the end of its key."""

    async def image() -> bytes:
        device = MemoryDevice(4 * 1024 * 1024)
        plugin = Luks(passphrase=passphrase, luks_format=True, luks_iter_time=0)
        filtered = await plugin.wrap(device, OPENING)
        await filtered.write(1000, b"kept")
        return b"".join(await device.read(0, device.size))

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, image()).result()


def made(passphrase: bytes = b"open") -> MemoryDevice:
    device = MemoryDevice(4 * 1024 * 1024)
    device.write_now(0, formatted(passphrase))
    return device


async def test_disk_that_was_formatted_is_opened_and_not_formatted_again() -> None:
    device = made()
    for plugin in (Luks(passphrase=b"open"), Luks(passphrase=b"open", luks_format=True)):
        for _ in range(2):  # with the key, and then with the one that is kept
            filtered = await plugin.wrap(device, OPENING)
            assert filtered.size == 2 * 1024 * 1024
            assert b"".join(await filtered.read(1000, 4)) == b"kept"
    with pytest.raises(
        ExportUnusable, match="the passphrase is wrong: it fits none of 1 key slots"
    ):
        await Luks(passphrase=b"guess", luks_format=True).wrap(device, OPENING)


async def test_kept_key_is_not_used_for_another_header() -> None:
    one, other = made(), made(b"another")
    plugin = Luks(passphrase=b"open")
    await plugin.wrap(one, OPENING)
    with pytest.raises(ExportUnusable, match="the passphrase is wrong"):
        await plugin.wrap(other, OPENING)


@pytest.mark.parametrize("at", [0, 592, 1080, 2 * 1024 * 1024 - 1])
async def test_nothing_is_formatted_that_holds_anything(at: int) -> None:
    device = MemoryDevice(4 * 1024 * 1024)
    await device.write(at, b"!")
    before = b"".join(await device.read(0, device.size))
    with pytest.raises(ExportUnusable, match="something is there"):
        await Luks(passphrase=b"open", luks_format=True).wrap(device, OPENING)
    assert b"".join(await device.read(0, device.size)) == before


async def test_formatting_that_was_cut_short_is_no_disk() -> None:
    class Fails(MemoryDevice):
        writes = 0

        async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
            self.writes += 1
            if self.writes == 2:
                raise OSError(5, "Input/output error")
            await super().write(offset, data)

    device = Fails(4 * 1024 * 1024)
    plugin = Luks(passphrase=b"open", luks_format=True, luks_iter_time=0)
    with pytest.raises(OSError, match="Input/output"):
        await plugin.wrap(device, OPENING)
    with pytest.raises(ExportUnusable, match="something is there"):
        await plugin.wrap(device, OPENING)


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def number(value: int) -> bytes:
    return struct.pack(">I", value)


@pytest.mark.parametrize(
    ("at", "value", "sentence"),
    [
        (0, b"\0", "does not begin with a LUKS header"),
        (6, b"\0\2", "it is LUKS2, and only LUKS1"),
        (8, b"serpent", "its cipher is serpent-xts-plain64 with 512 bits"),
        (40, b"\xff" * 32, r"its cipher is aes-\\xff"),
        (40, b"cbc-essiv:sha256", "its cipher is aes-cbc-essiv:sha256"),
        (72, b"ripemd160", "its hash is ripemd160"),
        (104, number(0), "key slot 0"),
        (104, number(2**32 - 1), "the disk begins at byte 2199023255040"),
        (108, number(2**31), "with 17179869184 bits"),
        (164, number(2**32 - 1), "wants 4294967295 iterations"),
        (164, number(0), "wants 0 iterations"),
        (208, number(7), "damaged: key slot 0"),
        (208, number(0xDEAD), "no key slot is in use"),
        (212, number(2**32 - 1), "wants 4294967295 iterations"),
        (248, number(0), "damaged: key slot 0"),
        (248, number(4000), "damaged: key slot 0"),
        (252, number(2**32 - 1), "damaged: key slot 0"),
    ],
)
async def test_header_that_cannot_be_used_is_told_of(at: int, value: bytes, sentence: str) -> None:
    device = made()
    start = b"".join(await device.read(0, 592))
    await device.write(0, changed(start, at, value))
    with pytest.raises(ExportUnusable, match=sentence):
        await Luks(passphrase=b"open").wrap(device, OPENING)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_header_is_parsed_or_refused(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(formatted(b"open")[: luks.HEADER_BYTES])
    for _ in range(chance.randrange(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    try:
        parsed = luks.Header.parse(bytes(data), 1 << 40)
    except ExportUnusable:
        return
    assert all(
        slot.offset + parsed.material_bytes <= parsed.payload_offset for slot in parsed.slots
    )


def test_key_of_two_equal_halves_is_refused() -> None:
    with pytest.raises(ExportUnusable, match="two times the same"):
        Xts(bytes(64))


async def test_small_disk_is_neither_opened_nor_formatted() -> None:
    for size in (0, 100, 592, 1024 * 1024):
        with pytest.raises(ExportUnusable, match="does not begin with a LUKS header"):
            await Luks(passphrase=b"open").wrap(MemoryDevice(size), OPENING)
        with pytest.raises(ExportUnusable, match="too small to be formatted"):
            await Luks(passphrase=b"open", luks_format=True).wrap(MemoryDevice(size), OPENING)


def test_passphrase_is_read_from_a_file_and_from_a_descriptor(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"secret \n")
    assert PASSPHRASE.parse(f"+{tmp_path}/file") == b"secret "
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe\n")
    os.close(writer)
    for _ in range(2):  # the second time, when the configuration is read again
        assert PASSPHRASE.parse(f"-{reader}") == b"from a pipe"
    assert PASSPHRASE.parse("itself") == b"itself"
    assert is_literal("itself")
    assert is_literal("-x")
    assert not any(map(is_literal, ("+/file", "-", "-3")))


def test_passphrase_that_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "large").write_bytes(b"x" * 8193)
    for text, sentence in {
        f"+{tmp_path}/gone": "cannot read the passphrase in .*gone: No such file",
        "-999": "cannot read the passphrase from descriptor 999: Bad file descriptor",
        f"+{tmp_path}/empty": "the passphrase is empty",
        f"+{tmp_path}/large": "has more than 8192 bytes",
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            PASSPHRASE.parse(text)
