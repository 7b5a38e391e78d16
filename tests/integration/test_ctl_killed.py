# SPDX-License-Identifier: MIT
"""Whatever moment a command of swiftnbd-ctl is killed at, the container is of use afterwards.

Here every moment between two requests to the store is tried, with the last request done and not
done. `test_ctl_sigkill` kills real processes at moments that nobody has chosen.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from swiftnbd.cli.benching import Bench, Limits, Step
from swiftnbd.cli.ctl_check import check
from swiftnbd.cli.ctl_copy import CopyRequest, copy
from swiftnbd.cli.ctl_delete import delete
from swiftnbd.cli.ctl_download import download
from swiftnbd.cli.ctl_list import describe
from swiftnbd.cli.ctl_lock import lock, unlock
from swiftnbd.cli.ctl_resize import make_plan, resize
from swiftnbd.cli.ctl_setup import SetupRequest, setup
from swiftnbd.cli.ctl_trim import trim
from swiftnbd.cli.ctl_upload import UploadRequest, upload
from swiftnbd.cli.image import ImageFile
from swiftnbd.cli.scratch import scratch
from swiftnbd.cli.source import Source
from swiftnbd.cli.unfinished import COPY
from swiftnbd.errors import ContainerMissing, ExportUnusable, Locked
from swiftnbd.export import lock as lock_module
from swiftnbd.export.export import Client, Export
from swiftnbd.export.layout import Geometry, is_being_deleted, object_name
from swiftnbd.export.pace import Pace
from swiftnbd.store.base import Store
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from tests.integration.conftest import HOLDER, NAME, OBJECT_SIZE, Told, dead_process
from tests.support.doomed import Doomed, Killed

OBJECTS = 6
REQUESTS_MAX = 200  # no command here makes so many
GEOMETRY = Geometry(OBJECTS, OBJECT_SIZE)
SOURCE = "source"
KEPT = 4 * OBJECT_SIZE - 100  # ends within an object that is stored
PLAN = [Step("put", OBJECT_SIZE, 2), Step("get", OBJECT_SIZE, 2)]

Command = Callable[[Store, Path], Awaitable[object]]


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


async def resize_to(store: Store, size: int) -> None:
    plan = await make_plan(store, name=NAME, size=size)
    await resize(store, name=NAME, plan=plan, quiet=True, tell=Told())


async def copy_it(store: Store, force: bool = True) -> None:
    """From `SOURCE`, in the same account."""
    assert isinstance(store, MemoryStore)
    source = MemoryStore(SOURCE, store.account)
    if isinstance(store, Doomed):
        source = store.another(SOURCE)
    request = CopyRequest(SOURCE, NAME, setup=True, force=force, quiet=True)
    await copy(source, store, request=request, tell=Told())


async def bench(store: Store, _folder: Path) -> None:
    async with scratch(store, NAME, None, Told(), retry_seconds=0) as empty:
        async for _ in Bench(empty, Limits(1, 4 * OBJECT_SIZE)).run(PLAN, lambda _: None):
            pass


COMMANDS: dict[str, Command] = {
    "setup": set_up,
    "lock": lambda store, _: lock(store, name=NAME, tell=Told()),
    "unlock": lambda store, _: unlock(store, name=NAME, tell=Told()),
    "upload": upload_again,
    "download": download_it,
    "check": lambda store, _: check(store, name=NAME, fast=False, quiet=True, tell=Told()),
    "delete": lambda store, _: delete(store, name=NAME, tell=Told(), retry_seconds=0),
    "list": lambda store, _: describe(store, NAME, count=True),
    "copy": lambda store, _: copy_it(store),
    "resize": lambda store, _: resize_to(store, KEPT),
    "trim": lambda store, _: trim(store, name=NAME, dry_run=False, quiet=True, tell=Told()),
    "bench": bench,
}
NEW = ("setup", "bench")  # begin without a container
NO_DISK = (*NEW, "delete")  # may leave one that is no disk


async def prepare_source(account: MemoryAccount) -> None:
    source = MemoryStore(SOURCE, account)
    await setup(source, name=SOURCE, request=SetupRequest(GEOMETRY), tell=Told())
    for index in (0, 1, 4):
        await source.put(object_name(index), bytes([50 + index]) * OBJECT_SIZE)
    await source.set_metadata({"swiftnbd-last": HOLDER})  # who keeps no map


async def prepared(command: str, folder: Path) -> MemoryAccount:
    """What the command works on: a disk with data, or nothing for ``setup``."""
    account = MemoryAccount()
    store = MemoryStore(NAME, account)
    if command not in NEW:
        (folder / "old").write_bytes(image_bytes(0))
        with Source(str(folder / "old")) as source:
            wanted = SetupRequest(GEOMETRY)
            request = UploadRequest(wanted, False, True, Pace())
            await upload(store, name=NAME, source=source, request=request, tell=Told())
    if command == "trim":
        await store.put(object_name(0), bytes(OBJECT_SIZE))
        await store.set_metadata({"swiftnbd-last": HOLDER})  # by who keeps no map
    if command == "copy":
        await prepare_source(account)
    if command == "unlock":
        await lock(store, name=NAME, tell=Told())
    return account


async def killed(
    command: str,
    at: int,
    done: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    account: MemoryAccount | None = None,
) -> MemoryAccount | None:
    """What a command leaves that was killed at that request; None if it came to its end before."""
    account = await prepared(command, folder) if account is None else account
    store = Doomed(NAME, account, at, done=done)
    with monkeypatch.context() as patch:
        patch.setattr(lock_module, "current_process", dead_process)
        try:
            await COMMANDS[command](store, folder)
        except Killed:
            return account
    return None


async def is_half_deleted(store: Store) -> bool:
    info = await store.info()
    return info is not None and is_being_deleted(info.metadata)


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
            assert command in NO_DISK
        if command == "resize":  # an upload takes no disk of another size for its own
            await resize_to(store, GEOMETRY.size)
        if command == "delete" and await is_half_deleted(store):
            with pytest.raises(ExportUnusable, match="deleted in part"):
                await upload_again(store, tmp_path)
            await delete(store, name=NAME, tell=Told(), retry_seconds=0)
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
        assert result["notes"] == [] or command == "bench"  # whose objects an upload leaves
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
            assert command in NO_DISK
        assert await store.info() is None, f"killed at {at}"


async def disk_bytes(store: MemoryStore) -> bytes:
    """Read from the store itself, by what its metadata say."""
    info = await store.info()
    assert info is not None
    count = int(info.metadata["swiftnbd-objects"])
    blobs = [await store.get(object_name(index)) for index in range(count)]
    return b"".join(bytes(OBJECT_SIZE) if blob is None else blob.data for blob in blobs)


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
async def test_killed_copy_goes_on(
    done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into a container that was empty it needs no --force, whatever it left there."""
    for at in range(1, REQUESTS_MAX):
        account = MemoryAccount()
        await prepare_source(account)
        source, target = MemoryStore(SOURCE, account), MemoryStore(NAME, account)
        if await killed("copy", at, done, tmp_path, monkeypatch, account) is None:
            break
        is_begun = bool(await target.listing(prefix="disk.part/")) if await target.info() else False
        if not is_begun or await target.head(COPY):  # else it was done
            await copy_it(target, force=False)
        assert await disk_bytes(target) == await disk_bytes(source), f"killed at {at}"
    assert 10 < at < REQUESTS_MAX - 1


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
async def test_killed_resize_keeps_what_was_kept_and_brings_nothing_back(
    done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = image_bytes(0)
    for at in range(1, REQUESTS_MAX):
        account = await killed("resize", at, done, tmp_path, monkeypatch)
        if account is None:
            break
        store = MemoryStore(NAME, account)
        assert (await disk_bytes(store))[:KEPT] == before[:KEPT], f"killed at {at}"
        await resize_to(store, KEPT)
        await resize_to(store, len(before))
        after = await disk_bytes(store)
        assert after == before[:KEPT] + bytes(len(before) - KEPT), f"killed at {at}"
    assert 10 < at < REQUESTS_MAX - 1


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
async def test_killed_delete_leaves_all_of_a_disk_or_none_that_is_served(
    done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = refused = 0
    for at in range(1, REQUESTS_MAX):
        account = await killed("delete", at, done, tmp_path, monkeypatch)
        if account is None:
            break
        store = MemoryStore(NAME, account)
        for writable in (False, True):
            export = Export(NAME, store, read_only=not writable)
            try:
                await export.load()
                device = await export.attach(Client("peer", "127.0.0.1", 1))
            except (ContainerMissing, ExportUnusable):
                refused += 1
                continue
            whole += 1
            found = b"".join(await device.read(0, GEOMETRY.size))
            assert found == image_bytes(0), f"killed at {at}"
            await export.detach()
            await export.shut_down()
        if await store.info() is not None:
            await delete(store, name=NAME, tell=Told(), retry_seconds=0)
        assert await store.info() is None
    assert whole > 10
    assert refused > 10


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
async def test_killed_trim_changes_no_byte(
    done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(1, REQUESTS_MAX):
        account = await killed("trim", at, done, tmp_path, monkeypatch)
        if account is None:
            break
        store = MemoryStore(NAME, account)
        assert await disk_bytes(store) == image_bytes(0), f"killed at {at}"
        assert await download_it(store, tmp_path) == image_bytes(0)
    assert 5 < at < REQUESTS_MAX - 1
