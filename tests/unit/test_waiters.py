# SPDX-License-Identifier: MIT
"""Those who wait for room: their order, and that neither room nor a waiter is lost."""

import asyncio
from collections.abc import Callable

import pytest

from swiftnbd.errors import StoreUnavailable
from swiftnbd.export.waiters import Waiters
from tests.support.disks import begun


class Room:
    """So many places; ``waiters`` for when there are none."""

    def __init__(self, free: int = 0) -> None:
        self.free = free
        self.left = 0
        self.waiters = Waiters(self._on_leave)

    def _on_leave(self) -> None:
        self.left += 1

    def attempt(self, name: str, places: int = 1) -> Callable[[], str | None]:
        def take() -> str | None:
            if self.free < places:
                return None
            self.free -= places
            return name

        return take

    def give_back(self, _: str) -> None:
        self.free += 1

    async def wait(self, name: str, places: int = 1) -> str:
        return await self.waiters.wait(self.attempt(name, places), self.give_back)


async def test_served_in_the_order_they_came() -> None:
    room = Room()
    assert not room.waiters
    one, two, three = [await begun(room.wait(name)) for name in ("one", "two", "three")]
    assert room.waiters
    room.free = 2
    room.waiters.serve()
    assert (await one, await two) == ("one", "two")
    assert not three.done()
    room.free = 1
    room.waiters.serve()
    assert await three == "three"
    assert not room.waiters


async def test_small_one_does_not_overtake_a_large_one() -> None:
    """Else it could wait for ever."""
    room = Room(free=2)
    large, small = await begun(room.wait("large", 3)), await begun(room.wait("small", 1))
    room.waiters.serve()
    assert (large.done(), small.done()) == (False, False)
    room.free = 4
    room.waiters.serve()
    assert (await large, await small) == ("large", "small")


async def test_attempt_is_made_when_served_not_when_the_waiter_runs() -> None:
    room = Room(free=1)
    waiting = await begun(room.wait("one"))
    room.waiters.serve()
    assert room.free == 0  # taken before anybody else can come
    assert await waiting == "one"


async def test_cancelled_while_waiting_is_passed_over_and_says_so() -> None:
    room = Room()
    gone, stays = await begun(room.wait("gone")), await begun(room.wait("stays"))
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert room.left == 1  # those behind it may find room
    room.free = 1
    room.waiters.serve()
    assert await stays == "stays"


async def test_cancelled_when_just_served_gives_back_what_it_got() -> None:
    room = Room(free=1)
    waiting = await begun(room.wait("one"))
    room.waiters.serve()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    assert (room.free, room.left) == (1, 1)


async def test_failure_reaches_all_who_wait_and_nobody_later() -> None:
    room = Room()
    early = [await begun(room.wait(name)) for name in ("one", "two")]
    room.waiters.fail(StoreUnavailable("faulty"))
    assert not room.waiters
    for task in early:
        with pytest.raises(StoreUnavailable):
            await task
    late = await begun(room.wait("late"))
    room.free = 1
    room.waiters.serve()
    assert await late == "late"


async def test_failure_of_one_that_was_cancelled_is_nothing() -> None:
    room = Room()
    gone = await begun(room.wait("gone"))
    gone.cancel()
    room.waiters.fail(StoreUnavailable("faulty"))
    await asyncio.gather(gone, return_exceptions=True)
    assert gone.cancelled()
