# SPDX-License-Identifier: MIT
"""A container that is held and that nobody uses is let go of, whatever the last user met."""

import asyncio

import pytest

from swiftnbd.errors import ContainerMissing
from swiftnbd.export import export as export_module
from swiftnbd.export.export import Client, Export
from swiftnbd.export.holders import NOBODY
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.export.settings import CacheSettings
from swiftnbd.export.watch import sight
from swiftnbd.store.memory import MemoryStore
from tests.support.disks import SIZE, begin
from tests.support.faulty import Fault, Faulty, Gate, Script, failing
from tests.support.loopback import until

CLIENT = Client("peer", "client.example", 1)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "KEPT_RETRY_SECONDS", 0.01)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def export(script: Script) -> Export:
    memory = MemoryStore("disk")
    await memory.create_container(setup_metadata(Geometry(8, SIZE)))
    export = Export("disk", Faulty(memory, script), cache=CacheSettings(cache_bytes=8 * SIZE))
    await export.load()
    return export


async def cancel_at(gate: Gate, task: "asyncio.Task[object]") -> None:
    await gate.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("op", ["put", "set_metadata"])
async def test_lock_of_an_attach_that_was_cancelled_is_released(
    export: Export, script: Script, op: str
) -> None:
    gate = Gate()
    script.on(op, Fault(after=gate))
    await cancel_at(gate, begin(export.attach(CLIENT)))
    assert export.attached
    assert (await sight(export.store)).epochs
    await until(lambda: not export.attached)
    assert await sight(export.store) == NOBODY


async def test_what_a_cancelled_detach_left_is_let_go_of(export: Export, script: Script) -> None:
    device = await export.attach(CLIENT)
    await device.write(0, b"x" * SIZE)
    gate = Gate()
    script.on("put", Fault(before=gate), name="disk.part/00000000")
    await cancel_at(gate, begin(export.detach()))
    gate.open()
    await until(lambda: not export.attached)
    blob = await export.store.get("disk.part/00000000")
    assert blob is not None
    assert blob.data == b"x" * SIZE


@pytest.mark.allows_log("could not be stored|kept locked|not be kept")
async def test_refused_client_does_not_end_the_tries_to_let_go(
    export: Export, script: Script
) -> None:
    device = await export.attach(CLIENT)
    await device.write(0, b"x" * SIZE)
    script.on("put", failing(), times=1000)
    await export.detach()
    export.retire()
    with pytest.raises(ContainerMissing, match="not exported any more"):
        await export.attach(CLIENT)
    script.clear()
    await until(lambda: not export.attached)
