# SPDX-License-Identifier: MIT
"""Filters that look at where a request goes: offset, truncate, protect, checkwrite."""

import random
from collections.abc import Sequence
from errno import EIO, ENOSPC, ENOTSUP, EPERM

import pytest

from swiftnbd.api import (
    Buffer,
    ConfigError,
    Device,
    ExportError,
    ExportUnusable,
    Extent,
    FilterPlugin,
    Opening,
    Profile,
)
from swiftnbd.api.parameters import values_of
from swiftnbd.filters.checkwrite import CheckWrite
from swiftnbd.filters.offset import Offset
from swiftnbd.filters.protect import RANGE, Protect
from swiftnbd.filters.truncate import Truncate
from swiftnbd.plugins.memory import PAGE_BYTES, MemoryDevice
from tests.support.byte_device import BLOCK, ByteDevice
from tests.support.device_oracle import is_array_of_bytes

SIZE = 5 * PAGE_BYTES + 1024
OPENING = Opening("disk")


class Sectors(MemoryDevice):
    """Knows whole sectors only, and not many at once."""

    block_size = 4096
    block_size_min = 512
    block_size_max = 8192
    least_read = 0

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        assert not (offset | length) % 512
        assert offset + length <= self.size
        assert self.least_read <= length <= self.block_size_max
        return await super().read(offset, length)


def filled(device: MemoryDevice) -> tuple[MemoryDevice, bytearray]:
    """With something in each second page."""
    model, chance = bytearray(device.size), random.Random(1)
    for at in range(0, device.size - 1024, 2 * PAGE_BYTES):
        model[at : at + 1024] = chance.randbytes(1024)
        device.write_now(at, model[at : at + 1024])
    return device, model


async def stack(device: Device, *filters: FilterPlugin) -> Device:
    """The first filter is asked first."""
    for each in reversed(filters):
        device = await each.wrap(device, OPENING)
        Profile.of(device)
    return device


async def read_all(device: Device) -> bytes:
    return b"".join(await device.read(0, device.size))


async def fails(errno: int, work: object) -> str:
    with pytest.raises(ExportError) as caught:
        await work  # type: ignore[misc]
    assert caught.value.errno == errno
    return str(caught.value)


# Offset and truncate


@pytest.mark.parametrize(
    ("filters", "start", "end"),
    [
        ([Offset(offset=1024, range=3 * PAGE_BYTES)], 1024, 1024 + 3 * PAGE_BYTES),
        ([Truncate(round_down=4096), Offset(offset=999)], 999, 999 + 5 * PAGE_BYTES),
        ([Offset(offset=999), Truncate(round_down=4096)], 999, 5 * PAGE_BYTES),
        ([Truncate(truncate=1, round_up=77)], 0, 77),
    ],
)
async def test_part_of_a_disk_is_an_array_of_bytes(
    filters: list[FilterPlugin], start: int, end: int
) -> None:
    device, model = filled(MemoryDevice(SIZE))
    inner = model[start:end]
    await is_array_of_bytes(await stack(device, *filters), inner, random.Random(7))
    model[start:end] = inner
    assert await read_all(device) == model  # and around it nothing has changed


@pytest.mark.parametrize(
    ("filters", "size"),
    [([Truncate(round_up=PAGE_BYTES)], 6 * PAGE_BYTES), ([Truncate(truncate=SIZE + 1)], SIZE + 1)],
)
async def test_longer_disk_is_zeros_at_its_end(filters: list[FilterPlugin], size: int) -> None:
    device, model = filled(MemoryDevice(SIZE))
    longer = await stack(device, *filters)
    assert await read_all(longer) == model + bytes(size - SIZE)
    assert b"".join(longer.read_now(SIZE - 10, 11) or ()) == bytes(11)
    await longer.write(SIZE - 3, b"end" + bytes(size - SIZE))
    assert await read_all(longer) == model[:-3] + b"end" + bytes(size - SIZE)
    assert not longer.write_now(SIZE - 3, b"new!")
    text = await fails(ENOSPC, longer.write(SIZE - 3, b"new!"))
    assert text == f"only zeros can be written from {SIZE} on: it is no room"
    assert b"".join(await device.read(SIZE - 3, 3)) == b"end"  # nothing of it was written
    await longer.zero(SIZE - 1, 2)
    await longer.trim(SIZE, 1)
    await longer.prefetch(SIZE, 1)
    assert b"".join(await device.read(SIZE - 3, 3)) == b"en\0"
    *_, last = await longer.extents(SIZE - 1, 2, count=9)
    assert last.length == 1
    assert await longer.extents(SIZE, 1, count=1) == [Extent(1, hole=True, zero=True)]


async def test_sizes_are_made_in_the_order_of_the_page() -> None:
    made = await stack(MemoryDevice(SIZE), Truncate(truncate=9999, round_up=4096, round_down=5000))
    assert made.size == 10_000  # not 12,288, as the other way round


async def test_flags_go_where_the_request_goes() -> None:
    device = ByteDevice()
    made = await stack(device, Offset(offset=BLOCK), Truncate(round_up=1 << 20))
    await made.write(0, b"abc", fua=True)
    await made.zero(0, 10, no_hole=True, fast=True)
    await made.trim(0, BLOCK, fua=True)
    await made.flush()
    assert device.calls == [
        ("write fua", BLOCK, 3),
        ("zero no_hole fast", BLOCK, 10),
        ("trim fua", BLOCK, BLOCK),
        ("flush", 0, 0),
    ]


async def test_range_beyond_the_disk_is_refused() -> None:
    for wrong in (Offset(offset=SIZE + 1), Offset(offset=1, range=SIZE), Offset(range=SIZE + 1)):
        with pytest.raises(ConfigError, match="reach beyond the"):
            await stack(MemoryDevice(SIZE), wrong)
    empty = await stack(MemoryDevice(SIZE), Offset(offset=SIZE))
    assert empty.size == 0


async def test_range_that_suits_no_sectors_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no multiple of 512 bytes"):
        await stack(Sectors(SIZE), Offset(offset=100))
    with pytest.raises(ExportUnusable, match="a size of 1000 bytes"):
        await stack(Sectors(SIZE), Truncate(truncate=1000))


# Protect


def protect(*texts: str) -> Protect:
    return Protect(**values_of(Protect, [("protect", text) for text in texts]))


@pytest.mark.parametrize(
    ("texts", "spans"),
    [
        (["0-511"], [(0, 512)]),
        (["0-0x1bd", "0x1be-01000", "700-800"], [(0, 513), (700, 801)]),
        (["1000-", "-99"], [(0, 100), (1000, SIZE)]),
        (["~100-199"], [(0, 100), (200, SIZE)]),
        (["-"], [(0, SIZE)]),
        ([f"{SIZE}-{SIZE + 5}", "~-"], []),
    ],
)
async def test_ranges_are_read_as_nbdkit_reads_them(
    texts: list[str], spans: list[tuple[int, int]]
) -> None:
    made = await stack(MemoryDevice(SIZE), protect(*texts))
    assert getattr(made, "_spans", []) == spans
    for each in protect(*texts).protect:
        assert RANGE.parse(str(each)) == each


@pytest.mark.parametrize("text", ["", "5", "5-4", "a-b", "08-", "1-2-3", "0x-5", "-1--2"])
def test_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a range like"):
        protect(text)


async def test_protected_bytes_never_change() -> None:
    device, model = filled(MemoryDevice(SIZE))
    made = await stack(device, protect("100-999", f"{2 * PAGE_BYTES}-{3 * PAGE_BYTES}"))
    kept = [(100, 1000), (2 * PAGE_BYTES, 3 * PAGE_BYTES + 1)]
    chance, refused = random.Random(3), 0
    for _ in range(300):
        offset = chance.choice((0, 90, 500, 999, 1000, chance.randrange(SIZE)))
        length = min(chance.choice((1, 100, 5000, PAGE_BYTES)), SIZE - offset)
        end = offset + length
        data = chance.choice((chance.randbytes(length), bytes(length), bytes(model[offset:end])))
        after = model[:offset] + data + model[end:]
        is_free = all(model[first:last] == after[first:last] for first, last in kept)
        zeroed = not any(data) and chance.random() < 0.5
        if not zeroed and made.write_now(offset, data):
            assert is_free
        elif is_free:
            await (made.zero(offset, length) if zeroed else made.write(offset, data))
        else:
            refused += 1
            await fails(EPERM, made.zero(offset, length) if zeroed else made.write(offset, data))
            continue
        model = after
    assert refused > 20
    assert await read_all(device) == model


async def test_trim_leaves_out_what_is_protected() -> None:
    device = ByteDevice()
    await (await stack(device, protect("100-199", "300-399"))).trim(150, 250, fua=True)
    assert device.calls == [("trim fua", 200, 100)]


async def test_zeros_over_what_is_protected_are_not_fast() -> None:
    made = await stack(MemoryDevice(SIZE), protect("100-199"))
    await made.zero(0, 100, fast=True)
    await fails(ENOTSUP, made.zero(0, 101, fast=True))


async def test_protected_range_need_not_be_in_whole_sectors() -> None:
    device, _ = filled(Sectors(SIZE))
    made = await stack(device, protect("500-600"))
    before = b"".join(await device.read(0, 2048))
    await made.write(0, b"x" * 500 + before[500:601] + b"y" * 423)
    await fails(EPERM, made.write(0, bytes(1024)))
    await fails(EPERM, made.zero(512, 512))
    await made.trim(0, 2048)
    after = b"".join(await device.read(0, 2048))
    assert after[:1024] == b"x" * 500 + before[500:601] + b"y" * 423
    assert not any(after[1024:])


# Checkwrite


@pytest.mark.parametrize("kind", [MemoryDevice, Sectors])
async def test_only_what_is_there_can_be_written(kind: type[MemoryDevice]) -> None:
    device, model = filled(kind(SIZE))
    device.read_only = True
    made = await stack(device, CheckWrite())
    assert not Profile.of(made).read_only
    assert not made.write_now(0, bytes(512))
    await made.write(512, model[512 : 512 + 2 * PAGE_BYTES], fua=True)
    assert await fails(EIO, made.write(0, b"x" * 512)) == (
        "what is written at 0+512 is not what is there"
    )
    wrong = bytearray(model[:PAGE_BYTES])
    wrong[-1] ^= 1
    await fails(EIO, made.write(0, wrong))
    await made.zero(PAGE_BYTES, PAGE_BYTES)
    await made.trim(1024, 2 * PAGE_BYTES - 1024)
    await fails(EIO, made.zero(PAGE_BYTES, PAGE_BYTES + 512))
    await fails(EIO, made.trim(512, 1024))
    await made.flush()
    pieces = [piece for at in range(0, SIZE, 1024) for piece in await device.read(at, 1024)]
    assert b"".join(pieces) == model


async def test_zeros_of_a_large_hole_are_not_read() -> None:
    device = MemoryDevice(1 << 44)
    device.read = None  # type: ignore[method-assign,assignment]
    await (await stack(device, CheckWrite())).zero(1, 1 << 32)
