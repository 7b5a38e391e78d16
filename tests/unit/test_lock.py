# SPDX-License-Identifier: MIT
"""The lock, step by step. All kinds of schedules are `tests.model.test_lock`'s."""

import asyncio
import itertools
import json
import random
import re
import time
from collections.abc import Iterator

import pytest

from swiftnbd.errors import (
    ContainerMissing,
    ExportUnusable,
    Locked,
    LockLost,
    StoreError,
    StoreUnavailable,
)
from swiftnbd.export import lock as lock_module
from swiftnbd.export.epoch import read_epoch
from swiftnbd.export.holders import Tenure
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.export.lock import Lock
from swiftnbd.export.marks import describe_holder, mark_for
from swiftnbd.export.pace import Pace, Timing
from swiftnbd.export.process import Process, current_process
from swiftnbd.export.watch import break_lock, sight
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from tests.support.disks import begin, turns
from tests.support.faulty import Call, Fault, Faulty, Gate, Script, failing, reply_lost

MARK = "client.example:4242@1700000000"
OTHER = "other.example:1@1700000001"
CLIENT, LAST, EPOCH = "swiftnbd-client", "swiftnbd-last", "swiftnbd-epoch"


@pytest.fixture
async def account() -> MemoryAccount:
    account = MemoryAccount()
    await MemoryStore("disk", account).create_container(setup_metadata(Geometry(8, 512)))
    return account


def metadata(account: MemoryAccount) -> dict[str, str]:
    return account.containers["disk"].metadata


def epochs(account: MemoryAccount) -> dict[str, str]:
    """Every object there is, and what has become of it: held, released, or ''."""
    objects = account.containers["disk"].objects
    return {name: [*each.token.split(":"), ""][1] for name, each in objects.items()}


def a_lock(account: MemoryAccount, mark: str = MARK) -> tuple[Lock, Script]:
    script = Script()
    return Lock(Faulty(MemoryStore("disk", account), script), mark), script


async def unlock(account: MemoryAccount) -> None:
    """As ``swiftnbd-ctl unlock --force`` does."""
    store = MemoryStore("disk", account)
    await break_lock(store, "unlock:1@1700000000", await sight(store))


class Clock:
    """A clock that goes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    @property
    def timing(self) -> Timing:
        async def sleep(seconds: float) -> None:
            self.now += seconds

        return Timing(lambda: self.now, sleep)


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
    assert metadata(account)[EPOCH] == "1"
    assert LAST not in metadata(account)
    assert epochs(account) == {"swiftnbd/epoch/1": ""}
    assert isinstance(lock.store, Faulty)
    assert lock.store.canary == "swiftnbd/epoch/1"
    await lock.release()
    assert metadata(account)[LAST] == MARK
    assert CLIENT not in metadata(account)
    assert epochs(account) == {"swiftnbd/epoch/1": "released"}
    assert lock.store.canary is None


async def test_claim_says_who_and_for_how_long(account: MemoryAccount) -> None:
    await a_lock(account)[0].acquire()
    claim = json.loads(account.containers["disk"].objects["swiftnbd/epoch/1"].data)
    here = current_process()
    assert here is not None
    assert (claim["epoch"], claim["mark"], claim["term_seconds"]) == (1, MARK, 90)
    assert Process(**claim["process"]) == here
    assert not here.is_dead()


async def test_held_container_is_refused_with_its_holder(account: MemoryAccount) -> None:
    await a_lock(account)[0].acquire()
    before = dict(metadata(account))
    with pytest.raises(Locked, match=r"client\.example:4242 since 2023-11-14") as caught:
        await a_lock(account, OTHER)[0].acquire()
    assert caught.value.holder == MARK
    assert metadata(account) == before
    assert epochs(account) == {"swiftnbd/epoch/1": ""}


async def test_mark_of_0_11_is_refused_with_its_holder(account: MemoryAccount) -> None:
    for number in range(2):  # on a container that never had an epoch, and on one that has
        metadata(account)[CLIENT] = "old.example:99@1767323045"
        with pytest.raises(Locked, match=r"old\.example:99 since 2026-01-02") as caught:
            await a_lock(account)[0].acquire()
        assert caught.value.holder == "old.example:99@1767323045"
        assert metadata(account)[CLIENT] == "old.example:99@1767323045"
        assert len(epochs(account)) == number
        del metadata(account)[CLIENT]
        lock, _ = a_lock(account)
        await lock.acquire()
        await lock.release()


async def test_container_that_is_missing_or_not_set_up_is_not_marked(
    account: MemoryAccount,
) -> None:
    with pytest.raises(ContainerMissing):
        await Lock(MemoryStore("other", account), MARK).acquire()
    metadata(account)["swiftnbd-objects"] = "-1"
    with pytest.raises(ExportUnusable):
        await a_lock(account)[0].acquire()
    assert CLIENT not in metadata(account)
    assert epochs(account) == {}


async def test_names_are_never_used_twice_and_old_epochs_go(
    account: MemoryAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "EPOCHS_KEPT", 2)
    for number in range(1, 7):
        lock, _ = a_lock(account)
        await lock.acquire()
        assert f"swiftnbd/epoch/{number}" in epochs(account)
        await lock.release()
        kept = {max(1, number - 1), number}
        assert epochs(account) == {f"swiftnbd/epoch/{each}": "released" for each in kept}


async def test_contender_with_old_metadata_finds_its_way_up(account: MemoryAccount) -> None:
    for _ in range(5):
        lock, _ = a_lock(account)
        await lock.acquire()
        await lock.release()
    metadata(account)[EPOCH] = "2"
    await a_lock(account, OTHER)[0].acquire()
    assert epochs(account)["swiftnbd/epoch/6"] == ""
    metadata(account)[EPOCH] = "2"
    with pytest.raises(Locked):
        await a_lock(account)[0].acquire()


async def test_break_lock_frees_the_container_and_remembers(account: MemoryAccount) -> None:
    await a_lock(account)[0].acquire()
    await unlock(account)
    assert metadata(account)[LAST] == MARK
    assert CLIENT not in metadata(account)
    assert epochs(account) == {"swiftnbd/epoch/1": "", "swiftnbd/epoch/2": "released"}
    await a_lock(account, OTHER)[0].acquire()


@pytest.mark.expects_log("the lock client.example:4242@1700000000 is gone")
async def test_release_leaves_what_another_holder_has(account: MemoryAccount) -> None:
    one, _ = a_lock(account)
    await one.acquire()
    await unlock(account)
    two, _ = a_lock(account, OTHER)
    await two.acquire()
    await one.release()
    assert metadata(account)[CLIENT] == OTHER
    await two.renew()
    await two.release()


async def test_canary_of_an_earlier_version_locks_nobody_out_and_goes(
    account: MemoryAccount,
) -> None:
    await MemoryStore("disk", account).put("swiftnbd/canary", f"{OTHER} 0123".encode())
    lock, _ = a_lock(account)
    await lock.acquire()
    await lock.release()
    assert epochs(account) == {"swiftnbd/epoch/1": "released"}


async def test_release_that_was_cut_short_locks_nobody_out(account: MemoryAccount) -> None:
    lock, script = a_lock(account)
    await lock.acquire()
    script.on("set_metadata", failing())
    with pytest.raises(StoreUnavailable):
        await lock.release()
    assert metadata(account)[CLIENT] == MARK
    await a_lock(account, OTHER)[0].acquire()
    assert metadata(account)[CLIENT] == OTHER


async def test_hint_that_is_lost_does_not_make_a_name_come_back(
    account: MemoryAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "EPOCHS_KEPT", 1)
    for _ in range(3):
        lock, _ = a_lock(account)
        await lock.acquire()
        await lock.release()
    for hint in ("", "x", "1", "9" * 30):  # none, nonsense, of an epoch that is gone, too long
        metadata(account)[EPOCH] = hint
        before = set(epochs(account))
        lock, _ = a_lock(account)
        await lock.acquire()
        (new,) = set(epochs(account)) - before
        assert new > max(before)
        await lock.release()


async def test_metadata_that_became_old_while_we_looked_are_noticed(
    account: MemoryAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others come and go between our look at the newest epoch and our PUT of the next."""
    monkeypatch.setattr(lock_module, "EPOCHS_KEPT", 1)
    for _ in range(2):
        lock, _ = a_lock(account)
        await lock.acquire()
        await lock.release()
    slow, script = a_lock(account, OTHER)
    gate = script.hold("put")
    acquiring = begin(slow.acquire())
    await gate.arrived.wait()
    for _ in range(3):
        lock, _ = a_lock(account)
        await lock.acquire()
        await lock.release()
    assert list(epochs(account)) == ["swiftnbd/epoch/5"]
    gate.open()
    with pytest.raises(StoreUnavailable, match="its metadata are old"):
        await acquiring
    await slow.release()
    assert metadata(account)[EPOCH] == "5"


# What the next holder may trust


async def hold(account: MemoryAccount, mark: str = MARK, *, changed: bool = True) -> Tenure:
    lock, _ = a_lock(account, mark)
    await lock.acquire()
    await lock.release(changed=changed)
    return lock.tenure


async def predecessor(account: MemoryAccount) -> Tenure:
    lock, _ = a_lock(account, OTHER)
    await lock.acquire()
    return lock.predecessor


async def test_binding_of_a_clean_end_is_found_by_the_next_holder(account: MemoryAccount) -> None:
    tenure = await hold(account)
    assert re.fullmatch("[0-9a-f]{32}", tenure.binding)
    assert await predecessor(account) == tenure == Tenure(1, MARK, tenure.binding)


async def test_first_holder_finds_no_binding(account: MemoryAccount) -> None:
    metadata(account)[LAST] = "old.example:99@1767323045"
    assert await predecessor(account) == Tenure(0, "old.example:99@1767323045", "")


async def test_binding_survives_a_holder_that_changed_nothing(account: MemoryAccount) -> None:
    tenure = await hold(account)
    reader = await hold(account, "reader:1@1700000002", changed=False)
    assert reader.binding != tenure.binding
    assert (await predecessor(account)).binding == tenure.binding


async def test_binding_is_void_when_0_11_was_there_in_between(account: MemoryAccount) -> None:
    await hold(account)
    metadata(account)[LAST] = "old.example:99@1767323045"
    assert await predecessor(account) == Tenure(1, "old.example:99@1767323045", "")


async def test_binding_is_void_after_a_broken_lock(account: MemoryAccount) -> None:
    await hold(account)
    await a_lock(account)[0].acquire()
    await unlock(account)
    assert (await predecessor(account)).binding == ""


@pytest.mark.expects_log("the lock client.example:4242@1700000000 is gone")
async def test_binding_is_void_if_0_11_unlocked_us(account: MemoryAccount) -> None:
    lock, _ = a_lock(account)
    await lock.acquire()
    del metadata(account)[CLIENT]
    metadata(account)[LAST] = MARK
    await lock.release()
    assert (await predecessor(account)).binding == ""


# The lease


async def test_lease_counts_from_when_the_renewal_was_sent(account: MemoryAccount) -> None:
    clock = Clock()
    store = Faulty(MemoryStore("disk", account), script := Script())
    lock = Lock(store, MARK, timing=clock.timing)
    await lock.acquire()
    assert lock.deadline == 1090
    clock.now += 50
    gate = script.hold("renew")
    renewing = begin(lock.renew())
    await gate.arrived.wait()
    clock.now += 30
    gate.open()
    await renewing
    assert (lock.renewed_at, lock.deadline) == (1050, 1140)


async def test_epoch_that_is_gone_is_lost_and_not_made_again(account: MemoryAccount) -> None:
    lock, _ = a_lock(account)
    await lock.acquire()
    del account.containers["disk"].objects["swiftnbd/epoch/1"]
    with pytest.raises(LockLost, match="its epoch is gone"):
        await lock.renew()
    assert epochs(account) == {}


async def test_404_is_no_loss_if_the_epoch_can_be_read_again(account: MemoryAccount) -> None:
    """An account outage answers 404 to the POST of an intact object."""
    lock, _ = a_lock(account)
    await lock.acquire()
    deadline = lock.deadline
    epoch = account.containers["disk"].objects.pop("swiftnbd/epoch/1")
    gate = Gate()
    lock.store = Faulty(
        MemoryStore("disk", account),
        lambda call: Fault(before=gate) if call.op == "info" else None,
    )
    renewing = begin(lock.renew())
    await gate.arrived.wait()
    account.containers["disk"].objects["swiftnbd/epoch/1"] = epoch
    gate.open()
    with pytest.raises(StoreUnavailable, match="which exists"):
        await renewing
    assert lock.deadline == deadline
    await lock.renew()


async def test_container_that_is_gone_is_no_proof_but_an_error(account: MemoryAccount) -> None:
    lock, _ = a_lock(account)
    await lock.acquire()
    del account.containers["disk"]
    with pytest.raises(ContainerMissing):
        await lock.renew()


async def test_epoch_of_another_creator_is_lost(account: MemoryAccount) -> None:
    lock, _ = a_lock(account)
    await lock.acquire()
    await MemoryStore("disk", account).put("swiftnbd/epoch/1", b"{}")
    with pytest.raises(LockLost, match="another one created it too"):
        await lock.renew()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({CLIENT: "", LAST: MARK}, "somebody unlocked it"),
        ({CLIENT: "old.example:9@1767323045"}, "old.example:9@1767323045 wrote over it"),
        ({CLIENT: OTHER, EPOCH: "2"}, f"it was taken over by {OTHER}"),
    ],
)
async def test_metadata_that_say_it_is_anothers_are_believed(
    account: MemoryAccount, changes: dict[str, str], reason: str
) -> None:
    lock, _ = a_lock(account)
    await lock.acquire()
    await MemoryStore("disk", account).set_metadata(changes)
    with pytest.raises(LockLost, match=f"{MARK} is lost: {reason}$"):
        await lock.renew()
    assert metadata(account).get(CLIENT, "") == changes[CLIENT]


async def test_mark_that_a_late_write_took_away_is_written_again(account: MemoryAccount) -> None:
    await hold(account, OTHER)
    lock, _ = a_lock(account)
    await lock.acquire()
    for late in ({CLIENT: "", LAST: OTHER, EPOCH: "1"}, {CLIENT: OTHER}):
        await MemoryStore("disk", account).set_metadata(late)
        await lock.renew()
        assert (metadata(account)[CLIENT], metadata(account)[EPOCH]) == (MARK, "2")


async def test_renewal_after_the_lease_was_over_needs_that_nobody_took_over(
    account: MemoryAccount,
) -> None:
    clock = Clock()
    lock = Lock(MemoryStore("disk", account), MARK, timing=clock.timing)
    await lock.acquire()
    clock.now += 1000
    await lock.renew()
    assert lock.deadline == clock.now + 90
    await MemoryStore("disk", account).put("swiftnbd/epoch/2", b"{}")
    await lock.renew()
    clock.now += 1000
    with pytest.raises(LockLost, match="taken over while the lease had run out"):
        await lock.renew()


# Failures


@pytest.mark.parametrize("fault", [failing(), reply_lost()])
@pytest.mark.parametrize("number", range(18))
async def test_failure_at_any_step_leaves_what_unlock_can_mend(
    account: MemoryAccount, number: int, fault: Fault
) -> None:
    """The store fails at the n-th call and ever after, as when it goes down."""
    await hold(account)
    calls = itertools.count()

    def plan(call: Call) -> Fault | None:
        at = next(calls)
        return fault if at == number else failing() if at > number else None

    lock = Lock(Faulty(MemoryStore("disk", account), plan), MARK)
    try:
        await lock.acquire()
        await lock.release()
    except StoreError:
        if (await sight(MemoryStore("disk", account))).holder:
            await unlock(account)
    else:
        assert number >= 14, "it makes more calls than are tried"
    await a_lock(account, OTHER)[0].acquire()


@pytest.mark.parametrize("fault", [failing(), reply_lost()])
@pytest.mark.parametrize("number", range(10))
async def test_lock_that_failed_halfway_can_be_taken_back(
    account: MemoryAccount, number: int, fault: Fault
) -> None:
    calls = itertools.count()
    lock = Lock(
        Faulty(MemoryStore("disk", account), lambda _: fault if next(calls) == number else None),
        MARK,
    )
    try:
        await lock.acquire()
    except StoreError:
        pass
    else:
        assert number >= 8, "it makes more calls than are tried"
        lock.store = MemoryStore("disk", account)
    await lock.release()
    assert CLIENT not in metadata(account)
    await a_lock(account, OTHER)[0].acquire()


async def test_release_that_failed_can_be_tried_again(account: MemoryAccount) -> None:
    for op in ("get", "info", "renew", "set_metadata"):
        for fault in (failing(), reply_lost()):
            lock, script = a_lock(account)
            await lock.acquire()
            script.on(op, fault)
            with pytest.raises(StoreUnavailable):
                await lock.release()
            await lock.release()
            assert CLIENT not in metadata(account)
            assert set(epochs(account).values()) == {"released"}


async def test_slow_creator_gives_its_epoch_up_and_leaves_it_to_time(
    account: MemoryAccount,
) -> None:
    """On a store that may admit two creators: the other one may have read back before us."""
    clock = Clock()
    store = Faulty(MemoryStore("disk", account), script := Script())
    store.admits_one_creator = False
    lock = Lock(store, MARK, Pace(settle_seconds=1), timing=clock.timing)
    gate = script.hold("put")
    acquiring = begin(lock.acquire())
    await gate.arrived.wait()
    clock.now += 0.9
    gate.open()
    with pytest.raises(StoreError, match=r"took 0\.9 s, more than half of the settle delay of 1 s"):
        await acquiring
    await lock.release()
    assert CLIENT not in metadata(account)
    assert epochs(account) == {"swiftnbd/epoch/1": ""}
    with pytest.raises(Locked) as caught:
        await Lock(store, OTHER, timing=clock.timing).acquire()
    assert caught.value.holder == MARK


@pytest.mark.parametrize("slow", [1, 2, 3])
async def test_creator_that_was_slow_but_seen_by_all_tries_again_with_the_next_epoch(
    account: MemoryAccount, slow: int
) -> None:
    clock = Clock()
    store = Faulty(MemoryStore("disk", account), script := Script())
    store.admits_one_creator = False
    held = await hold(account)
    lock = Lock(store, OTHER, Pace(settle_seconds=1), timing=clock.timing)
    gates = [script.hold("put") for _ in range(slow)]
    acquiring = begin(lock.acquire())
    for gate in gates:
        await gate.arrived.wait()
        clock.now += 0.6
        gate.open()
    if slow < 3:
        await acquiring
        assert lock.tenure.epoch == 2 + slow
        assert lock.predecessor.binding == held.binding  # nobody was here in between
        await lock.release()
    else:
        with pytest.raises(StoreError, match=r"took 0\.6 s, more than half"):
            await acquiring
        await lock.release()  # what is left is no doubt: the next one need not wait
    assert CLIENT not in metadata(account)
    assert set(epochs(account).values()) == {"released"}


# Dead processes


def claimed_by(account: MemoryAccount, number: int = 1, /, **changes: object) -> None:
    """Make a claim that is there another process's."""
    found = account.containers["disk"].objects[f"swiftnbd/epoch/{number}"]
    claim = json.loads(found.data)
    claim["process"] |= changes
    found.data = json.dumps(claim).encode()


async def test_lock_of_a_dead_process_of_this_boot_is_taken_at_once(
    account: MemoryAccount, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await a_lock(account)[0].acquire()
    claimed_by(account, started=1)  # its number is another process's now
    lock, _ = a_lock(account, OTHER)
    await lock.acquire()
    assert (metadata(account)[CLIENT], metadata(account)[LAST]) == (OTHER, MARK)
    assert f"taken back from {MARK}, which is dead" in caplog.text
    assert lock.predecessor.binding == ""


async def test_epochs_that_dead_holders_did_not_remove_go_with_the_next_release_oldest_first(
    account: MemoryAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stays below a gap would let the name in the gap be used again."""
    monkeypatch.setattr(lock_module, "EPOCHS_KEPT", 2)
    for _ in range(3):
        lock, _ = a_lock(account)
        await lock.acquire()
        await lock.release()
    for number in (4, 5):
        await a_lock(account)[0].acquire()
        claimed_by(account, number, started=1)
    calls: list[Call] = []
    lock = Lock(Faulty(MemoryStore("disk", account), calls.append), MARK)
    await lock.acquire()
    await lock.release()
    assert epochs(account).keys() == {"swiftnbd/epoch/5", "swiftnbd/epoch/6"}
    deleted = [call.name for call in calls if call.op == "delete"]
    assert deleted == [f"swiftnbd/epoch/{number}" for number in (2, 3, 4)]


async def test_dead_holder_is_taken_back_from_once_though_the_claim_was_slow(
    account: MemoryAccount, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await a_lock(account)[0].acquire()
    claimed_by(account, started=1)
    clock = Clock()
    store = Faulty(MemoryStore("disk", account), script := Script())
    store.admits_one_creator = False
    lock = Lock(store, OTHER, Pace(settle_seconds=1), timing=clock.timing)
    gate = script.hold("put")
    acquiring = begin(lock.acquire())
    await gate.arrived.wait()
    clock.now += 0.6
    gate.open()
    await acquiring
    assert caplog.text.count("taken back from") == 1
    assert [each.number for each in lock._superseded] == [1]


@pytest.mark.parametrize(
    "changes", [{}, {"host": "x"}, {"boot": "x"}, {"space": "x"}], ids=lambda each: "".join(each)
)
async def test_lock_of_a_process_that_may_live_is_respected(
    account: MemoryAccount, changes: dict[str, str]
) -> None:
    await a_lock(account)[0].acquire()
    claimed_by(account, **changes | ({"pid": 2**22 + 1} if changes else {}))
    with pytest.raises(Locked):
        await a_lock(account, OTHER)[0].acquire()


# Races


def orders(calls: dict[str, int], seed: str, count: int) -> Iterator[tuple[str, ...]]:
    """Some of the orders in which contenders can take that many steps each."""
    chance = random.Random(seed)
    steps = [who for who, times in calls.items() for _ in range(times)]
    for _ in range(count):
        chance.shuffle(steps)
        yield tuple(steps)


class Contender:
    """Tries to lock, and takes one step at the store each time it is told to."""

    def __init__(self, account: MemoryAccount, name: str, mark: str | None = None) -> None:
        self.gates: list[Gate] = []
        store = Faulty(MemoryStore("disk", account), self._gated)
        self.mark = mark or f"{name}:1@1700000000"
        self.lock = Lock(store, self.mark)
        self.task = begin(self.lock.acquire())

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


@pytest.mark.parametrize("mark", [None, "same.example:1@1700000000"])
async def test_of_racers_in_any_order_one_holds_it(mark: str | None) -> None:
    for names, count in (("ab", 150), ("abc", 150)):
        for order in orders(dict.fromkeys(names, 9), names, count):
            assert len(await race(order, mark)) == 1, order


async def test_racers_at_the_same_pace_leave_one_holder() -> None:
    for count in (2, 3, 10):
        assert len(await race(tuple("abcdefghij"[:count]) * 12)) == 1


async def test_cancelled_contender_can_take_back_what_it_left(account: MemoryAccount) -> None:
    for steps in range(10):
        contender = Contender(account, "a")
        for _ in range(steps):
            await contender.step()
        contender.task.cancel()
        await asyncio.gather(contender.task, return_exceptions=True)
        contender.lock.store = MemoryStore("disk", account)
        await contender.lock.release()
        assert CLIENT not in metadata(account)
        next_one, _ = a_lock(account)
        await next_one.acquire()
        await next_one.release()


async def test_epoch_that_is_none_of_ours_locks_until_unlocked(account: MemoryAccount) -> None:
    store = MemoryStore("disk", account)
    await store.put("swiftnbd/epoch/1", b"what is this?")
    with pytest.raises(Locked, match=r"unknown \(swiftnbd/epoch/1\)"):
        await a_lock(account)[0].acquire()
    found = await read_epoch(store, 1)
    assert found is not None
    assert not found.is_released
    await unlock(account)
    await a_lock(account)[0].acquire()
