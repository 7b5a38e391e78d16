# SPDX-License-Identifier: MIT
"""Single requests on the device: ranges, zeros, holes, limits."""

import asyncio
from collections.abc import Callable, Coroutine
from errno import EIO
from typing import Any

import pytest

from swiftnbd.errors import ExportError, ExportUnusable, StoreError
from swiftnbd.export import disk as device_module
from swiftnbd.export.disk import ObjectDevice
from swiftnbd.export.layout import Geometry, preferred_block_size
from swiftnbd.export.settings import CacheSettings
from swiftnbd.store.memory import MemoryStore
from tests.support.disks import SIZE, Disk, a_disk, begin, begun, caching, joined, name, turns
from tests.support.faulty import Fault, Gate, failing

A, B = b"a" * SIZE, b"b" * SIZE

RANGES = [
    pytest.param(0, 1, id="first byte"),
    pytest.param(0, SIZE, id="one object"),
    pytest.param(SIZE, SIZE, id="second object"),
    pytest.param(7, 20, id="unaligned"),
    pytest.param(SIZE - 1, 2, id="inter-object"),
    pytest.param(SIZE // 2, 3 * SIZE, id="unaligned over four objects"),
    pytest.param(0, 8 * SIZE, id="whole disk"),
    pytest.param(8 * SIZE - 1, 1, id="last byte"),
    pytest.param(7 * SIZE + 1, SIZE - 1, id="end of disk"),
    pytest.param(8 * SIZE, 0, id="nothing"),
]


def pattern(length: int) -> bytes:
    return bytes((17 * at + at // 251) % 255 + 1 for at in range(length))


def filled(disk: Disk) -> bytes:
    """Put something behind every byte but those of object 5, which stays absent."""
    image = bytearray(pattern(8 * SIZE))
    image[5 * SIZE : 6 * SIZE] = bytes(SIZE)
    for index in (0, 1, 2, 3, 4, 6, 7):
        disk.put(index, bytes(image[index * SIZE : (index + 1) * SIZE]))
    return bytes(image)


# Ranges


@pytest.mark.parametrize(("offset", "length"), RANGES)
async def test_read_of_a_range_gives_its_bytes(offset: int, length: int) -> None:
    async with a_disk() as disk:
        image = filled(disk)
        assert await disk.read(offset, length) == image[offset : offset + length]
        assert await disk.read(offset, length) == image[offset : offset + length]


@pytest.mark.parametrize(("offset", "length"), RANGES)
async def test_write_of_a_range_changes_just_that(offset: int, length: int) -> None:
    async with a_disk() as disk:
        image = bytearray(filled(disk))
        image[offset : offset + length] = b"w" * length
        await disk.device.write(offset, b"w" * length, fua=True)
        assert disk.image() == image
        assert await disk.read(0, 8 * SIZE) == image


@pytest.mark.parametrize("no_hole", [False, True])
@pytest.mark.parametrize(("offset", "length"), RANGES)
async def test_zero_of_a_range_changes_just_that(offset: int, length: int, no_hole: bool) -> None:
    async with a_disk() as disk:
        image = bytearray(filled(disk))
        image[offset : offset + length] = bytes(length)
        await disk.device.zero(offset, length, no_hole=no_hole, fua=True)
        assert disk.image() == image
        assert await disk.read(0, 8 * SIZE) == image


@pytest.mark.parametrize(("offset", "length"), RANGES)
async def test_trim_of_a_range_deletes_just_its_whole_objects(offset: int, length: int) -> None:
    async with a_disk() as disk:
        image = bytearray(filled(disk))
        for index in range(8):
            start, end = index * SIZE, (index + 1) * SIZE
            if offset <= start and end <= offset + length:
                image[start:end] = bytes(SIZE)
                assert disk.has(index) is not None or index == 5
        await disk.device.trim(offset, length, fua=True)
        assert disk.image() == image
        assert await disk.read(0, 8 * SIZE) == image


async def test_read_now_answers_just_what_is_in_memory() -> None:
    async with a_disk() as disk:
        image = filled(disk)
        assert disk.device.read_now(0, 1) is None
        await disk.read(0, 2 * SIZE)
        calls = disk.store.calls.copy()
        for offset, length in ((0, 1), (3, SIZE), (SIZE, SIZE), (0, 2 * SIZE)):
            pieces = disk.device.read_now(offset, length)
            assert pieces is not None
            assert joined(pieces) == image[offset : offset + length]
        assert disk.device.read_now(SIZE, SIZE + 1) is None
        assert disk.store.calls == calls


async def test_whole_writes_fetch_nothing() -> None:
    async with a_disk() as disk:
        filled(disk)
        await disk.device.write(0, A * 8, fua=True)
        assert disk.store.count("get") == 0


# Waiting


async def test_write_of_a_whole_block_ends_the_wait_for_its_old_bytes() -> None:
    async with a_disk() as disk:
        gate = Gate()
        disk.script.on("get", Fault(before=gate))
        read = await begun(disk.read(0, 1))
        await disk.device.write(0, A, fua=True)
        gate.open()
        assert await read == b"a"


@pytest.mark.parametrize("fua", [False, True])
async def test_time_to_become_durable_does_not_grow_with_what_hangs(fua: bool) -> None:
    """Otherwise many objects behind a hanging store would fail one batch after the other."""
    async with a_disk(objects=64, settings=caching(256), flush_seconds=0.5) as disk:
        gate = disk.script.hold("put", times=16)
        if not fua:
            await disk.device.write(0, A * 64)
        durable = disk.device.write(0, A * 64, fua=True) if fua else disk.device.flush()
        with pytest.raises(ExportError, match="bytes are not stored"):
            await durable
        assert disk.store.count("put") == 16  # the others had no turn at all
        gate.open()
        await disk.device.flush()
        assert disk.image() == A * 64


async def test_reads_are_not_held_up_by_sixteen_uploads_that_hang() -> None:
    async with a_disk(objects=64, settings=caching(256)) as disk:
        for index in range(16, 64):
            disk.put(index, B)
        gate = disk.script.hold("put", times=16)
        await disk.device.write(0, A * 16)
        flush = await begun(disk.device.flush())
        assert disk.store.at_once == 16
        assert await disk.read(20 * SIZE, 30 * SIZE) == B * 30
        await disk.device.write(60 * SIZE, b"x")
        assert await disk.read(60 * SIZE, 2) == b"xb"
        assert not flush.done()
        gate.open()
        await flush
        await disk.device.flush()


async def test_read_of_what_is_to_be_fetched_ahead_is_not_held_up_by_uploads_that_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_module, "READ_AHEAD_BYTES_MIN", SIZE)
    async with a_disk(objects=64, settings=caching(256, read_ahead_bytes=8 * SIZE)) as disk:
        for index in range(16, 64):
            disk.put(index, B)
        gate = disk.script.hold("put", times=16)
        await disk.device.write(0, A * 16)
        flush = await begun(disk.device.flush())
        for index in (16, 17, 18):
            assert await disk.read(index * SIZE, SIZE) == B
        await turns()
        assert 19 in disk.blocks  # read-ahead waits for a slot
        read = await begun(disk.read(19 * SIZE, SIZE))
        assert read.done()
        gate.open()
        await asyncio.gather(flush, read)


async def test_uploads_that_need_what_is_to_be_fetched_ahead_do_not_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each upload holds a slot that the fetch it needs waits for."""
    monkeypatch.setattr(device_module, "READ_AHEAD_BYTES_MIN", SIZE)
    settings = caching(16, block_bytes=128, read_ahead_bytes=4 * SIZE, requests=1)
    async with a_disk(objects=16, settings=settings) as disk:
        for index in range(16):
            disk.put(index, B)
        gate = disk.script.hold("get", name="disk.part/00000003")
        await disk.device.write(3 * SIZE, A[:128])
        await disk.device.write(3 * SIZE + 128, A[:100])
        flush = await begun(disk.device.flush())  # has its slot, and fetches
        for at in range(3):
            await disk.read(2 * SIZE + at * 128, 128)
        await disk.read(2 * SIZE + 3 * 128, 128)
        await turns()
        gate.open()
        await turns()
        assert flush.done()
        await flush


# Large objects


async def test_little_of_a_large_object_is_read_by_one_ranged_get() -> None:
    async with a_disk(settings=caching(block_bytes=128)) as disk:
        image = filled(disk)
        assert await disk.read(130, 5) == image[130:135]
        assert disk.device.counters.store_in == 128
        assert await disk.read(100, 300) == image[100:400]  # two more pieces, around the first
        assert disk.device.counters.store_in == 4 * 128
        assert disk.store.count("get") == 3


async def test_sequential_run_within_a_large_object_takes_one_get() -> None:
    async with a_disk(settings=caching(8, block_bytes=128)) as disk:
        image = filled(disk)
        assert await disk.read(130, SIZE) == image[130 : 130 + SIZE]
        assert disk.store.count("get") == 2  # of two objects


async def test_upload_of_a_large_object_fetches_what_is_missing_by_one_get() -> None:
    async with a_disk(settings=caching(block_bytes=128)) as disk:
        image = bytearray(filled(disk))
        await disk.device.write(0, b"w" * 128)
        await disk.device.flush()
        image[0:128] = b"w" * 128
        assert disk.has(0) == bytes(image[:SIZE])
        assert disk.store.count("get") == 1
        assert disk.device.counters.store_in == 3 * 128
        await disk.device.write(SIZE, b"v" * SIZE)
        await disk.device.flush()
        assert disk.store.count("get") == 1


# Bad objects


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE + 1, 2 * SIZE])
async def test_object_of_a_wrong_size_is_an_error_and_harms_nothing_else(size: int) -> None:
    async with a_disk() as disk:
        filled(disk)
        disk.put(1, b"z" * size)
        for request in (
            disk.device.read(SIZE, 1),
            disk.device.write(SIZE, b"x", fua=True),
            disk.device.zero(SIZE, 1, fua=True),
            disk.device.flush(),
            disk.device.read(0, 3 * SIZE),
        ):
            with pytest.raises((ExportError, StoreError)) as caught:
                await request
            assert caught.value.errno == EIO
        assert disk.has(1) == b"z" * size
        assert await disk.read(0, SIZE) == disk.has(0)
        assert await disk.read(2 * SIZE, SIZE) == disk.has(2)
        await disk.device.write(SIZE, B, fua=True)  # and this repairs it
        assert await disk.read(SIZE, SIZE) == B == disk.has(1)


async def test_error_in_one_part_fails_the_request_and_leaves_the_others_alone() -> None:
    async with a_disk(settings=caching(32)) as disk:
        disk.script.on("put", failing(), name=name(1))
        with pytest.raises(StoreError):
            await disk.device.write(0, A * 3, fua=True)
        assert (disk.has(0), disk.has(1), disk.has(2)) == (A, None, A)
        assert disk.device.dirty_ranges() == [(SIZE, 2 * SIZE)]
        await disk.device.flush()
        assert disk.has(1) == A


# Limits


@pytest.mark.parametrize("requests", [1, 3, 16])
async def test_requests_to_the_store_are_bounded(requests: int) -> None:
    async with a_disk(objects=128, settings=caching(512, requests=requests)) as disk:
        gate = disk.script.hold("put", times=40)
        await disk.device.write(0, A * 40)
        flush = await begun(disk.device.flush())
        assert disk.store.at_once == requests
        reads_gate = disk.script.hold("get", times=60)
        reads = [await begun(disk.device.read(index * SIZE, 1)) for index in range(40, 100)]
        assert disk.store.at_once == requests + 4
        gate.open()
        reads_gate.open()
        await asyncio.gather(flush, *reads)
        assert disk.store.at_once_max == requests + 4


async def test_huge_zero_range_works_on_few_objects_at_once() -> None:
    async with a_disk(objects=1_000_000) as disk:
        gate = disk.script.hold("delete", times=2000)
        zero = await begun(disk.device.zero(0, disk.device.size))
        assert disk.blocks == {}
        assert len(disk.device._disk.writeback.objects) == 2
        assert len(asyncio.all_tasks()) <= 8
        zero.cancel()
        await asyncio.gather(zero, return_exceptions=True)
        gate.open()
        await disk.device.flush()


async def test_zeroing_does_not_push_out_what_is_read() -> None:
    async with a_disk(objects=200) as disk:
        disk.put(0, A)
        await disk.read(0, 1)
        await disk.device.zero(SIZE, 199 * SIZE)
        await disk.read(0, 1)
        assert disk.store.count("get") == 1
        await disk.device.flush()


@pytest.mark.parametrize("block", [None, 128])
@pytest.mark.parametrize("kind", ["read", "write", "zero", "no_hole", "trim", "prefetch", "mixed"])
async def test_cache_holds_no_more_than_it_may(kind: str, block: int | None) -> None:
    settings = caching(5, block_bytes=block, read_ahead_bytes=SIZE)
    async with a_disk(objects=64, settings=settings) as disk:
        for index in range(0, 64, 2):
            disk.put(index, A)
        device, length = disk.device, 2 * SIZE - 30

        async def read(at: int, length: int) -> None:
            await device.read(at, length)

        kinds: dict[str, Callable[[int], Coroutine[Any, Any, None]]] = {
            "read": lambda at: read(at, length),
            "write": lambda at: device.write(at, b"w" * length),
            "zero": lambda at: device.zero(at, length),
            "no_hole": lambda at: device.zero(at, length, no_hole=True),
            "trim": lambda at: device.trim(at, length),
            "prefetch": lambda at: device.prefetch(at, length),
        }
        works = list(kinds.values()) if kind == "mixed" else [kinds[kind]]
        tasks = [begin(works[at % len(works)](at * SIZE + 11)) for at in range(62)]
        while not all(task.done() for task in tasks):
            assert disk.device.cached_bytes <= 5 * SIZE
            assert disk.device._disk.writeback.blocks <= disk.device._disk.writeback.limit
            await turns(1)
        await asyncio.gather(*tasks)
        await disk.device.flush()
        assert await disk.read(0, 64 * SIZE) == disk.image()


async def test_prefetch_brings_in_what_fits_in_half_the_cache() -> None:
    async with a_disk(objects=64, cached=6) as disk:
        filled(disk)
        await disk.device.prefetch(3, 60 * SIZE)
        assert 0 < len(disk.blocks) <= 4
        assert sorted(disk.blocks) == list(range(len(disk.blocks)))
        assert disk.store.count("get") == len(disk.blocks)


async def test_read_is_not_held_up_by_a_crowd_of_prefetches() -> None:
    """256 CACHEs of half a small cache each made a read wait for all of them, 1.3 s."""
    settings = caching(16, requests=4, reads_reserved=1)
    async with a_disk(objects=64, settings=settings) as disk:
        for index in range(64):
            disk.put(index, A)
        gate = Gate()
        for index in range(48):
            disk.script.on("get", Fault(before=gate), name=name(index))
        prefetches = [begin(disk.device.prefetch(at * SIZE, 8 * SIZE)) for at in range(40)]
        await turns()
        read = await begun(disk.read(60 * SIZE, 4 * SIZE))
        assert read.done()
        assert read.result() == 4 * A
        assert gate.arrivals == 4  # as many blocks as it may hold
        wanted = await begun(disk.read(0, SIZE))  # is being fetched
        gate.open()
        assert await wanted == A
        await asyncio.gather(*prefetches)


async def test_prefetch_that_was_given_up_leaves_its_share_to_others() -> None:
    async with a_disk(objects=64, cached=4) as disk:
        for index in range(64):
            disk.put(index, A)
        gate = Gate()
        disk.script.on("get", Fault(before=gate), name=name(0))
        first, second, third = [
            await begun(disk.device.prefetch(at * SIZE, 2 * SIZE)) for at in (0, 10, 20)
        ]
        second.cancel()
        await turns()
        assert not third.done()
        gate.open()
        await asyncio.gather(first, third)
        assert {call.name for call in disk.store.calls if call.op == "get"} == set(
            map(name, (0, 1, 20, 21))
        )


async def test_read_and_prefetch_of_one_block_share_a_fetch() -> None:
    async with a_disk() as disk:
        filled(disk)
        await asyncio.gather(begin(disk.device.prefetch(0, 1)), begin(disk.device.read(0, 1)))
        assert disk.store.count("get") == 1


async def test_counters_count_bytes_to_and_from_the_store() -> None:
    async with a_disk() as disk:
        disk.put(0, A)
        await disk.read(0, 1)
        await disk.read(5 * SIZE, 1)
        await disk.device.write(SIZE, A + B, fua=True)
        await disk.device.zero(SIZE, SIZE, fua=True)
        counters = disk.device.counters
        assert (counters.store_in, counters.store_out) == (SIZE, 2 * SIZE)


def test_cache_below_four_objects_is_refused_in_a_sentence() -> None:
    geometry = Geometry(10, 1024)
    CacheSettings(cache_bytes=4096).check(geometry)
    with pytest.raises(ExportUnusable, match="1024 bytes need a cache of at least 4096 bytes"):
        CacheSettings(cache_bytes=4095).check(geometry)
    with pytest.raises(ExportUnusable):
        ObjectDevice(MemoryStore("disk"), geometry, CacheSettings(cache_bytes=4095))


@pytest.mark.parametrize(
    ("object_size", "expected"),
    [
        (512, 4096),
        (4096, 4096),
        (65536, 65536),
        (65536 + 512, 65536),
        (65536 - 512, 32768),
        (64 * 1024 * 1024, 32 * 1024 * 1024),
    ],
)
def test_preferred_block_size_is_a_power_of_two_near_the_object_size(
    object_size: int, expected: int
) -> None:
    assert preferred_block_size(Geometry(1, object_size)) == expected
