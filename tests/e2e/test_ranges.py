# SPDX-License-Identifier: MIT
"""Reads and writes at every kind of place, against an oracle of plain bytes.

The subjects are those swiftnbd 0.11 was tested with: aligned and not, inside one object and
across several, at the end of the disk and beyond it.
"""

import random
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import Disk
from tests.support.nbd_client import EINVAL, ENOSPC, FUA, NO_HOLE, NbdClient, NbdError

S = 64 * 1024  # an object of the shared disk
END = 256 * S

RANGES = {
    "one_object": (3 * S, S),
    "three_objects": (4 * S, 3 * S),
    "first_byte": (0, 1),
    "first_object": (0, S),
    "inside_one_object": (5 * S + 1000, 5000),
    "head_of_an_object": (7 * S, 4321),
    "tail_of_an_object": (9 * S - 4321, 4321),
    "one_byte_before_a_border": (10 * S - 1, 1),
    "one_byte_after_a_border": (10 * S, 1),
    "two_bytes_across_a_border": (11 * S - 1, 2),
    "across_a_border": (12 * S - 100, 300),
    "tail_whole_head": (13 * S - 77, 77 + S + 99),
    "unaligned_over_many": (20 * S + 1, 17 * S + 5),
    "last_byte": (END - 1, 1),
    "last_object": (END - S, S),
    "unaligned_to_the_end": (END - S - 13, S + 13),
    "nothing": (5 * S, 0),
    "nothing_at_the_end": (END, 0),
}

Change = Callable[[NbdClient, int, bytes], bytes]


def _write(client: NbdClient, offset: int, data: bytes) -> bytes:
    client.write(offset, data)
    return data


def _write_fua(client: NbdClient, offset: int, data: bytes) -> bytes:
    client.write(offset, data, FUA)
    return data


def _zero(client: NbdClient, offset: int, data: bytes) -> bytes:
    client.zero(offset, len(data))
    return bytes(len(data))


def _zero_no_hole(client: NbdClient, offset: int, data: bytes) -> bytes:
    client.zero(offset, len(data), NO_HOLE | FUA)
    return bytes(len(data))


CHANGES = {
    "write": _write,
    "write_fua": _write_fua,
    "zero": _zero,
    "zero_no_hole": _zero_no_hole,
}


@pytest.fixture(scope="module")
def client(shared_disk: Disk) -> Iterator[NbdClient]:
    """One connection for all these tests: what one of them does wrong, the next may find."""
    with shared_disk.connect() as client:
        yield client
        client.disconnect()


@pytest.fixture(scope="module")
def oracle(client: NbdClient) -> bytearray:
    """What the shared disk must read as. Its first half has data, the other none."""
    data = random.Random("oracle").randbytes(END // 2)
    for offset in range(0, END // 2, 16 * S):
        client.write(offset, data[offset : offset + 16 * S])
    return bytearray(data + bytes(END - len(data)))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize(("offset", "length"), RANGES.values(), ids=RANGES.keys())
def test_change_is_read_back_and_its_surroundings_stay(
    client: NbdClient, oracle: bytearray, offset: int, length: int, change: Change
) -> None:
    data = random.Random(f"{offset} {length}").randbytes(length)
    oracle[offset : offset + length] = change(client, offset, data)
    assert client.read(offset, length) == oracle[offset : offset + length]
    start, stop = max(0, offset - S - 7), min(END, offset + length + S + 7)
    assert client.read(start, stop - start) == oracle[start:stop]


def test_all_changes_together_left_what_the_oracle_says(
    shared_disk: Disk, client: NbdClient, oracle: bytearray
) -> None:
    client.flush()
    stored = shared_disk.backend.objects(shared_disk.container)
    with shared_disk.connect() as second:
        for index in range(END // S):
            expected = oracle[index * S : (index + 1) * S]
            assert second.read(index * S, S) == expected, index
            assert stored.get(f"disk.part/{index:08d}", bytes(S)) == expected, index


@pytest.mark.parametrize(
    ("offset", "length"),
    [(END, 1), (END - 1, 2), (END + S, S), (2**64 - 1, 2), (2**63, 512)],
    ids=["at_the_end", "across_the_end", "beyond", "wrapping", "far_away"],
)
def test_range_beyond_the_end_is_refused_and_changes_nothing(
    client: NbdClient, oracle: bytearray, offset: int, length: int
) -> None:
    for request, error in (
        (lambda: client.read(offset, length), EINVAL),
        (lambda: client.write(offset, b"x" * length), ENOSPC),
        (lambda: client.zero(offset, length), ENOSPC),
        (lambda: client.trim(offset, length), EINVAL),
    ):
        with pytest.raises(NbdError) as refused:
            request()
        assert refused.value.number == error
    assert client.read(END - 512, 512) == oracle[END - 512 :]
