# SPDX-License-Identifier: MIT
"""The map of which objects exist: its states and runs, and its bytes kept over restarts."""

import hashlib
import time
import tracemalloc
import zlib

import pytest

from swiftnbd.export import presence
from swiftnbd.export.presence import PAGE_OBJECTS, Presence, State, dump_bytes_max

UNKNOWN, ABSENT, PRESENT = State
MANY = 16_000_000
MOST = 99_999_999


def runs(found: Presence) -> list[tuple[int, State]]:
    return list(found.runs(0, found.objects))


def signed(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=32).digest()


def dump_of(raw: bytes, *, objects: int = 5, after: bytes = b"") -> bytes:
    """What `dumps("mine")` would give if the map's uncompressed bytes were ``raw``."""
    head = b"swiftnbd presence 1\n" + objects.to_bytes(8, "big") + b"\0\0\0\4mine"
    return signed(head + zlib.compress(raw) + after)


# States


def test_new_map_is_unknown() -> None:
    assert runs(Presence(7)) == [(7, UNKNOWN)]
    assert Presence(7).get(6) is UNKNOWN


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, PAGE_OBJECTS - 1, PAGE_OBJECTS, 2 * PAGE_OBJECTS])
@pytest.mark.parametrize("state", [ABSENT, PRESENT])
def test_set_changes_one_object(index: int, state: State) -> None:
    found = Presence(2 * PAGE_OBJECTS + 1)
    found.set(index, state)
    assert found.get(index) is state
    rest = found.objects - index - 1
    expected = [(index, UNKNOWN), (1, state), (rest, UNKNOWN)]
    assert runs(found) == [run for run in expected if run[0]]
    found.set(index, UNKNOWN)
    assert runs(found) == [(found.objects, UNKNOWN)]


def test_four_objects_in_a_byte_keep_their_own_states() -> None:
    found = Presence(9)
    for index, state in enumerate([PRESENT, ABSENT, UNKNOWN, PRESENT, ABSENT]):
        found.set(index, state)
    found.set(1, PRESENT)
    assert [found.get(index) for index in range(6)] == [
        PRESENT, PRESENT, UNKNOWN, PRESENT, ABSENT, UNKNOWN,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "end"),
    [
        (0, 0),
        (5, 6),
        (3, 5),
        (1, PAGE_OBJECTS),
        (0, PAGE_OBJECTS),
        (PAGE_OBJECTS - 1, PAGE_OBJECTS + 1),
        (7, 3 * PAGE_OBJECTS - 7),
        (PAGE_OBJECTS, 3 * PAGE_OBJECTS + 5),
        (0, 3 * PAGE_OBJECTS + 5),
    ],
)
def test_fill_changes_the_range_and_no_more(first: int, end: int) -> None:
    found = Presence(3 * PAGE_OBJECTS + 5)
    found.fill(0, found.objects, PRESENT)
    found.fill(first, end, ABSENT)
    expected = [(first, PRESENT), (end - first, ABSENT), (found.objects - end, PRESENT)]
    if first == end:
        expected = [(found.objects, PRESENT)]
    assert runs(found) == [run for run in expected if run[0]]


def test_runs_of_a_part_are_cut_at_its_ends() -> None:
    found = Presence(3 * PAGE_OBJECTS)
    found.fill(10, 2 * PAGE_OBJECTS, ABSENT)
    assert list(found.runs(12, 2 * PAGE_OBJECTS + 3)) == [
        (2 * PAGE_OBJECTS - 12, ABSENT),
        (3, UNKNOWN),
    ]
    assert list(found.runs(5, 11)) == [(5, UNKNOWN), (1, ABSENT)]
    assert list(found.runs(8, 8)) == []


def test_page_set_object_by_object_is_folded_when_it_is_looked_at() -> None:
    found = Presence(2 * PAGE_OBJECTS)
    for index in range(PAGE_OBJECTS):
        found.set(index, PRESENT)
    assert runs(found) == [(PAGE_OBJECTS, PRESENT), (PAGE_OBJECTS, UNKNOWN)]
    assert found._pages == [PRESENT, UNKNOWN]


@pytest.mark.parametrize("index", [-1, 5])
def test_object_outside_is_a_bug(index: int) -> None:
    with pytest.raises(AssertionError):
        Presence(5).get(index)
    with pytest.raises(AssertionError):
        Presence(5).set(index, ABSENT)


# What it costs: limits that only another order of growth exceeds


def seconds(least_of: int, work: object) -> float:
    assert callable(work)
    times = []
    for _ in range(least_of):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def test_largest_map_in_one_state_takes_no_room() -> None:
    tracemalloc.start()
    try:
        found = Presence(MOST)
        found.fill(0, MOST, ABSENT)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_largest_mixed_map_takes_two_bits_per_object() -> None:
    found = Presence(MANY)
    tracemalloc.start()
    try:
        for index in range(0, MANY, PAGE_OBJECTS // 2):
            found.set(index, PRESENT)
        assert tracemalloc.get_traced_memory()[0] < MANY / 4 * 1.05
    finally:
        tracemalloc.stop()


def test_uniform_millions_are_quick() -> None:
    found = Presence(MANY)
    assert seconds(5, lambda: found.fill(1, MANY - 1, ABSENT)) < 0.005
    assert seconds(5, lambda: list(found.runs(0, MANY))) < 0.005


# Kept over restarts


def mixed() -> Presence:
    found = Presence(3 * PAGE_OBJECTS + 5)
    found.fill(PAGE_OBJECTS, 3 * PAGE_OBJECTS, ABSENT)
    for index in (0, 5, PAGE_OBJECTS + 1, found.objects - 1):
        found.set(index, PRESENT)
    return found


def test_map_survives_dumps_and_loads() -> None:
    before = mixed()
    after = Presence.loads(before.dumps("epoch 7"), before.objects, "epoch 7")
    assert after is not None
    assert runs(after) == runs(before)
    after.set(3, PRESENT)
    assert after.get(3) is PRESENT
    assert before.get(3) is UNKNOWN


def test_dump_is_the_documented_bytes() -> None:
    head = b"swiftnbd presence 1\n" + b"\0\0\0\0\0\0\0\5" + b"\0\0\0\4mine"
    data = Presence(5).dumps("mine")
    assert data.startswith(head)
    assert zlib.decompress(data[len(head) : -32]) == b"\0"  # one page, of the kind 0
    assert data == signed(data[:-32])


@pytest.mark.parametrize(
    ("objects", "binding"),
    [(6, "mine"), (PAGE_OBJECTS + 5, "mine"), (5, "min"), (5, "mine "), (5, ""), (5, "\udcff")],
)
def test_map_of_another_size_or_binding_is_none(objects: int, binding: str) -> None:
    assert Presence.loads(Presence(5).dumps("mine"), objects, binding) is None


def test_any_changed_or_missing_byte_is_none() -> None:
    data = mixed().dumps("mine")
    assert Presence.loads(data, mixed().objects, "mine") is not None
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert Presence.loads(changed, mixed().objects, "mine") is None
        assert Presence.loads(data[:at], mixed().objects, "mine") is None
    assert Presence.loads(data + b"\0", mixed().objects, "mine") is None


PAGE = bytes(PAGE_OBJECTS // 4)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        dump_of(b""),
        dump_of(b"\4"),
        dump_of(b"\0\0"),
        dump_of(b"\3"),
        dump_of(b"\3" + PAGE[1:]),
        dump_of(b"\3" + PAGE + b"\0"),
        dump_of(b"\3" + PAGE[1:] + b"\x03"),
        dump_of(b"\3" + PAGE[1:] + b"\xc0"),
        dump_of(b"\0", after=b"\0"),
        dump_of(b"\0")[:-33] + dump_of(b"\0")[-32:],
        signed(dump_of(b"\0")[:-33]),
        signed(dump_of(b"\0")[:-32] + b"rest"),
    ],
)
def test_well_signed_nonsense_is_none(data: bytes) -> None:
    assert Presence.loads(dump_of(b"\3" + PAGE), 5, "mine") is not None
    assert Presence.loads(data, 5, "mine") is None


def test_bytes_that_unpack_to_gigabytes_take_no_more_than_the_map() -> None:
    bomb = dump_of(bytes(200_000_000))
    tracemalloc.start()
    try:
        assert Presence.loads(bomb, 5, "mine") is None
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_worst_map_fits_into_the_announced_size() -> None:
    found = Presence(4 * PAGE_OBJECTS)
    stream = hashlib.shake_128(b"").digest(found.objects)
    for index, byte in enumerate(stream):
        found.set(index, State(byte % 3))
    assert len(found.dumps("mine")) < dump_bytes_max(found.objects, "mine")
    noise = b"".join(bytes([3]) + stream[: len(PAGE)] for _ in range(4))
    packed = zlib.compress(noise, 0)  # more than any level may make of it
    assert len(dump_of(b"")) - len(zlib.compress(b"")) + len(packed) < dump_bytes_max(
        found.objects, "mine"
    )


def test_every_state_has_its_own_bits() -> None:
    assert [page[0] for page in presence._UNIFORM] == [0x00, 0x55, 0xAA]
