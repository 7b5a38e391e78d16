# SPDX-License-Identifier: MIT
"""Commands that end early, by Ctrl-C at any of their requests, or a SIGKILL: what is left?

No lock after a Ctrl-C. A second ``setup`` or ``resize`` finishes it; no byte that was to stay is
lost, and none that was given up comes back.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from swiftnbd.cli.ctl_check import check
from swiftnbd.cli.ctl_copy import CopyRequest, copy
from swiftnbd.cli.ctl_download import download
from swiftnbd.cli.ctl_resize import make_plan, resize
from swiftnbd.cli.ctl_setup import SetupRequest, setup
from swiftnbd.cli.ctl_upload import UploadRequest, upload
from swiftnbd.cli.image import ImageFile
from swiftnbd.cli.source import Source
from swiftnbd.cli.unfinished import UPLOAD, is_unfinished
from swiftnbd.errors import ExportUnusable
from swiftnbd.export import lock as lock_module
from swiftnbd.export.layout import (
    Geometry,
    deleting_metadata,
    is_deleted,
    object_name,
    parse_metadata,
)
from swiftnbd.export.pace import Pace
from swiftnbd.export.watch import sight
from swiftnbd.store.base import Store
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from tests.integration.conftest import NAME, OBJECT_SIZE, Told, dead_process
from tests.integration.test_ctl_killed import COMMANDS, prepared
from tests.support.doomed import Doomed, Interrupted, Killed

OBJECTS = 6
REQUESTS_MAX = 200
SIZE = OBJECTS * OBJECT_SIZE
BEFORE = b"".join(bytes([i]) * OBJECT_SIZE if i % 2 else bytes(OBJECT_SIZE) for i in range(OBJECTS))

Work = Callable[[Store], Awaitable[object]]


async def set_up(store: Store, objects: int = OBJECTS, *, force: bool = False) -> None:
    request = SetupRequest(Geometry(objects, OBJECT_SIZE), force=force, exist_ok=True)
    await setup(store, name=NAME, request=request, tell=Told())


async def write(store: Store) -> None:
    for index in range(1, OBJECTS, 2):
        await store.put(object_name(index), bytes([index]) * OBJECT_SIZE)
    await store.set_metadata({"swiftnbd-last": "host:7@1700000000"})  # who keeps no map


async def resize_to(store: Store, size: int) -> None:
    plan = await make_plan(store, name=NAME, size=size)
    if plan.before != plan.after:
        await resize(store, name=NAME, plan=plan, quiet=True, tell=Told())


async def run_to_its_end(
    work: Work, account: MemoryAccount, at: int, *, done: bool, by: type[Doomed]
) -> bool:
    """Whether it was killed or interrupted at that request; else it was finished before."""
    store = by(NAME, account, at, done=done)
    task = asyncio.ensure_future(work(store))
    store.tasks.append(task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock_module, "current_process", dead_process)
        try:
            await task
        except (Killed, asyncio.CancelledError):
            return True
    return store.left[0] <= 0


async def disk_bytes(store: Store) -> bytes:
    """Read from the store itself, by what its metadata say."""
    info = await store.info()
    assert info is not None
    geometry = parse_metadata(info.metadata).geometry
    blobs = [await store.get(object_name(index)) for index in range(geometry.objects)]
    return b"".join(bytes(OBJECT_SIZE) if blob is None else blob.data for blob in blobs)


async def assert_unlocked(store: Store) -> None:
    if await store.info() is not None:
        assert not (await sight(store)).holder


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "lock"])
async def test_interrupted_command_leaves_no_lock(command: str, done: bool, tmp_path: Path) -> None:
    for at in range(1, REQUESTS_MAX):
        account = await prepared(command, tmp_path)
        held_before = ""
        if command == "unlock":
            held_before = (await sight(MemoryStore(NAME, account))).holder

        def work(doomed: Store) -> Awaitable[object]:
            return COMMANDS[command](doomed, tmp_path)

        if not await run_to_its_end(work, account, at, done=done, by=Interrupted):
            break
        for name in account.containers:
            store = MemoryStore(name, account)
            info = await store.info()
            assert info is not None
            if not is_deleted(info.metadata):
                assert (await sight(store)).holder in ("", held_before), f"interrupted at {at}"
    assert 1 < at < REQUESTS_MAX - 1


async def upload_it(store: Store, folder: Path) -> None:
    (folder / "image").write_bytes(BEFORE)
    with Source(str(folder / "image")) as source:
        wanted = SetupRequest(Geometry(OBJECTS, OBJECT_SIZE), exist_ok=True)
        request = UploadRequest(wanted, False, True, Pace())
        await upload(store, name=NAME, source=source, request=request, tell=Told())


async def look_at(store: Store, folder: Path) -> None:
    """As two who hold its lock and change nothing: a download, and a copy to another."""
    with ImageFile(str(folder / "out"), force=True, container=NAME) as file:
        await download(store, name=NAME, file=file, quiet=True, tell=Told())
    assert isinstance(store, MemoryStore)
    request = CopyRequest(NAME, "other", setup=True, force=True, quiet=True)
    await copy(store, MemoryStore("other", store.account), request=request, tell=Told())


@pytest.mark.parametrize("by", [Doomed, Interrupted], ids=["killed", "interrupted"])
async def test_upload_that_ended_early_goes_on_unforced_after_somebody_has_looked_at_it(
    by: type[Doomed], tmp_path: Path
) -> None:
    looked = 0
    for at in range(1, REQUESTS_MAX):
        account = MemoryAccount()
        store = MemoryStore(NAME, account)
        if not await run_to_its_end(
            lambda doomed: upload_it(doomed, tmp_path), account, at, done=True, by=by
        ):
            break
        if await store.info() and await is_unfinished(store, UPLOAD):
            looked += 1
            await look_at(store, tmp_path)
            await upload_it(store, tmp_path)
            assert await disk_bytes(store) == BEFORE
    assert looked > 5
    assert at < REQUESTS_MAX - 1


ends = pytest.mark.parametrize("by", [Doomed, Interrupted], ids=["killed", "interrupted"])
dones = pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])


@ends
@dones
@pytest.mark.parametrize(
    "size",
    [SIZE + 5 * OBJECT_SIZE, 4 * OBJECT_SIZE, 4 * OBJECT_SIZE - 100, OBJECT_SIZE - 1],
    ids=["larger", "smaller", "within an object that is stored", "within one that is not"],
)
async def test_resize_that_ends_early_is_finished_by_a_second_one(
    size: int, done: bool, by: type[Doomed]
) -> None:
    expected = BEFORE[:size] + bytes(-(-size // OBJECT_SIZE) * OBJECT_SIZE - len(BEFORE[:size]))
    for at in range(1, REQUESTS_MAX):
        account = MemoryAccount()
        store = MemoryStore(NAME, account)
        await set_up(store)
        await write(store)
        if not await run_to_its_end(
            lambda doomed: resize_to(doomed, size), account, at, done=done, by=by
        ):
            break
        if by is Interrupted:
            await assert_unlocked(store)
        left = await disk_bytes(store)
        assert left[: min(size, SIZE)] == BEFORE[:size], f"ended at {at}"
        assert len(left) in (SIZE, len(expected))
        await resize_to(store, size)
        assert await disk_bytes(store) == expected, f"ended at {at}"
        await resize_to(store, 2 * SIZE)
        assert await disk_bytes(store) == BEFORE[:size] + bytes(2 * SIZE - len(BEFORE[:size]))
        result = await check(store, name=NAME, fast=False, quiet=True, tell=Told())
        assert result["good"], result
        assert not result["notes"]
    assert 8 < at < REQUESTS_MAX - 1


async def nothing(_account: MemoryAccount) -> bytes:
    return bytes(SIZE)


async def a_smaller_disk(account: MemoryAccount) -> bytes:
    store = MemoryStore(NAME, account)
    await set_up(store, OBJECTS - 2)
    await store.put(object_name(1), b"x" * OBJECT_SIZE)
    return bytes(OBJECT_SIZE) + b"x" * OBJECT_SIZE + bytes((OBJECTS - 2) * OBJECT_SIZE)


async def a_half_deleted_disk(account: MemoryAccount) -> bytes:
    """Its deletion was killed; the third object is left."""
    store = MemoryStore(NAME, account)
    await set_up(store)
    await store.put(object_name(2), b"x" * OBJECT_SIZE)
    await store.set_metadata(deleting_metadata())
    return bytes(2 * OBJECT_SIZE) + b"x" * OBJECT_SIZE + bytes(SIZE - 3 * OBJECT_SIZE)


@ends
@dones
@pytest.mark.parametrize("before", [nothing, a_smaller_disk, a_half_deleted_disk])
async def test_setup_that_ends_early_is_finished_by_a_second_one(
    before: Callable[[MemoryAccount], Awaitable[bytes]], done: bool, by: type[Doomed]
) -> None:
    force = before is not nothing
    for at in range(1, REQUESTS_MAX):
        account = MemoryAccount()
        store = MemoryStore(NAME, account)
        expected = await before(account)
        if not await run_to_its_end(
            lambda doomed: set_up(doomed, force=force), account, at, done=done, by=by
        ):
            break
        if by is Interrupted:
            await assert_unlocked(store)
        with suppress(ExportUnusable):  # not before the second one
            if await store.info() is not None:
                left = await disk_bytes(store)
                assert left == expected[: len(left)]
        await set_up(store, force=force)
        assert await disk_bytes(store) == expected, f"ended at {at}"
        result = await check(store, name=NAME, fast=False, quiet=True, tell=Told())
        assert result["good"], result
    assert 5 < at < REQUESTS_MAX - 1
