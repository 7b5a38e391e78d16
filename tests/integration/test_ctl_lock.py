# SPDX-License-Identifier: MIT
import asyncio
import re
import socket
from collections.abc import Mapping

import pytest

from swiftnbd.cli.common import locked
from swiftnbd.cli.ctl_lock import lock, unlock
from swiftnbd.cli.exits import exit_code
from swiftnbd.errors import ContainerMissing, ExportUnusable, Locked, StoreError, StoreUnavailable
from swiftnbd.export.lock import CANARY
from swiftnbd.store.base import Store
from swiftnbd.store.memory import MemoryStore
from tests.integration.conftest import HELD, HOLDER, NAME, Told, metadata


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


async def test_holder_that_was_faster_is_named_too(disk: Store) -> None:
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    with pytest.raises(Locked) as caught:
        await locked(disk, NAME).__aenter__()
    assert (str(caught.value), caught.value.holder) == (HELD, HOLDER)


async def test_unlock_says_who_held_it_and_remembers(disk: Store, told: Told) -> None:
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    await disk.put(CANARY, b"x")
    assert await unlock(disk, name=NAME, tell=told) == 0
    found = await metadata(disk)
    assert ("client" in found, found["last"]) == (False, HOLDER)
    assert await disk.listing() == []
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
    assert await disk.listing() == []


async def test_cancelled_while_locking_takes_the_mark_back(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = asyncio.Event()
    set_metadata = disk.set_metadata

    async def mark(changes: Mapping[str, str]) -> None:
        await set_metadata(changes)
        marked.set()

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

    async def delete(self, name: str) -> bool:
        if self.is_down:
            raise StoreUnavailable("no answer")
        return await super().delete(name)


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
    assert await unlock(store, name=NAME, tell=Told()) == 0
    held = locked(store, NAME)
    await held.__aenter__()
    store.is_down = True
    assert not await held.__aexit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert "disk may stay locked, run: swiftnbd-ctl unlock disk" in capsys.readouterr().err
