# SPDX-License-Identifier: MIT
"""What waits until nobody uses an export."""

import asyncio

import pytest

from swiftnbd.errors import ContainerMissing, StoreUnavailable
from swiftnbd.export import export as export_module
from swiftnbd.export.export import Client, Export
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.export.settings import CacheSettings
from swiftnbd.export.turns import Turns
from swiftnbd.store.base import Body
from swiftnbd.store.memory import MemoryStore
from tests.support.loopback import until

CLIENT = Client("c", "192.0.2.1", 7)


class Moody(MemoryStore):
    is_down = False

    async def put(self, name: str, data: Body, **options: object) -> str:
        if self.is_down:
            raise StoreUnavailable("down")
        return await super().put(name, data)


async def export_of(store: MemoryStore) -> Export:
    await store.create_container(setup_metadata(Geometry(4, 4096)))
    export = Export("disk", store, cache=CacheSettings(retry_seconds=0.01))
    await export.load()
    return export


async def test_action_is_done_at_once_or_after_the_turn_in_which_it_becomes_idle() -> None:
    idle, done = True, list[str]()
    turns = Turns(lambda: idle)
    assert turns.when_idle(lambda: done.append("at once"))
    async with turns:
        assert not turns.when_idle(lambda: done.append("never"))
        assert not turns.when_idle(lambda: done.append("later"))
        idle = False
    assert done == ["at once"]
    async with turns:
        idle = True
    assert done == ["at once", "later"]
    async with turns:
        pass
    assert done == ["at once", "later"]


async def test_who_waits_for_a_turn_finds_what_was_done_before() -> None:
    export = await export_of(MemoryStore("disk"))
    await export.attach(CLIENT)
    assert not export.turns.when_idle(export.retire)
    leaving = asyncio.create_task(export.detach())
    coming = asyncio.create_task(export.attach(CLIENT))
    await leaving
    with pytest.raises(ContainerMissing, match="not exported any more"):
        await coming
    assert not export.attached


@pytest.mark.allows_log("could not be stored|kept locked|not be kept")
async def test_what_could_not_be_stored_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "KEPT_RETRY_SECONDS", 0.01)
    store = Moody("disk")
    export = await export_of(store)
    device = await export.attach(CLIENT)
    store.is_down = True
    await device.write(0, b"x" * 4096)
    done: list[bool] = []
    assert not export.turns.when_idle(lambda: done.append(True))
    await export.detach()
    assert (export.attached, done) == (True, [])
    store.is_down = False
    await until(lambda: bool(done))
    assert not export.attached
    await export.abandon()


async def test_changed_settings_keep_the_counters() -> None:
    export = await export_of(MemoryStore("disk"))
    counters, other = export.counters, await export_of(MemoryStore("disk"))
    other.read_only, other.multi_conn = True, False
    export.change(other)
    assert (export.read_only, export.multi_conn, export.store) == (True, False, other.store)
    assert export.counters is counters
    await export.look_again()
    await export.attach(CLIENT)
    assert export.status.holder == ""
    await export.detach()
