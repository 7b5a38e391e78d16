# SPDX-License-Identifier: MIT
"""Who is cut off because its client holds what others need, or does not move at all."""

import pytest

from swiftnbd.server.budget import Budget
from swiftnbd.server.patience import (
    PACE_BYTES_MIN,
    PACE_SECONDS,
    STALLED_SECONDS_MAX,
    Patience,
    Progress,
)

TOO_SLOW = "client: cut off: others wait for the [0-9]+ bytes it holds, and it is too slow"
DEAD = "client: cut off: it has not moved for 300 s"


class Client:
    """Holds bytes; how far it has come is said by the test."""

    def __init__(self, held: int = 10) -> None:
        self.now: Progress | None = Progress(0, held)
        self.is_cut_off = False

    def __str__(self) -> str:
        return "client"

    def progress(self) -> Progress | None:
        return self.now

    def abort(self) -> None:
        self.is_cut_off = True

    def move(self, count: int) -> None:
        assert self.now is not None
        self.now = Progress(self.now.moved + count, self.now.held)


@pytest.fixture
def budget() -> Budget:
    return Budget(10)


@pytest.fixture
def wanted(budget: Budget) -> Budget:
    """A budget that somebody waits for."""
    budget.take(10)
    budget.claim(1, lambda: None)
    return budget


def watch(budget: Budget, client: Client, seconds: float, pace: int) -> None:
    """Look at a client once a second while it moves ``pace`` bytes a second."""
    patience = Patience(budget)
    for second in range(int(seconds) + 1):
        patience.check([client], 1000.0 + second)
        client.move(pace)


def test_slow_client_is_left_in_peace_while_nobody_waits(budget: Budget) -> None:
    client = Client()
    watch(budget, client, 10_000, pace=1)
    assert not client.is_cut_off


@pytest.mark.expects_log(TOO_SLOW)
@pytest.mark.parametrize("pace", [0, 1, PACE_BYTES_MIN - 1])
def test_slow_client_that_others_wait_for_is_cut_off(wanted: Budget, pace: int) -> None:
    client = Client()
    watch(wanted, client, PACE_SECONDS - 1, pace)
    assert not client.is_cut_off
    watch(wanted, client, PACE_SECONDS, pace)
    assert client.is_cut_off


def test_client_at_a_fair_pace_is_left_in_peace(wanted: Budget) -> None:
    client = Client()
    watch(wanted, client, 1000, PACE_BYTES_MIN)
    assert not client.is_cut_off


def test_slow_client_that_holds_nothing_of_the_budget_is_left_in_peace(wanted: Budget) -> None:
    client = Client(held=0)
    watch(wanted, client, 1000, pace=1)
    assert not client.is_cut_off


async def test_pace_is_measured_anew_when_others_wait_again(budget: Budget) -> None:
    client, patience = Client(), Patience(budget)
    budget.take(10)
    for start in (0.0, 100.0, 200.0):
        claim = budget.claim(1, lambda: None)
        for second in (0.0, 5.0, PACE_SECONDS - 1):
            patience.check([client], start + second)
            client.move(1)
        budget.drop(claim)
        patience.check([client], start + PACE_SECONDS)
    assert not client.is_cut_off


def test_client_that_was_not_waited_for_meanwhile_is_given_time_anew(wanted: Budget) -> None:
    client, patience = Client(), Patience(wanted)
    for round_ in range(10):
        before = client.now
        for second in (0.0, PACE_SECONDS - 1):
            patience.check([client], round_ * 100 + second)
        client.now = None
        patience.check([client], round_ * 100 + PACE_SECONDS)
        client.now = before
    assert not client.is_cut_off


@pytest.mark.expects_log(DEAD)
def test_client_that_does_not_move_is_cut_off_in_the_end(budget: Budget) -> None:
    client = Client(held=0)
    watch(budget, client, STALLED_SECONDS_MAX - 1, pace=0)
    assert not client.is_cut_off
    watch(budget, client, STALLED_SECONDS_MAX, pace=0)
    assert client.is_cut_off


def test_nothing_is_kept_of_clients_that_are_gone(budget: Budget) -> None:
    patience = Patience(budget)
    patience.check([Client(), Client()], 0.0)
    patience.check([], 1.0)
    assert not patience._watched


@pytest.mark.expects_log(DEAD)
def test_client_whose_progress_shrinks_has_not_moved(budget: Budget) -> None:
    client, patience = Client(held=0), Patience(budget)
    client.move(1000)
    for second in range(int(STALLED_SECONDS_MAX) + 1):
        patience.check([client], float(second))
        client.move(-1)
    assert client.is_cut_off
