# SPDX-License-Identifier: MIT
"""Sequential streams among the reads of a disk, found in what real clients asked for."""

import random
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest

from swiftnbd.export.readahead import IDLE_CALLS_MAX, REQUESTS_ASTRAY, ReadAhead

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
MIN, MAX = 128 * KIB, 8 * MIB

# What nbdkit's log saw of `nbdcopy --connections=4`, in units of 256 KiB: the first of 4096
NBDCOPY = [
    1536, 0, 1024, 1537, 1538, 1, 1539, 1540, 1541, 1542, 1544, 1545, 512, 514, 513, 515, 516,
    517, 1546, 1543, 1547, 1025, 1548, 1551, 2, 1026, 1549, 1550, 3, 5, 4, 7, 6, 9, 8, 11, 10, 12,
    1027, 518, 13, 1028, 519, 14, 1029, 520, 15, 1030, 521, 1031, 522, 1032, 523, 1033, 524, 1034,
    525, 1035, 526, 1036, 527, 1037, 1038, 1039, 16, 1552, 1553, 1554, 1555, 1556, 17, 1557, 1558,
    1559, 1560, 18, 1561, 19, 20, 1562, 21, 1563, 22, 23, 1564, 1565, 1566, 24, 1567, 1568, 25,
    1569, 26, 1570, 1571, 27, 28, 1572, 1573, 29, 1574, 30, 1575, 1576, 31, 1577, 32, 1578, 33,
]  # fmt: skip
# `fio` with a sequential job (64 KiB) and a random one (4 KiB), both with two in flight, in 4 KiB
FIO = [
    0, 16, 20558, 32, 48, 19360, 26225, 17028, 23805, 26494, 27779, 21046, 21113, 64, 17768, 80,
    17414, 22703, 96, 17497, 112, 22400, 128, 32378, 19601, 144, 22994, 160, 20151, 192, 208, 176,
    27171, 19446, 21157, 240, 29494, 256, 25482, 19304, 23517, 16552, 224, 25169, 18893, 30223,
    272, 23787, 28802, 25747, 304, 288, 26128, 23010, 18929, 25838, 27392, 32115, 320, 336, 19087,
]  # fmt: skip


def readahead(size: int = GIB, *, streams_max: int = 8) -> ReadAhead:
    return ReadAhead(size, MIN, MAX, streams_max)


def read_all(
    readers: ReadAhead, requests: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int, int, int]]:
    """Each advice, with the read that it was given for."""
    for offset, length in requests:
        advice = readers.advise(offset, length)
        if advice is not None:
            yield offset, length, *advice


def advices(readers: ReadAhead, requests: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(start, length) for _, _, start, length in read_all(readers, requests)]


def sequential(count: int, length: int = 64 * KIB, *, start: int = 0) -> list[tuple[int, int]]:
    return [(start + number * length, length) for number in range(count)]


def covered(requests: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Of all requests, how many had been advised before they came; and bytes advised in vain."""
    readers, advised, before = readahead(), set[int](), 0
    unit = 4 * KIB
    for offset, length in requests:
        wanted = set(range(offset // unit, (offset + length) // unit))
        before += wanted <= advised
        advised -= wanted
        if advice := readers.advise(offset, length):
            start, size = advice
            advised |= set(range(start // unit, (start + size) // unit))
    return before, len(advised) * unit


# One reader


def test_third_request_in_a_row_is_a_stream() -> None:
    readers = readahead()
    assert readers.advise(MIB, 4 * KIB) is None
    assert readers.advise(MIB + 4 * KIB, 4 * KIB) is None
    start, length = readers.advise(MIB + 8 * KIB, 4 * KIB) or (0, 0)
    assert start == MIB + 12 * KIB
    assert start + length == MIB + 2 * MIN  # a window, and to the next multiple of the smallest


def test_windows_follow_each_other_and_double_up_to_the_largest() -> None:
    found = advices(readahead(), sequential(1000))
    assert [length for _, length in found][:9] == [
        192 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB, 8 * MIB, 8 * MIB,
    ]  # fmt: skip
    for (start, length), (following, _) in pairwise(found):
        assert start + length == following


def test_reader_is_never_without_a_window_ahead_and_never_more_than_two() -> None:
    ahead = 0
    readers = readahead()
    for number, (offset, length) in enumerate(sequential(1000)):
        if number > 2:
            assert offset + length <= ahead
        advice = readers.advise(offset, length)
        if advice is not None:
            ahead = sum(advice)
        assert ahead - (offset + length) <= 2 * MAX


def test_first_window_fits_large_requests() -> None:
    assert advices(readahead(), sequential(3, MIB)) == [(3 * MIB, 2 * MIB)]
    assert advices(readahead(), sequential(3, 32 * MIB)) == [(96 * MIB, 8 * MIB)]


def test_advice_ends_with_the_disk() -> None:
    size = MIB + 4 * KIB
    found = advices(readahead(size), sequential(16))
    assert sum(found[-1]) == size
    readers = readahead(3 * MIN)
    assert advices(readers, sequential(3, MIN)) == []


def test_seek_starts_again_with_the_smallest_window() -> None:
    readers = readahead()
    assert advices(readers, sequential(200))[-1][1] > MIB
    found = advices(readers, sequential(4, start=512 * MIB))
    assert found[0] == (512 * MIB + 192 * KIB, 192 * KIB)


def test_reader_faster_than_advice_gets_what_is_ahead_of_it() -> None:
    readers = readahead()
    advices(readers, sequential(3))
    start, _ = readers.advise(3 * 64 * KIB, MIB) or (0, 0)
    assert start == 3 * 64 * KIB + MIB


def test_reads_of_single_pages_per_block_need_no_more_than_their_block() -> None:
    """As the engine calls it: rounded out to blocks, only when a block is new."""
    blocks = [(number * 64 * KIB, 64 * KIB) for number in range(50)]
    assert covered(blocks)[0] == 47


# Several, out of order


def test_four_connections_of_nbdcopy_are_four_streams() -> None:
    requests = [(number * 256 * KIB, 256 * KIB) for number in NBDCOPY]
    found = advices(readahead(), requests)
    assert {start // (128 * MIB) for start, _ in found} == {0, 1, 2, 3}
    before, in_vain = covered(requests)
    assert before >= len(requests) - 4 * 6
    assert in_vain <= 4 * 2 * MAX


def test_sequential_reader_among_random_ones_is_found() -> None:
    requests = [(unit * 4 * KIB, (64 if unit < 16384 else 4) * KIB) for unit in FIO]
    found = list(read_all(readahead(), requests))
    assert found
    assert all(offset < 64 * MIB and start < 64 * MIB for offset, _, start, _ in found)


def test_kernel_requests_with_gaps_are_a_stream() -> None:
    whole = sequential(400, 128 * KIB)
    chance = random.Random(1)
    gaps = [request for request in whole if chance.random() > 0.3]
    assert covered(gaps)[0] > 0.95 * len(gaps)


def test_requests_that_overtake_each_other_are_a_stream() -> None:
    requests = sequential(400, 128 * KIB)
    chance = random.Random(2)
    shuffled = sorted(requests, key=lambda request: request[0] + chance.randrange(8 * 128 * KIB))
    assert covered(shuffled)[0] > 0.9 * len(requests)


def test_as_many_streams_as_allowed_go_on_in_turns() -> None:
    each = [sequential(20, start=place * 128 * MIB) for place in range(8)]
    turns = [request for requests in zip(*each, strict=True) for request in requests]
    assert covered(turns)[0] == 8 * 17


def test_more_streams_than_allowed_are_not_kept() -> None:
    readers = readahead(streams_max=2)
    for place in range(8):
        advices(readers, sequential(20, start=place * 128 * MIB))
    assert len(readers._streams) == 2
    assert advices(readers, sequential(1, start=7 * 128 * MIB + 20 * 64 * KIB)) == []
    found = advices(readers, sequential(20, start=6 * 128 * MIB + 20 * 64 * KIB))
    assert found[0][1] > 192 * KIB


def test_stream_longest_not_read_makes_room() -> None:
    readers = readahead(streams_max=2)
    first, second, third = (sequential(100, start=place * 128 * MIB) for place in range(3))
    for requests in (first[:40], second[:40], first[40:50], third[:3]):
        advices(readers, requests)
    assert advices(readers, first[50:])[0][1] > MIB
    assert advices(readers, second[40:])[0][1] == 192 * KIB


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [0, 2, 3], [1, 2, 0, 4]])
def test_first_requests_may_overtake_each_other(order: list[int]) -> None:
    found = list(read_all(readahead(), ((number * 64 * KIB, 64 * KIB) for number in order)))
    assert [offset for offset, _, _, _ in found] == [order[-1] * 64 * KIB]


def test_reader_goes_on_where_it_was_after_a_look_back() -> None:
    readers = readahead()
    requests = sequential(200)
    advices(readers, requests[:100])
    advices(readers, reversed(requests[:100]))
    assert advices(readers, requests[100:])[0][1] > MIB


# Not a stream


def test_random_reads_are_never_a_stream() -> None:
    chance = random.Random(3)
    for unit in (4 * KIB, 64 * KIB):
        places = (chance.randrange(GIB // unit) * unit for _ in range(100_000))
        assert advices(readahead(), ((place, unit) for place in places)) == []


def test_random_reads_near_streams_that_ended_advise_little() -> None:
    readers = readahead()
    for place in range(8):
        advices(readers, sequential(300, start=place * 128 * MIB))
    chance = random.Random(4)
    places = (chance.randrange(GIB // MIN * 2) * 64 * KIB for _ in range(20_000))
    wasted = sum(length for _, length in advices(readers, ((at, 64 * KIB) for at in places)))
    assert wasted <= 8 * MAX
    assert not readers._streams


def test_reads_backwards_are_never_a_stream() -> None:
    assert advices(readahead(), reversed(sequential(1000))) == []
    readers = readahead()
    advices(readers, sequential(500))
    assert advices(readers, reversed(sequential(499))) == []


def test_same_place_again_and_again_is_not_a_stream() -> None:
    assert advices(readahead(), [(MIB, 64 * KIB)] * 1000) == []


def test_every_tenth_block_is_not_a_stream() -> None:
    blocks = ((number * 640 * KIB, 64 * KIB) for number in range(1000))
    assert advices(readahead(), blocks) == []


def test_stream_that_becomes_sparse_earns_no_more_advice() -> None:
    readers = readahead()
    advices(readers, sequential(20))
    sparse = ((20 * 64 * KIB + number * 640 * KIB, 64 * KIB) for number in range(1000))
    assert len(advices(readers, sparse)) <= 1


def test_what_was_read_long_ago_earns_nothing() -> None:
    readers = readahead()
    advices(readers, sequential(1000))
    sparse = ((1000 * 64 * KIB + number * 640 * KIB, 64 * KIB) for number in range(100))
    assert len(advices(readers, sparse)) <= 1


def test_late_request_does_not_begin_another_stream() -> None:
    readers = readahead()
    requests = sequential(40)
    late = requests.pop(30)
    advices(readers, requests[: 30 + REQUESTS_ASTRAY - 1])
    assert readers.advise(*late) is None
    assert len(readers._streams) == 1


def test_stream_is_kept_while_others_read_now_and_then() -> None:
    readers = readahead()
    advices(readers, sequential(100))
    chance = random.Random(5)
    for _ in range(IDLE_CALLS_MAX // 2):
        readers.advise(512 * MIB + chance.randrange(512 * MIB), 4 * KIB)
    found = advices(readers, sequential(100, start=100 * 64 * KIB))
    assert found[0][1] > MIB
