# SPDX-License-Identifier: MIT
"""When each changed object is stored, and what is told to whom, with uploads that tests end."""

import asyncio
import math
from dataclasses import dataclass, field
from errno import ESHUTDOWN

import pytest
import uvloop

from swiftnbd.errors import (
    AccessRefused,
    ExportError,
    StoreError,
    StoreFull,
    StoreUnavailable,
    SwiftnbdError,
)
from swiftnbd.export.block import Block, State
from swiftnbd.export.gate import Gate
from swiftnbd.export.tasks import Tasks
from swiftnbd.export.writeback import FILLING_MAX, DirtyObject, WriteBack
from tests.support.disks import begun, turns
from tests.support.loopback import until

BYTES = b"bytes"


@dataclass
class Uploads:
    """A `WriteBack` whose uploads wait until the test ends them."""

    limit: int = 8
    seconds: float = math.inf
    retry_seconds: float = 0.0
    at_once: int = 16
    per_object: int = 1
    running: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    begun: list[int] = field(default_factory=list)
    stored: int = 0
    settled: list[int] = field(default_factory=list)
    failures: list[SwiftnbdError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate = Gate()
        self.tasks = Tasks("disk")
        self.writeback = WriteBack(
            self._upload,
            self.tasks,
            self.gate,
            limit=self.limit,
            per_object=self.per_object,
            seconds=self.seconds,
            retry_seconds=self.retry_seconds,
            at_once=self.at_once,
            settle=lambda block: self.settled.append(block.index),
            on_stored=self._on_stored,
            on_failed=self.failures.append,
        )

    async def _upload(self, dirty: DirtyObject) -> None:
        assert dirty.index not in self.running, "two at once"
        self.begun.append(dirty.index)
        for block in dirty.blocks.values():
            block.fill(BYTES)
        dirty.begin_upload()
        end = self.running[dirty.index] = asyncio.get_running_loop().create_future()
        try:
            await end
        finally:
            del self.running[dirty.index]

    def _on_stored(self) -> None:
        self.stored += 1

    def change(self, index: int, *, absent: bool = False, data: bytes = BYTES) -> DirtyObject:
        """Change the one block of an object."""
        dirty = self.writeback.touch(index, absent=absent)
        block = dirty.blocks.get(index)
        if block is None:
            block = Block(index, len(BYTES))
            block.write(0, data)
            self.writeback.add(dirty, block)
        else:
            block.write(0, data)
        return dirty

    async def end(self, index: int, error: SwiftnbdError | None = None) -> None:
        if error is None:
            self.running[index].set_result(None)
        else:
            self.running[index].set_exception(error)
        await turns()

    def close(self) -> None:
        assert not self.running
        self.writeback.close()


async def test_nothing_is_stored_unasked_before_its_age() -> None:
    uploads = Uploads()
    uploads.change(1)
    await turns()
    assert uploads.begun == []
    assert list(uploads.writeback.objects) == [1]


async def test_stored_object_is_forgotten_and_its_blocks_are_clean() -> None:
    uploads = Uploads()
    dirty = uploads.change(1)
    block = dirty.blocks[1]
    waiting = await begun(uploads.writeback.stored([(dirty, dirty.generation)]))
    assert uploads.begun == [1]
    await uploads.end(1)
    await waiting
    assert (block.state, uploads.settled, uploads.stored) == (State.CLEAN, [1], 1)
    assert (uploads.writeback.objects, uploads.writeback.blocks) == ({}, 0)
    uploads.close()


async def test_change_during_an_upload_is_carried_by_the_next() -> None:
    uploads = Uploads()
    dirty = uploads.change(1)
    first = await begun(uploads.writeback.stored([(dirty, dirty.generation)]))
    assert uploads.change(1) is dirty
    second = await begun(uploads.writeback.stored([(dirty, dirty.generation)]))
    assert uploads.begun == [1]
    await uploads.end(1)
    assert (first.done(), second.done()) == (True, False)
    assert uploads.begun == [1, 1]
    await uploads.end(1)
    await second
    uploads.close()


async def test_those_who_wait_for_one_generation_share_its_upload() -> None:
    uploads = Uploads()
    dirty = uploads.change(1)
    waiting = [await begun(uploads.writeback.stored([(dirty, dirty.generation)])) for _ in range(5)]
    await uploads.end(1)
    await asyncio.gather(*waiting)
    assert uploads.begun == [1]


async def test_failure_is_told_to_those_it_was_about_and_to_nobody_else() -> None:
    """Three wait for what came during it: the next upload is for them."""
    uploads = Uploads()
    dirty = uploads.change(1)
    first = await begun(uploads.writeback.stored([(dirty, dirty.generation)]))
    uploads.change(1)
    later = [await begun(uploads.writeback.stored([(dirty, dirty.generation)])) for _ in range(3)]
    await uploads.end(1, StoreFull("faulty"))
    with pytest.raises(StoreFull):
        await first
    assert not any(task.done() for task in later)
    assert uploads.begun == [1, 1]
    await uploads.end(1)
    await asyncio.gather(*later)
    assert [type(error) for error in uploads.failures] == [StoreFull]
    uploads.close()


async def test_failure_of_an_upload_that_began_before_is_no_answer() -> None:
    """The store may have recovered since: it is asked once more for whoever comes now."""
    uploads = Uploads(seconds=0.0, retry_seconds=math.inf)
    dirty = uploads.change(1)
    await turns()
    waiting = await begun(uploads.writeback.stored([(dirty, dirty.generation)]))
    await uploads.end(1, StoreUnavailable("faulty"))
    assert not waiting.done()
    assert uploads.begun == [1, 1]
    await uploads.end(1)
    await waiting
    uploads.close()


async def test_all_are_tried_before_the_first_error_is_raised() -> None:
    uploads = Uploads(at_once=1)
    changes = [(each, each.generation) for each in map(uploads.change, range(3))]
    waiting = await begun(uploads.writeback.stored(changes))
    for index, error in enumerate([StoreUnavailable("faulty"), None, None]):
        assert not waiting.done()
        await uploads.end(index, error)
    with pytest.raises(StoreUnavailable):
        await waiting


@pytest.mark.parametrize("other", [StoreUnavailable, AccessRefused])
@pytest.mark.parametrize("is_full_first", [True, False])
async def test_error_that_room_would_not_mend_goes_before_one_that_it_would(
    other: type[StoreError], is_full_first: bool
) -> None:
    uploads = Uploads(retry_seconds=math.inf)
    changes = [(each, each.generation) for each in map(uploads.change, range(2))]
    waiting = await begun(uploads.writeback.stored(changes))
    order: list[type[StoreError]] = [StoreFull, other] if is_full_first else [other, StoreFull]
    for index, error in enumerate(order):
        await uploads.end(index, error("faulty"))
    with pytest.raises(other):
        await waiting


async def test_those_who_wait_take_turns() -> None:
    """A write with FUA does not wait for all that the flush before it has to store."""
    uploads = Uploads(limit=64, at_once=1)
    changes = [(each, each.generation) for each in map(uploads.change, range(8))]
    flush = await begun(uploads.writeback.stored(changes))
    fua = uploads.change(9)
    write = await begun(uploads.writeback.stored([(fua, fua.generation)]))
    for index in (0, 1, 9):
        assert not write.done()
        await uploads.end(index)
    assert write.done()
    for index in range(2, 8):
        await uploads.end(index)
    await flush
    uploads.close()


async def test_flushes_that_overlap_store_each_object_once() -> None:
    uploads = Uploads(limit=64, at_once=4)
    flushes = []
    for index in range(20):
        uploads.change(index)
        flushes.append(await begun(uploads.writeback.all_stored()))
    while uploads.running:
        await uploads.end(min(uploads.running))
    await asyncio.gather(*flushes)
    assert uploads.begun == list(range(20))
    uploads.close()


async def test_flushes_of_the_same_changes_cost_each_object_nothing() -> None:
    """256 of them wait while Swift is away; each with a list of all objects, that is gigabytes."""
    uploads = Uploads(limit=64, at_once=1)
    objects = [uploads.change(index) for index in range(20)]
    flushes = [await begun(uploads.writeback.all_stored()) for _ in range(10)]
    assert [len(dirty.demands) for dirty in objects] == [1] * 20
    flushes.pop(0).cancel()  # who came first and made the demand goes first
    while uploads.running:
        assert not any(flush.done() for flush in flushes)
        await uploads.end(min(uploads.running))
    await asyncio.gather(*flushes)
    uploads.close()


@pytest.mark.parametrize("is_new", [False, True])
async def test_flush_after_a_change_waits_for_that_too(is_new: bool) -> None:
    uploads = Uploads(at_once=1)
    uploads.change(1)
    first = await begun(uploads.writeback.all_stored())
    uploads.change(2 if is_new else 1)
    second = await begun(uploads.writeback.all_stored())
    await uploads.end(1)
    assert (first.done(), second.done()) == (True, False)
    await uploads.end(2 if is_new else 1)
    await second
    uploads.close()


async def test_flush_is_not_told_what_failed_before_it_came() -> None:
    """It shares with one that came sooner, and asks again when that one fails."""
    uploads = Uploads(retry_seconds=math.inf)
    uploads.change(1)
    first = await begun(uploads.writeback.all_stored())
    later = [await begun(uploads.writeback.all_stored()) for _ in range(3)]
    await uploads.end(1, StoreUnavailable("faulty"))
    with pytest.raises(StoreUnavailable):
        await first
    assert not any(flush.done() for flush in later)
    assert uploads.begun == [1, 1]
    await uploads.end(1, StoreUnavailable("faulty"))
    for flush in later:
        with pytest.raises(StoreUnavailable):
            await flush
    assert uploads.begun == [1, 1]


async def test_flush_does_not_join_one_that_has_failed_in_part() -> None:
    uploads = Uploads(retry_seconds=math.inf, at_once=1)
    uploads.change(1)
    uploads.change(2)
    first = await begun(uploads.writeback.all_stored())
    await uploads.end(1, StoreUnavailable("faulty"))
    second = await begun(uploads.writeback.all_stored())
    await uploads.end(2)
    with pytest.raises(StoreUnavailable):
        await first
    await uploads.end(1)
    await second
    uploads.close()


async def test_flushes_that_share_are_all_told_that_the_device_has_failed() -> None:
    uploads = Uploads()
    uploads.change(1)
    flushes = [await begun(uploads.writeback.all_stored()) for _ in range(3)]
    error = ExportError(ESHUTDOWN, "gone")
    uploads.gate.fail(error)
    uploads.writeback.fail(error)
    for flush in flushes:
        with pytest.raises(ExportError, match="gone"):
            await flush


async def test_object_that_is_always_wanted_again_lets_others_have_their_turn() -> None:
    """One connection writes to it with FUA, two at a time; another one would wait for ever."""
    uploads = Uploads(at_once=1)
    writes = []
    for _ in range(2):
        dirty = uploads.change(1)
        writes.append(await begun(uploads.writeback.stored([(dirty, dirty.generation)])))
    uploads.change(2)
    flush = await begun(uploads.writeback.all_stored())
    for _ in range(4):
        if 2 in uploads.running:
            break
        dirty = uploads.change(1)
        writes.append(await begun(uploads.writeback.stored([(dirty, dirty.generation)])))
        await uploads.end(1)
    while uploads.running:
        await uploads.end(min(uploads.running))
    await asyncio.gather(flush, *writes)
    assert uploads.begun[:3] == [1, 1, 2]
    uploads.close()


@pytest.mark.parametrize("why", ["old", "in the way"])
async def test_what_nobody_waits_for_has_its_turn_among_all_that_is_waited_for(why: str) -> None:
    """Writes with FUA, always more than uploads: what is old, or room for others, would wait."""
    uploads = Uploads(limit=64, at_once=2, seconds=0.0 if why == "old" else math.inf)
    writes = []
    for index in range(1, 20):
        dirty = uploads.change(index)
        writes.append(await begun(uploads.writeback.stored([(dirty, dirty.generation)])))
        if index == 3:
            uploads.change(0)
            if why == "in the way":
                uploads.writeback.press()
        if index > 3:
            await uploads.end(min(uploads.running))
    assert 0 in uploads.begun[:6]
    while uploads.running:
        await uploads.end(min(uploads.running))
    await asyncio.gather(*writes)
    assert sorted(uploads.begun) == list(range(20))
    uploads.close()


async def test_object_changed_twice_by_one_request_is_waited_for_once() -> None:
    uploads = Uploads()
    first = uploads.change(1)
    changes = [(first, first.generation)]
    uploads.change(1)
    changes = [(first, first.generation), *changes]
    waiting = await begun(uploads.writeback.stored(changes))
    await uploads.end(1)
    await waiting
    uploads.close()


async def test_cancelled_waiters_leave_nothing_behind() -> None:
    """Flushes of a client that comes and goes during an outage must not pile up."""
    uploads = Uploads(at_once=1)
    objects = [uploads.change(index) for index in range(3)]
    for _ in range(3):
        waiting = [await begun(uploads.writeback.all_stored()) for _ in range(2)]
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert not any(dirty.demands for dirty in objects)
    assert uploads.writeback._demands.next() is None
    await uploads.end(0)
    assert uploads.begun == [0]  # nobody asks for the others


async def test_failed_device_tells_all_who_wait_at_once() -> None:
    uploads = Uploads(at_once=1)
    changes = [(each, each.generation) for each in map(uploads.change, range(3))]
    waiting = await begun(uploads.writeback.stored(changes))
    uploads.gate.close()
    uploads.writeback.abort()
    await turns()
    assert not waiting.done()
    error = ExportError(ESHUTDOWN, "gone")
    uploads.gate.fail(error)
    uploads.writeback.fail(error)
    for each in (waiting, uploads.writeback.stored(changes)):
        with pytest.raises(ExportError, match="gone"):
            await each


async def test_failed_object_stays_dirty() -> None:
    uploads = Uploads(retry_seconds=math.inf)
    dirty = uploads.change(1)
    waiting = await begun(uploads.writeback.stored([(dirty, dirty.generation)]))
    await uploads.end(1, StoreUnavailable("faulty"))
    with pytest.raises(StoreUnavailable):
        await waiting
    assert dirty.blocks[1].state is State.DIRTY
    assert (uploads.writeback.blocks, uploads.settled, uploads.stored) == (1, [], 0)


async def test_failure_stops_what_nobody_asks_for() -> None:
    uploads = Uploads(seconds=0.0, retry_seconds=math.inf)
    uploads.change(1)
    await turns()
    await uploads.end(1, StoreUnavailable("faulty"))
    uploads.change(2)
    await turns()
    assert uploads.begun == [1]
    two = uploads.writeback.objects[2]
    waiting = await begun(uploads.writeback.stored([(two, two.generation)]))
    assert uploads.begun == [1, 2]
    await uploads.end(2)
    await waiting


async def test_what_failed_is_tried_again_unasked() -> None:
    uploads = Uploads(seconds=0.0, retry_seconds=0.01)
    uploads.change(1)
    await turns()
    await uploads.end(1, StoreUnavailable("faulty"))
    assert uploads.begun == [1]
    await until(lambda: bool(uploads.running))
    assert uploads.begun == [1, 1]
    await uploads.end(1)
    uploads.close()


async def test_cancelled_waiter_leaves_the_upload_alone() -> None:
    uploads = Uploads()
    dirty = uploads.change(1)
    waiting = await begun(uploads.writeback.stored([(dirty, dirty.generation)]))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await uploads.end(1)
    assert uploads.writeback.objects == {}


async def test_from_half_of_the_limit_on_the_oldest_are_stored_first() -> None:
    uploads = Uploads(limit=8, at_once=2)
    for index in (5, 3, 9, 1):
        uploads.change(index)
    await turns()
    assert uploads.begun == []
    uploads.change(7)
    await turns()
    assert uploads.begun == [5, 3]
    await uploads.end(3)
    assert uploads.begun == [5, 3]  # below half again
    await uploads.end(5)


async def test_no_room_at_the_limit_of_blocks_or_of_objects() -> None:
    uploads = Uploads(limit=2, at_once=1)
    assert uploads.writeback.has_room
    uploads.change(1)
    assert uploads.writeback.has_room
    uploads.change(2)
    assert not uploads.writeback.has_room
    await turns()
    await uploads.end(1)
    assert uploads.writeback.has_room
    cleared = uploads.writeback.touch(3, absent=False)  # it has no block
    assert not uploads.writeback.has_room
    await turns()
    await uploads.end(2)
    last = await begun(uploads.writeback.stored([(cleared, cleared.generation)]))
    await uploads.end(3)
    await last
    uploads.close()


async def test_whoever_waits_for_room_has_something_stored() -> None:
    uploads = Uploads()
    uploads.change(1)
    uploads.writeback.press()
    await turns()
    assert uploads.begun == [1]
    await uploads.end(1)
    uploads.writeback.relax()
    uploads.change(2)
    await turns()
    assert uploads.begun == [1]


async def test_object_that_is_being_filled_is_left_alone_while_another_makes_room() -> None:
    uploads = Uploads()
    uploads.change(1, data=BYTES[:2])
    uploads.change(2)
    uploads.writeback.press()
    await turns()
    assert uploads.begun == [2]
    uploads.change(1)  # all of it now
    uploads.change(3, data=BYTES[:2])
    await turns()
    assert uploads.begun == [2, 1]
    await uploads.end(2)
    await uploads.end(1)
    assert uploads.begun == [2, 1, 3]  # nothing else can make room
    await uploads.end(3)
    uploads.writeback.relax()


async def test_half_full_object_that_others_came_after_makes_room() -> None:
    uploads = Uploads(limit=64)
    for index in range(FILLING_MAX + 2):
        uploads.change(index, data=BYTES[:2])
    uploads.change(FILLING_MAX + 2)
    uploads.writeback.press()
    await turns()
    assert uploads.begun == [0, 1, 2, FILLING_MAX + 2]
    for index in tuple(uploads.running):
        uploads.writeback.relax()
        await uploads.end(index)


async def test_half_full_objects_up_to_a_small_limit_are_not_stored_one_by_one() -> None:
    uploads = Uploads(limit=4)
    for index in range(4):
        uploads.change(index, data=BYTES[:2])
    await turns()
    assert uploads.begun == [0, 1]
    for index in tuple(uploads.running):
        await uploads.end(index)


async def test_object_that_is_being_filled_is_stored_at_its_age() -> None:
    uploads = Uploads(seconds=0.0)
    uploads.change(1, data=BYTES[:2])
    uploads.change(2)
    uploads.writeback.press()
    await turns()
    assert uploads.begun == [1, 2]
    await uploads.end(1)
    await uploads.end(2)


def test_two_changes_that_are_to_be_stored_at_once_on_uvloop() -> None:
    """Its timers that are due within half a millisecond are none: they cannot say when they are."""

    async def change_two() -> list[int]:
        uploads = Uploads(seconds=0.0)
        uploads.change(1)
        uploads.change(2)
        await turns()
        await turns()
        for index in (1, 2):
            await uploads.end(index)
        uploads.close()
        return uploads.begun

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(change_two()) == [1, 2]


async def test_closed_gate_cuts_uploads_short_and_starts_none_until_it_opens() -> None:
    uploads = Uploads(seconds=0.0)
    dirty = uploads.change(1)
    waiting = await begun(uploads.writeback.stored([(dirty, dirty.generation)]))
    uploads.gate.close()
    uploads.writeback.abort()
    await turns()
    assert not uploads.running
    uploads.change(2)
    uploads.writeback.press()
    await turns()
    assert not uploads.running
    assert not waiting.done()
    assert uploads.failures == []
    uploads.gate.open()
    uploads.writeback.resume()
    await turns()
    assert sorted(uploads.running) == [1, 2]
    await uploads.end(1)
    await uploads.end(2)
    await waiting
    uploads.close()


async def test_upload_cut_short_by_a_gate_that_opens_at_once_fails_nobody() -> None:
    """As after a pause of the machine: the lease was over, and is renewed right away."""
    uploads = Uploads()
    dirty = uploads.change(1)
    waiting = await begun(uploads.writeback.stored([(dirty, dirty.generation)]))
    uploads.gate.close()
    uploads.writeback.abort()
    uploads.gate.open()
    uploads.writeback.resume()
    await turns()
    assert not waiting.done()
    await uploads.end(1)
    await waiting
    assert uploads.begun == [1, 1]
    uploads.close()


async def test_object_that_was_stored_since_it_failed_may_make_room_when_another_fails() -> None:
    """So that failure is not one of all there is, and nobody who waits for room is told of it."""
    uploads = Uploads()
    dirty = uploads.change(1)
    for error in (StoreFull("no"), None):
        waiting = await begun(uploads.writeback.stored([(dirty, dirty.generation)]))
        uploads.change(1)
        await uploads.end(1, error)
        await asyncio.wait([waiting])
        assert str(waiting.exception()) == str(error)
    uploads.failures.clear()
    other = uploads.change(2)
    waiting = await begun(uploads.writeback.stored([(other, other.generation)]))
    await uploads.end(2, StoreFull("no"))
    assert isinstance(waiting.exception(), StoreFull)
    assert uploads.begun == [1, 1, 2]
    assert uploads.failures == []


@pytest.mark.parametrize("absent", [False, True])
async def test_object_lies_on_zeros_while_it_is_absent_or_cleared_and_not_stored(
    absent: bool,
) -> None:
    uploads = Uploads()
    dirty = uploads.change(1, absent=absent)
    assert dirty.lies_on_zeros == absent
    waiting = await begun(uploads.writeback.stored([(dirty, dirty.generation)]))
    uploads.change(1)
    dirty.cleared = dirty.generation
    await uploads.end(1)
    await waiting
    assert dirty.lies_on_zeros
    last = await begun(uploads.writeback.stored([(dirty, dirty.generation)]))
    await uploads.end(1)
    await last
    assert not dirty.lies_on_zeros


async def test_close_with_something_dirty_is_a_bug() -> None:
    uploads = Uploads()
    uploads.change(1)
    with pytest.raises(AssertionError):
        uploads.close()
