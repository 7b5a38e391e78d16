# SPDX-License-Identifier: MIT
"""Whatever is read, advice lies ahead, inside the disk and its limits; and a reader is found."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swiftnbd.export.readahead import CANDIDATES_PER_STREAM, ReadAhead

KIB = 1024
SIZE = 64 * 1024 * KIB - 512
MIN, MAX, STREAMS = 64 * KIB, 1024 * KIB, 3

READS = st.tuples(
    st.integers(0, SIZE // 512 - 1), st.sampled_from([1, 8, 128, 512, 65536]), st.integers(1, 12)
)


def cut(sector: int, sectors: int) -> tuple[int, int]:
    return sector * 512, min(sectors * 512, SIZE - sector * 512)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.lists(READS, max_size=40))
def test_advice_is_ahead_and_bounded(runs: list[tuple[int, int, int]]) -> None:
    readers = ReadAhead(SIZE, MIN, MAX, STREAMS)
    for first, sectors, times in runs:
        for sector in range(first, min(first + sectors * times, SIZE // 512), sectors):
            offset, length = cut(sector, sectors)
            advice = readers.advise(offset, length)
            if advice is not None:
                start, size = advice
                assert offset + length <= start < start + size <= SIZE
                assert size < MAX + MIN
                assert (start + size) % MIN == 0 or start + size == SIZE
            assert len(readers._streams) <= STREAMS
            assert len(readers._candidates) <= CANDIDATES_PER_STREAM * STREAMS


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    begin=st.integers(0, SIZE // 1024 // KIB),
    noise=st.lists(st.lists(st.integers(SIZE // 1024, SIZE // 512 - 1), max_size=2), min_size=60),
)
def test_sequential_reader_is_found_among_others(begin: int, noise: list[list[int]]) -> None:
    """In the lower half somebody reads sequentially, in the upper half others do anything."""
    readers = ReadAhead(SIZE, MIN, MAX, STREAMS)
    advised = 0
    for number, sectors in enumerate(noise):
        offset = begin * KIB + number * 64 * KIB
        if number >= 3:
            assert offset + 64 * KIB <= advised
        advice = readers.advise(offset, 64 * KIB)
        if advice is not None:
            advised = sum(advice)
        for sector in sectors:
            readers.advise(*cut(sector, 8))
