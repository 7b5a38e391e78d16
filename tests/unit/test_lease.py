# SPDX-License-Identifier: MIT
"""Renewals in time, what an expired lease stops, and what becomes of the requests of a device."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from errno import ESHUTDOWN
from typing import Any

import pytest
from aiohttp import TCPConnector
from aiohttp.abc import AbstractStreamWriter
from aiohttp.connector import Connection

from swiftnbd.errors import ConfigError, ExportError, LockLost, StoreError
from swiftnbd.export.disk import ObjectDevice
from swiftnbd.export.export import Client, Export
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.export.lease import Keeper, Leased
from swiftnbd.export.lock import Lock
from swiftnbd.export.pace import Pace, Timing, quiet_seconds
from swiftnbd.export.settings import CacheSettings
from swiftnbd.store.http import _Body
from swiftnbd.store.memory import MemoryStore
from swiftnbd.store.open import Patience, open_swift
from swiftnbd.store.swift_http import SwiftAccount
from tests.store.fake_swift import FakeSwift, Reply, Seen
from tests.support.disks import SIZE, Disk, a_disk, begin, caching, turns
from tests.support.faulty import Fault, Faulty, Gate, Script, failing

MARK = "client.example:4242@1700000000"
TERM = Pace().term_seconds
STOPPED = "the lock could not be renewed for 90 s: suspended"


class User:
    """Who relies on the lock."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def suspend(self) -> None:
        self.told.append("suspend")

    def resume(self) -> None:
        self.told.append("resume")

    def fail(self, reason: str) -> None:
        self.told.append(reason)


class Kept:
    """An acquired lock, whose clock goes on only by `pass_time`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.script = Script()
        self.memory = MemoryStore("disk")
        self.store = Faulty(self.memory, self.script)
        timing = Timing(lambda: self.now, self._sleep)
        self.lock = Lock(self.store, MARK, timing=timing)
        self.user = User()
        self.keeper = Keeper(self.lock, self.user)
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    async def _sleep(self, seconds: float) -> None:
        if seconds:
            event = asyncio.Event()
            self._sleepers.append((self.now + seconds, event))
            await event.wait()

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for due, event in self._sleepers:
            if due <= self.now:
                event.set()
        await turns()


@pytest.fixture
async def kept() -> AsyncIterator[Kept]:
    kept = Kept()
    await kept.memory.create_container(setup_metadata(Geometry(8, SIZE)))
    await kept.lock.acquire()
    task = begin(kept.keeper.keep())
    await turns(5)
    yield kept
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# Times


def test_quiet_time_is_term_drift_and_longest_put() -> None:
    assert quiet_seconds(90) == pytest.approx(120.9)


def test_term_is_renewed_six_times_and_outlasts_an_outage() -> None:
    Pace().check_outages(60)
    assert Pace().renewal_seconds == 15
    Pace(term_seconds=72.1).check_outages(60)
    with pytest.raises(ConfigError, match=r"^a lock term of 72 s .* more than 72 s$"):
        Pace(term_seconds=72).check_outages(60)


# The keeper


async def test_lease_is_renewed_before_it_ends(kept: Kept) -> None:
    for _ in range(20):
        await kept.pass_time(15)
        assert kept.keeper.seconds_left == TERM
    assert kept.store.count("renew") == 20
    assert kept.user.told == []


@pytest.mark.expects_log(STOPPED)
@pytest.mark.expects_log("the lock is still ours, going on")
async def test_lease_that_ends_suspends_until_it_is_renewed(kept: Kept) -> None:
    kept.script.on("renew", failing(), times=1000)
    for _ in range(6):
        await kept.pass_time(15)
        assert kept.user.told == []
    assert kept.keeper.seconds_left == 0
    assert kept.user.told == ["suspend"]
    await kept.pass_time(1)
    kept.script.clear()
    await kept.pass_time(1)
    assert kept.user.told == ["suspend", "resume"]
    assert kept.keeper.seconds_left == TERM


@pytest.mark.expects_log(STOPPED)
async def test_lease_that_ended_fails_if_somebody_took_over(kept: Kept) -> None:
    kept.script.on("renew", failing(), times=6)
    await kept.pass_time(TERM)
    assert kept.keeper.seconds_left == 0
    await kept.memory.put("swiftnbd/epoch/2", b"{}")
    for _ in range(6):
        await kept.pass_time(1)
    suspend, reason = kept.user.told
    assert suspend == "suspend"
    assert "taken over" in reason
    assert isinstance(kept.keeper.lost, LockLost)


@pytest.mark.expects_log("disk: not renewed")
async def test_renewal_that_meets_a_mistake_of_ours_is_said_and_tried_again(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, token: str) -> None:
        raise KeyError(name)

    with monkeypatch.context() as patch:
        patch.setattr(kept.store, "renew", broken)
        await kept.pass_time(15)
    await kept.pass_time(1)
    assert kept.keeper.seconds_left == TERM
    assert kept.user.told == []


# What is stored


@pytest.mark.expects_log(STOPPED)
async def test_nothing_is_stored_after_the_lease_though_no_timer_said_so(kept: Kept) -> None:
    """As after a SIGCONT: what clients have sent comes before any timer."""
    leased = Leased(kept.store, kept.keeper)
    await leased.put("disk.part/00000000", b"in time")
    kept.now += TERM
    for change in (leased.put("disk.part/00000001", b"late"), leased.delete("disk.part/00000000")):
        with pytest.raises(StoreError, match="lease is over"):
            await change
    assert kept.user.told == ["suspend"]
    assert (await kept.memory.get("disk.part/00000000")) is not None
    assert (await kept.memory.get("disk.part/00000001")) is None


@pytest.mark.expects_log(STOPPED)
async def test_put_is_aborted_when_the_lease_ends() -> None:
    kept = Kept()
    await kept.memory.create_container(setup_metadata(Geometry(8, SIZE)))
    await kept.lock.acquire()
    kept.now += TERM - 0.05
    gate = kept.script.hold("put")
    putting = begin(Leased(kept.store, kept.keeper).put("disk.part/00000000", b"late"))
    await gate.arrived.wait()
    with pytest.raises(StoreError, match="lease is over"):
        await putting
    gate.open()
    await turns(5)
    assert (await kept.memory.get("disk.part/00000000")) is None
    assert kept.user.told == ["suspend"]  # at once: an error of that kind is for nobody's ears


@pytest.fixture
async def swift() -> AsyncIterator[FakeSwift]:
    swift = FakeSwift()
    await swift.start()
    yield swift
    await swift.stop()


@pytest.fixture
async def leased(kept: Kept, swift: FakeSwift) -> AsyncIterator[Leased]:
    """A container of that Swift under the lock that is ``kept``."""
    account = SwiftAccount(swift)
    yield Leased(open_swift(account, "c", Patience(deadline_seconds=3)), kept.keeper)
    await account.close()


@pytest.mark.expects_log(STOPPED)
@pytest.mark.parametrize("asleep", ["before another try", "before its body is asked for"])
async def test_put_is_not_sent_after_the_machine_slept(
    kept: Kept, swift: FakeSwift, leased: Leased, monkeypatch: pytest.MonkeyPatch, asleep: str
) -> None:
    """Somebody else may have the disk by then, and no timer of the event loop has noticed."""

    async def sleep_and_fail(seen: Seen) -> Reply | None:
        kept.now += 600
        return Reply(503)

    async def sleep_and_write(self: _Body, writer: AbstractStreamWriter) -> None:
        kept.now += 600
        await write(self, writer)

    write = _Body.write
    if asleep == "before another try":
        swift.handle = sleep_and_fail
    else:
        monkeypatch.setattr(_Body, "write", sleep_and_write)
    with pytest.raises(StoreError, match="lease is over"):
        await leased.put("disk.part/00000000", b"late")
    assert swift.count("PUT") == int(asleep == "before another try")
    assert swift.objects == {}
    assert kept.user.told == ["suspend"]


@pytest.mark.expects_log(STOPPED)
async def test_delete_is_not_sent_again_after_the_machine_slept(
    kept: Kept, swift: FakeSwift, leased: Leased
) -> None:
    """It is sent twice if nothing is there, which has to be proven."""

    async def sleep(seen: Seen) -> Reply | None:
        if seen.method == "HEAD" and not kept.now:
            kept.now += 600
            swift.objects["disk.part/00000000"] = b"theirs"
        return None

    swift.handle = sleep
    with pytest.raises(StoreError, match="lease is over"):
        await leased.delete("disk.part/00000000")
    assert swift.objects == {"disk.part/00000000": b"theirs"}
    assert kept.user.told == ["suspend"]


@pytest.mark.expects_log(STOPPED)
@pytest.mark.parametrize("change", ["put", "delete", "set_metadata"])
async def test_change_is_not_sent_after_the_machine_slept_while_connecting(
    kept: Kept, swift: FakeSwift, leased: Leased, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    async def sleep_and_connect(self: TCPConnector, *arguments: Any, **named: Any) -> Connection:
        kept.now += 600
        return await connect(self, *arguments, **named)

    connect = TCPConnector.connect
    monkeypatch.setattr(TCPConnector, "connect", sleep_and_connect)
    changes: dict[str, Callable[[], Awaitable[object]]] = {
        "put": lambda: leased.put("disk.part/00000000", b"late"),
        "delete": lambda: leased.delete("disk.part/00000000"),
        "set_metadata": lambda: leased.set_metadata({"late": "yes"}),
    }
    with pytest.raises(StoreError, match="lease is over"):
        await changes[change]()
    assert swift.seen == []
    assert kept.user.told == ["suspend"]


async def test_put_goes_on_when_the_lease_is_renewed_meanwhile(kept: Kept) -> None:
    """As one that waits for a Swift that takes renewals, but has no room for what is stored."""
    kept.now += TERM - 0.05
    gate = kept.script.hold("put")
    putting = begin(Leased(kept.store, kept.keeper).put("disk.part/00000000", b"in time"))
    await gate.arrived.wait()
    await kept.pass_time(0)
    assert kept.keeper.seconds_left == pytest.approx(TERM)
    await asyncio.wait([putting], timeout=0.1)  # twice what was left when it began
    gate.open()
    await putting
    assert kept.user.told == []


@pytest.mark.expects_log(STOPPED)
async def test_copy_begins_only_under_the_lease(kept: Kept) -> None:
    other = MemoryStore("other", kept.memory.account)
    await other.create_container()
    etag = await other.put("disk.part/00000000", b"theirs")
    leased = Leased(kept.store, kept.keeper)
    assert leased.place == kept.memory.place
    await leased.copy("disk.part/00000000", other.place, etag)
    assert await kept.memory.get("disk.part/00000000")
    await kept.memory.delete("disk.part/00000000")
    kept.script.on("renew", failing(), times=100)
    await kept.pass_time(TERM + 1)
    with pytest.raises(StoreError, match="lease is over"):
        await leased.copy("disk.part/00000000", other.place, etag)
    assert await kept.memory.get("disk.part/00000000") is None


async def test_lost_lock_refuses_every_change(kept: Kept) -> None:
    await kept.memory.put("swiftnbd/epoch/1", b"{}")
    await kept.pass_time(15)
    assert len(kept.user.told) == 1
    with pytest.raises(LockLost):
        await Leased(kept.store, kept.keeper).put("disk.part/00000000", b"late")


# The device


async def test_suspended_device_answers_nothing_and_goes_on_where_it_stopped() -> None:
    async with a_disk() as disk:
        await disk.device.write(0, b"known" + bytes(SIZE - 5), fua=True)
        gate = disk.script.hold("put")
        storing = begin(disk.device.write(SIZE, b"n" * SIZE, fua=True))
        await gate.arrived.wait()
        disk.device.suspend()
        assert disk.device.read_now(0, 5) is None
        reading, flushing = begin(disk.read(0, 5)), begin(disk.device.flush())
        await turns(50)
        assert not any(task.done() for task in (storing, reading, flushing))
        gate.open()
        await turns(50)
        assert disk.has(1) is None  # it was aborted
        disk.device.resume()
        await asyncio.gather(storing, flushing)
        assert await reading == b"known"
        assert disk.has(1) == b"n" * SIZE
        assert disk.device.read_now(0, 5) is not None


@pytest.mark.expects_log(STOPPED)
@pytest.mark.expects_log("the lock is still ours, going on")
async def test_writer_that_waits_for_room_when_the_lease_ends_goes_on_after_it(kept: Kept) -> None:
    """The machine slept: an upload that has fetched what it needs is the first to notice."""
    settings = caching(4, dirty_bytes=SIZE)
    device = ObjectDevice(Leased(kept.store, kept.keeper), Geometry(8, SIZE), settings)
    kept.keeper._user = device
    gate = kept.script.hold("get")
    await device.write(0, b"part")
    waiting = begin(device.write(SIZE, b"part"))
    await turns()
    kept.script.on("renew", failing(), times=1000)
    kept.now += TERM
    gate.open()
    await turns()
    assert kept.keeper.is_suspended
    assert not waiting.done()
    kept.script.clear()
    await kept.pass_time(1)
    assert not kept.keeper.is_suspended
    await waiting
    await device.close()
    for index in range(2):
        stored = await kept.memory.get(f"disk.part/{index:08}")
        assert stored is not None
        assert stored.data == b"part".ljust(SIZE, b"\0")


async def test_error_of_a_request_that_was_suspended_is_none() -> None:
    """The lease ended during the PUT, which failed for that: the client need not know."""
    async with a_disk() as disk:
        gate = Gate()
        disk.script.on("put", Fault(before=gate, error=StoreError("the lease is over")))
        storing = begin(disk.device.write(0, b"n" * SIZE, fua=True))
        await gate.arrived.wait()
        disk.device.suspend()
        gate.open()
        await turns(50)
        disk.device.resume()
        await storing
        assert disk.has(0) == b"n" * SIZE


async def test_failed_device_refuses_everything_and_says_what_is_lost() -> None:
    disk = Disk()
    await disk.memory.create_container()
    await disk.device.write(0, b"known" + bytes(SIZE - 5), fua=True)
    gate = disk.script.hold("put")
    storing = begin(disk.device.write(SIZE, b"n" * SIZE, fua=True))
    await gate.arrived.wait()
    disk.device.suspend()
    reading = begin(disk.read(0, 5))
    await turns(50)
    disk.device.fail("the lock is lost")
    for request in (storing, reading, disk.device.flush(), disk.read(0, 5)):
        with pytest.raises(ExportError, match=r"^the lock is lost$") as caught:
            await request
        assert caught.value.errno == ESHUTDOWN
    assert disk.device.read_now(0, 5) is None
    assert disk.device.dirty_ranges() == [(SIZE, 2 * SIZE)]
    gate.open()


async def test_lease_that_ends_before_there_is_a_device_suspends_it_from_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(keeper: Keeper) -> None:
        keeper.is_suspended = True  # the store was away between the claim and the mark

    monkeypatch.setattr(Keeper, "start", start)
    memory = MemoryStore("disk")
    await memory.create_container(setup_metadata(Geometry(8, SIZE)))
    export = Export("disk", memory, cache=CacheSettings(cache_bytes=8 * SIZE))
    device = await export.attach(Client("peer", "client.example", 1))
    assert not device.write_now(0, b"x")
    reading = begin(device.read(0, 5))
    await turns(50)
    assert not reading.done()
    export.resume()
    assert b"".join(await reading) == bytes(5)
    await export.detach()
