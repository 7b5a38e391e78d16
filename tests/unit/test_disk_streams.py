# SPDX-License-Identifier: MIT
"""Disks that are written from end to end: each object is stored once, and nothing is fetched."""

import asyncio
from collections.abc import Iterable

import pytest

from tests.support.disks import Disk, a_disk, begin, caching

BLOCK = 512
LARGE = 4 * BLOCK  # an object of several blocks
OBJECTS = 64


def data(offset: int, length: int) -> bytes:
    return bytes((offset + at) // 256 % 255 + 1 for at in range(length))


async def write_each(disk: Disk, offsets: Iterable[int], length: int) -> None:
    for offset in offsets:
        await disk.device.write(offset, data(offset, length))


@pytest.mark.parametrize("length", [128, BLOCK, 1024, LARGE])
async def test_disk_written_in_order_is_stored_with_one_put_an_object(length: int) -> None:
    """Far more than the cache holds, so it is written back under pressure all the time."""
    async with a_disk(settings=caching(16, LARGE, block_bytes=BLOCK), size=LARGE, objects=64) as d:
        await write_each(d, range(0, OBJECTS * LARGE, length), length)
        await d.device.flush()
        assert d.store.count("put") == OBJECTS
        assert d.store.count("get") == 0
        assert d.image() == data(0, OBJECTS * LARGE)


@pytest.mark.parametrize("length", [BLOCK, 1024])
async def test_many_writers_at_once_store_each_object_once(length: int) -> None:
    """Four sequential writers with so much in flight that most of it waits for room, as nbdcopy."""
    async with a_disk(settings=caching(16, LARGE, block_bytes=BLOCK), size=LARGE, objects=64) as d:
        quarter = OBJECTS * LARGE // 4
        requests = [
            begin(d.device.write(at + step, data(at + step, length)))
            for step in range(0, quarter, length)
            for at in range(0, OBJECTS * LARGE, quarter)
        ]
        await asyncio.gather(*requests)
        await d.device.flush()
        assert d.store.count("put") == OBJECTS
        assert d.store.count("get") == 0
        assert d.image() == data(0, OBJECTS * LARGE)


async def test_write_that_waits_for_room_is_not_overtaken_between_its_blocks() -> None:
    """Or as many objects are half written as there are requests."""
    async with a_disk(settings=caching(8, LARGE, block_bytes=BLOCK), size=LARGE, objects=64) as d:
        writes = [
            begin(d.device.write(at, data(at, LARGE))) for at in range(0, OBJECTS * LARGE, LARGE)
        ]
        await asyncio.gather(*writes)
        await d.device.flush()
        assert d.store.count("put") == OBJECTS
        assert d.store.count("get") == 0
