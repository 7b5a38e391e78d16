# SPDX-License-Identifier: MIT
"""The set of blocks in memory: its bound, what is never evicted, and when there is room again."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftnbd.export.block import Block, State
from swiftnbd.export.cache import BlockCache

SIZE = 4
DATA = b"data"


class Cache(BlockCache):
    """Counts how often there may have been room again."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, SIZE, self._room)
        self.told = 0

    def _room(self) -> None:
        self.told += 1


def put_in(cache: BlockCache, *indexes: int) -> None:
    """Bring blocks in, clean and idle."""
    for index in indexes:
        blocks = cache.pin_all([index])
        assert blocks is not None
        blocks[0].fill(DATA)
        cache.unpin(blocks[0])


def pinned(cache: BlockCache, index: int) -> Block:
    blocks = cache.pin_all([index])
    assert blocks is not None
    return blocks[0]


def changed(cache: BlockCache, index: int) -> Block:
    """A block that is dirty, and not pinned."""
    block = cache.blocks.get(index) or cache.admit(index)
    assert block is not None
    block.write(0, DATA)
    cache.settle(block)
    return block


def test_no_more_blocks_than_there_is_room_for() -> None:
    cache = Cache(3)
    put_in(cache, *range(20))
    assert len(cache) == 3


def test_pinned_and_dirty_blocks_are_not_evicted() -> None:
    cache = Cache(3)
    kept, dirty = pinned(cache, 1), changed(cache, 2)
    put_in(cache, *range(3, 20))
    assert cache.blocks[1] is kept
    assert cache.blocks[2] is dirty


@pytest.mark.parametrize("how", ["uploading", "redirtied", "failed"])
def test_block_that_is_not_durable_is_not_evicted(how: str) -> None:
    cache = Cache(2)
    block = changed(cache, 1)
    block.begin_upload()
    if how == "redirtied":
        block.write(0, DATA)
    if how == "failed":
        block.end_upload(done=False)
    cache.settle(block)
    put_in(cache, *range(2, 12))
    assert cache.blocks[1] is block


def test_block_that_was_stored_can_be_evicted() -> None:
    cache = Cache(1)
    block = changed(cache, 1)
    assert cache.admit(2) is None
    block.begin_upload()
    block.end_upload(done=True)
    told = cache.told
    cache.settle(block)
    assert cache.told == told + 1
    put_in(cache, 2)
    assert sorted(cache.blocks) == [2]


def test_block_written_while_idle_is_not_evicted() -> None:
    cache = Cache(2)
    put_in(cache, 1)
    block = changed(cache, 1)
    put_in(cache, *range(2, 12))
    assert cache.blocks[1] is block


def test_block_pinned_twice_stays_until_both_let_go() -> None:
    cache = Cache(1)
    block = pinned(cache, 1)
    assert pinned(cache, 1) is block
    block.fill(DATA)
    cache.unpin(block)
    assert cache.pin_all([2]) is None
    cache.unpin(block)
    assert pinned(cache, 2).index == 2


def test_block_never_filled_is_forgotten_with_its_last_pin() -> None:
    cache = Cache(3)
    block = pinned(cache, 1)
    pinned(cache, 1)
    cache.unpin(block)
    assert 1 in cache.blocks
    cache.unpin(block)
    assert len(cache) == 0
    assert cache.told == 1


def test_dirty_block_that_is_let_go_of_makes_no_room() -> None:
    cache = Cache(1)
    block = pinned(cache, 1)
    block.write(0, DATA)
    cache.unpin(block)
    assert cache.told == 0
    assert cache.pin_all([2]) is None


def test_all_are_pinned_or_none() -> None:
    cache = Cache(3)
    pinned(cache, 1)
    put_in(cache, 2)
    assert cache.pin_all([2, 3, 4]) is None
    assert [block.index for block in cache.blocks.values() if block.pins] == [1]
    assert all(block.state is not State.EMPTY or block.pins for block in cache.blocks.values())
    blocks = cache.pin_all([1, 3, 4])
    assert blocks is not None
    assert [block.index for block in blocks] == [1, 3, 4]


def test_more_pins_than_capacity_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        Cache(2).pin_all([1, 2, 3])


def test_unpin_without_a_pin_is_a_bug() -> None:
    cache = Cache(3)
    put_in(cache, 1)
    with pytest.raises(AssertionError):
        cache.unpin(cache.blocks[1])


def test_pin_of_an_evicted_block_is_a_bug() -> None:
    cache = Cache(1)
    put_in(cache, 1)
    block = cache.blocks[1]
    put_in(cache, 2)
    with pytest.raises(AssertionError):
        cache.pin(block)


def test_second_block_of_one_number_is_a_bug() -> None:
    cache = Cache(2)
    put_in(cache, 1)
    with pytest.raises(AssertionError):
        cache.admit(1)


def test_dropped_block_makes_room() -> None:
    cache = Cache(1)
    put_in(cache, 1)
    told = cache.told
    cache.drop(cache.blocks[1])
    assert (len(cache), cache.told) == (0, told + 1)
    put_in(cache, 2)  # the dropped one is not evicted once more
    assert sorted(cache.blocks) == [2]


@pytest.mark.parametrize("make", [pinned, changed])
def test_drop_of_a_block_that_is_needed_is_a_bug(make: Callable[[BlockCache, int], Block]) -> None:
    cache = Cache(2)
    block = make(cache, 1)
    with pytest.raises(AssertionError):
        cache.drop(block)
    assert cache.blocks[1] is block


@pytest.mark.parametrize(("first", "end"), [(0, 3), (2, 9), (0, 1000), (5, 5), (900, 1000)])
def test_within_lists_what_is_there_in_order(first: int, end: int) -> None:
    cache = Cache(8)
    put_in(cache, 7, 2, 999, 0, 4)
    expected = [index for index in (0, 2, 4, 7, 999) if first <= index < end]
    assert [block.index for block in cache.within(first, end)] == expected


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["pin", "pin", "unpin", "fill", "write", "upload", "end", "fail", "drop", "use"]
        ),
        st.integers(0, 6),
    ),
    max_size=80,
)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 4), EVENTS)
def test_any_order_of_events_keeps_the_bound_and_what_is_needed(
    capacity: int, events: list[tuple[str, int]]
) -> None:
    cache = Cache(capacity)
    pins: list[Block] = []
    for kind, index in events:
        block = cache.blocks.get(index)
        if kind == "pin":
            full = all(x.pins or x.dirty for x in cache.blocks.values()) and len(cache) == capacity
            found = cache.pin_all([index])
            assert (found is None) == (full and block is None)
            pins += found or []
        elif kind == "unpin" and pins:
            cache.unpin(pins.pop(index % len(pins)))
        elif kind == "write" and (block := block or cache.admit(index)) is not None:
            block.write(0, DATA)
            cache.settle(block)
        elif block is None:
            continue
        elif kind == "fill" and block.state is State.EMPTY:
            block.fill(DATA)
        elif kind == "upload" and block.state is State.DIRTY:
            block.begin_upload()
        elif kind in ("end", "fail") and block.state in (State.UPLOADING, State.REDIRTIED):
            block.end_upload(done=kind == "end")
            if not block.dirty:
                cache.settle(block)
        elif kind == "drop" and cache.is_idle(block):
            cache.drop(block)
        elif kind == "use":
            block.used = True
        assert len(cache) <= capacity
        assert all(cache.blocks.get(each.index) is each for each in pins)
        idle = [each for each in cache.blocks.values() if cache.is_idle(each)]
        assert len(cache._eviction) == len(idle)
        assert all(each.pins or each.state is not State.EMPTY for each in cache.blocks.values())
