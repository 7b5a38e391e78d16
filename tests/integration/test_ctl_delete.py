# SPDX-License-Identifier: MIT
import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from swiftnbd.cli import ctl_delete
from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.ctl_check import check
from swiftnbd.cli.ctl_delete import delete, summarize
from swiftnbd.cli.ctl_info import examine
from swiftnbd.cli.ctl_list import describe
from swiftnbd.cli.ctl_lock import lock, unlock
from swiftnbd.cli.ctl_setup import SetupRequest, setup
from swiftnbd.cli.ctl_upload import UploadRequest, upload
from swiftnbd.cli.run import run
from swiftnbd.cli.source import Source
from swiftnbd.errors import (
    ContainerMissing,
    ContainerNotEmpty,
    ExportUnusable,
    Locked,
    StoreUnavailable,
    SwiftnbdError,
)
from swiftnbd.export.epoch import EPOCH_PREFIX
from swiftnbd.export.export import Client, Export
from swiftnbd.export.layout import OWN_PREFIX, Geometry, object_name
from swiftnbd.export.pace import Pace
from swiftnbd.store.base import Listed, Store
from swiftnbd.store.memory import MemoryStore
from tests.integration.conftest import HELD, HOLDER, NAME, OBJECT_SIZE, Told, metadata


async def set_up(store: Store, objects: int, *, force: bool = False) -> None:
    request = SetupRequest(Geometry(30_000, OBJECT_SIZE), force=force)
    await setup(store, name=NAME, request=request, tell=Told())
    for index in range(objects):
        await store.put(object_name(index), bytes(OBJECT_SIZE))


async def test_container_goes_with_everything_in_it(disk: Store, told: Told) -> None:
    await disk.put(object_name(3), b"x")
    await disk.put("swiftnbd/map", b"x")
    await disk.put("letters/mum.txt", b"x")
    summary = await delete(disk, name=NAME, tell=told)
    assert await disk.info() is None
    assert summary["objects_deleted"] == 5  # and the map, and the epoch of `setup`


async def test_locked_container_is_not_deleted(disk: Store, told: Told) -> None:
    await disk.put(object_name(3), b"x")
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    with pytest.raises(Locked, match=f"^{HELD}$"):
        await delete(disk, name=NAME, tell=told)
    assert await disk.head(object_name(3))


async def test_what_is_no_disk_is_not_deleted(store: Store, told: Told) -> None:
    with pytest.raises(ContainerMissing, match="disk doesn't exist"):
        await delete(store, name=NAME, tell=told)
    await store.create_container()
    await store.put("letters/mum.txt", b"x")
    with pytest.raises(ExportUnusable, match="disk: it is not set up"):
        await delete(store, name=NAME, tell=told)
    assert await store.head("letters/mum.txt")


async def test_more_than_a_page_of_objects_is_deleted(told: Told) -> None:
    store = MemoryStore(NAME)
    await set_up(store, 20_001)
    await delete(store, name=NAME, tell=told)
    assert await store.info() is None


class Lagging(MemoryStore):
    """Its listings, and its word on being empty, lag behind by so many attempts."""

    def __init__(self, attempts: int) -> None:
        super().__init__(NAME)
        self.attempts = attempts
        self.deleted: list[str] = []

    async def delete(self, name: str) -> bool:
        self.deleted.append(name)
        return await super().delete(name)

    async def listing(self, **options: str) -> list[Listed]:  # type: ignore[override]
        if not options.get("after") and self.deleted and self.attempts:
            return [Listed(object_name(0), OBJECT_SIZE)]
        return await super().listing(**options)  # type: ignore[arg-type]

    async def delete_container(self) -> bool:
        if self.attempts:
            self.attempts -= 1
            raise ContainerNotEmpty("409")
        return await super().delete_container()


async def test_listing_that_lags_behind_is_waited_for(told: Told) -> None:
    store = Lagging(attempts=3)
    await set_up(store, 5)
    await delete(store, name=NAME, tell=told, retry_seconds=0)
    assert await store.info() is None


async def test_listing_that_never_catches_up_is_one_sentence(told: Told) -> None:
    store = Lagging(attempts=100)
    await set_up(store, 5)
    with pytest.raises(SwiftnbdError, match="disk is emptied, but the store still lists objects"):
        await delete(store, name=NAME, tell=told, retry_seconds=0)
    assert "client" not in await metadata(store)


async def test_disk_that_is_set_up_while_the_listing_lags_behind_is_left_alone(told: Told) -> None:
    class SetUpAgain(Lagging):
        async def delete_container(self) -> bool:
            if self.attempts == 3:
                await set_up(self, 2, force=True)
            return await super().delete_container()

    store = SetUpAgain(attempts=3)
    await set_up(store, 5)
    with pytest.raises(SwiftnbdError, match="disk was emptied, and is set up anew since"):
        await delete(store, name=NAME, tell=told, retry_seconds=0)
    assert await store.head(object_name(0))
    assert await store.head(object_name(1))


async def test_epoch_lives_until_all_others_are_gone(told: Told) -> None:
    store = Lagging(attempts=0)
    await set_up(store, 40)
    await delete(store, name=NAME, tell=told)
    assert set(store.deleted) >= {object_name(number) for number in range(40)}
    assert store.deleted[-1] == EPOCH_PREFIX + "2"


class Slow(MemoryStore):
    """Deletes wait until they are let go."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self.at_work = 0
        self.busy = asyncio.Event()
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def delete(self, name: str) -> bool:
        if not name.startswith(OWN_PREFIX):
            self.at_work += 1
            if self.at_work == 16:
                self.busy.set()
            await self.go_on.wait()
            self.at_work -= 1
            if self.error:
                raise self.error
        return await super().delete(name)


async def test_sixteen_objects_are_deleted_at_once(told: Told) -> None:
    store = Slow()
    await set_up(store, 100)
    task = asyncio.create_task(delete(store, name=NAME, tell=told))
    await store.busy.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert store.at_work == 16
    store.go_on.set()
    await task


async def test_interrupted_delete_gives_the_lock_back(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def bar(*_arguments: object, **_options: object) -> Iterator[Callable[[int], None]]:
        try:
            yield lambda _amount: None
        finally:
            told.append("(the bar is gone)")

    monkeypatch.setattr(ctl_delete, "progress", bar)
    store = Slow()
    await set_up(store, 100)
    task = asyncio.create_task(delete(store, name=NAME, tell=told))
    await store.busy.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "client" not in await metadata(store)
    assert told == [
        "(the bar is gone)",
        "disk is deleted in part, and nobody can use it; the same command goes on",
    ]


HALF = "disk: it is deleted in part; to finish that, run: swiftnbd-ctl delete; to use what is left"


async def half_deleted(store: Slow) -> None:
    """A disk of four objects of which a deletion has removed all but the first."""
    await set_up(store, 4, force=True)
    store.error = StoreUnavailable("no answer in 15 s")
    store.go_on.set()
    with pytest.raises(StoreUnavailable):
        await delete(store, name=NAME, tell=Told())
    store.error = None
    await store.put(object_name(0), b"a" * OBJECT_SIZE)


async def test_half_deleted_disk_is_served_by_nobody() -> None:
    store = Slow()
    await half_deleted(store)
    assert "version" not in await metadata(store)  # nor by swiftnbd 0.11
    for read_only in (False, True):
        with pytest.raises(ExportUnusable, match="it is deleted in part"):
            await Export(NAME, store, read_only=read_only).load()


async def test_disk_whose_deletion_begins_is_not_attached_by_a_server_that_knew_it_before() -> None:
    store = Slow()
    await set_up(store, 4)
    export = Export(NAME, store)
    await export.load()
    await half_deleted(store)
    with pytest.raises(ExportUnusable, match="it is deleted in part"):
        await export.attach(Client("peer", "127.0.0.1", 1))


async def test_commands_say_that_a_disk_is_half_deleted(told: Told, tmp_path: Path) -> None:
    store = Slow()
    await half_deleted(store)
    set_up_anew = SetupRequest(Geometry(8, OBJECT_SIZE), exist_ok=True)
    (tmp_path / "image").write_bytes(b"x")
    with Source(str(tmp_path / "image")) as source:
        request = UploadRequest(None, True, True, Pace())
        for refused in (
            examine(store, name=NAME),
            describe(store, NAME, count=True),
            check(store, name=NAME, fast=False, quiet=True, tell=told),
            setup(store, name=NAME, request=set_up_anew, tell=told),
            lock(store, name=NAME, tell=told),
            upload(store, name=NAME, source=source, request=request, tell=told),
        ):
            with pytest.raises(ExportUnusable, match=f"^{HALF}"):
                await refused
    assert await unlock(store, name=NAME, tell=told) == 1
    assert told == ["disk is not locked, nothing to do"]


async def test_half_deleted_disk_is_asked_about_and_goes_on(told: Told) -> None:
    store = Slow()
    await half_deleted(store)
    question = await summarize(store, name=NAME)
    assert question.startswith("disk, which is deleted in part, with what is left of it, 5 objects")
    await delete(store, name=NAME, tell=told)
    assert await store.info() is None


async def test_what_is_left_of_a_half_deleted_disk_is_used_by_force(told: Told) -> None:
    store = Slow()
    await half_deleted(store)
    for wrong in (2 * OBJECT_SIZE, OBJECT_SIZE // 2):
        request = SetupRequest(Geometry(8, wrong), force=True)
        with pytest.raises(SwiftnbdError, match="holds a disk in objects of"):
            await setup(store, name=NAME, request=request, tell=told)
    request = SetupRequest(Geometry(8, OBJECT_SIZE), force=True)
    await setup(store, name=NAME, request=request, tell=told)
    export = Export(NAME, store)
    await export.load()
    device = await export.attach(Client("peer", "127.0.0.1", 1))
    found = b"".join(await device.read(0, 2 * OBJECT_SIZE))
    assert found == b"a" * OBJECT_SIZE + bytes(OBJECT_SIZE)
    await export.shut_down()


async def test_half_deleted_disk_is_not_used_by_force_while_its_deletion_is_at_work(
    told: Told,
) -> None:
    store = Slow()
    await set_up(store, 100)
    task = asyncio.create_task(delete(store, name=NAME, tell=told))
    await store.busy.wait()
    request = SetupRequest(Geometry(8, OBJECT_SIZE), force=True)
    with pytest.raises(Locked):
        await setup(store, name=NAME, request=request, tell=told)
    with pytest.raises(Locked):
        await delete(store, name=NAME, tell=told)
    store.go_on.set()
    await task
    assert await store.info() is None


async def test_failed_delete_gives_the_lock_back(told: Told) -> None:
    store = Slow()
    store.error = StoreUnavailable("no answer in 15 s")
    store.go_on.set()
    await set_up(store, 3)
    with pytest.raises(StoreUnavailable, match="no answer"):
        await delete(store, name=NAME, tell=told)
    assert "client" not in await metadata(store)


async def test_summary_says_what_would_be_lost(disk: Store) -> None:
    await disk.put(object_name(0), bytes(4096))
    assert await summarize(disk, name=NAME) == (
        "disk, a disk of 32 KiB, with its 3 objects (4.4 KiB)"  # two of them ours, small
    )


@pytest.mark.parametrize(
    ("flags", "is_terminal", "answer", "asked", "code"),
    [
        ([], True, True, True, 0),
        ([], True, False, True, 1),
        (["--yes"], True, False, False, 0),
        ([], False, False, False, 0),  # as swiftnbd 0.11, which never asked
    ],
)
def test_question_is_for_terminals(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    is_terminal: bool,
    answer: bool,
    asked: bool,
    code: int,
) -> None:
    questions = []

    def confirm(question: str, **_: object) -> bool:
        questions.append(question)
        return answer

    monkeypatch.setattr(click, "confirm", confirm)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: is_terminal)
    place = ["-a", f"file:{tmp_path}"]
    assert run(ctl, "swiftnbd-ctl", [*place, "setup", NAME, "2"]) == 0
    assert run(ctl, "swiftnbd-ctl", [*place, "delete", NAME, *flags]) == code
    assert len(questions) == asked
    assert (tmp_path / NAME).exists() == (code != 0)
