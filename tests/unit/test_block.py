# SPDX-License-Identifier: MIT
"""One block: its states, its generations, and that what was handed out never changes."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftnbd.export.block import COPY_BYTES_MAX, Block, State

SIZE = 16
ZEROS = bytes(SIZE)
OLD, NEW = b"o" * SIZE, b"n" * SIZE

# Written from the diagram in the module, not from its table.
ARROWS = {
    State.EMPTY: {State.FETCHING, State.DIRTY},
    State.FETCHING: {State.EMPTY, State.CLEAN, State.DIRTY},
    State.CLEAN: {State.DIRTY},
    State.DIRTY: {State.DIRTY, State.UPLOADING},
    State.UPLOADING: {State.CLEAN, State.DIRTY, State.REDIRTIED},
    State.REDIRTIED: {State.REDIRTIED, State.DIRTY},
}


def clean(data: bytes = OLD) -> Block:
    block = Block(0)
    block.move(State.FETCHING)
    block.fill(data)
    return block


def dirty() -> Block:
    block = Block(0)
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


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_just_the_moves_of_the_diagram_are_legal(before: State, after: State) -> None:
    block = Block(7)
    block.state = before
    if after in ARROWS[before]:
        block.move(after)
        assert block.state is after
    else:
        with pytest.raises(AssertionError, match="block 7"):
            block.move(after)
        assert block.state is before


def test_fill_of_a_block_that_is_not_being_fetched_is_a_bug() -> None:
    for block in (Block(0), clean(), dirty(), uploading(), redirtied()):
        before = block.data
        with pytest.raises(AssertionError):
            block.fill(NEW)
        assert block.data is before


def test_upload_of_a_block_that_is_not_dirty_is_a_bug() -> None:
    for block in (Block(0), clean(), uploading(), redirtied()):
        with pytest.raises(AssertionError):
            block.begin_upload()


def test_end_of_an_upload_that_was_not_begun_is_a_bug() -> None:
    for block in (Block(0), clean()):
        with pytest.raises(AssertionError):
            block.end_upload(done=True)


def test_partial_change_of_unknown_bytes_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Block(0).zero(0, 1, keep_zeros=False)


@pytest.mark.parametrize(
    ("make", "done", "state", "is_dirty"),
    [
        (uploading, True, State.CLEAN, False),
        (uploading, False, State.DIRTY, True),
        (redirtied, True, State.DIRTY, True),
        (redirtied, False, State.DIRTY, True),
    ],
)
def test_upload_ends_in_the_state_of_the_diagram(
    make: Callable[[], Block], done: bool, state: State, is_dirty: bool
) -> None:
    block = make()
    block.end_upload(done=done)
    assert (block.state, block.dirty) == (state, is_dirty)


def test_stored_is_the_generation_that_the_upload_carried() -> None:
    block = redirtied()
    assert (block.generation, block.attempted, block.stored) == (2, 1, 0)
    block.end_upload(done=True)
    assert (block.attempted, block.stored) == (1, 1)
    block.begin_upload()
    assert (block.attempted, block.stored) == (2, 1)
    block.end_upload(done=False)
    assert block.stored == 1
    block.begin_upload()
    block.end_upload(done=True)
    assert (block.stored, block.dirty) == (2, False)


def test_keep_zeros_is_what_the_last_change_asked_for() -> None:
    block = clean()
    block.clear(ZEROS, keep_zeros=True)
    assert block.keep_zeros
    block.write(0, b"x")
    assert not block.keep_zeros
    block.zero(0, 1, keep_zeros=True)
    assert block.keep_zeros
    block.clear(ZEROS, keep_zeros=False)
    assert not block.keep_zeros


def test_clear_shares_the_zeros_and_a_write_does_not_touch_them() -> None:
    one, two = Block(0), Block(1)
    one.clear(ZEROS, keep_zeros=False)
    two.clear(ZEROS, keep_zeros=False)
    assert one.data is two.data is ZEROS
    one.write(3, b"x")
    assert one.data == b"\0\0\0x" + bytes(12)
    assert two.data == bytes(SIZE) == ZEROS


def test_small_piece_is_a_copy_and_freezes_nothing() -> None:
    block = Block(0)
    block.write(0, bytearray(4 * COPY_BYTES_MAX))
    piece = block.piece(0, COPY_BYTES_MAX)
    assert not isinstance(piece, memoryview)
    assert not block.frozen


def test_large_piece_is_a_view_of_at_least_half_the_block() -> None:
    """So a reply that nobody takes keeps no more than twice its own bytes alive."""
    size = 4 * COPY_BYTES_MAX
    block = Block(0)
    block.write(0, bytearray(size))
    assert not isinstance(block.piece(0, size // 2 - 1), memoryview)
    assert not block.frozen
    view = block.piece(size // 2, size)
    assert isinstance(view, memoryview)
    assert view.obj is block.data
    assert block.frozen


CHANGES = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 7), st.integers(1, 8), st.integers(0, 255)),
    st.tuples(st.just("zero"), st.integers(0, 7), st.integers(1, 8), st.booleans()),
    st.tuples(st.just("clear"), st.just(0), st.just(0), st.booleans()),
    st.tuples(st.just("piece"), st.integers(0, 7), st.integers(1, 8), st.just(0)),
    st.tuples(st.just("begin"), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("end"), st.just(0), st.just(0), st.booleans()),
)


@settings(deadline=None, derandomize=True)
@given(st.lists(CHANGES, max_size=30))
def test_what_was_handed_out_never_changes_and_the_bytes_are_right(
    steps: list[tuple[str, int, int, int]],
) -> None:
    # large enough for views, in units of which the steps are written
    unit = COPY_BYTES_MAX // 4 + 1
    size, zeros = 8 * unit, bytes(8 * unit)
    block, model = clean(b"o" * size), bytearray(b"o" * size)
    handed_out = []
    for kind, first, count, value in steps:
        start, end = first * unit, min(first + count, 8) * unit
        if kind == "write":
            model[start:end] = bytes([value]) * (end - start)
            block.write(start, memoryview(bytes(model))[start:end])
        elif kind == "zero":
            model[start:end] = bytes(end - start)
            block.zero(start, end, keep_zeros=bool(value))
        elif kind == "clear":
            model[:] = zeros
            block.clear(zeros, keep_zeros=bool(value))
        elif kind == "piece":
            handed_out.append((block.piece(start, end), bytes(model[start:end])))
        elif kind == "begin" and block.state is State.DIRTY:
            handed_out.append((block.begin_upload(), bytes(model)))
        elif kind == "end" and block.state in (State.UPLOADING, State.REDIRTIED):
            block.end_upload(done=bool(value))
        assert block.data == model
        assert block.dirty == (block.state is not State.CLEAN)
    assert all(data == then for data, then in handed_out)
    assert zeros == bytes(size)
