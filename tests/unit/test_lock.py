# SPDX-License-Identifier: MIT
"""The lock: never two holders, whatever the order, and nothing that unlock cannot mend."""

import asyncio
import itertools
import re
import time
from collections.abc import Iterator

import pytest

from swiftnbd.errors import ContainerMissing, ExportUnusable, Locked, StoreUnavailable
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.export.lock import CANARY, Lock, break_lock, describe_holder, mark_for
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from tests.support.disks import begin, turns
from tests.support.faulty import Call, Fault, Faulty, Gate, Script, failing, reply_lost

MARK = "client.example:4242@1700000000"
CLIENT, LAST = "swiftnbd-client", "swiftnbd-last"


@pytest.fixture
async def account() -> MemoryAccount:
    account = MemoryAccount()
    await MemoryStore("disk", account).create_container(setup_metadata(Geometry(8, 512)))
    return account


def metadata(account: MemoryAccount) -> dict[str, str]:
    return account.containers["disk"].metadata


def objects(account: MemoryAccount) -> list[str]:
    return sorted(account.containers["disk"].objects)


def a_lock(account: MemoryAccount, mark: str = MARK) -> tuple[Lock, Script]:
    script = Script()
    return Lock(Faulty(MemoryStore("disk", account), script), mark, settle_seconds=0), script


# The mark


def test_mark_is_host_port_and_unix_time() -> None:
    before = int(time.time())
    mark = mark_for("client.example", 4242)
    assert re.fullmatch(r"client\.example:4242@[0-9]{10}", mark)
    assert before <= int(mark.partition("@")[2]) <= time.time()


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ("192.0.2.7:4242@1767323045", "192.0.2.7:4242 since 2026-01-02 03:04:05 UTC"),
        ("a@b:1@0", "a@b:1 since 1970-01-01 00:00:00 UTC"),
        ("[2001:db8::1]:9@1767323045", "[2001:db8::1]:9 since 2026-01-02 03:04:05 UTC"),
        ("host:1@99999999999", "host:1 since 5138-11-16 09:46:39 UTC"),
        ("host:1@999999999999", "host:1@999999999999"),
        ("host:1@1767323045123", "host:1@1767323045123"),
        ("nonsense", "nonsense"),
        ("host:1@", "host:1@"),
        ("", ""),
    ],
)
def test_mark_of_any_kind_is_described(mark: str, expected: str) -> None:
    assert describe_holder(mark) == expected


# One contender


async def test_acquire_marks_and_release_remembers(account: MemoryAccount) -> None:
    lock, _ = a_lock(account)
    info = await lock.acquire()
    assert info.geometry == Geometry(8, 512)
    assert metadata(account)[CLIENT] == MARK
    assert LAST not in metadata(account)
    assert objects(account) == [CANARY]
    assert isinstance(lock.store, Faulty)
    assert lock.store.canary == CANARY
    assert await lock.held()
    await lock.release()
    assert metadata(account)[LAST] == MARK
    assert CLIENT not in metadata(account)
    assert objects(account) == []
    assert lock.store.canary is None


async def test_held_container_is_refused_with_its_holder(account: MemoryAccount) -> None:
    metadata(account)[CLIENT] = "old.example:99@1767323045"
    lock, _ = a_lock(account)
    with pytest.raises(Locked, match=r"old\.example:99 since 2026-01-02") as caught:
        await lock.acquire()
    assert caught.value.holder == "old.example:99@1767323045"
    assert metadata(account)[CLIENT] == "old.example:99@1767323045"
    assert objects(account) == []


async def test_container_that_is_missing_or_not_set_up_is_not_marked(
    account: MemoryAccount,
) -> None:
    with pytest.raises(ContainerMissing):
        await Lock(MemoryStore("other", account), MARK, 0).acquire()
    metadata(account)["swiftnbd-objects"] = "-1"
    with pytest.raises(ExportUnusable):
        await a_lock(account)[0].acquire()
    assert CLIENT not in metadata(account)


async def test_break_lock_frees_the_container_and_remembers(account: MemoryAccount) -> None:
    await a_lock(account)[0].acquire()
    await break_lock(MemoryStore("disk", account), MARK)
    assert metadata(account)[LAST] == MARK
    assert CLIENT not in metadata(account)
    assert objects(account) == []
    await a_lock(account, "next.example:1@1")[0].acquire()


@pytest.mark.expects_log("the lock client.example:4242@1700000000 is gone")
async def test_release_leaves_the_mark_and_canary_of_another_holder(
    account: MemoryAccount,
) -> None:
    one, _ = a_lock(account)
    await one.acquire()
    await break_lock(MemoryStore("disk", account), MARK)
    two, _ = a_lock(account, "two.example:2@1700000001")
    await two.acquire()
    assert not await one.held()
    await one.release()
    assert metadata(account)[CLIENT] == "two.example:2@1700000001"
    assert objects(account) == [CANARY]
    await two.release()


async def test_canary_left_by_a_crash_and_an_unlock_of_0_11_does_not_hinder(
    account: MemoryAccount,
) -> None:
    await a_lock(account)[0].acquire()
    del metadata(account)[CLIENT]
    metadata(account)[LAST] = MARK
    lock, _ = a_lock(account, "next.example:1@1700000001")
    await lock.acquire()
    await lock.release()
    assert objects(account) == []


# Failures


@pytest.mark.parametrize("fault", [failing(), reply_lost()])
@pytest.mark.parametrize("number", range(7))
async def test_failure_at_any_step_leaves_what_unlock_can_mend(
    account: MemoryAccount, number: int, fault: Fault
) -> None:
    """The store fails at the n-th call and ever after, as when it goes down."""
    calls = itertools.count()

    def plan(call: Call) -> Fault | None:
        at = next(calls)
        return fault if at == number else failing() if at > number else None

    lock = Lock(Faulty(MemoryStore("disk", account), plan), MARK, 0)
    with pytest.raises(StoreUnavailable):
        await _hold_once(lock)
    if holder := metadata(account).get(CLIENT):
        assert holder == MARK
        await break_lock(MemoryStore("disk", account), holder)
    await a_lock(account, "next.example:1@1700000001")[0].acquire()


async def _hold_once(lock: Lock) -> None:
    await lock.acquire()
    await lock.release()


async def test_canary_that_cannot_be_made_gives_the_mark_back(account: MemoryAccount) -> None:
    for fault in (failing(), reply_lost()):
        lock, script = a_lock(account)
        script.on("put", fault)
        with pytest.raises(StoreUnavailable):
            await lock.acquire()
        assert CLIENT not in metadata(account)
        assert objects(account) == []


async def test_release_that_failed_can_be_tried_again(account: MemoryAccount) -> None:
    for op in ("delete", "info", "set_metadata"):
        lock, script = a_lock(account)
        await lock.acquire()
        script.on(op, failing())
        with pytest.raises(StoreUnavailable):
            await lock.release()
        assert await lock.held()
        await lock.release()
        assert CLIENT not in metadata(account)
        assert objects(account) == []


# Races


def orders(calls: dict[str, int]) -> Iterator[tuple[str, ...]]:
    """Every order in which contenders can take that many steps each."""
    if not any(calls.values()):
        yield ()
        return
    for who, left in calls.items():
        if left:
            for rest in orders(calls | {who: left - 1}):
                yield (who, *rest)


class Contender:
    """Tries to lock, and takes one step at the store each time it is told to."""

    def __init__(self, account: MemoryAccount, name: str, mark: str | None = None) -> None:
        self.gates: list[Gate] = []
        store = Faulty(MemoryStore("disk", account), self._gated)
        self.mark = mark or f"{name}:1@1700000000"
        self.task = begin(Lock(store, self.mark, settle_seconds=0).acquire())

    def _gated(self, call: Call) -> Fault:
        self.gates.append(Gate())
        return Fault(before=self.gates[-1])

    async def step(self) -> None:
        await turns(4)
        if self.gates:
            self.gates.pop(0).open()
        await turns(4)

    async def finish(self) -> bool:
        """Whether it holds the lock."""
        while not self.task.done():
            await self.step()
        if isinstance(self.task.exception(), Locked):
            return False
        self.task.result()
        return True


async def race(order: tuple[str, ...], mark: str | None = None) -> list[Contender]:
    """Let contenders take their steps in this order; those that hold the lock at the end."""
    account = MemoryAccount()
    await MemoryStore("disk", account).create_container(setup_metadata(Geometry(8, 512)))
    contenders = {who: Contender(account, who, mark) for who in sorted(set(order))}
    for who in order:
        await contenders[who].step()
    holders = [each for each in contenders.values() if await each.finish()]
    if holders:
        assert metadata(account)[CLIENT] == holders[0].mark
    return holders


# read, write, read back, canary: what comes after them is only tidying up
TWO = list(orders({"a": 4, "b": 4}))
THREE = list(orders({"a": 4, "b": 4, "c": 4}))[::331]


@pytest.mark.parametrize("mark", [None, "same.example:1@1700000000"])
async def test_two_racers_in_any_order_never_both_hold_it(mark: str | None) -> None:
    assert len(TWO) == 70
    for order in TWO:
        assert len(await race(order, mark)) <= 1, order


async def test_three_racers_never_two_hold_it() -> None:
    assert len(THREE) > 100
    for order in THREE:
        assert len(await race(order)) <= 1, order


async def test_racers_at_the_same_pace_leave_one_holder() -> None:
    for count in (2, 3, 10):
        assert len(await race(tuple("abcdefghij"[:count]) * 5)) == 1


async def test_slow_racer_puts_the_holders_mark_back() -> None:
    """It read before the holder wrote, and wrote after the holder was sure."""
    (holder,) = await race(("b", *"aaaa", *"bbbb"))
    assert holder.mark == "a:1@1700000000"


async def test_cancelled_contender_leaves_what_unlock_can_mend(account: MemoryAccount) -> None:
    for steps in range(6):
        contender = Contender(account, "a")
        for _ in range(steps):
            await contender.step()
        contender.task.cancel()
        await asyncio.gather(contender.task, return_exceptions=True)
        if holder := metadata(account).get(CLIENT):
            await break_lock(MemoryStore("disk", account), holder)
        next_one, _ = a_lock(account)
        await next_one.acquire()
        await next_one.release()
