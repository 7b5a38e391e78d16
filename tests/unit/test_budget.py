# SPDX-License-Identifier: MIT
"""The byte budget that connections share, and each one's share of it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftnbd.server.budget import Budget, Share


def nothing() -> None:
    """For who does not wait to be called."""


def test_takes_until_nothing_is_left() -> None:
    budget = Budget(10)
    assert budget.take(6)
    assert not budget.take(5)
    assert budget.take(4)
    assert budget.left == 0
    assert budget.take(0)


async def test_what_is_given_can_be_taken_again() -> None:
    budget = Budget(10)
    assert budget.take(10)
    budget.give(3)
    assert not budget.take(4)
    assert budget.take(3)


async def test_giving_more_than_was_taken_is_a_bug() -> None:
    budget = Budget(10)
    budget.take(2)
    with pytest.raises(AssertionError):
        budget.give(3)


def test_claim_of_more_than_there_ever_is_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="never"):
        Budget(10).claim(11, nothing)


async def test_claims_are_granted_in_order_and_called_after_the_giver() -> None:
    budget, called = Budget(10), list[str]()
    budget.take(10)
    for name in ("first", "second", "third"):
        budget.claim(4, lambda name=name: called.append(name))  # type: ignore[misc]
    assert budget.wanted
    budget.give(8)
    assert called == []
    await asyncio.sleep(0)
    assert called == ["first", "second"]
    assert budget.left == 0
    budget.give(4)
    await asyncio.sleep(0)
    assert called == ["first", "second", "third"]
    assert not budget.wanted


async def test_large_claim_is_not_starved_by_small_requests() -> None:
    """Whoever asks later waits behind it, even if there is enough for him."""
    budget = Budget(10)
    budget.take(4)
    large = budget.claim(10, nothing)
    assert not budget.take(1)
    small = budget.claim(1, nothing)
    budget.give(4)
    assert large.granted
    assert not small.granted


async def test_dropped_claim_lets_those_behind_it_go_on() -> None:
    budget = Budget(10)
    budget.take(4)
    large, small = budget.claim(10, nothing), budget.claim(1, nothing)
    budget.drop(large)
    assert small.granted
    budget.drop(small)
    assert budget.left == 6


# A connection's share


def test_own_bytes_are_there_even_if_the_budget_is_empty() -> None:
    budget = Budget(10)
    budget.take(10)
    share = Share(budget, 100, 5, nothing)
    assert share.take(3)
    assert share.take(2)
    assert share.shared == 0
    assert not share.take(1)
    assert share.waits


async def test_beyond_its_own_it_takes_from_the_budget_and_gives_that_back_first() -> None:
    budget = Budget(10)
    share = Share(budget, 100, 5, nothing)
    assert share.take(8)
    assert (share.shared, budget.left) == (3, 7)
    share.give(2)
    assert (share.shared, budget.left) == (1, 9)
    share.give(6)
    assert (share.shared, budget.left) == (0, 10)


def test_limit_holds_except_for_a_single_request() -> None:
    share = Share(Budget(100), 10, 0, nothing)
    assert share.take(20)
    assert not share.take(1)
    assert not share.waits


async def test_refused_share_is_called_when_its_bytes_are_there() -> None:
    budget, calls = Budget(10), list[bool]()
    budget.take(10)
    share = Share(budget, 100, 0, lambda: calls.append(share.take(6)))
    assert not share.take(6)
    assert not share.take(6)  # asking again is no second claim
    for given_back in (3, 3):
        budget.give(given_back)
        await asyncio.sleep(0)
    assert calls == [True]
    assert (share.held, budget.left) == (6, 0)


async def test_own_bytes_that_come_back_make_a_claim_needless() -> None:
    budget = Budget(10)
    budget.take(10)
    share = Share(budget, 100, 5, nothing)
    assert share.take(5)
    assert not share.take(4)
    share.give(5)
    assert share.take(4)
    assert not budget.wanted


async def test_claim_that_was_granted_for_another_request_is_given_back() -> None:
    """The request that waited was answered from the cache meanwhile."""
    budget = Budget(10)
    budget.take(10)
    share = Share(budget, 100, 0, nothing)
    assert not share.take(8)
    budget.give(8)
    assert share.take(3)
    assert budget.left == 5
    assert share.take(5)


async def test_larger_request_than_the_claimed_one_waits_anew() -> None:
    budget = Budget(10)
    budget.take(10)
    share, other = Share(budget, 100, 0, nothing), Share(budget, 100, 0, nothing)
    assert not share.take(2)
    assert not other.take(2)
    assert not share.take(8)
    budget.give(2)
    assert other.take(2)
    assert share.waits


@pytest.mark.parametrize("granted", [False, True])
async def test_closed_share_waits_for_nothing(granted: bool) -> None:
    budget = Budget(10)
    budget.take(10)
    share = Share(budget, 100, 0, nothing)
    assert not share.take(4)
    if granted:
        budget.give(4)
    share.close()
    assert not budget.wanted
    assert budget.left == (4 if granted else 0)


class Client:
    """Works off its requests in order, as a connection does, and holds one at a time."""

    def __init__(self, budget: Budget, requests: list[int]) -> None:
        self.share = Share(budget, 12, 2, self.go_on)
        self.left = requests
        self.at_work: list[int] = []

    def go_on(self) -> None:
        while self.left and self.share.take(self.left[0]):
            self.at_work.append(self.left.pop(0))

    def finish_one(self) -> None:
        if self.at_work:
            self.share.give(self.at_work.pop(0))
        self.go_on()


@given(
    st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=1, max_size=6),
    st.lists(st.integers(0, 5), max_size=60),
)
def test_everybody_is_served_and_nothing_is_lost(
    requests: list[list[int]], order: list[int]
) -> None:
    """Whatever is asked and in whichever order it ends, all is answered and all comes back."""

    async def run() -> None:
        budget = Budget(12)
        clients = [Client(budget, list(each)) for each in requests]
        for number in [*order, *list(range(len(clients))) * 60]:
            clients[number % len(clients)].finish_one()
            await asyncio.sleep(0)
            assert 0 <= budget.left <= budget.limit
            assert sum(client.share.held for client in clients) <= 12 + 2 * len(clients)
        assert all(not client.left and not client.at_work for client in clients)
        assert budget.left == budget.limit
        assert not budget.wanted

    asyncio.run(run())


async def test_granted_bytes_that_cannot_be_used_now_go_on_to_the_next() -> None:
    """The connection is held up by something else: its client does not read, say."""
    budget, called = Budget(10), list[str]()
    budget.take(10)
    stalled = Share(budget, 10, 0, lambda: called.append("stalled"))
    assert not stalled.take(8)
    honest = Share(budget, 10, 0, lambda: called.append("honest"))
    assert not honest.take(8)
    budget.give(10)
    for _ in range(3):
        await asyncio.sleep(0)
    assert called == ["stalled", "honest"]
    assert budget.left == 10
    assert stalled.take(8)  # when it can be used, it is asked for again
