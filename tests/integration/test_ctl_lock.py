# SPDX-License-Identifier: MIT
import asyncio
import os
import re
import socket
from collections.abc import Awaitable, Callable, Mapping

import pytest

from swiftnbd.cli.common import locked
from swiftnbd.cli.ctl_lock import lock, unlock
from swiftnbd.cli.exits import exit_code
from swiftnbd.errors import (
    ContainerMissing,
    ExportUnusable,
    Locked,
    LockLost,
    StoreError,
    StoreUnavailable,
)
from swiftnbd.export.lock import Lock
from swiftnbd.export.pace import Pace, Timing
from swiftnbd.store.base import Store
from swiftnbd.store.memory import MemoryStore
from tests.integration.conftest import HELD, HOLDER, NAME, Told, held_by_the_dead, metadata


async def test_lock_marks_this_host_without_a_connection(disk: Store, told: Told) -> None:
    assert await lock(disk, name=NAME, tell=told) == 0
    client = (await metadata(disk))["client"]
    assert re.fullmatch(rf"{re.escape(socket.gethostname())}:0@\d{{10}}", client)
    assert told == ["Done, disk is locked"]


async def test_locked_container_is_not_locked_again(disk: Store, told: Told) -> None:
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    with pytest.raises(Locked) as caught:
        await lock(disk, name=NAME, tell=told)
    assert (str(caught.value), caught.value.holder) == (HELD, HOLDER)
    assert (await metadata(disk))["client"] == HOLDER


async def test_container_of_a_killed_process_can_be_locked(
    disk: Store, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    await held_by_the_dead(disk, monkeypatch)
    assert await lock(disk, name=NAME, tell=told) == 0
    client = (await metadata(disk))["client"]
    assert client.startswith(f"{socket.gethostname()}:0@")


async def test_holder_that_was_faster_is_named_too(disk: Store) -> None:
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    with pytest.raises(Locked) as caught:
        await locked(disk, NAME).__aenter__()
    assert (str(caught.value), caught.value.holder) == (HELD, HOLDER)


async def test_unlock_says_who_held_it_and_remembers(disk: Store, told: Told) -> None:
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    assert await unlock(disk, name=NAME, tell=told) == 0
    found = await metadata(disk)
    assert ("client" in found, found["last"]) == (False, HOLDER)
    assert told == [
        f"disk lock is: {HOLDER} (host:7 since 2023-11-14 22:13:20 UTC)",
        "Done, disk is unlocked",
    ]


async def test_unlocked_container_has_nothing_to_unlock(disk: Store, told: Told) -> None:
    assert await unlock(disk, name=NAME, tell=told) == 1
    assert told == ["disk is not locked, nothing to do"]


async def test_container_whose_metadata_makes_no_sense_can_be_unlocked(
    disk: Store, told: Told
) -> None:
    await disk.set_metadata({"swiftnbd-client": HOLDER, "swiftnbd-objects": "-1"})
    assert await unlock(disk, name=NAME, tell=told) == 0
    assert "client" not in await metadata(disk)


async def test_missing_container_is_no_disk(store: Store, told: Told) -> None:
    for command in (lock, unlock):
        with pytest.raises(ContainerMissing, match="disk doesn't exist"):
            await command(store, name=NAME, tell=told)


async def test_container_that_was_never_set_up_is_no_disk(store: Store, told: Told) -> None:
    await store.create_container()
    with pytest.raises(ExportUnusable, match="disk: it is not set up"):
        await lock(store, name=NAME, tell=told)
    with pytest.raises(ExportUnusable, match="disk hasn't been setup"):
        await unlock(store, name=NAME, tell=told)


async def test_lock_for_a_command_is_given_back_whatever_happens(disk: Store) -> None:
    async with locked(disk, NAME):
        assert "client" in await metadata(disk)
    assert "client" not in await metadata(disk)
    with pytest.raises(ZeroDivisionError):
        async with locked(disk, NAME):
            raise ZeroDivisionError
    assert "client" not in await metadata(disk)
    epochs = [f"swiftnbd/epoch/{number}" for number in (1, 2, 3)]
    assert [row.name for row in await disk.listing()] == [*epochs, "swiftnbd/presence"]


async def test_cancelled_while_locking_takes_the_mark_back(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = asyncio.Event()
    set_metadata = disk.set_metadata

    async def mark(changes: Mapping[str, str]) -> None:
        await set_metadata(changes)
        if not marked.is_set():
            marked.set()
            await asyncio.Event().wait()

    async def hold() -> None:
        async with locked(disk, NAME):
            pytest.fail("cancelled too late")

    monkeypatch.setattr(disk, "set_metadata", mark)
    task = asyncio.create_task(hold())
    await marked.wait()
    assert "client" in await metadata(disk)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "client" not in await metadata(disk)


class Failing(MemoryStore):
    """Goes away while it is locked."""

    is_down = False

    async def renew(self, name: str, token: str) -> bool:
        if self.is_down:
            raise StoreUnavailable("no answer")
        return await super().renew(name, token)


async def test_lock_that_cannot_be_given_back_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    store = Failing(NAME)
    await store.create_container(
        {"swiftnbd-version": "1", "swiftnbd-objects": "1", "swiftnbd-object-size": "512"}
    )
    held = locked(store, NAME)
    await held.__aenter__()
    store.is_down = True
    with pytest.raises(
        StoreError, match="may stay locked, run: swiftnbd-ctl unlock disk"
    ) as caught:
        await held.__aexit__(None, None, None)
    assert exit_code(caught.value) == 6
    store.is_down = False
    assert await unlock(store, name=NAME, tell=Told(), force=True) == 0
    held = locked(store, NAME)
    await held.__aenter__()
    store.is_down = True
    assert not await held.__aexit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert "disk may stay locked, run: swiftnbd-ctl unlock disk" in capsys.readouterr().err


# Holders that may be alive


class Clock:
    """Time that goes only while somebody sleeps; ``then`` happens during the first sleep."""

    def __init__(self) -> None:
        self.now = 0.0
        self.then: Callable[[], Awaitable[None]] | None = None

    @property
    def timing(self) -> Timing:
        return Timing(lambda: self.now, self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.then is not None:
            then, self.then = self.then, None
            await then()


async def a_holder(disk: Store, *, by_hand: bool = False) -> Lock:
    """This very process, which is alive."""
    holder = Lock(disk, HOLDER, by_hand=by_hand)
    await holder.acquire()
    return holder


async def test_unlock_waits_for_a_sign_of_life_and_then_takes_the_lock_away(
    disk: Store, told: Told
) -> None:
    holder, clock = await a_holder(disk), Clock()
    await holder.renew()
    assert await unlock(disk, name=NAME, tell=told, timing=clock.timing) == 0
    assert clock.now == pytest.approx(90 * 1.01 + 30)
    assert told[0].startswith(f"disk lock is: {HOLDER} (host:7 since 2023-11-14 22:13:20 UTC, ")
    assert f"process {os.getpid()} on {socket.gethostname()}, last renewed 20" in told[0]
    assert told[1:] == [
        "waiting 121 s for a sign of life of that holder (--force does not wait)",
        "Done, disk is unlocked",
    ]
    assert (await metadata(disk))["last"] == HOLDER
    with pytest.raises(LockLost):
        await holder.renew()


async def test_unlock_leaves_a_holder_that_renews(disk: Store, told: Told) -> None:
    holder, clock = await a_holder(disk), Clock()
    clock.then = holder.renew
    with pytest.raises(Locked, match=f"its holder, {HOLDER}, is alive") as caught:
        await unlock(disk, name=NAME, tell=told, timing=clock.timing)
    assert exit_code(caught.value) == 3
    assert clock.now == 2
    await holder.renew()
    await holder.release()


async def test_unlock_leaves_a_holder_that_renews_at_the_last_moment(
    disk: Store, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has decided, and makes its epoch; then the holder is back."""
    holder, clock = await a_holder(disk), Clock()
    put = disk.put

    async def late(name: str, data: bytes, **options: bool) -> str:
        etag = await put(name, data, **options)
        await disk.renew(holder.epoch_name, "back:again")
        return etag

    monkeypatch.setattr(disk, "put", late)
    with pytest.raises(Locked):
        await unlock(disk, name=NAME, tell=told, timing=clock.timing)
    await holder.renew()
    await holder.release()


async def test_unlock_by_force_waits_for_nothing(disk: Store, told: Told) -> None:
    holder, clock = await a_holder(disk), Clock()
    assert await unlock(disk, name=NAME, tell=told, force=True, timing=clock.timing) == 0
    assert clock.now == 0
    with pytest.raises(LockLost):
        await holder.renew()


async def test_lock_by_hand_is_undone_at_once(disk: Store, told: Told) -> None:
    clock = Clock()
    await lock(disk, name=NAME, tell=told)
    with pytest.raises(Locked):
        await locked(disk, NAME).__aenter__()
    assert await unlock(disk, name=NAME, tell=told, timing=clock.timing) == 0
    assert clock.now == 0
    async with locked(disk, NAME):
        pass


async def work_for_ever(
    store: Store, begin: Callable[[], Awaitable[None]], term_seconds: float = 6.0
) -> None:
    async with locked(store, NAME, Pace(term_seconds=term_seconds)):
        await begin()
        await asyncio.Event().wait()


@pytest.mark.expects_log("the lock .* is gone .now: x:1@1.")
async def test_command_whose_lock_is_lost_ends(disk: Store) -> None:
    async def write_over() -> None:
        await disk.set_metadata({"swiftnbd-client": "x:1@1"})

    with pytest.raises(StoreError, match=r"disk: the lock \S+ is lost: x:1@1 wrote over it"):
        await work_for_ever(disk, write_over)
    assert (await metadata(disk))["client"] == "x:1@1"


@pytest.mark.expects_log("the lock could not be renewed for 0.06 s")
async def test_command_whose_lock_cannot_be_renewed_ends() -> None:
    async def go_down() -> None:
        store.is_down = True

    store = Failing(NAME)
    await store.create_container(
        {"swiftnbd-version": "1", "swiftnbd-objects": "1", "swiftnbd-object-size": "512"}
    )
    with pytest.raises(StoreError, match="disk: the lock could not be renewed"):
        await work_for_ever(store, go_down, term_seconds=0.06)


async def test_epochs_that_were_removed_are_forgotten_by_force(disk: Store, told: Told) -> None:
    async with locked(disk, NAME):
        pass
    for number in (1, 2):
        await disk.delete(f"swiftnbd/epoch/{number}")
    for command in (lock, unlock):
        with pytest.raises(StoreError, match=r"does not exist; .* unlock --force"):
            await command(disk, name=NAME, tell=told)
    assert await unlock(disk, name=NAME, tell=told, force=True) == 1
    async with locked(disk, NAME):
        pass
