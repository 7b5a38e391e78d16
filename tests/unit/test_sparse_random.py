# SPDX-License-Identifier: MIT
"""The plugin sparse-random: the same disk for the same seed, in the shape that was asked for."""

import hashlib
from errno import EIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftnbd.api import ConfigError, ExportError, is_hole
from swiftnbd.api.parameters import values_of
from swiftnbd.plugins.sparse_random import SparseRandom, SparseRandomDevice

KiB, MiB = 1024, 1024 * 1024
SIZE = 3 * MiB + 1001


def disk(
    seed: int = 1, *, share: float = 0.3, run: int = 100 * KiB, random_content: bool = False
) -> SparseRandomDevice:
    return SparseRandomDevice(SIZE, seed, share, run, random_content=random_content)


async def whole(device: SparseRandomDevice) -> bytes:
    return b"".join(await device.read(0, device.size))


async def data_bytes(device: SparseRandomDevice) -> int:
    """How much of it is data; what is said to be a hole is one, and what is not is data."""
    at = found = 0
    content = await whole(device) if device.size == SIZE else b""
    while at < device.size:
        for length, hole, zero in await device.extents(at, device.size - at, count=7):
            assert hole is zero
            found += 0 if hole else length
            assert not content or any(content[at : at + length]) is not hole
            at += length
    assert at == device.size
    return found


@pytest.mark.parametrize("random_content", [False, True])
async def test_same_seed_is_the_same_disk(random_content: bool) -> None:
    first, again, other = [await whole(disk(seed, random_content=random_content))
                           for seed in (1, 1, 2)]  # fmt: skip
    assert first == again
    assert first != other


async def test_disk_of_a_seed_is_the_same_in_every_version() -> None:
    found = [hashlib.sha256(await whole(disk(7, random_content=each))).hexdigest()[:16]
             for each in (False, True)]  # fmt: skip
    assert found == ["fd7bbb41a21bd662", "530f37c833c6a94a"]


@settings(max_examples=50)
@given(
    st.floats(0.01, 1), st.integers(1, MiB), st.booleans(),
    st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 600 * KiB)), max_size=4),
)  # fmt: skip
async def test_part_is_as_in_the_whole(
    share: float, run: int, random_content: bool, ranges: list[tuple[int, int]]
) -> None:
    device = disk(share=share, run=run, random_content=random_content)
    content = await whole(device)
    for offset, length in ranges:
        length = min(length, SIZE - offset)
        expected = content[offset : offset + length]
        assert b"".join(await device.read(offset, length)) == expected
        now = device.read_now(offset, length)
        assert now is None or b"".join(now) == expected
        await device.write(offset, expected)


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 80, 100])
async def test_share_of_data_is_about_what_was_asked_for(percent: int) -> None:
    device = SparseRandomDevice(1 << 30, 5, percent / 100, 100 * KiB, random_content=False)
    assert await data_bytes(device) / device.size == pytest.approx(percent / 100, rel=0.15)
    await data_bytes(disk(share=percent / 100))


async def test_blocks_are_one_byte_that_is_not_zero_or_random() -> None:
    pieces = [p for p in await disk(share=1).read(0, SIZE) if not is_hole(p)]
    content = b"".join(pieces)
    blocks = {content[at : at + 4096] for at in range(0, len(content), 4096)}
    assert all(len(set(block)) == 1 and any(block) for block in blocks)
    assert len(blocks) > 100
    content = await whole(disk(share=1, random_content=True))
    assert len(set(content[:4096])) > 200


async def test_write_of_something_else_fails_and_says_where() -> None:
    device = disk(share=1)
    content = bytearray(await whole(device))
    content[1500000] ^= 1
    with pytest.raises(ExportError, match="the byte written at 1500000 is not") as caught:
        await device.write(0, content)
    assert caught.value.errno == EIO


async def test_zeros_may_be_written_into_holes_only() -> None:
    device = disk()
    at = 0
    for length, hole, _ in await device.extents(0, SIZE, count=100):
        if hole:
            await device.zero(at, length, fast=True)
        else:
            with pytest.raises(ExportError, match=f"the zeros written at {at} are not"):
                await device.zero(at, length)
            with pytest.raises(ExportError, match="not what belongs there"):
                await device.write(at, bytes(length))
        at += length


def test_keys() -> None:
    given = [("size", "1M"), ("percent", "12.5%"), ("random-content", "yes"), ("seed", "0x10")]
    made = SparseRandom(**values_of(SparseRandom, given))
    assert (made.percent, made.random_content, made.seed) == (12.5, True, 16)
    with pytest.raises(ConfigError, match="percent: '101' is not a number from 0 to 100"):
        values_of(SparseRandom, [("size", "1M"), ("percent", "101")])
