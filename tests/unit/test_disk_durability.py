# SPDX-License-Identifier: MIT
"""What a reply promises, what a failed upload leaves behind, and what flush and close do."""

import asyncio
from errno import EIO, ENOSPC, EPERM

import pytest

from swiftnbd.errors import AccessRefused, ExportError, StoreError, StoreFull, StoreUnavailable
from swiftnbd.export.settings import CacheMode
from tests.support.disks import SIZE, Disk, a_disk, begin, begun, caching, name, turns
from tests.support.faulty import Fault, Gate, failing, reply_lost

A, B = b"a" * SIZE, b"b" * SIZE

MANY = caching(32)  # 8 objects may be dirty before anything is stored unasked
WRITETHROUGH = caching(mode=CacheMode.WRITETHROUGH)


async def write_all(disk: Disk, indexes: range) -> None:
    """Leave these blocks dirty, holding `A`."""
    for index in indexes:
        await disk.device.write(index * SIZE, A)
    assert disk.store.count("put") == 0


# Writes


async def test_write_is_acknowledged_before_it_is_stored() -> None:
    async with a_disk() as disk:
        await disk.device.write(0, A)
        await disk.device.write(3, b"x")
        await turns()
        assert disk.store.calls.total() == 0
        assert disk.device.dirty_ranges() == [(0, SIZE)]
        await disk.device.flush()
        assert disk.has(0) == b"aaax" + A[4:]
        assert disk.store.count("put") == 1


@pytest.mark.parametrize("fua", [False, True])
async def test_write_is_stored_when_it_is_acknowledged_if_it_must_be(fua: bool) -> None:
    async with a_disk(settings=None if fua else WRITETHROUGH) as disk:
        gate = Gate()
        disk.script.on("put", Fault(after=gate))
        write = await begun(disk.device.write(0, A, fua=fua))
        assert disk.has(0) == A
        assert not write.done()  # the store has it, but has not said so
        gate.open()
        await write


@pytest.mark.parametrize("kind", ["zero", "trim"])
@pytest.mark.parametrize("fua", [False, True])
async def test_zeros_are_stored_when_acknowledged_if_they_must_be(kind: str, fua: bool) -> None:
    async with a_disk(settings=None if fua else WRITETHROUGH) as disk:
        disk.put(0, A)
        gate = Gate()
        disk.script.on("delete", Fault(after=gate))
        request = await begun(getattr(disk.device, kind)(0, SIZE, fua=fua))
        assert disk.has(0) is None
        assert not request.done()
        gate.open()
        await request


async def test_fast_path_declines_what_must_be_durable() -> None:
    async with a_disk(settings=WRITETHROUGH) as disk:
        assert not disk.device.write_now(0, A)
        assert disk.device.dirty_bytes == 0
    async with a_disk() as disk:
        assert disk.device.write_now(0, A)
        assert disk.device.dirty_bytes == SIZE
        await disk.device.flush()
        assert disk.has(0) == A


@pytest.mark.parametrize("fault", [failing(), reply_lost()])
async def test_failed_put_leaves_the_block_dirty_and_flush_tries_again(fault: Fault) -> None:
    async with a_disk() as disk:
        disk.put(0, B)
        disk.script.on("put", fault)
        with pytest.raises(StoreUnavailable):
            await disk.device.write(0, b"x", fua=True)
        assert disk.device.dirty_ranges() == [(0, SIZE)]
        assert await disk.read(0, 2) == b"xb"
        await disk.device.flush()
        assert disk.has(0) == b"x" + B[1:]
        assert disk.device.dirty_bytes == 0


async def test_failed_fetch_of_the_rest_of_a_block_fails_the_flush_and_loses_nothing() -> None:
    async with a_disk() as disk:
        disk.put(0, B)
        await disk.device.write(0, b"x")
        disk.script.on("get", failing())
        with pytest.raises(StoreUnavailable):
            await disk.device.flush()
        assert disk.has(0) == B
        assert disk.device.dirty_ranges() == [(0, SIZE)]
        assert await disk.read(0, 1) == b"x"
        await disk.device.flush()
        assert disk.has(0) == b"x" + B[1:]


async def test_full_store_is_told_as_no_space() -> None:
    async with a_disk() as disk:
        disk.script.on("put", failing(StoreFull("faulty: full")), times=2)
        for request in (disk.device.write(0, A, fua=True), disk.device.flush()):
            with pytest.raises(StoreFull) as caught:
                await request
            assert caught.value.errno == ENOSPC
        await disk.device.flush()


async def test_flush_that_the_store_does_not_permit_says_so() -> None:
    async with a_disk() as disk:
        await disk.device.write(0, A)
        disk.script.on("put", failing(AccessRefused("faulty: not for you")))
        with pytest.raises(AccessRefused) as caught:
            await disk.device.flush()
        assert caught.value.errno == EPERM
        await disk.device.flush()
        assert disk.has(0) == A


async def test_dirty_ranges_are_ascending_and_joined() -> None:
    async with a_disk(settings=MANY) as disk:
        for index in (5, 1, 2, 7, 0):
            await write_all(disk, range(index, index + 1))
        assert disk.device.dirty_ranges() == [
            (0, 3 * SIZE),
            (5 * SIZE, 6 * SIZE),
            (7 * SIZE, 8 * SIZE),
        ]
        assert disk.device.dirty_bytes == 5 * SIZE
        await disk.device.flush()
        assert disk.device.dirty_ranges() == []


async def test_dirty_ranges_of_a_large_object_are_its_changed_blocks_or_all_that_was_cleared() -> (
    None
):
    async with a_disk(settings=caching(block_bytes=128)) as disk:
        disk.put(0, A)
        disk.put(1, A)
        await disk.device.write(128, b"x")
        await disk.device.zero(SIZE, SIZE)
        await disk.device.write(SIZE + 5, b"x")
        assert disk.device.dirty_ranges() == [(128, 256), (SIZE, 2 * SIZE)]
        await disk.device.flush()
        assert disk.device.dirty_ranges() == []


# Flush


async def test_flush_with_nothing_dirty_asks_the_store_nothing() -> None:
    async with a_disk() as disk:
        await disk.device.write(0, A, fua=True)
        calls = disk.store.calls.copy()
        await disk.device.flush()
        assert disk.store.calls == calls


async def test_flush_goes_through_all_dirty_blocks_in_spite_of_errors() -> None:
    async with a_disk(settings=MANY) as disk:
        await write_all(disk, range(6))
        disk.script.on("put", failing(StoreFull("faulty: full")), name=name(0))
        disk.script.on("put", failing(), name=name(3))
        with pytest.raises(StoreError):
            await disk.device.flush()
        assert [disk.has(index) for index in range(6)] == [None, A, A, None, A, A]
        assert disk.device.dirty_ranges() == [(0, SIZE), (3 * SIZE, 4 * SIZE)]
        await disk.device.flush()
        assert disk.image() == A * 6 + bytes(2 * SIZE)


@pytest.mark.parametrize("first", [0, 1])
async def test_flush_that_meets_both_errors_says_io_error_until_only_room_is_missing(
    first: int,
) -> None:
    async with a_disk(settings=MANY) as disk:
        await write_all(disk, range(4))
        for _ in range(2):
            disk.script.on("put", failing(StoreFull("faulty: full")), name=name(first))
        disk.script.on("put", failing(), name=name(1 - first))
        for errno in (EIO, ENOSPC):
            with pytest.raises(StoreError) as caught:
                await disk.device.flush()
            assert caught.value.errno == errno
        assert disk.device.dirty_ranges() == [(first * SIZE, (first + 1) * SIZE)]
        await disk.device.flush()
        assert disk.image() == A * 4 + bytes(4 * SIZE)


async def test_flush_goes_through_more_dirty_blocks_than_it_works_on_at_once() -> None:
    async with a_disk(objects=100, settings=caching(400)) as disk:
        await write_all(disk, range(100))
        for index in range(0, 100, 9):
            disk.script.on("put", failing(), name=name(index))
        with pytest.raises(StoreError):
            await disk.device.flush()
        left = [start // SIZE for start, _ in disk.device.dirty_ranges()]
        assert left == list(range(0, 100, 9))
        await disk.device.flush()
        assert disk.image() == A * 100


async def test_flush_covers_what_every_connection_wrote() -> None:
    """A connection is a task to the device; CAN_MULTI_CONN promises just this."""
    async with a_disk(settings=MANY) as disk:
        writes = [begin(disk.device.write(index * SIZE, A)) for index in range(4)]
        await asyncio.gather(*writes)
        await begin(disk.device.flush())
        assert disk.image()[: 4 * SIZE] == A * 4


async def test_concurrent_flushes_share_the_uploads() -> None:
    async with a_disk(settings=MANY) as disk:
        await write_all(disk, range(4))
        gate = disk.script.hold("put", times=4)
        flushes = [await begun(disk.device.flush()) for _ in range(5)]
        assert not any(flush.done() for flush in flushes)
        gate.open()
        await asyncio.gather(*flushes)
        assert disk.store.count("put") == 4


async def test_flush_waits_for_an_upload_under_way() -> None:
    async with a_disk() as disk:
        gate = disk.script.hold("put")
        write = await begun(disk.device.write(0, A, fua=True))
        flush = await begun(disk.device.flush())
        assert not flush.done()
        gate.open()
        await asyncio.gather(write, flush)
        assert disk.store.count("put") == 1


async def test_flush_does_not_wait_for_writes_that_came_after_it() -> None:
    async with a_disk() as disk:
        gates = [disk.script.hold("put"), disk.script.hold("put")]
        await disk.device.write(0, A)
        flush = await begun(disk.device.flush())
        later = await begun(disk.device.write(0, B, fua=True))
        gates[0].open()
        await flush
        assert not later.done()
        gates[1].open()
        await later
        assert disk.has(0) == B


async def test_flush_covers_a_write_made_while_an_earlier_one_is_uploading() -> None:
    async with a_disk() as disk:
        first, second = disk.script.hold("put"), disk.script.hold("put")
        early = await begun(disk.device.write(0, A, fua=True))
        await disk.device.write(0, B)
        flush = await begun(disk.device.flush())
        first.open()
        await early
        await turns()
        assert not flush.done()  # what is stored by now is A
        second.open()
        await flush
        assert disk.has(0) == B


async def test_flush_gives_up_at_its_deadline_and_the_next_one_succeeds() -> None:
    async with a_disk(flush_seconds=0.2) as disk:
        await disk.device.write(0, A)
        gate = disk.script.hold("put")
        with pytest.raises(
            ExportError, match="512 bytes are not stored, and nothing was for"
        ) as caught:
            await disk.device.flush()
        assert caught.value.errno == EIO
        gate.open()
        await disk.device.flush()
        assert disk.has(0) == A


async def test_cancelled_flush_lets_its_uploads_end() -> None:
    async with a_disk(settings=MANY) as disk:
        await write_all(disk, range(2))
        gate = disk.script.hold("put", times=2)
        flush = await begun(disk.device.flush())
        flush.cancel()
        await asyncio.gather(flush, return_exceptions=True)
        gate.open()
        await turns()
        assert disk.image()[: 2 * SIZE] == A + A


# No room


async def test_dirty_blocks_are_not_dropped_to_make_room() -> None:
    async with a_disk(settings=caching(dirty_bytes=3 * SIZE)) as disk:
        for index in range(4, 8):
            disk.put(index, B)
        disk.script.on("put", failing(), times=100)
        for index in range(3):
            await disk.device.write(index * SIZE, A)
        for index in range(4, 8):
            assert await disk.read(index * SIZE, SIZE) == B
        assert await disk.read(0, 3 * SIZE) == A * 3
        disk.script.clear()
        await disk.device.flush()
        assert disk.image() == A * 3 + bytes(SIZE) + B * 4


async def test_reads_go_on_when_writes_have_no_room_because_nothing_can_be_stored() -> None:
    async with a_disk() as disk:
        disk.script.on("put", failing(), times=100)
        with pytest.raises(StoreUnavailable):
            await disk.device.write(0, A * 4)
        disk.put(7, B)
        assert await disk.read(7 * SIZE, SIZE) == B
        assert await disk.read(0, 2 * SIZE) == A * 2
        disk.script.clear()
        await disk.device.flush()
        assert disk.image()[: 2 * SIZE] == A * 2


async def test_writes_beyond_the_limit_wait_and_are_served_in_their_order() -> None:
    async with a_disk() as disk:  # two objects may be dirty
        gates = {index: disk.script.hold("put", name=name(index)) for index in (0, 1, 2, 3, 4)}
        for index in (0, 1):
            assert (await begun(disk.device.write(index * SIZE, A))).done()
        later = [await begun(disk.device.write(index * SIZE, A)) for index in (2, 3, 4)]
        again = await begun(disk.device.write(0, B[:1]))  # needs no room, but comes after them
        assert disk.device.dirty_bytes == 2 * SIZE
        assert not any(task.done() for task in (*later, again))
        gates[1].open()
        await turns()
        assert [task.done() for task in later] == [True, False, False]
        gates[0].open()
        await turns()
        assert [task.done() for task in later] == [True, True, False]
        assert disk.device.dirty_bytes == 2 * SIZE
        for gate in gates.values():
            gate.open()
        await asyncio.gather(*later, again)
        await disk.device.flush()
        assert disk.image() == b"b" + A[1:] + A * 4 + bytes(3 * SIZE)


async def test_fast_path_does_not_overtake_writes_that_wait_for_room() -> None:
    async with a_disk() as disk:
        gate = disk.script.hold("put", times=2)
        await disk.device.write(0, A + A)
        waiting = await begun(disk.device.write(2 * SIZE, A))
        assert not disk.device.write_now(2 * SIZE, B)
        assert not disk.device.write_now(0, B)
        gate.open()
        await waiting
        assert disk.device.write_now(2 * SIZE, B)
        await disk.device.flush()
        assert disk.has(2) == B


async def test_writes_that_wait_for_room_get_the_error_of_a_store_that_fails() -> None:
    async with a_disk(settings=caching(4, retry_seconds=60.0)) as disk:
        gate = Gate()
        fault = Fault(before=gate, error=StoreFull("faulty: full"))
        disk.script.on("put", fault, times=2)
        await disk.device.write(0, A + A)
        waiting = [await begun(disk.device.write(index * SIZE, B)) for index in (2, 3)]
        gate.open()
        for task in waiting:
            with pytest.raises(StoreFull) as caught:
                await task
            assert caught.value.errno == ENOSPC
        await disk.device.flush()
        assert disk.image() == A + A + bytes(6 * SIZE)
        await disk.device.write(2 * SIZE, B, fua=True)  # and it is over
        assert disk.has(2) == B


async def test_room_that_was_waited_for_in_vain_is_not_made_for_ever() -> None:
    async with a_disk(9, settings=caching(16, retry_seconds=60.0)) as disk:
        disk.script.on("put", failing(), times=8)
        with pytest.raises(StoreUnavailable):
            await disk.device.write(0, A * 8 + A)
        await disk.device.flush()
        puts = disk.store.count("put")
        await disk.device.write(0, B)
        await turns()
        assert disk.store.count("put") == puts
        await disk.device.flush()


# Age


async def test_change_is_stored_when_it_is_old_enough() -> None:
    async with a_disk(settings=caching(32, dirty_seconds=5.0)) as disk:
        loop, passed = asyncio.get_running_loop(), 0.0
        real = loop.time
        loop.time = lambda: real() + passed  # type: ignore[method-assign]
        await disk.device.write(0, A)
        passed = 4.0
        await disk.device.write(SIZE, B)
        await disk.device.write(0, b"x")  # its age counts from its first change
        assert disk.store.count("put") == 0
        passed = 5.5
        await turns()
        assert disk.image()[: 2 * SIZE] == b"x" + A[1:] + bytes(SIZE)
        passed = 9.5
        await turns()
        assert disk.has(1) == B
        loop.time = real  # type: ignore[method-assign]


async def test_age_of_what_changes_during_an_upload_counts_from_its_end() -> None:
    async with a_disk(settings=caching(32, dirty_seconds=5.0)) as disk:
        loop, passed = asyncio.get_running_loop(), 0.0
        real = loop.time
        loop.time = lambda: real() + passed  # type: ignore[method-assign]
        gate = disk.script.hold("put")
        upload = await begun(disk.device.write(0, A, fua=True))
        await disk.device.write(0, b"x")
        passed = 9.0
        gate.open()
        await upload
        passed = 13.0
        await turns()
        assert disk.has(0) == A
        passed = 14.5
        await turns()
        assert disk.has(0) == b"x" + A[1:]
        loop.time = real  # type: ignore[method-assign]


async def test_change_is_stored_at_once_if_no_age_is_allowed() -> None:
    async with a_disk(settings=caching(dirty_seconds=0.0)) as disk:
        await disk.device.write(0, A)
        await turns()
        assert disk.has(0) == A
        assert disk.device.dirty_bytes == 0


async def test_half_of_the_limit_is_written_back_without_waiting_for_its_age() -> None:
    async with a_disk(objects=9, settings=MANY) as disk:
        await write_all(disk, range(8))
        await turns()
        assert disk.store.count("put") == 0
        await disk.device.write(8 * SIZE, A)
        await turns()
        assert disk.has(0) == A
        await disk.device.flush()


async def test_store_in_trouble_is_left_alone_but_for_those_who_ask() -> None:
    async with a_disk(settings=caching(dirty_seconds=0.0, retry_seconds=1000.0)) as disk:
        disk.script.on("put", failing(), times=2)
        await disk.device.write(0, A)
        await turns()
        assert disk.store.count("put") == 1
        with pytest.raises(StoreUnavailable):
            await disk.device.flush()
        await disk.device.write(SIZE, A)
        await turns()
        assert disk.store.count("put") == 2
        await disk.device.flush()
        assert disk.image()[: 2 * SIZE] == A + A


# Close


async def test_close_stores_what_is_dirty() -> None:
    async with a_disk(settings=MANY) as disk:
        await write_all(disk, range(2))
        await disk.device.close()
        assert disk.image()[: 2 * SIZE] == A + A


async def test_close_that_fails_keeps_the_dirty_blocks_and_can_be_tried_again() -> None:
    async with a_disk(settings=MANY) as disk:
        await write_all(disk, range(2))
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
        assert disk.device._disk.tasks
        await disk.device.close()
        assert not disk.device._disk.tasks


async def test_close_gives_up_at_the_deadline_and_can_be_tried_again() -> None:
    async with a_disk(flush_seconds=0.2) as disk:
        await disk.device.write(0, A)
        gate = disk.script.hold("put")
        with pytest.raises(ExportError):
            await disk.device.close()
        assert disk.device.dirty_ranges() == [(0, SIZE)]
        gate.open()
        await disk.device.close()
        assert disk.has(0) == A


# The lease of the lock


async def test_suspended_device_answers_nothing_and_stores_nothing_until_it_goes_on() -> None:
    async with a_disk() as disk:
        disk.put(1, B)
        gate = disk.script.hold("put")
        await disk.read(SIZE, 1)
        flushed = await begun(disk.device.write(0, A, fua=True))
        disk.device.suspend()
        device = disk.device
        requests = (
            device.read(SIZE, 1),
            device.write(SIZE, A),
            device.zero(2 * SIZE, SIZE),
            device.trim(2 * SIZE, SIZE),
            device.flush(),
            device.extents(0, SIZE, count=1),
            device.prefetch(SIZE, 1),
        )
        waiting = [await begun(request) for request in requests]
        assert device.read_now(SIZE, 1) is None
        assert not device.write_now(SIZE, A)
        gate.open()
        await turns()
        assert disk.store.count("put") == 1  # the one that was cut short
        assert disk.has(0) is None
        assert not any(task.done() for task in (flushed, *waiting))
        device.resume()
        await asyncio.gather(flushed, *waiting)
        await device.flush()
        assert disk.image()[: 2 * SIZE] == A + A


async def test_failed_device_never_answers_again_and_says_what_is_lost() -> None:
    async with a_disk(settings=MANY) as disk:
        await write_all(disk, range(2))
        gate = disk.script.hold("put", times=2)
        flush = await begun(disk.device.flush())
        disk.device.fail("the lock is lost")
        gate.open()
        for request in (flush, disk.device.read(0, 1), disk.device.write(0, B)):
            with pytest.raises(ExportError, match="the lock is lost"):
                await request
        await turns()
        assert disk.device.dirty_ranges() == [(0, 2 * SIZE)]
        assert disk.image() == bytes(8 * SIZE)


async def test_flush_of_much_on_a_slow_store_goes_on_as_long_as_something_is_stored() -> None:
    async with a_disk(settings=caching(32), flush_seconds=1.5) as disk:
        gates = [Gate() for _ in range(6)]
        for gate in gates:
            disk.script.on("put", Fault(before=gate))
        await disk.device.write(0, A * 6)
        flushing = await begun(disk.device.flush())
        for gate in gates:  # 1.8 s, longer than it may take without any progress
            await asyncio.sleep(0.3)
            gate.open()
        await flushing
        assert disk.image()[: 6 * SIZE] == A * 6


async def test_object_that_cannot_be_stored_stalls_no_other() -> None:
    async with a_disk(64, settings=caching(4, retry_seconds=60.0)) as disk:
        plan = disk.script
        poison = failing()
        disk.store.plan = lambda call: poison if call.name == name(0) else plan(call)
        await disk.device.write(0, A)
        for index in range(1, 64):
            await asyncio.wait_for(disk.device.write(index * SIZE, B), 30)
        disk.store.plan = plan
        await disk.device.flush()
        assert disk.image() == A + B * 63


@pytest.mark.expects_log("an upload failed")
async def test_bug_in_an_upload_fails_it_once_and_does_not_repeat_it_for_ever() -> None:
    async with a_disk(settings=caching(4, retry_seconds=60.0)) as disk:
        disk.script.on("put", Fault(error=ZeroDivisionError("a bug")))  # type: ignore[arg-type]
        with pytest.raises(ExportError, match="a bug"):
            await disk.device.write(0, A, fua=True)
        await turns()
        assert disk.store.count("put") == 1
        await disk.device.flush()
        assert disk.has(0) == A


async def test_reader_that_waits_for_room_does_not_try_again_before_there_may_be_some() -> None:
    async with a_disk(settings=caching(4, dirty_bytes=3 * SIZE)) as disk:
        gate = disk.script.hold("put")
        await disk.device.write(0, A * 3)
        reading = [await begun(disk.read(index * SIZE, SIZE)) for index in (4, 5)]
        served = 0
        serve = disk.device._disk._serve

        def counting() -> None:
            nonlocal served
            served += 1
            serve()

        disk.device._disk._serve = counting  # type: ignore[method-assign]
        await turns(200)
        assert served < 5
        gate.open()
        assert [await each for each in reading] == [bytes(SIZE)] * 2
