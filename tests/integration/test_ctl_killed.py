# SPDX-License-Identifier: MIT
"""Whatever moment a command of swiftnbd-ctl is killed at, the container is of use afterwards.

Here every moment between two requests to the store is tried, with the last request done and not
done. `test_ctl_sigkill` kills real processes at moments that nobody has chosen.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.cli.ctl_check import check
from swiftnbd.cli.ctl_delete import delete
from swiftnbd.cli.ctl_download import download
from swiftnbd.cli.ctl_list import describe
from swiftnbd.cli.ctl_lock import lock, unlock
from swiftnbd.cli.ctl_setup import SetupRequest, setup
from swiftnbd.cli.ctl_upload import UploadRequest, upload
from swiftnbd.cli.image import ImageFile
from swiftnbd.cli.source import Source
from swiftnbd.errors import ContainerMissing, ExportUnusable, Locked
from swiftnbd.export import lock as lock_module
from swiftnbd.export.layout import Geometry
from swiftnbd.export.pace import Pace
from swiftnbd.export.process import Process, current_process
from swiftnbd.store.base import Store
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from tests.integration.conftest import NAME, OBJECT_SIZE, Told

OBJECTS = 6
REQUESTS_MAX = 200  # no command here makes so many
GEOMETRY = Geometry(OBJECTS, OBJECT_SIZE)

Command = Callable[[Store, Path], Awaitable[object]]

_REQUESTS = {
    "get", "head", "put", "delete", "renew", "listing", "info", "set_metadata",
    "create_container", "delete_container",
}  # fmt: skip


class Killed(BaseException):
    """The process is no more: nothing is cleaned up after this."""


class Doomed(MemoryStore):
    """A process that is killed at its ``requests``-th request, which is ``done`` or not."""

    def __init__(self, account: MemoryAccount, requests: int, *, done: bool) -> None:
        super().__init__(NAME, account)
        self.requests = requests
        self.done = done

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        if name not in _REQUESTS:
            return attribute

        async def request(*arguments: Any, **options: Any) -> Any:
            self.requests -= 1
            if self.requests > 0 or (self.requests == 0 and self.done):
                result = await attribute(*arguments, **options)
            if self.requests <= 0:
                raise Killed
            return result

        return request


def image_bytes(seed: int) -> bytes:
    return b"".join(
        bytes([seed + index]) * OBJECT_SIZE if index % 2 else bytes(OBJECT_SIZE)
        for index in range(OBJECTS)
    )


async def set_up(store: Store, _folder: Path) -> None:
    request = SetupRequest(GEOMETRY, force=True)
    await setup(store, name=NAME, request=request, tell=Told())


async def upload_again(store: Store, folder: Path) -> None:
    """Over whatever is there, also if nothing is."""
    (folder / "new").write_bytes(image_bytes(100))
    with Source(str(folder / "new")) as source:
        wanted = SetupRequest(GEOMETRY, exist_ok=True)
        request = UploadRequest(wanted, True, True, Pace())
        await upload(store, name=NAME, source=source, request=request, tell=Told())


async def download_it(store: Store, folder: Path) -> bytes:
    with ImageFile(str(folder / "out"), force=True, container=NAME) as file:
        await download(store, name=NAME, file=file, quiet=True, tell=Told())
    return (folder / "out").read_bytes()


COMMANDS: dict[str, Command] = {
    "setup": set_up,
    "lock": lambda store, _: lock(store, name=NAME, tell=Told()),
    "unlock": lambda store, _: unlock(store, name=NAME, tell=Told()),
    "upload": upload_again,
    "download": download_it,
    "check": lambda store, _: check(store, name=NAME, fast=False, quiet=True, tell=Told()),
    "delete": lambda store, _: delete(store, name=NAME, tell=Told(), retry_seconds=0),
    "list": lambda store, _: describe(store, NAME, count=True),
}


def dead_process() -> Process | None:
    """One that was on this machine and is not any more."""
    process = current_process()
    return None if process is None else replace(process, started=process.started + 1)


async def prepared(command: str, folder: Path) -> MemoryAccount:
    """What the command works on: a disk with data, or nothing for ``setup``."""
    account = MemoryAccount()
    store = MemoryStore(NAME, account)
    if command != "setup":
        (folder / "old").write_bytes(image_bytes(0))
        with Source(str(folder / "old")) as source:
            wanted = SetupRequest(GEOMETRY)
            request = UploadRequest(wanted, False, True, Pace())
            await upload(store, name=NAME, source=source, request=request, tell=Told())
    if command == "unlock":
        await lock(store, name=NAME, tell=Told())
    return account


async def killed(
    command: str, at: int, done: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> MemoryAccount | None:
    """What a command leaves that was killed at that request; None if it came to its end before."""
    account = await prepared(command, folder)
    store = Doomed(account, at, done=done)
    with monkeypatch.context() as patch:
        patch.setattr(lock_module, "current_process", dead_process)
        try:
            await COMMANDS[command](store, folder)
        except Killed:
            return account
    return None


async def unlock_if_locked(store: Store) -> None:
    with suppress(ContainerMissing, ExportUnusable):  # what is no disk is not locked
        await unlock(store, name=NAME, tell=Told())


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize("command", COMMANDS)
async def test_killed_command_leaves_a_container_of_use(
    command: str, done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(1, REQUESTS_MAX):
        account = await killed(command, at, done, tmp_path, monkeypatch)
        if account is None:
            break
        store = MemoryStore(NAME, account)
        try:
            await describe(store, NAME, count=True)
        except (ContainerMissing, ExportUnusable):
            assert command in ("setup", "delete")
        refusal = ""
        try:
            await upload_again(store, tmp_path)
        except Locked as error:
            refusal = str(error)
        if refusal:
            assert command in ("lock", "unlock"), refusal  # by hand: it asks for an unlock
            assert f"swiftnbd-ctl unlock {NAME}" in refusal
            await unlock(store, name=NAME, tell=Told())
            await upload_again(store, tmp_path)
        assert await download_it(store, tmp_path) == image_bytes(100), f"killed at {at}"
        result = await check(store, name=NAME, fast=False, quiet=True, tell=Told())
        assert result["good"], result
        assert result["notes"] == []
        await delete(store, name=NAME, tell=Told(), retry_seconds=0)
    assert 1 < at < REQUESTS_MAX - 1


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize("command", COMMANDS)
async def test_container_of_a_killed_command_can_be_unlocked_and_deleted(
    command: str, done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(1, REQUESTS_MAX):
        account = await killed(command, at, done, tmp_path, monkeypatch)
        if account is None:
            break
        store = MemoryStore(NAME, account)
        await unlock_if_locked(store)
        try:
            await delete(store, name=NAME, tell=Told(), retry_seconds=0)
        except (ContainerMissing, ExportUnusable):
            assert command in ("setup", "delete")
        assert await store.info() is None, f"killed at {at}"
