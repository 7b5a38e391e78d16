# SPDX-License-Identifier: MIT
"""What a reply promises, what a failed upload leaves behind, and what flush and close do."""

import asyncio
from errno import EIO, ENOSPC

import pytest

from swiftnbd.errors import ExportError, StoreError, StoreFull, StoreUnavailable
from tests.support.disks import SIZE, Disk, a_disk, begin, begun, name, turns
from tests.support.faulty import Fault, Gate, failing, reply_lost

A, B = b"a" * SIZE, b"b" * SIZE


async def fail_writes(disk: Disk, indexes: range) -> None:
    """Leave these blocks dirty, holding `A`."""
    for index in indexes:
        disk.script.on("put", failing(), name=name(index))
        with pytest.raises(StoreUnavailable):
            await disk.device.write(index * SIZE, A)


# Writes


async def test_write_is_stored_when_it_is_acknowledged() -> None:
    async with a_disk() as disk:
        gate = Gate()
        disk.script.on("put", Fault(after=gate))
        write = await begun(disk.device.write(0, A))
        assert disk.has(0) == A
        assert not write.done()  # the store has it, but has not said so
        gate.open()
        await write


@pytest.mark.parametrize("fault", [failing(), reply_lost()])
async def test_failed_put_leaves_the_block_dirty_and_flush_tries_again(fault: Fault) -> None:
    async with a_disk() as disk:
        disk.put(0, B)
        disk.script.on("put", fault)
        with pytest.raises(StoreUnavailable):
            await disk.device.write(0, b"x")
        assert disk.device.dirty_ranges() == [(0, SIZE)]
        assert await disk.read(0, 2) == b"xb"
        await disk.device.flush()
        assert disk.has(0) == b"x" + B[1:]
        assert disk.device.dirty_bytes == 0


async def test_failed_fetch_of_a_partial_write_changes_nothing() -> None:
    async with a_disk() as disk:
        disk.put(0, B)
        disk.script.on("get", failing())
        with pytest.raises(StoreUnavailable):
            await disk.device.write(0, b"x")
        assert (disk.blocks, disk.device.dirty_bytes) == ({}, 0)
        assert await disk.read(0, SIZE) == B


async def test_full_store_is_told_as_no_space() -> None:
    async with a_disk() as disk:
        disk.script.on("put", failing(StoreFull("faulty: full")), times=2)
        for request in (disk.device.write(0, A), disk.device.flush()):
            with pytest.raises(StoreFull) as caught:
                await request
            assert caught.value.errno == ENOSPC
        await disk.device.flush()


async def test_dirty_ranges_are_ascending_and_joined() -> None:
    async with a_disk(cached=8) as disk:
        for index in (5, 1, 2, 7, 0):
            await fail_writes(disk, range(index, index + 1))
        assert disk.device.dirty_ranges() == [
            (0, 3 * SIZE),
            (5 * SIZE, 6 * SIZE),
            (7 * SIZE, 8 * SIZE),
        ]
        assert disk.device.dirty_bytes == 5 * SIZE
        await disk.device.flush()
        assert disk.device.dirty_ranges() == []


# Flush


async def test_flush_with_nothing_dirty_asks_the_store_nothing() -> None:
    async with a_disk() as disk:
        await disk.device.write(0, A)
        calls = disk.store.calls.copy()
        await disk.device.flush()
        assert disk.store.calls == calls


async def test_flush_goes_through_all_dirty_blocks_in_spite_of_errors() -> None:
    async with a_disk(cached=8) as disk:
        await fail_writes(disk, range(6))
        disk.script.on("put", failing(StoreFull("faulty: full")), name=name(0))
        disk.script.on("put", failing(), name=name(3))
        with pytest.raises(StoreError):
            await disk.device.flush()
        assert [disk.has(index) for index in range(6)] == [None, A, A, None, A, A]
        assert disk.device.dirty_ranges() == [(0, SIZE), (3 * SIZE, 4 * SIZE)]
        await disk.device.flush()
        assert disk.image() == A * 6 + bytes(2 * SIZE)


async def test_flush_goes_through_more_dirty_blocks_than_it_works_on_at_once() -> None:
    async with a_disk(objects=100, cached=100) as disk:
        await fail_writes(disk, range(100))
        for index in range(0, 100, 9):
            disk.script.on("put", failing(), name=name(index))
        with pytest.raises(StoreError):
            await disk.device.flush()
        left = [start // SIZE for start, _ in disk.device.dirty_ranges()]
        assert left == list(range(0, 100, 9))
        await disk.device.flush()
        assert disk.image() == A * 100


async def test_flush_waits_for_an_upload_under_way() -> None:
    async with a_disk() as disk:
        gate = disk.script.hold("put")
        write = await begun(disk.device.write(0, A))
        flush = await begun(disk.device.flush())
        assert not flush.done()
        gate.open()
        await asyncio.gather(write, flush)
        assert disk.store.count("put") == 1


async def test_flush_does_not_wait_for_writes_that_came_after_it() -> None:
    async with a_disk() as disk:
        gates = [disk.script.hold("put"), disk.script.hold("put")]
        first = await begun(disk.device.write(0, A))
        flush = await begun(disk.device.flush())
        later = await begun(disk.device.write(0, B))
        gates[0].open()
        await asyncio.gather(first, flush)
        assert not later.done()
        gates[1].open()
        await later


async def test_flush_gives_up_at_its_deadline_and_the_next_one_succeeds() -> None:
    async with a_disk(flush_seconds=0.01) as disk:
        await fail_writes(disk, range(2))
        gate = disk.script.hold("put", name=name(0))
        with pytest.raises(ExportError, match="512 bytes could not be stored within") as caught:
            await disk.device.flush()
        assert caught.value.errno == EIO
        assert disk.has(1) == A
        gate.open()
        await disk.device.flush()
        assert disk.has(0) == A


async def test_cancelled_flush_lets_its_uploads_end() -> None:
    async with a_disk() as disk:
        await fail_writes(disk, range(2))
        gate = disk.script.hold("put", times=2)
        flush = await begun(disk.device.flush())
        flush.cancel()
        await asyncio.gather(flush, return_exceptions=True)
        gate.open()
        await turns()
        assert disk.image()[: 2 * SIZE] == A + A


# Eviction


async def test_dirty_blocks_are_not_dropped_to_make_room() -> None:
    async with a_disk() as disk:
        await fail_writes(disk, range(3))
        for index in range(3, 8):
            await disk.read(index * SIZE, 1)
        assert await disk.read(0, 3 * SIZE) == A * 3
        await disk.device.flush()
        assert disk.image() == A * 3 + bytes(5 * SIZE)


async def test_reads_go_on_after_failed_writes_have_filled_the_cache() -> None:
    """The store failed for a while, every write was answered EIO, and no flush ever comes."""
    async with a_disk() as disk:
        await fail_writes(disk, range(4))
        disk.put(7, B)
        assert await disk.read(7 * SIZE, SIZE) == B
        assert await disk.read(0, 4 * SIZE) == A * 4
        await disk.device.flush()
        assert disk.image() == A * 4 + bytes(3 * SIZE) + B


async def test_request_that_finds_no_room_because_nothing_can_be_stored_fails() -> None:
    async with a_disk() as disk:
        await fail_writes(disk, range(4))
        disk.script.on("put", failing(), times=2)
        reads = [begin(disk.device.read(index * SIZE, 1)) for index in (6, 7)]
        for read in reads:
            with pytest.raises(StoreUnavailable):
                await read
        assert disk.device.dirty_bytes == 4 * SIZE
        assert await disk.read(6 * SIZE, 1) == b"\0"


async def test_request_waiting_for_room_sees_that_the_uploads_it_waits_for_have_failed() -> None:
    async with a_disk() as disk:
        gate = Gate()
        fault = Fault(before=gate, error=StoreUnavailable("faulty"))
        disk.script.on("put", fault, times=4)
        writes = [await begun(disk.device.write(index * SIZE, A)) for index in range(4)]
        reads = [await begun(disk.device.read(index * SIZE, 1)) for index in (5, 6, 7)]
        gate.open()
        ends = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(end) for end in ends} == {StoreUnavailable}
        assert await asyncio.gather(*reads)
        await disk.device.flush()
        assert disk.image() == A * 4 + bytes(4 * SIZE)


# Close


async def test_close_stores_what_is_dirty() -> None:
    async with a_disk() as disk:
        await fail_writes(disk, range(2))
        await disk.device.close()
        assert disk.image()[: 2 * SIZE] == A + A


async def test_close_that_fails_keeps_the_dirty_blocks_and_can_be_tried_again() -> None:
    async with a_disk() as disk:
        await fail_writes(disk, range(2))
        disk.script.on("put", failing(), name=name(1))
        with pytest.raises(StoreUnavailable):
            await disk.device.close()
        assert disk.device.dirty_ranges() == [(SIZE, 2 * SIZE)]
        assert await disk.read(SIZE, SIZE) == A
        await disk.device.close()
        assert disk.has(1) == A


async def test_close_ends_a_fetch_nobody_waits_for() -> None:
    async with a_disk() as disk:
        disk.script.hold("get")
        read = await begun(disk.device.read(0, 1))
        read.cancel()
        await turns()
        assert disk.device._tasks
        await disk.device.close()
        assert not disk.device._tasks


async def test_close_gives_up_at_the_deadline_and_ends_what_hangs() -> None:
    async with a_disk(flush_seconds=0.01) as disk:
        await fail_writes(disk, range(1))
        disk.script.hold("put")
        with pytest.raises(ExportError):
            await disk.device.close()
        assert not disk.device._tasks
        await disk.device.close()
        assert disk.has(0) == A
