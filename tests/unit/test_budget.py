# SPDX-License-Identifier: MIT
"""The byte budget that connections share."""

import asyncio

import pytest

from swiftnbd.server.budget import Budget


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
    assert budget.left == 3
    assert not budget.take(4)
    assert budget.take(3)


def test_allowance_is_granted_when_nothing_is_left_and_is_owed() -> None:
    budget = Budget(10)
    assert budget.take(8)
    assert budget.take(3, allowance=3)
    assert budget.left == -1
    assert not budget.take(4, allowance=3)
    assert not budget.take(1)
    assert budget.take(3, allowance=3)
    assert budget.left == -4


def test_more_than_the_limit_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="never"):
        Budget(10).take(11)


async def test_giving_more_than_was_taken_is_a_bug() -> None:
    budget = Budget(10)
    budget.take(2)
    with pytest.raises(AssertionError):
        budget.give(3)


async def test_waiters_are_called_once_each_in_order_after_the_giver() -> None:
    budget, called = Budget(10), list[str]()
    budget.take(10)
    for name in ("first", "second"):
        budget.when_given(lambda name=name: called.append(name))  # type: ignore[misc]
    budget.give(1)
    budget.give(1)
    assert called == []
    await asyncio.sleep(0)
    assert called == ["first", "second"]
    budget.give(1)
    await asyncio.sleep(0)
    assert called == ["first", "second"]


async def test_waiter_may_wait_again_and_is_not_called_for_the_same_bytes() -> None:
    budget, calls = Budget(10), 0

    def want_all() -> None:
        nonlocal calls
        calls += 1
        if not budget.take(10):
            budget.when_given(want_all)

    budget.take(10)
    budget.when_given(want_all)
    for given in (4, 6):
        budget.give(given)
        for _ in range(3):
            await asyncio.sleep(0)
    assert calls == 2
    assert budget.left == 0
