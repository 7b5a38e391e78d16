# SPDX-License-Identifier: MIT
"""Disks that are written from end to end: each object is stored once, and nothing is fetched."""

import asyncio
from collections.abc import Iterable

import pytest

from tests.support.disks import Disk, a_disk, begin, begun, caching, turns

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


@pytest.mark.parametrize("backwards", [False, True])
async def test_small_reads_of_a_large_object_under_way_at_once_make_one_request(
    backwards: bool,
) -> None:
    async with a_disk(settings=caching(16, LARGE, block_bytes=BLOCK), size=LARGE, objects=64) as d:
        for index in range(8):
            d.put(index, data(index * LARGE, LARGE))
        offsets = list(range(0, 8 * LARGE, BLOCK))[:: -1 if backwards else 1]
        reads = [begin(d.read(at, BLOCK)) for at in offsets]
        assert await asyncio.gather(*reads) == [data(at, BLOCK) for at in offsets]
        assert d.store.count("get") == 8


async def test_read_of_a_neighbour_joins_a_request_that_waits_for_its_turn() -> None:
    settings = caching(16, LARGE, block_bytes=BLOCK, requests=1, reads_reserved=0)
    async with a_disk(settings=settings, size=LARGE, objects=8) as d:
        d.put(0, data(0, LARGE))
        d.put(1, data(LARGE, LARGE))
        gate = d.script.hold("get")
        first = await begun(d.read(0, BLOCK))
        waiting = await begun(d.read(LARGE + BLOCK, BLOCK))
        joining = await begun(d.read(LARGE + 2 * BLOCK, BLOCK))
        under_way = await begun(d.read(BLOCK, BLOCK))  # its neighbour's request was sent: too late
        gate.open()
        assert await first == data(0, BLOCK)
        assert await waiting == data(LARGE + BLOCK, BLOCK)
        assert await joining == data(LARGE + 2 * BLOCK, BLOCK)
        assert await under_way == data(BLOCK, BLOCK)
        assert d.store.count("get") == 3


async def test_what_changes_during_a_flush_is_stored_while_its_last_uploads_are_under_way() -> None:
    """So the next flush, which is soon to come, finds the store busy all the time."""
    settings = caching(64, requests=3, reads_reserved=0)
    async with a_disk(objects=32, settings=settings) as d:
        await write_each(d, [0, BLOCK], BLOCK)
        gate = d.script.hold("put", times=2)
        flush = await begun(d.device.flush())
        await write_each(d, range(2 * BLOCK, 20 * BLOCK, BLOCK), BLOCK)
        await turns(500)
        assert not flush.done()
        assert d.store.count("put") == 20
        gate.open()
        await flush
        assert d.device.dirty_bytes == 0


async def test_object_being_filled_is_left_alone_by_a_flush_of_others() -> None:
    settings = caching(64, LARGE, block_bytes=BLOCK)
    async with a_disk(size=LARGE, objects=32, settings=settings) as d:
        await write_each(d, [0], LARGE)
        gate = d.script.hold("put")
        flush = await begun(d.device.flush())
        await write_each(d, range(LARGE, 2 * LARGE, BLOCK), BLOCK)
        await turns()
        gate.open()
        await flush
        await d.device.flush()
        assert d.store.count("put") == 2
