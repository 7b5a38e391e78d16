# SPDX-License-Identifier: MIT
"""Requests that meet in one block. Most of these are corruption bugs of programs of this kind."""

import asyncio
from errno import EIO

import pytest

from swiftnbd.errors import ExportError, StoreError, StoreUnavailable
from tests.support.disks import SIZE, a_disk, begin, begun, caching, joined, turns
from tests.support.faulty import Fault, Gate, failing, reply_lost

A, B, C = b"a" * SIZE, b"b" * SIZE, b"c" * SIZE


# Read-modify-write


@pytest.mark.parametrize("connections", [1, 2])
async def test_two_partial_writes_of_one_absent_block_are_both_kept(connections: int) -> None:
    """Each fetches, changes its half and stores: the later one must not undo the earlier one.

    The requests of one connection are tasks as those of two are; one connection may also use
    the fast path of its receive loop in between.
    """
    async with a_disk() as disk:
        disk.put(0, A)
        gate = disk.script.hold("get")
        first = await begun(disk.device.write(0, b"1" * 10, fua=True))
        if connections == 1:
            assert disk.device.write_now(20, b"2" * 10)
            second = await begun(disk.device.flush())
        else:
            second = await begun(disk.device.write(20, b"2" * 10, fua=True))
        third = await begun(disk.device.write(40, b"3" * 10, fua=True))
        gate.open()
        await asyncio.gather(first, second, third)
        gap = b"a" * 10
        expected = b"1" * 10 + gap + b"2" * 10 + gap + b"3" * 10 + b"a" * (SIZE - 50)
        assert disk.has(0) == expected == await disk.read(0, SIZE)
        assert disk.store.count("get") == 1


@pytest.mark.parametrize("cover", ["one by one", "all at once"])
async def test_partial_write_that_is_fully_covered_later_needs_no_get(cover: str) -> None:
    async with a_disk() as disk:
        disk.put(0, A)
        await disk.device.write(9, b"x")
        if cover == "one by one":
            for start in range(0, SIZE, 128):
                await disk.device.write(start, B[:128])
        else:
            await disk.device.write(0, B)
        await disk.device.flush()
        assert disk.has(0) == B
        assert disk.store.count("get") == 0


async def test_partial_write_of_an_object_known_to_be_absent_needs_no_get() -> None:
    async with a_disk() as disk:
        await disk.read(0, 1)
        gets = disk.store.count("get")
        await disk.device.write(9, b"x", fua=True)
        assert disk.has(0) == bytes(9) + b"x" + bytes(SIZE - 10)
        await disk.device.zero(SIZE, SIZE, fua=True)
        await disk.device.write(SIZE + 9, b"x", fua=True)
        assert disk.has(1) == disk.has(0)
        assert disk.store.count("get") == gets == 1


async def test_partial_writes_and_reads_of_one_block_take_one_get() -> None:
    async with a_disk() as disk:
        disk.put(0, A)
        gate = disk.script.hold("get")
        writes = [await begun(disk.device.write(at, b"x", fua=True)) for at in range(0, 90, 3)]
        reads = [await begun(disk.read(at, 2)) for at in range(0, 90, 3)]
        gate.open()
        await asyncio.gather(*writes)
        assert await asyncio.gather(*reads) == [b"xa"] * 30
        assert disk.store.count("get") == 1


async def test_partial_write_full_of_gaps_fetches_the_rest_and_goes_on() -> None:
    async with a_disk() as disk:
        disk.put(0, A)
        for at in range(0, SIZE, 3):
            await disk.device.write(at, b"x")
        assert disk.store.count("get") == 1
        await disk.device.flush()
        assert disk.has(0) == (b"xaa" * SIZE)[:SIZE]


async def test_partial_write_during_an_upload_is_in_the_next_one() -> None:
    async with a_disk() as disk:
        gate = disk.script.hold("put")
        first = await begun(disk.device.write(0, A, fua=True))
        second = await begun(disk.device.write(5, b"x", fua=True))
        gate.open()
        await asyncio.gather(first, second)
        assert disk.has(0) == b"aaaaax" + b"a" * (SIZE - 6)
        assert disk.store.count("put") == 2


async def test_partial_writes_while_the_block_is_evicted_and_fetched_again_are_all_kept() -> None:
    async with a_disk(objects=12) as disk:
        writes = [
            begin(disk.device.write(index * SIZE + at, bytes([1 + at])))
            for at in range(8)
            for index in range(12)
        ]
        await asyncio.gather(*writes)
        await disk.device.flush()
        expected = bytes(range(1, 9)) + bytes(SIZE - 8)
        assert [disk.has(index) for index in range(12)] == [expected] * 12


async def test_block_that_an_upload_fetched_for_a_reader_keeps_no_other_bytes_alive() -> None:
    async with a_disk(settings=caching(block_bytes=128)) as disk:
        disk.put(0, A)
        await disk.device.write(0, B[:128])
        gates = [disk.script.hold("get"), disk.script.hold("get")]
        flush = await begun(disk.device.flush())  # fetches the other three blocks at once
        read = await begun(disk.read(256, 1))
        gates[0].open()
        await flush
        assert disk.blocks[2].data == A[:128]
        assert not isinstance(disk.blocks[2].data, memoryview)
        gates[1].open()
        assert await read == b"a"
        assert disk.has(0) == B[:128] + A[128:]


async def test_write_over_two_objects_and_a_crossing_one_leave_each_object_whole() -> None:
    async with a_disk() as disk:
        one, two = disk.device.write(0, A + A), disk.device.write(0, B + B)
        await asyncio.gather(begin(one), begin(two))
        await disk.device.flush()
        assert disk.has(0) in (A, B)
        assert disk.has(1) in (A, B)


@pytest.mark.parametrize("flushes", [False, True])
async def test_late_put_of_a_connection_that_is_gone_does_not_undo_the_next_ones_write(
    flushes: bool,
) -> None:
    """Its PUT hangs; the client comes back, writes the block anew and flushes."""
    async with a_disk() as disk:
        late, after = disk.script.hold("put"), disk.script.hold("put")
        gone = await begun(disk.device.write(0, A, fua=True))
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await disk.device.write(0, B)
        durable = await begun(
            disk.device.flush() if flushes else disk.device.write(1, b"x", fua=True)
        )
        assert disk.store.count("put") == 1  # the new bytes wait for the late PUT to end
        late.open()
        await turns()
        assert not durable.done()
        after.open()
        await durable
        await disk.device.flush()
        assert disk.has(0) == (B if flushes else b"bx" + B[2:])


# Whole writes against fetches


async def test_whole_write_before_the_first_step_of_a_fetch_wins() -> None:
    """READ and WRITE of one block in one packet: the fetch is begun, but has not run yet."""
    async with a_disk() as disk:
        disk.put(0, A)
        read = begin(disk.device.read(0, SIZE))
        write = begin(disk.device.write(0, B, fua=True))
        await asyncio.gather(read, write)
        assert joined(read.result()) in (A, B)
        assert await disk.read(0, SIZE) == B == disk.has(0)


async def test_whole_zero_before_the_first_step_of_a_fetch_wins() -> None:
    async with a_disk() as disk:
        disk.put(0, A)
        read = begin(disk.device.read(0, SIZE))
        zero = begin(disk.device.zero(0, SIZE, fua=True))
        await asyncio.gather(read, zero)
        assert await disk.read(0, SIZE) == bytes(SIZE)
        assert disk.has(0) is None


@pytest.mark.parametrize("fails", [False, True])
async def test_whole_write_over_a_pending_fetch_wins(fails: bool) -> None:
    async with a_disk() as disk:
        disk.put(0, A)
        gate = disk.script.hold("get")
        read = await begun(disk.device.read(0, 3))
        await disk.device.write(0, B, fua=True)
        assert await disk.read(0, SIZE) == B
        if fails:
            del disk.memory.account.containers["disk"]
        gate.open()
        assert joined(await read) == b"bbb"
        if not fails:
            assert disk.has(0) == B


async def test_whole_write_after_a_partial_one_that_waits_for_its_fetch_wins() -> None:
    async with a_disk() as disk:
        disk.put(0, A)
        gate = disk.script.hold("get")
        partial = await begun(disk.device.write(1, b"x", fua=True))
        whole = await begun(disk.device.write(0, B, fua=True))
        gate.open()
        await asyncio.gather(partial, whole)
        assert disk.has(0) == B


async def test_clear_during_the_fetch_of_an_upload_is_carried_by_it() -> None:
    async with a_disk(settings=caching(block_bytes=128)) as disk:
        disk.put(0, A)
        gate = disk.script.hold("get")
        flush = await begun(disk.device.write(1, b"x", fua=True))
        zero = await begun(disk.device.zero(0, SIZE, fua=True))
        await disk.device.write(200, b"y")
        gate.open()
        await asyncio.gather(flush, zero)
        await disk.device.flush()
        assert disk.has(0) == bytes(200) + b"y" + bytes(SIZE - 201)


async def test_clear_during_an_upload_is_carried_by_the_next_one() -> None:
    async with a_disk(settings=caching(block_bytes=128)) as disk:
        disk.put(0, A)
        gate = disk.script.hold("put")
        first = await begun(disk.device.write(1, b"x", fua=True))
        await disk.device.zero(0, SIZE)
        await disk.device.write(200, b"y")
        assert await disk.read(0, SIZE) == bytes(200) + b"y" + bytes(SIZE - 201)
        gate.open()
        await first
        assert disk.has(0) == b"ax" + A[2:]
        await disk.device.flush()
        assert disk.has(0) == bytes(200) + b"y" + bytes(SIZE - 201)
        assert await disk.read(0, SIZE) == disk.has(0)


# Uploads


async def test_ten_readers_of_a_missing_block_make_one_get() -> None:
    async with a_disk() as disk:
        disk.put(3, A)
        reads = [begin(disk.device.read(3 * SIZE + at, 7)) for at in range(10)]
        assert [joined(pieces) for pieces in await asyncio.gather(*reads)] == [b"a" * 7] * 10
        assert disk.store.count("get") == 1


async def test_ten_readers_of_a_block_that_cannot_be_fetched_all_fail_and_the_next_succeeds() -> (
    None
):
    async with a_disk() as disk:
        disk.put(3, A)
        disk.script.on("get", failing())
        reads = [begin(disk.device.read(3 * SIZE, 7)) for _ in range(10)]
        ends = await asyncio.gather(*reads, return_exceptions=True)
        assert {type(end).__mro__[1] for end in ends} == {StoreError}
        assert disk.blocks == {}
        assert await disk.read(3 * SIZE, 7) == b"a" * 7
        assert disk.store.count("get") == 2


async def test_writes_during_an_upload_are_carried_by_one_more() -> None:
    async with a_disk() as disk:
        gate = disk.script.hold("put")
        first = await begun(disk.device.write(0, A, fua=True))
        others = [await begun(disk.device.write(at, b"w", fua=True)) for at in range(32)]
        assert disk.store.count("put") == 1  # one upload per object at a time
        assert not any(task.done() for task in others)
        gate.open()
        await asyncio.gather(first, *others)
        assert disk.store.count("put") == 2
        assert disk.has(0) == b"w" * 32 + A[32:]


async def test_body_of_an_upload_does_not_change_when_its_block_does() -> None:
    """The faulty store compares at the end what it was given with what is there then."""
    async with a_disk() as disk:
        await disk.device.write(0, A)
        gate = disk.script.hold("put")
        first = await begun(disk.device.write(0, b"1", fua=True))
        device = disk.device
        changes = (device.write(0, b"2"), device.zero(3, 9), device.write(0, B), device.write(8, A))
        later = [await begun(change) for change in changes]
        gate.open()
        await asyncio.gather(first, *later)
        await disk.device.flush()


async def test_failed_upload_fails_its_own_write_and_not_those_that_came_during_it() -> None:
    async with a_disk() as disk:
        gate = Gate()
        disk.script.on("put", Fault(before=gate, error=StoreUnavailable("faulty")))
        first = await begun(disk.device.write(0, A, fua=True))
        later = [await begun(disk.device.write(at, b"x", fua=True)) for at in (1, 2, 3)]
        gate.open()
        with pytest.raises(StoreError):
            await first
        await asyncio.gather(*later)
        assert disk.has(0) == b"axxx" + A[4:]
        assert disk.store.count("put") == 2


async def test_lost_reply_of_a_put_leaves_the_block_dirty_and_right() -> None:
    async with a_disk() as disk:
        disk.script.on("put", reply_lost())
        with pytest.raises(StoreError):
            await disk.device.write(0, A, fua=True)
        assert disk.device.dirty_ranges() == [(0, SIZE)]
        assert await disk.read(0, SIZE) == A
        await disk.device.flush()
        assert (disk.store.count("put"), disk.device.dirty_bytes) == (2, 0)


# Pieces


@pytest.mark.parametrize("size", [SIZE, 64 * 1024])
@pytest.mark.parametrize("dirty", [False, True])
async def test_piece_handed_out_never_changes(size: int, dirty: bool) -> None:
    async with a_disk(size=size) as disk:
        disk.put(0, b"a" * size)
        if dirty:
            await disk.device.write(0, b"a" * size)
        pieces = [
            piece for length in (1, size // 2, size) for piece in await disk.device.read(0, length)
        ]
        before = [bytes(piece) for piece in pieces]
        await disk.device.write(1, b"xyz")
        await disk.device.zero(5, 9)
        await disk.device.write(0, b"b" * size)
        await disk.device.zero(0, size)
        await disk.device.write(2, b"w")
        assert [bytes(piece) for piece in pieces] == before
        await disk.device.flush()


async def test_payload_is_copied_before_write_returns() -> None:
    async with a_disk() as disk:
        payload = bytearray(A)
        await disk.device.write(0, payload, fua=True)
        payload[:] = B
        assert await disk.read(0, SIZE) == A == disk.has(0)


async def test_payload_of_the_fast_path_is_copied_before_it_returns() -> None:
    async with a_disk() as disk:
        payload = bytearray(A)
        assert disk.device.write_now(0, memoryview(payload))
        payload[:] = B
        await disk.device.flush()
        assert await disk.read(0, SIZE) == A == disk.has(0)


# Cancellation


@pytest.mark.parametrize("op", ["get", "put"])
@pytest.mark.parametrize("step", range(14))
async def test_request_cancelled_at_any_step_leaks_nothing(op: str, step: int) -> None:
    async with a_disk() as disk:
        disk.put(0, A)
        gate = disk.script.hold(op)
        tasks = [
            begin(disk.device.write(SIZE - 2, b"1234")),
            begin(disk.device.read(0, 2 * SIZE)),
            begin(disk.device.zero(3, SIZE)),
            begin(disk.device.write(0, C)),
            begin(disk.device.flush()),
        ]
        await turns(step)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gate.open()
        await turns()
        await disk.device.flush()
        assert await disk.read(0, 8 * SIZE) == disk.image()
        assert set(disk.image()[:SIZE]) <= set(b"a12c\0")


@pytest.mark.parametrize("step", range(10))
async def test_cancelled_writer_does_not_disturb_the_others_of_its_block(step: int) -> None:
    async with a_disk() as disk:
        disk.put(0, A)
        gone = begin(disk.device.write(0, b"x"))
        stays = begin(disk.device.write(1, b"y"))
        reads = begin(disk.device.read(2, 2))
        await turns(step)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await stays
        assert joined(await reads) == b"aa"
        await disk.device.flush()
        stored = disk.has(0)
        assert stored is not None
        assert stored[:1] in (b"a", b"x")
        assert stored[1:] == b"y" + A[2:]


async def test_write_cancelled_while_it_waits_for_room_never_happens() -> None:
    async with a_disk() as disk:
        gate = disk.script.hold("put", times=2)
        await disk.device.write(0, A + A)
        gone = await begun(disk.device.write(2 * SIZE, B))
        stays = await begun(disk.device.write(3 * SIZE, B))
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        gate.open()
        await stays
        await disk.device.flush()
        assert disk.image()[: 4 * SIZE] == A + A + bytes(SIZE) + B


async def test_request_cancelled_while_it_waits_for_room_passes_it_on() -> None:
    async with a_disk() as disk:
        gate = disk.script.hold("get", times=4)
        busy = [await begun(disk.device.read(index * SIZE, 1)) for index in range(4)]
        first = await begun(disk.device.read(4 * SIZE, 1))
        second = await begun(disk.device.read(5 * SIZE, 1))
        first.cancel()
        gate.open()
        await asyncio.gather(*busy, second)
        assert first.cancelled()


# A write whose upload is taken away from it


@pytest.mark.parametrize("objects", [1, 2])
async def test_write_whose_upload_was_cut_short_is_not_acknowledged(objects: int) -> None:
    """In a task group, a worker that ends cancelled counts as fine."""
    async with a_disk(settings=caching(16)) as disk:
        gate = disk.script.hold("put", times=objects)
        write = await begun(disk.device.write(0, A * objects, fua=True))
        await disk.device._disk.tasks.close()
        with pytest.raises(ExportError, match="cut short") as caught:
            await write
        assert caught.value.errno == EIO
        assert disk.device.dirty_bytes == objects * SIZE
        gate.open()
        await disk.device.flush()
        assert disk.image()[: objects * SIZE] == A * objects


async def test_upload_cut_short_before_its_first_step_can_be_begun_again() -> None:
    async with a_disk() as disk:
        await disk.device.write(0, A)
        flush = begin(disk.device.flush())
        await turns(1)  # the flush has asked for an upload, which has not begun
        await disk.device._disk.tasks.close()
        with pytest.raises(ExportError):
            await flush
        await disk.device.flush()
        assert disk.has(0) == A


async def test_fetch_cut_short_before_its_first_step_can_be_begun_again() -> None:
    async with a_disk() as disk:
        disk.put(0, A)
        read = begin(disk.device.read(0, 1))
        other = begin(disk.device.read(1, 1))
        await turns(1)
        await disk.device._disk.tasks.close()
        for task in (read, other):
            with pytest.raises(ExportError):
                await task
        assert await disk.read(0, SIZE) == A
