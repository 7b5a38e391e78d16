# SPDX-License-Identifier: MIT
"""The set of blocks in memory: its bound, who is evicted, and who is told that there is room."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftnbd.errors import StoreUnavailable
from swiftnbd.export.block import Block, State
from swiftnbd.export.cache import BlockCache
from tests.support.disks import begin, begun, turns


async def nothing_is_stuck(block: Block) -> None:
    raise AssertionError("nothing should be stuck")


def a_cache(
    capacity: int, store: Callable[[Block], Awaitable[None]] = nothing_is_stuck
) -> BlockCache:
    return BlockCache(capacity, store)


def fill(block: Block) -> None:
    block.move(State.FETCHING)
    block.fill(b"")


async def put_in(cache: BlockCache, *indexes: int, cold: bool = False) -> None:
    """Bring blocks in, clean and idle."""
    for index in indexes:
        block = await cache.pin(index)
        fill(block)
        cache.unpin(block, cold=cold)


async def pinned(cache: BlockCache, index: int) -> Block:
    """A block that stays pinned; there must be room."""
    task = await begun(cache.pin(index))
    assert task.done()
    return task.result()


# Who is evicted


async def test_block_that_was_idle_longest_is_evicted_first() -> None:
    cache = a_cache(3)
    await put_in(cache, 1, 2, 3, 4)
    assert sorted(cache.blocks) == [2, 3, 4]


async def test_block_read_since_gets_another_round() -> None:
    cache = a_cache(3)
    await put_in(cache, 1, 2, 3)
    cache.blocks[1].used = True
    await put_in(cache, 4)
    assert sorted(cache.blocks) == [1, 3, 4]
    await put_in(cache, 5, 6)
    assert sorted(cache.blocks) == [1, 5, 6] or sorted(cache.blocks) == [4, 5, 6]


async def test_one_round_only() -> None:
    cache = a_cache(2)
    await put_in(cache, 1, 2)
    for block in cache.blocks.values():
        block.used = True
    await put_in(cache, 3)
    assert sorted(cache.blocks) == [2, 3]


async def test_cold_block_is_evicted_before_others() -> None:
    cache = a_cache(3)
    await put_in(cache, 1, 2)
    await put_in(cache, 3, cold=True)
    await put_in(cache, 4)
    assert sorted(cache.blocks) == [1, 2, 4]


async def test_pinned_and_dirty_blocks_are_not_evicted() -> None:
    cache = a_cache(3)
    kept = await cache.pin(1)
    fill(kept)
    dirty = await cache.pin(2)
    dirty.write(0, b"x")
    await put_in(cache, 3, 4, 5, 6)
    assert cache.blocks[1] is kept
    assert cache.blocks[2] is dirty
    cache.unpin(dirty)
    await put_in(cache, 7, 8)
    assert cache.blocks[2] is dirty


async def test_block_never_filled_is_forgotten_with_its_last_pin() -> None:
    cache = a_cache(3)
    block = await cache.pin(1)
    assert await cache.pin(1) is block
    cache.unpin(block)
    assert 1 in cache.blocks
    cache.unpin(block)
    assert len(cache) == 0


async def test_unpin_without_a_pin_is_a_bug() -> None:
    cache = a_cache(3)
    await put_in(cache, 1)
    with pytest.raises(AssertionError):
        cache.unpin(cache.blocks[1])


async def test_hold_of_an_evicted_block_is_a_bug() -> None:
    cache = a_cache(1)
    await put_in(cache, 1)
    block = cache.blocks[1]
    await put_in(cache, 2)
    with pytest.raises(AssertionError):
        cache.hold(block)


@pytest.mark.parametrize(("first", "end"), [(0, 3), (2, 9), (0, 1000), (5, 5), (900, 1000)])
async def test_within_lists_what_is_there_in_order(first: int, end: int) -> None:
    cache = a_cache(8)
    await put_in(cache, 7, 2, 999, 0, 4)
    expected = [index for index in (0, 2, 4, 7, 999) if first <= index < end]
    assert list(cache.within(first, end)) == expected


# Who waits


async def test_who_finds_no_room_waits_until_a_block_becomes_idle() -> None:
    cache = a_cache(1)
    block = await pinned(cache, 1)
    waiting = await begun(cache.pin(2))
    assert not waiting.done()
    fill(block)
    cache.unpin(block)
    assert (await waiting).index == 2
    assert list(cache.blocks) == [2]


async def test_who_waits_for_a_block_that_another_brings_in_passes_the_room_on() -> None:
    cache = a_cache(2)
    one, two = await pinned(cache, 1), await pinned(cache, 2)
    first, same, other = [await begun(cache.pin(index)) for index in (3, 3, 4)]
    cache.unpin(one)
    await turns()
    cache.unpin(two)
    assert await first is await same
    assert (await other).index == 4


async def test_cancelled_waiter_passes_the_room_on() -> None:
    cache = a_cache(1)
    block = await pinned(cache, 1)
    first, second = await begun(cache.pin(2)), await begun(cache.pin(3))
    cache.unpin(block)  # the first has been given the room
    first.cancel()  # and is cancelled before it can take it
    assert (await second).index == 3
    assert first.cancelled()


async def test_waiter_cancelled_earlier_is_passed_over() -> None:
    cache = a_cache(1)
    block = await pinned(cache, 1)
    first, second = await begun(cache.pin(2)), await begun(cache.pin(3))
    first.cancel()
    await turns()
    cache.unpin(block)
    assert (await second).index == 3


async def test_waiter_whose_room_is_taken_waits_on() -> None:
    cache = a_cache(1)
    block = await pinned(cache, 1)
    waiting = await begun(cache.pin(2))
    fill(block)
    cache.unpin(block)
    cache.hold(block)  # before the waiter has run
    await turns()
    assert not waiting.done()
    cache.unpin(block)
    assert (await waiting).index == 2


# Stuck blocks


async def test_who_finds_a_stuck_block_has_it_stored() -> None:
    stored: list[int] = []

    async def store(block: Block) -> None:
        cache.hold(block)
        block.begin_upload()
        block.end_upload(done=True)
        stored.append(block.index)
        cache.unpin(block)

    cache = a_cache(2, store)
    for index in (1, 2):
        block = await pinned(cache, index)
        block.write(0, b"x")
        cache.unpin(block)
    assert (await cache.pin(3)).index == 3
    assert stored == [1]


async def test_who_finds_a_block_that_cannot_be_stored_fails_and_so_does_the_next() -> None:
    async def store(block: Block) -> None:
        cache.hold(block)
        await asyncio.sleep(0)
        cache.unpin(block)
        raise StoreUnavailable("faulty")

    cache = a_cache(1, store)
    block = await pinned(cache, 1)
    block.write(0, b"x")
    waiting = [await begun(cache.pin(index)) for index in (2, 3, 4)]
    cache.unpin(block)
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(end) for end in ends] == [StoreUnavailable] * 3
    assert cache.blocks == {1: block}


# Any order of events

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["pin", "unpin", "unpin", "cancel", "dirty", "clean", "use", "turn"]),
        st.integers(0, 6),
    ),
    max_size=60,
)


@settings(deadline=None, derandomize=True, max_examples=120)
@given(st.integers(1, 3), EVENTS)
def test_any_order_of_events_keeps_the_bound_and_loses_no_wake_up(
    capacity: int, events: list[tuple[str, int]]
) -> None:
    asyncio.run(_play(capacity, events))


async def _play(capacity: int, events: list[tuple[str, int]]) -> None:
    cache = a_cache(capacity, _store_later)
    tasks: list[asyncio.Task[Block]] = []
    unpinned: set[asyncio.Task[Block]] = set()

    def holders() -> list[asyncio.Task[Block]]:
        return [t for t in tasks if t.done() and not t.cancelled() and t not in unpinned]

    for kind, number in events:
        held = holders()
        block = held[number % len(held)].result() if held else None
        if kind == "pin":
            tasks.append(begin(cache.pin(number)))
        elif kind == "cancel" and tasks:
            tasks[number % len(tasks)].cancel()
        elif kind == "turn":
            await turns(number)
        elif block is None:
            continue
        elif kind == "unpin":
            task = held[number % len(held)]
            _settle(block)
            unpinned.add(task)
            cache.unpin(block, cold=number > 4)
        elif kind == "dirty" and block.state is not State.EMPTY:
            block.write(0, b"")
        elif kind == "use":
            block.used = True
        assert len(cache) <= capacity
        for task in holders():
            assert cache.blocks[task.result().index] is task.result()
    # let go of everything: whoever still waits must get its turn
    for _ in range(len(tasks) + 1):
        await turns()
        for task in holders():
            _settle(task.result())
            unpinned.add(task)
            cache.unpin(task.result())
    assert all(task.done() for task in tasks)
    assert all(block.pins == 0 for block in cache.blocks.values())
    assert not cache._waiters


async def _store_later(block: Block) -> None:
    raise AssertionError("every block is settled before it is let go of")


def _settle(block: Block) -> None:
    """Make a block fit to be let go of: filled, and stored."""
    if block.state is State.EMPTY:
        fill(block)
    if block.state is State.DIRTY:
        block.begin_upload()
        block.end_upload(done=True)
