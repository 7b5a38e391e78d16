# SPDX-License-Identifier: MIT
"""The map of which objects exist against a plain array: any changes, then every question."""

import random
import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swiftnbd.export.presence import PAGE_OBJECTS, Presence, State

OBJECTS = 2 * PAGE_OBJECTS + 11

# Pages, bytes and the end are where it can go wrong
EDGES = (0, 40, PAGE_OBJECTS, 2 * PAGE_OBJECTS, OBJECTS)
INDEXES = st.builds(
    lambda edge, distance: max(0, min(OBJECTS, edge + distance)),
    st.sampled_from(EDGES),
    st.integers(-9, 9),
) | st.integers(0, OBJECTS)
RANGES = st.tuples(INDEXES, INDEXES).map(lambda pair: (min(pair), max(pair)))
CHANGES = st.lists(st.tuples(RANGES, st.sampled_from(State), st.booleans()), max_size=30)

RUN = re.compile(rb"\x00+|\x01+|\x02+")


def expected_runs(plain: bytearray, first: int, end: int) -> list[tuple[int, State]]:
    return [
        (found.end() - found.start(), State(found[0][0]))
        for found in RUN.finditer(plain, first, end)
    ]


def changed(changes: list[tuple[tuple[int, int], State, bool]]) -> tuple[Presence, bytearray]:
    """A map and an array, after the same changes: a range by `fill`, or its first ones by `set`."""
    found, plain = Presence(OBJECTS), bytearray(OBJECTS)
    for (first, end), state, whole in changes:
        if whole:
            found.fill(first, end, state)
        else:
            end = min(end, first + 9)
            for index in range(first, end):
                found.set(index, state)
        plain[first:end] = bytes([state]) * (end - first)
    return found, plain


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=CHANGES, asked=st.lists(RANGES, max_size=5))
def test_map_answers_as_an_array_does(
    changes: list[tuple[tuple[int, int], State, bool]], asked: list[tuple[int, int]]
) -> None:
    found, plain = changed(changes)
    for first, end in (*asked, (0, OBJECTS)):
        assert list(found.runs(first, end)) == expected_runs(plain, first, end)
        for index in {first, end - 1} - {-1, OBJECTS}:
            assert found.get(index) == plain[index]
    loaded = Presence.loads(found.dumps("mine"), OBJECTS, "mine")
    assert loaded is not None
    assert list(loaded.runs(0, OBJECTS)) == expected_runs(plain, 0, OBJECTS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=CHANGES, seed=st.integers(0, 2**32), times=st.integers(1, 4))
def test_damaged_bytes_are_never_a_map(
    changes: list[tuple[tuple[int, int], State, bool]], seed: int, times: int
) -> None:
    found, _ = changed(changes)
    data = bytearray(found.dumps("mine"))
    good = bytes(data)
    chance = random.Random(seed)
    for _ in range(times):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(3):
            case 0:
                del data[at : at + chance.randrange(1, 40)]
            case 1:
                data[at:at] = chance.randbytes(chance.randrange(1, 40))
            case _:
                data[at : at + 3] = chance.randbytes(3)
    if bytes(data) != good:
        assert Presence.loads(bytes(data), OBJECTS, "mine") is None
