# SPDX-License-Identifier: MIT
"""Single requests on the device: ranges, zeros, holes, limits."""

import asyncio
from errno import EIO

import pytest

from swiftnbd.errors import ContainerMissing, ExportError, ExportUnusable, StoreError
from swiftnbd.export.cache import check_cache
from swiftnbd.export.disk import (
    REQUESTS_MAX,
    ObjectDevice,
)
from swiftnbd.export.layout import Geometry, preferred_block_size
from swiftnbd.export.parallel import AT_ONCE_MAX
from swiftnbd.store.memory import MemoryStore
from tests.support.disks import SIZE, Disk, a_disk, begin, begun, joined, name, turns
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
        await disk.device.zero(offset, length, no_hole=no_hole)
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
        await disk.device.trim(offset, length)
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
        await disk.device.write(0, A * 8)
        assert disk.store.count("get") == 0


# Zeros and holes


async def test_block_that_becomes_zeros_is_deleted() -> None:
    async with a_disk() as disk:
        disk.put(0, b"x" + bytes(SIZE - 1))
        disk.put(1, A)
        disk.put(2, A)
        await disk.device.write(0, b"\0")
        await disk.device.write(SIZE, bytes(SIZE))
        await disk.device.zero(2 * SIZE, SIZE)
        assert disk.stored == {}
        assert disk.store.count("put") == 0


@pytest.mark.parametrize("length", [SIZE, SIZE // 2])
async def test_no_hole_stores_zeros_and_keeps_them(length: int) -> None:
    async with a_disk() as disk:
        await disk.device.zero(0, length, no_hole=True)
        assert disk.has(0) == bytes(SIZE)
        for index in range(1, 8):  # evicts it
            await disk.read(index * SIZE, 1)
        assert disk.has(0) == bytes(SIZE)


async def test_zeros_kept_are_deleted_when_zeroed_again_without_no_hole() -> None:
    async with a_disk() as disk:
        await disk.device.zero(0, SIZE, no_hole=True)
        await disk.device.zero(0, SIZE)
        assert disk.has(0) is None


async def test_trim_deletes_zeros_that_were_kept() -> None:
    async with a_disk() as disk:
        await disk.device.zero(0, SIZE, no_hole=True)
        await disk.device.trim(0, SIZE)
        assert disk.has(0) is None


@pytest.mark.parametrize("whole_disk", [False, True])
async def test_trim_of_an_empty_disk_takes_one_listing(whole_disk: bool) -> None:
    async with a_disk(objects=100_000) as disk:
        await disk.device.trim(0 if whole_disk else 5, disk.device.size - 5)
        assert disk.store.calls.total() - disk.store.count("listing") == 0
        assert disk.store.count("listing") == 1


async def test_trim_within_one_object_asks_nothing() -> None:
    async with a_disk() as disk:
        await disk.device.trim(1, 2 * SIZE - 2)
        assert disk.store.calls.total() == 0


async def test_trim_of_blocks_known_to_be_absent_deletes_nothing() -> None:
    async with a_disk() as disk:
        await disk.read(0, 2 * SIZE)
        await disk.device.trim(0, 2 * SIZE)
        assert disk.store.count("delete") == 0


async def test_trim_reaches_a_dirty_block_that_no_listing_shows() -> None:
    async with a_disk() as disk:
        disk.script.on("put", failing())
        with pytest.raises(StoreError):
            await disk.device.write(0, A)
        await disk.device.trim(0, SIZE)
        await disk.device.flush()
        assert await disk.read(0, SIZE) == bytes(SIZE) == disk.image()[:SIZE]


async def test_trim_leaves_objects_that_are_none_of_the_disk_alone() -> None:
    async with a_disk() as disk:
        names = ["disk.part/0000000x", "disk.part/00000099", "disk.part/000000011", "swiftnbd/x"]
        for other in names:
            await disk.memory.put(other, b"x")
        await disk.device.trim(0, disk.device.size)
        assert sorted(disk.stored) == sorted(names)


async def test_trim_goes_through_all_pages_of_a_listing() -> None:
    async with a_disk(objects=10_100) as disk:
        for index in range(10_050):
            disk.put(index, A)
        await disk.device.trim(0, disk.device.size)
        assert disk.stored == {}
        assert disk.store.count("listing") == 3


async def test_trim_whose_listing_fails_says_so() -> None:
    async with a_disk(objects=100) as disk:
        disk.script.on("listing", failing(ContainerMissing("faulty: gone")))
        with pytest.raises(ContainerMissing):
            await disk.device.trim(0, 100 * SIZE)


async def test_trim_of_a_few_objects_does_not_list() -> None:
    async with a_disk(objects=100) as disk:
        disk.put(3, A)
        await disk.device.trim(0, 10 * SIZE)
        assert disk.has(3) is None
        assert disk.store.count("listing") == 0


async def test_stale_replica_is_not_read() -> None:
    """It missed an overwrite and has the old bytes, with an ETag that fits them."""
    async with a_disk(objects=20) as disk:
        await disk.device.write(0, A)
        await disk.device.write(0, B)
        await disk.read(SIZE, 10 * SIZE)  # drives it out of the cache
        disk.script.on("get", Fault(stale=True))
        assert await disk.read(0, SIZE) == B


async def test_write_of_a_whole_block_ends_the_wait_for_its_old_bytes() -> None:
    async with a_disk() as disk:
        gate = Gate()
        disk.script.on("get", Fault(before=gate))
        read = await begun(disk.read(0, 1))
        await disk.device.write(0, A)
        assert await read == b"a"


async def test_waiting_for_a_turn_counts_against_the_time_of_a_request() -> None:
    """Otherwise many requests behind a hanging store would fail one batch after the other."""
    async with a_disk(objects=64, cached=64, request_seconds=0.05) as disk:
        disk.script.hold("put", times=64)
        writes = [disk.device.write(index * SIZE, A) for index in range(64)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(result) for result in results} == {ExportError}
        assert REQUESTS_MAX <= disk.store.count("put") < 64  # most had no turn at all
        disk.script.clear()
        await disk.device.flush()


# Bad objects


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE + 1, 2 * SIZE])
async def test_object_of_a_wrong_size_is_an_error_and_harms_nothing_else(size: int) -> None:
    async with a_disk() as disk:
        filled(disk)
        disk.put(1, b"z" * size)
        for request in (
            disk.device.read(SIZE, 1),
            disk.device.write(SIZE, b"x"),
            disk.device.zero(SIZE, 1),
            disk.device.read(0, 3 * SIZE),
        ):
            with pytest.raises((ExportError, StoreError)) as caught:
                await request
            assert caught.value.errno == EIO
        assert disk.has(1) == b"z" * size
        assert await disk.read(0, SIZE) == disk.has(0)
        assert await disk.read(2 * SIZE, SIZE) == disk.has(2)
        await disk.device.write(SIZE, B)  # and this repairs it
        assert await disk.read(SIZE, SIZE) == B == disk.has(1)


async def test_error_in_one_part_fails_the_request_and_leaves_the_others_alone() -> None:
    async with a_disk() as disk:
        disk.script.on("put", failing(), name=name(1))
        with pytest.raises(StoreError):
            await disk.device.write(0, A * 3)
        assert (disk.has(0), disk.has(1), disk.has(2)) == (A, None, A)
        assert disk.device.dirty_ranges() == [(SIZE, 2 * SIZE)]
        await disk.device.flush()
        assert disk.has(1) == A


# Limits


async def test_requests_to_the_store_are_bounded() -> None:
    async with a_disk(objects=64, cached=64) as disk:
        gate = disk.script.hold("put", times=40)
        write = await begun(disk.device.write(0, A * 40))
        reads = [await begun(disk.device.read(index * SIZE, 1)) for index in range(40, 64)]
        assert disk.store.at_once == REQUESTS_MAX == 16
        gate.open()
        await asyncio.gather(write, *reads)
        assert disk.store.at_once_max == REQUESTS_MAX


async def test_huge_zero_range_works_on_few_blocks_at_once() -> None:
    async with a_disk(objects=1_000_000) as disk:
        gate = disk.script.hold("delete", times=2000)
        zero = await begun(disk.device.zero(0, disk.device.size))
        assert len(disk.blocks) == 4
        assert len(asyncio.all_tasks()) <= AT_ONCE_MAX + 4 + 3
        zero.cancel()
        await asyncio.gather(zero, return_exceptions=True)
        gate.open()


async def test_zeroing_does_not_push_out_what_is_read() -> None:
    async with a_disk(objects=200, cached=AT_ONCE_MAX + 1) as disk:
        disk.put(0, A)
        await disk.read(0, 1)
        await disk.device.zero(SIZE, 199 * SIZE)
        await disk.read(0, 1)
        assert disk.store.count("get") == 1


async def test_cache_holds_no_more_than_it_may() -> None:
    async with a_disk(objects=64, cached=5) as disk:
        requests = [disk.device.read(index * SIZE, 2 * SIZE) for index in range(63)]
        tasks = [begin(request) for request in requests]
        while not all(task.done() for task in tasks):
            assert disk.device.cached_bytes <= 5 * SIZE
            await turns(1)


async def test_prefetch_brings_in_what_fits_in_half_the_cache() -> None:
    async with a_disk(objects=64, cached=6) as disk:
        filled(disk)
        await disk.device.prefetch(3, 60 * SIZE)
        assert sorted(disk.blocks) == [0, 1, 2]
        assert disk.store.count("get") == 3


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
        await disk.device.write(SIZE, A + B)
        await disk.device.zero(SIZE, SIZE)
        counters = disk.device.counters
        assert (counters.store_in, counters.store_out) == (SIZE, 2 * SIZE)


def test_cache_below_four_objects_is_refused_in_a_sentence() -> None:
    geometry = Geometry(10, 1024)
    check_cache(geometry, 4096)
    with pytest.raises(ExportUnusable, match="1024 bytes need a cache of at least 4096 bytes"):
        check_cache(geometry, 4095)
    with pytest.raises(ExportUnusable):
        ObjectDevice(MemoryStore("disk"), geometry, cache_bytes=4095)


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
