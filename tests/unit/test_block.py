# SPDX-License-Identifier: MIT
"""One block: its states, which bytes it knows, and that what was handed out never changes."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftnbd.buffers import hole, is_hole
from swiftnbd.export.block import COPY_BYTES_MAX, RANGES_MAX, Block, State

SIZE = 16
OLD, NEW = b"o" * SIZE, b"n" * SIZE

# Written from the diagram in the module, not from its table.
ARROWS = {
    State.EMPTY: {State.CLEAN, State.DIRTY},
    State.CLEAN: {State.DIRTY},
    State.DIRTY: {State.DIRTY, State.UPLOADING},
    State.UPLOADING: {State.CLEAN, State.DIRTY, State.REDIRTIED},
    State.REDIRTIED: {State.REDIRTIED, State.DIRTY},
}


def empty(size: int = SIZE) -> Block:
    return Block(0, size)


def clean(data: bytes = OLD) -> Block:
    block = empty(len(data))
    block.fill(data)
    return block


def dirty() -> Block:
    block = empty()
    block.write(0, OLD)
    return block


def uploading() -> Block:
    block = dirty()
    block.begin_upload()
    return block


def redirtied() -> Block:
    block = uploading()
    block.write(0, NEW)
    return block


# States


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_just_the_moves_of_the_diagram_are_legal(before: State, after: State) -> None:
    block = Block(7, SIZE)
    block.state = before
    if after in ARROWS[before]:
        block.move(after)
        assert block.state is after
    else:
        with pytest.raises(AssertionError, match="block 7"):
            block.move(after)
        assert block.state is before


@pytest.mark.parametrize(
    ("make", "state", "is_dirty"),
    [
        (empty, State.EMPTY, False),
        (clean, State.CLEAN, False),
        (dirty, State.DIRTY, True),
        (uploading, State.UPLOADING, True),
        (redirtied, State.REDIRTIED, True),
    ],
)
def test_dirty_is_all_that_is_not_durable(
    make: Callable[[], Block], state: State, is_dirty: bool
) -> None:
    block = make()
    assert (block.state, block.dirty) == (state, is_dirty)


def test_upload_of_a_block_that_is_not_dirty_is_a_bug() -> None:
    for block in (empty(), clean(), uploading(), redirtied()):
        with pytest.raises(AssertionError):
            block.begin_upload()


def test_upload_of_a_block_with_gaps_is_a_bug() -> None:
    block = empty()
    block.write(0, b"x")
    with pytest.raises(AssertionError):
        block.begin_upload()


def test_end_of_an_upload_that_was_not_begun_is_a_bug() -> None:
    for block in (empty(), clean(), dirty()):
        with pytest.raises(AssertionError):
            block.end_upload(done=True)


@pytest.mark.parametrize(
    ("make", "done", "state"),
    [
        (uploading, True, State.CLEAN),
        (uploading, False, State.DIRTY),
        (redirtied, True, State.DIRTY),
        (redirtied, False, State.DIRTY),
    ],
)
def test_upload_ends_in_the_state_of_the_diagram(
    make: Callable[[], Block], done: bool, state: State
) -> None:
    block = make()
    block.end_upload(done=done)
    assert block.state is state


# What is known


def test_partial_write_knows_just_what_was_written() -> None:
    block = empty()
    block.write(4, b"abcd")
    assert [block.has(start, start + 1) for start in (3, 4, 7, 8)] == [False, True, True, False]
    assert block.has(4, 8)
    assert not block.has(4, 9)
    assert block.piece(5, 7) == b"bc"


def test_fill_goes_into_the_gaps_only() -> None:
    block = empty()
    block.write(4, b"abcd")
    block.zero(10, 12)
    block.fill(OLD)
    assert block.data == b"ooooabcdoo\0\0oooo"
    assert block.state is State.DIRTY


def test_fill_of_a_block_that_knows_everything_changes_nothing() -> None:
    for block in (clean(), dirty(), uploading(), redirtied()):
        before, state = block.data, block.state
        block.fill(bytes(SIZE))
        assert (block.data, block.state) == (before, state)


def test_fill_with_a_body_of_another_size_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        empty().fill(OLD[1:])


def test_writes_that_cover_all_need_no_fill() -> None:
    block = empty()
    block.write(8, b"b" * 8)
    assert block.known is not None
    block.write(0, b"a" * 9)
    assert block.known is None
    assert block.begin_upload() == b"a" * 9 + b"b" * 7


def test_data_of_a_block_with_gaps_is_a_bug() -> None:
    block = empty()
    block.write(0, b"x")
    with pytest.raises(AssertionError):
        _ = block.data


def test_block_full_of_gaps_takes_no_further_one() -> None:
    block = empty(4 * RANGES_MAX)
    for number in range(RANGES_MAX):
        assert block.takes(3 * number, 3 * number + 1)
        block.write(3 * number, b"x")
    assert not block.takes(3 * RANGES_MAX, 3 * RANGES_MAX + 1)
    assert block.takes(3, 4)  # known already
    block.fill(bytes(4 * RANGES_MAX))
    assert block.takes(3 * RANGES_MAX, 3 * RANGES_MAX + 1)


def test_hole_is_what_was_said_to_be_zeros_not_what_happens_to_be() -> None:
    block = empty()
    assert not block.is_hole
    block.zero(0, SIZE - 1)
    assert not block.is_hole
    block.zero(0, SIZE)
    assert block.is_hole
    assert is_hole(block.piece(3, 9))
    block.write(2, b"\0")
    assert not block.is_hole
    assert block.data == bytes(SIZE)
    block.write(0, bytes(SIZE))
    assert not block.is_hole


def test_write_into_a_hole_does_not_touch_the_zeros_that_all_share() -> None:
    one, two = empty(), empty()
    one.zero(0, SIZE)
    two.fill(hole(SIZE))
    one.write(3, b"x")
    assert one.data == b"\0\0\0x" + bytes(12)
    assert two.data == bytes(SIZE) == hole(SIZE)


def test_block_that_came_ahead_is_marked_until_it_is_read() -> None:
    block = clean()
    block.mark()
    assert block.known is not None
    assert block.has(0, SIZE)
    assert block.unmark()
    assert block.known is None
    assert not block.unmark()


def test_write_to_a_marked_block_keeps_its_other_bytes() -> None:
    block = clean()
    block.mark()
    block.write(1, b"x")
    assert block.data == b"ox" + b"o" * 14


def test_mark_of_a_block_that_is_not_clean_is_a_bug() -> None:
    for block in (empty(), dirty(), uploading()):
        with pytest.raises(AssertionError):
            block.mark()


# Pieces


def test_small_piece_is_a_copy_and_freezes_nothing() -> None:
    block = empty(4 * COPY_BYTES_MAX)
    block.write(0, bytearray(4 * COPY_BYTES_MAX))
    piece = block.piece(0, COPY_BYTES_MAX)
    assert not isinstance(piece, memoryview)
    assert not block.frozen


def test_large_piece_is_a_view_of_at_least_half_the_block() -> None:
    """So a reply that nobody takes keeps no more than twice its own bytes alive."""
    size = 4 * COPY_BYTES_MAX
    block = empty(size)
    block.write(0, bytearray(size))
    assert not isinstance(block.piece(0, size // 2 - 1), memoryview)
    assert not block.frozen
    view = block.piece(size // 2, size)
    assert isinstance(view, memoryview)
    assert view.obj is block.data
    assert block.frozen


CHANGES = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 7), st.integers(1, 8), st.integers(0, 255)),
    st.tuples(st.just("zero"), st.integers(0, 7), st.integers(1, 8), st.just(0)),
    st.tuples(st.just("fill"), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("piece"), st.integers(0, 7), st.integers(1, 8), st.just(0)),
    st.tuples(st.just("begin"), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("end"), st.just(0), st.just(0), st.booleans()),
)


@settings(deadline=None, derandomize=True)
@given(st.booleans(), st.lists(CHANGES, max_size=30))
def test_what_was_handed_out_never_changes_and_the_bytes_are_right(
    filled: bool, steps: list[tuple[str, int, int, int]]
) -> None:
    # large enough for views, in units of which the steps are written
    unit = COPY_BYTES_MAX // 4 + 1
    size = 8 * unit
    block, stored = empty(size), b"o" * size
    model, known = bytearray(stored), set[int]()  # of the units
    if filled:
        block.fill(stored)
        known = set(range(8))
    handed_out = []
    for kind, first, count, value in steps:
        last = min(first + count, 8)
        start, end = first * unit, last * unit
        if kind == "write":
            model[start:end] = bytes([value]) * (end - start)
            block.write(start, memoryview(bytes(model))[start:end])
            known.update(range(first, last))
        elif kind == "zero":
            model[start:end] = bytes(end - start)
            block.zero(start, end)
            known.update(range(first, last))
        elif kind == "fill":
            block.fill(stored)
            known = set(range(8))
        elif kind == "piece" and known >= set(range(first, last)):
            handed_out.append((block.piece(start, end), bytes(model[start:end])))
        elif kind == "begin" and block.state is State.DIRTY and len(known) == 8:
            handed_out.append((block.begin_upload(), bytes(model)))
        elif kind == "end" and block.state in (State.UPLOADING, State.REDIRTIED):
            block.end_upload(done=bool(value))
        for number in range(8):
            at = number * unit
            assert block.has(at, at + unit) == (number in known)
            if number in known:
                assert block.piece(at, at + 1) == model[at : at + 1]
        assert (block.known is None) == (len(known) == 8)
    assert all(data == then for data, then in handed_out)
    assert hole(size) == bytes(size)
