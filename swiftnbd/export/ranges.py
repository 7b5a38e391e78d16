# SPDX-License-Identifier: MIT
"""Sets of byte positions as sorted lists of ``(start, end)``, disjoint and not touching."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

Ranges = list[tuple[int, int]]

_START, _END = (lambda each: each[0]), (lambda each: each[1])


def add(ranges: Ranges, start: int, end: int) -> None:
    """Put ``[start, end)`` in, joining what it touches."""
    assert start < end
    if ranges and ranges[-1][1] == start:  # the usual case: one goes on where the last one ended
        ranges[-1] = (ranges[-1][0], end)
        return
    first = bisect_left(ranges, start, key=_END)
    last = bisect_right(ranges, end, key=_START)
    if first < last:
        start, end = min(start, ranges[first][0]), max(end, ranges[last - 1][1])
    ranges[first:last] = [(start, end)]


def covers(ranges: Ranges, start: int, end: int) -> bool:
    """Whether all of ``[start, end)`` is in."""
    at = bisect_right(ranges, start, key=_START) - 1
    return start >= end or (at >= 0 and ranges[at][1] >= end)


def gaps(ranges: Ranges, end: int) -> Iterator[tuple[int, int]]:
    """What of ``[0, end)`` is not in, ascending."""
    position = 0
    for start, stop in ranges:
        if position < start:
            yield position, start
        position = stop
    if position < end:
        yield position, end
