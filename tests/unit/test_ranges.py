# SPDX-License-Identifier: MIT
"""Sets of byte positions, against Python's own sets."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftnbd.export.ranges import Ranges, add, covers, gaps

SIZE = 24
SPANS = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)).map(
    lambda span: (span[0], min(SIZE, span[0] + span[1]))
)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(4, 8)], [(4, 8)]),
        ([(4, 8), (8, 9)], [(4, 9)]),
        ([(4, 8), (3, 4)], [(3, 8)]),
        ([(4, 8), (10, 12)], [(4, 8), (10, 12)]),
        ([(10, 12), (4, 8)], [(4, 8), (10, 12)]),
        ([(4, 8), (10, 12), (8, 10)], [(4, 12)]),
        ([(4, 8), (10, 12), (7, 11)], [(4, 12)]),
        ([(4, 8), (10, 12), (0, 20)], [(0, 20)]),
        ([(4, 8), (5, 6)], [(4, 8)]),
        ([(4, 8), (12, 14), (8, 9)], [(4, 9), (12, 14)]),
    ],
)
def test_what_touches_is_joined(spans: list[tuple[int, int]], expected: Ranges) -> None:
    ranges: Ranges = []
    for start, end in spans:
        add(ranges, start, end)
    assert ranges == expected


def test_adding_nothing_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        add([], 3, 3)


def test_nothing_is_always_covered() -> None:
    assert covers([], 3, 3)


@settings(deadline=None, derandomize=True)
@given(st.lists(SPANS, max_size=12), SPANS)
def test_ranges_are_the_set_of_what_was_added(
    spans: list[tuple[int, int]], asked: tuple[int, int]
) -> None:
    ranges: Ranges = []
    positions: set[int] = set()
    for start, end in spans:
        add(ranges, start, end)
        positions.update(range(start, end))
        assert {at for first, last in ranges for at in range(first, last)} == positions
        # sorted, not empty, and a gap between neighbours
        flat = [bound for each in ranges for bound in each]
        assert flat == sorted(set(flat))
    assert covers(ranges, *asked) == (set(range(*asked)) <= positions)
    missing = list(gaps(ranges, SIZE))
    assert {at for first, last in missing for at in range(first, last)} == (
        set(range(SIZE)) - positions
    )
    assert all(first < last for first, last in missing)
    assert missing == sorted(missing)
