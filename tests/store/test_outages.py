# SPDX-License-Identifier: MIT
"""Circuits: who tries while a store does not answer, how often, and what is said of it."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import pytest

from swiftnbd.errors import AccessRefused, StoreBusy, StoreError, StoreUnavailable
from swiftnbd.store.auth import Login
from swiftnbd.store.base import Blob
from swiftnbd.store.memory import MemoryStore
from swiftnbd.store.outages import Outages, Probing
from swiftnbd.store.retrying import Retrying
from swiftnbd.store.swift_http import SwiftAccount
from tests.support.loopback import until

QUICK = Probing(first=0.01, longest=0.05, gap=0.005, hangs=0.2, told=0.1, again=60)
DOWN = StoreUnavailable("memory:disk: GET n: Connection refused")

pytestmark = pytest.mark.allows_log("WARNING .*outage of .*; requests wait, and it is asked again")


class Mortal(MemoryStore):
    """Dead or hanging as told; ``tries`` is when, by the loop's clock, it was asked."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.error: StoreError | None = None
        self.hang: asyncio.Event | None = None
        self.tries: list[float] = []

    async def get(self, name: str, **options: object) -> Blob | None:
        self.tries.append(asyncio.get_running_loop().time())
        if self.hang is not None:
            await self.hang.wait()
        if self.error is not None:
            raise self.error
        return Blob(b"", "")


@pytest.fixture
def outages() -> Iterator[Outages]:
    outages = Outages(QUICK)
    yield outages
    outages.close()


def opened(outages: Outages, name: str = "disk", seconds: float = inf) -> tuple[Mortal, Retrying]:
    store = Mortal(name)
    circuit = outages.circuit(name)
    return store, Retrying(store, deadline_seconds=seconds, circuit=circuit)


@contextmanager
def many(store: Retrying, count: int) -> Iterator[list[asyncio.Task[Blob | None]]]:
    tasks = [asyncio.create_task(store.get("n")) for _ in range(count)]
    yield tasks
    for task in tasks:
        task.cancel()


async def until_tried(store: Mortal, times: int) -> None:
    await until(lambda: len(store.tries) >= times)


async def test_a_dead_store_is_asked_at_one_pace_however_many_wait(outages: Outages) -> None:
    pairs = [opened(outages, f"disk{number}") for number in range(5)]
    for store, _ in pairs:
        store.error = DOWN
    begin = asyncio.get_running_loop().time()
    tasks = [asyncio.create_task(retrying.get("n")) for _, retrying in pairs for _ in range(50)]
    await asyncio.sleep(0)
    for store, _ in pairs:
        assert len(store.tries) == 1  # it failed, and the others knew
        store.tries.clear()
    for store, _ in pairs:
        await until_tried(store, 4)
    tries = sum(len(store.tries) for store, _ in pairs)
    assert tries <= (asyncio.get_running_loop().time() - begin) / QUICK.gap + 1
    for store, _ in pairs:
        store.error = None
    assert await asyncio.gather(*tasks) == [Blob(b"", "")] * 250


async def test_who_comes_during_an_outage_waits_without_a_try(outages: Outages) -> None:
    store, retrying = opened(outages)
    store.error = DOWN
    with many(retrying, 1):
        await until_tried(store, 5)
        before = len(store.tries)
        with many(retrying, 100) as late:
            await asyncio.sleep(0)
            assert len(store.tries) == before
            store.error = None
            await asyncio.gather(*late)


async def test_recovery_is_noticed_by_the_next_try_and_all_go_on(outages: Outages) -> None:
    store, retrying = opened(outages)
    store.error = DOWN
    with many(retrying, 30) as tasks:
        await until_tried(store, 6)
        store.error = None
        before = len(store.tries)
        await asyncio.gather(*tasks)
        assert len(store.tries) == before + 30
        assert store.tries[before] - store.tries[before - 1] < 5  # far above QUICK.longest


async def test_a_sick_container_leaves_its_neighbours_alone(outages: Outages) -> None:
    sick, sick_retrying = opened(outages, "sick")
    well, well_retrying = opened(outages, "well")
    sick.error = DOWN
    with many(sick_retrying, 20):
        await until_tried(sick, 5)
        for _ in range(50):
            await well_retrying.get("n")
    assert len(well.tries) == 50


async def test_one_bad_object_among_good_ones_opens_nothing(outages: Outages) -> None:
    circuit = outages.circuit("disk")
    began = circuit.began()
    circuit.answered()  # another one's
    assert not circuit.failed(began, DOWN)
    assert not circuit.is_open


@pytest.mark.parametrize("error", [AccessRefused("403"), StoreError("400"), StoreBusy("429", 0)])
async def test_an_answer_is_no_outage(outages: Outages, error: StoreError) -> None:
    store, retrying = opened(outages, seconds=0.2)
    store.error = error
    with pytest.raises(StoreError):
        await retrying.get("n")
    assert outages.episode == 0


async def test_a_store_that_hangs_is_an_outage_before_its_tries_end(outages: Outages) -> None:
    store, retrying = opened(outages)
    store.hang = asyncio.Event()
    with many(retrying, 3) as tasks:
        await until(lambda: outages.episode > 0)
        assert len(store.tries) == 3
        store.hang.set()
        await asyncio.gather(*tasks)


async def test_a_try_that_hangs_in_an_outage_holds_up_no_other(outages: Outages) -> None:
    store, retrying = opened(outages)
    store.error = DOWN
    with many(retrying, 2) as tasks:
        await until_tried(store, 4)
        store.hang, hung = asyncio.Event(), len(store.tries)
        await until_tried(store, hung + 1)
        store.hang = None
        store.error = None
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def test_who_waits_gives_up_at_its_deadline_and_says_why(outages: Outages) -> None:
    store, retrying = opened(outages, seconds=0.3)
    store.error = DOWN
    results = await asyncio.gather(*(retrying.get("n") for _ in range(20)), return_exceptions=True)
    for result in results:
        assert type(result) is StoreError
        assert "memory:disk: GET n: Connection refused (gave up after" in str(result)
    tries = len(store.tries)
    late = Retrying(store, deadline_seconds=0.001, circuit=retrying._circuit)
    with pytest.raises(
        StoreError, match=r"HEAD m: not done, as memory:disk: GET n: .*after 0 tries"
    ):
        await late.head("m")
    assert len(store.tries) == tries


async def test_one_who_leaves_at_its_turn_lets_the_next_one_try(outages: Outages) -> None:
    circuit = outages.circuit("disk")
    circuit.failed(circuit.began(), DOWN)
    first, second = (asyncio.create_task(circuit.passing(None)) for _ in range(2))
    while circuit.waiting or not first.done():
        await asyncio.sleep(0)
        if len(circuit.waiting) == 1:  # its turn has come, and it does not know yet
            first.cancel()
            break
    await asyncio.wait_for(second, 10)
    assert first.cancelled()


async def test_retry_after_in_an_outage_is_obeyed(outages: Outages) -> None:
    store, retrying = opened(outages)
    store.error = StoreUnavailable("memory:disk: 503", retry_after=0.4)
    with many(retrying, 5) as tasks:
        await until_tried(store, 2)
        store.error = None
        await asyncio.gather(*tasks)
    assert store.tries[2] - store.tries[1] >= 0.39


async def test_one_warning_when_it_begins_and_one_info_with_counts_when_it_ends(
    outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pairs = [opened(outages, name) for name in ("a", "b", "c", "d", "e")]
    for store, _ in pairs:
        store.error = DOWN
    tasks = [asyncio.create_task(retrying.get("n")) for _, retrying in pairs for _ in range(3)]
    await until(lambda: len(caplog.records) > 0)
    store, retrying = pairs[0]
    with pytest.raises(StoreError):
        await Retrying(store, deadline_seconds=0.01, circuit=retrying._circuit).get("n")
    for store, _ in pairs:
        store.error = None
    await asyncio.gather(*tasks)
    (begin, end) = caplog.records
    assert begin.levelno == logging.WARNING
    assert begin.getMessage() == (
        f"outage of a, b, c and 2 more: {DOWN}; requests wait, and it is asked again"
    )
    assert end.levelno == logging.INFO
    assert end.getMessage().endswith("s: 16 requests had to wait, 1 of them failed")


async def test_turn_that_comes_too_late_as_the_outage_ends_is_an_error_of_the_store(
    outages: Outages,
) -> None:
    """The time was up, and before the waiter could say so the circuit closed."""
    circuit = outages.circuit("disk")
    circuit.failed(circuit.began(), DOWN)
    circuit.due = inf
    waiting = asyncio.create_task(circuit.passing(0.01))
    loop = asyncio.get_running_loop()
    loop.call_later(0.02, circuit.answered)
    loop.call_soon(time.sleep, 0.05)  # both timers are due then, one after the other in one turn
    with pytest.raises(StoreUnavailable):
        await waiting


async def test_the_end_of_one_account_leaves_those_who_share_its_outages_alone(
    outages: Outages,
) -> None:
    store, retrying = opened(outages)
    store.error = DOWN
    with many(retrying, 3) as tasks:
        await until_tried(store, 3)
        await SwiftAccount(Nobody(), outages=outages).close()
        tried = len(store.tries)
        await until_tried(store, tried + 2)
        store.error = None
        await asyncio.gather(*tasks)


class Nobody:
    """An `Auth` that is not asked."""

    async def login(self) -> Login:
        raise AssertionError


async def test_who_waits_at_the_end_tries_at_once_and_nothing_is_said(
    outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    pairs = [opened(outages, name) for name in ("a", "b")]
    for store, _ in pairs:
        store.error = StoreUnavailable("memory: 503", retry_after=1000)
    tasks = [asyncio.create_task(retrying.get("n")) for _, retrying in pairs for _ in range(3)]
    await until(lambda: len([c for c in outages._open if c.waiting]) == len(pairs))
    for store, _ in pairs:
        store.error = StoreError("the account is closed")
    outages.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {str(result) for result in results} == {"the account is closed"}
    store, retrying = pairs[0]
    store.error = DOWN
    with pytest.raises(StoreError):
        await Retrying(store, deadline_seconds=0.01, circuit=retrying._circuit).get("n")
    assert not [record for record in caplog.records if "outage" in record.getMessage()]


async def test_an_outage_holds_up_no_other_cloud() -> None:
    sick_outages, well_outages = Outages(QUICK), Outages(QUICK)
    sick, sick_retrying = opened(sick_outages)
    well, well_retrying = opened(well_outages)
    sick.error = DOWN
    with many(sick_retrying, 20) as tasks:
        await until_tried(sick, 3)
        for _ in range(50):
            await well_retrying.get("n")
        assert well_outages.episode == 0
        assert len(well.tries) == 50
        well_outages.close()
        assert not any(task.done() for task in tasks)
    sick_outages.close()


async def test_a_request_that_may_wait_for_ever_never_counts_as_failed(outages: Outages) -> None:
    """With ``on-outage = wait``, what fails are the renewals of the lock."""
    store, renewals = opened(outages, seconds=0.1)
    requests = renewals.waiting()
    store.error = DOWN
    tasks = [asyncio.create_task(requests.get("n")) for _ in range(10)]
    with pytest.raises(StoreError, match="gave up"):
        await renewals.get("n")
    assert (outages.held, outages.failed) == (11, 1)
    store.error = None
    await asyncio.gather(*tasks)
    assert outages.failed == 1
