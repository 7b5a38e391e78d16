# SPDX-License-Identifier: MIT
"""Slots for requests: how many at once, who goes first, and that none is lost."""

import asyncio
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftnbd.export.slots import Slots
from tests.support.disks import begin, turns


class Holder:
    """Somebody who holds a slot until told to let go."""

    def __init__(self, slots: Slots, *, urgent: bool) -> None:
        self.holds = False
        self.urgent = urgent
        self.task = begin(slots.run(self._hold, urgent=urgent))
        self._done = asyncio.Event()

    async def _hold(self) -> None:
        self.holds = True
        try:
            await self._done.wait()
        finally:
            self.holds = False

    async def let_go(self) -> None:
        self._done.set()
        await turns(5)


async def holders(slots: Slots, kinds: str) -> list[Holder]:
    """One for each letter, in this order: u is urgent, o another."""
    made = []
    for kind in kinds:
        made.append(Holder(slots, urgent=kind == "u"))
        await turns(2)
    return made


def who_holds(made: list[Holder]) -> list[int]:
    return [number for number, each in enumerate(made) if each.holds]


async def test_no_more_than_the_total_at_once_and_the_next_in_the_order_they_came() -> None:
    slots = Slots(2, 0)
    made = await holders(slots, "oooo")
    assert who_holds(made) == [0, 1]
    await made[1].let_go()
    assert who_holds(made) == [0, 2]
    for each in made:
        await each.let_go()
    assert slots.free == slots.total == 2


async def test_reserved_slots_are_for_the_urgent_only() -> None:
    slots = Slots(3, 1)
    made = await holders(slots, "ooouu")
    assert who_holds(made) == [0, 1, 3]
    await made[0].let_go()
    assert who_holds(made) == [1, 3, 4]  # the urgent one overtakes
    await made[3].let_go()
    assert who_holds(made) == [1, 4]  # one is kept free
    await made[4].let_go()
    assert who_holds(made) == [1, 2]


async def test_urgent_ones_may_have_all_slots() -> None:
    made = await holders(Slots(3, 1), "uuuu")
    assert who_holds(made) == [0, 1, 2]


async def test_cancelled_while_waiting_takes_nothing() -> None:
    slots = Slots(1, 0)
    made = await holders(slots, "ooo")
    made[1].task.cancel()
    await turns()
    await made[0].let_go()
    assert who_holds(made) == [2]
    await made[2].let_go()
    assert slots.free == 1


async def test_cancelled_when_the_slot_was_just_given_passes_it_on() -> None:
    slots = Slots(1, 0)
    made = await holders(slots, "ooo")
    made[0]._done.set()
    await turns(1)  # the first has gone, the second has been given its slot and not run yet
    made[1].task.cancel()
    await turns()
    assert who_holds(made) == [2]
    await made[2].let_go()
    assert slots.free == 1


async def test_waiting_requests_of_a_key_become_urgent_and_keep_their_order() -> None:
    slots = Slots(3, 1)
    served: list[int] = []

    async def hold(number: int) -> None:
        served.append(number)
        await done.wait()

    done = asyncio.Event()
    tasks = [
        begin(slots.run(partial(hold, number), urgent=False, key=key))
        for number, key in enumerate((1, 1, 2, 3, 2))
    ]
    await turns()
    assert served == [0, 1]
    slots.hurry(4)  # nobody's
    slots.hurry(2)
    await turns()
    assert served == [0, 1, 2]  # the reserved slot; the other one is the next urgent one
    done.set()
    await asyncio.gather(*tasks)
    assert served == [0, 1, 2, 4, 3]
    assert slots.free == 3


async def test_error_inside_gives_the_slot_back() -> None:
    slots = Slots(1, 0)

    async def fails() -> None:
        raise OSError("inside")

    with pytest.raises(OSError, match="inside"):
        await slots.run(fails, urgent=False)
    assert slots.free == 1


@pytest.mark.parametrize(("total", "reserved"), [(0, 0), (1, 1), (4, 4), (2, -1)])
def test_no_slots_for_others_is_a_bug(total: int, reserved: int) -> None:
    with pytest.raises(AssertionError):
        Slots(total, reserved)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["urgent", "other", "let go", "cancel", "turn"]), st.integers(0, 9)),
    max_size=50,
)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(0, 2), EVENTS)
def test_any_order_of_events_keeps_the_bounds_and_serves_all(
    others: int, reserved: int, events: list[tuple[str, int]]
) -> None:
    asyncio.run(_play(Slots(others + reserved, reserved), others, events))


async def _play(slots: Slots, others: int, events: list[tuple[str, int]]) -> None:
    made: list[Holder] = []
    for kind, number in events:
        if kind in ("urgent", "other"):
            made.append(Holder(slots, urgent=kind == "urgent"))
        elif kind == "turn":
            await turns(number % 4)
        elif made:
            each = made[number % len(made)]
            each._done.set() if kind == "let go" else each.task.cancel()
        assert sum(each.holds for each in made) <= slots.total
        # a slot kept free for the urgent is used by them only
        assert sum(each.holds and not each.urgent for each in made) <= slots.total
    await turns()
    waiting = [each for each in made if not each.task.done() and not each.holds]
    if slots.free > slots.total - others:
        assert not waiting
    if slots.free:
        assert not [each for each in waiting if each.urgent]
    for each in made:
        each._done.set()
    await asyncio.gather(*(each.task for each in made), return_exceptions=True)
    assert slots.free == slots.total


async def test_those_nobody_waits_for_get_their_share_of_a_flood_of_urgent_ones() -> None:
    slots = Slots(4, 2)
    flood = await holders(slots, "uuuuuuuu")
    other, another, third = await holders(slots, "ooo")
    assert [each.holds for each in flood] == [True] * 4 + [False] * 4
    await flood[0].let_go()
    await flood[1].let_go()
    assert (other.holds, another.holds, third.holds) == (True, True, False)
    await flood[2].let_go()
    assert flood[4].holds
    assert not third.holds
    for each in (*flood, other, another, third):
        await each.let_go()
    assert slots.free == 4


async def test_slot_is_not_kept_for_one_that_gave_up_waiting() -> None:
    """What is cut short when the lock is in doubt, or waits too long, is owed nothing any more."""
    slots = Slots(2, 1)
    first, second, other, last = await holders(slots, "uuou")
    other.task.cancel()
    await turns(2)
    await first.let_go()
    assert last.holds
    for each in (second, last):
        await each.let_go()
    assert slots.free == slots.total
