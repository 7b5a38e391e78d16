# SPDX-License-Identifier: MIT
"""A server gives out what an upload that was cut short left, and says what it is."""

import asyncio
from pathlib import Path

import pytest

from swiftnbd.cli.ctl_setup import SetupRequest
from swiftnbd.cli.ctl_upload import UploadRequest, upload
from swiftnbd.cli.source import Source
from swiftnbd.export.export import Client, Export
from swiftnbd.export.layout import Geometry, object_name
from swiftnbd.export.pace import Pace
from swiftnbd.store.base import Store
from swiftnbd.store.directory import DirectoryStore
from tests.integration.conftest import NAME, OBJECT_SIZE, Told
from tests.support.faulty import Fault, Faulty, Gate, Script, failing
from tests.support.log_watch import LogWatch
from tests.support.loopback import until

OBJECTS = 4
CLIENT = Client("peer", "client.example", 1)
SAID = rf"WARNING .*: {NAME}: a swiftnbd-ctl upload into it has not come to its end"


async def upload_to(store: Store, folder: Path) -> None:
    (folder / "image").write_bytes(b"x" * OBJECTS * OBJECT_SIZE)
    with Source(str(folder / "image")) as source:
        wanted = SetupRequest(Geometry(OBJECTS, OBJECT_SIZE), exist_ok=True)
        request = UploadRequest(wanted, False, True, Pace())
        await upload(store, name=NAME, source=source, request=request, tell=Told())


@pytest.fixture
async def store(tmp_path: Path) -> Store:
    """A folder into which an upload was interrupted."""
    store = DirectoryStore(tmp_path, NAME)
    script, gate = Script(), Gate()
    script.on("put", Fault(before=gate), name=object_name(1))
    task = asyncio.ensure_future(upload_to(Faulty(store, script), tmp_path))
    await gate.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return store


async def attached(store: Store, *, read_only: bool = False) -> Export:
    export = Export(NAME, store, read_only=read_only)
    await export.load()
    await export.attach(CLIENT)
    return export


@pytest.mark.parametrize("read_only", [False, True], ids=["locked", "read-only"])
async def test_unfinished_upload_is_told_of_when_it_is_served(
    store: Store, read_only: bool, log_watch: LogWatch
) -> None:
    log_watch.expected.append(SAID)
    export = await attached(store, read_only=read_only)
    await until(lambda: not log_watch.missing())
    await export.detach()
    await store.close()


async def test_complete_upload_is_served_without_a_word(store: Store, tmp_path: Path) -> None:
    await upload_to(store, tmp_path)
    script, gate = Script(), Gate()
    script.on("listing", Fault(after=gate))
    export = await attached(Faulty(store, script))
    await gate.arrived.wait()
    gate.open()
    await export.detach()
    await store.close()


async def test_export_is_served_though_nobody_knows_whether_it_is_complete(store: Store) -> None:
    script = Script()
    script.on("listing", failing(), times=100)
    faulty = Faulty(store, script)
    export = await attached(faulty)
    await until(lambda: faulty.count("listing") == 1)
    await export.detach()
    assert not export.attached
    await store.close()


async def test_attach_and_detach_do_not_wait_for_the_mark_of_an_upload(store: Store) -> None:
    script, gate = Script(), Gate()
    script.on("listing", Fault(before=gate))
    export = await attached(Faulty(store, script))
    await gate.arrived.wait()
    await export.detach()
    assert not export.attached
    await store.close()


async def test_the_marks_cost_one_request(store: Store, log_watch: LogWatch) -> None:
    log_watch.expected.append(SAID)
    faulty = Faulty(store, Script())
    export = await attached(faulty)
    await until(lambda: not log_watch.missing())
    await export.detach()
    assert faulty.count("listing") == 1
    await store.close()
