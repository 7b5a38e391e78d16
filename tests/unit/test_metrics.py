# SPDX-License-Identifier: MIT
"""Counters, durations and what they add up to."""

import asyncio

import pytest

from swiftnbd.errors import StoreUnavailable
from swiftnbd.metrics import (
    SECONDS_BOUNDS,
    TROUBLE_SECONDS,
    Counters,
    Durations,
    StoreTraffic,
    quantile,
)
from tests.support.disks import SIZE, a_disk


def test_durations_fall_into_the_first_bound_that_holds_them() -> None:
    durations = Durations()
    durations.add(SECONDS_BOUNDS[0])
    durations.add(SECONDS_BOUNDS[0] * 1.01, times=2)
    durations.add(SECONDS_BOUNDS[-1] * 2)
    assert durations.counts[0] == 1
    assert durations.counts[1] == 2
    assert durations.counts[-1] == 1
    assert durations.total == 4


@pytest.mark.parametrize(
    ("counts", "share", "seconds"),
    [
        ({}, 0.5, None),
        ({4: 10}, 0.5, 0.00075),  # half-way between 0.5 and 1 ms
        ({4: 99, 10: 1}, 0.99, 0.001),
        ({4: 98, 10: 2}, 0.99, 0.075),
        ({19: 5}, 0.5, 60.0),  # beyond all bounds: no more is known
    ],
)
def test_quantile(counts: dict[int, int], share: float, seconds: float | None) -> None:
    found = quantile([counts.get(index, 0) for index in range(20)], share)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_requests_answered_at_once_are_timed_only_if_asked_for() -> None:
    counters = Counters()
    counters.reads_now += 3
    counters.answered_now(counters.now())
    assert counters.durations == {}
    counters = Counters(timed=True)
    begin = counters.now()
    counters.reads_now += 3
    counters.writes_now += 1
    counters.answered_now(begin)
    counters.answered_now(counters.now())  # a wake-up without any
    assert {name: each.total for name, each in counters.durations.items()} == {
        "READ": 3,
        "WRITE": 1,
    }
    counters.requests["READ"] += 1
    assert [counters.requests_of(name) for name in ("READ", "WRITE", "TRIM")] == [4, 1, 0]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def traffic(clock: Clock) -> StoreTraffic:
    return StoreTraffic(clock)


def answer(traffic: StoreTraffic, status: int) -> None:
    with traffic.request("GET") as seen:
        seen.status = status


def no_answer(traffic: StoreTraffic) -> None:
    with pytest.raises(StoreUnavailable), traffic.request("GET"):
        raise StoreUnavailable("no answer")


def test_requests_are_counted_by_method_and_status(traffic: StoreTraffic, clock: Clock) -> None:
    with traffic.request("PUT") as seen:
        assert traffic.under_way == 1
        clock.now += 0.2
        seen.status = 201
    answer(traffic, 404)
    no_answer(traffic)
    assert traffic.requests == {("PUT", "201"): 1, ("GET", "404"): 1, ("GET", ""): 1}
    assert traffic.under_way == 0
    assert traffic.durations["PUT"].seconds == pytest.approx(0.2)


def test_a_request_that_nobody_wants_any_more_says_nothing(traffic: StoreTraffic) -> None:
    with pytest.raises(asyncio.CancelledError), traffic.request("PUT"):
        raise asyncio.CancelledError
    assert (traffic.under_way, traffic.requests, traffic.trouble_seconds) == (0, {}, None)


@pytest.mark.parametrize("fail", [no_answer, lambda traffic: answer(traffic, 503)])
def test_trouble_lasts_until_it_answers_again_for_a_while(
    traffic: StoreTraffic, clock: Clock, fail: object
) -> None:
    assert callable(fail)
    answer(traffic, 200)
    assert traffic.trouble_seconds is None
    fail(traffic)
    clock.now += 100
    assert traffic.trouble_seconds == 100  # nothing was asked since
    fail(traffic)
    clock.now += 1
    answer(traffic, 200)
    assert traffic.trouble_seconds == 101  # one good answer between bad ones is no recovery
    clock.now += TROUBLE_SECONDS + 1
    assert traffic.trouble_seconds is None
    fail(traffic)
    clock.now += 2
    assert traffic.trouble_seconds == 2  # a new one


async def test_device_counts_missed_reads_and_evictions() -> None:
    async with a_disk(objects=8, cached=4) as disk:
        counters = disk.device.counters
        for index in range(8):
            disk.put(index, bytes([index + 1]) * SIZE)
        for index in range(6):
            await disk.read(index * SIZE, SIZE)
        assert counters.missed_reads == 6
        assert counters.evictions == 2
        await disk.read(5 * SIZE, SIZE)
        assert counters.missed_reads == 6
