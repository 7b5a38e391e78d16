# SPDX-License-Identifier: MIT
"""The faulty store: what it is told to do wrong it does, and nothing else."""

import asyncio

import pytest

from swiftnbd.errors import StoreFull, StoreUnavailable
from swiftnbd.store.base import Blob, Store
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from tests.store.contract import BackDoor, StoreContract, etag_of
from tests.store.test_memory import MemoryBack
from tests.support.faulty import (
    Call,
    Fault,
    Faulty,
    Gate,
    Script,
    Seeded,
    corrupt_body,
    failing,
    late,
    reply_lost,
    short_body,
)

NAME = "disk.part/00000001"


class TestFaultyStoreWithoutFaults(StoreContract):
    """Told nothing, it is a store like any other."""

    @pytest.fixture
    def fresh(self) -> Store:
        return Faulty(MemoryStore("disk"))

    @pytest.fixture
    async def store(self, fresh: Store) -> Store:
        await fresh.create_container()
        return fresh

    def beside(self, store: Store, *, impatient: bool = False) -> Store:
        assert store.place is not None
        assert isinstance(store.place.home, MemoryAccount)
        return Faulty(MemoryStore("other", store.place.home))

    @pytest.fixture
    def back(self, store: Faulty) -> BackDoor:
        assert isinstance(store.store, MemoryStore)
        return MemoryBack(store.store)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def store(script: Script) -> Faulty:
    store = Faulty(MemoryStore("disk"), script)
    await store.create_container()
    await store.put(NAME, b"first")
    await store.put(NAME, b"second")
    return store


async def read(store: Store) -> bytes | None:
    blob = await store.get(NAME)
    return None if blob is None else blob.data


async def test_failing_put_has_no_effect(store: Faulty, script: Script) -> None:
    script.on("put", failing(StoreFull("full")))
    with pytest.raises(StoreFull):
        await store.put(NAME, b"third")
    assert await read(store) == b"second"
    await store.put(NAME, b"third")
    assert await read(store) == b"third"


async def test_lost_reply_has_an_effect(store: Faulty, script: Script) -> None:
    script.on("put", reply_lost(), name=NAME)
    await store.put("other", b"")
    with pytest.raises(StoreUnavailable, match="lost"):
        await store.put(NAME, b"third")
    assert await read(store) == b"third"


async def test_held_call_takes_effect_when_the_gate_opens(store: Faulty, script: Script) -> None:
    gate = script.hold("put")
    task = asyncio.create_task(store.put(NAME, b"third"))
    await gate.arrived.wait()
    assert await read(store) == b"second"
    assert store.at_once == 1
    gate.open()
    await task
    assert await read(store) == b"third"
    assert (store.at_once, store.at_once_max) == (0, 2)


async def test_reply_held_back_comes_after_the_effect(store: Faulty, script: Script) -> None:
    gate = Gate()
    script.on("put", Fault(after=gate))
    task = asyncio.create_task(store.put(NAME, b"third"))
    await gate.arrived.wait()
    assert await read(store) == b"third"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert store.at_once == 0


async def test_body_that_changes_under_way_is_noticed(store: Faulty, script: Script) -> None:
    gate, body = script.hold("put"), bytearray(b"third")
    task = asyncio.create_task(store.put(NAME, body))
    await gate.arrived.wait()
    body[0] += 1
    gate.open()
    with pytest.raises(AssertionError, match="changed under way"):
        await task


async def test_bodies_are_short_corrupt_and_stale_on_command(store: Faulty, script: Script) -> None:
    script.on("get", short_body(2))
    script.on("get", corrupt_body(1))
    script.on("get", Fault(stale=True))
    assert [await read(store) for _ in range(4)] == [b"seco", b"s\x9acond", b"first", b"second"]


async def test_stale_read_after_a_delete_brings_the_bytes_back(
    store: Faulty, script: Script
) -> None:
    await store.delete(NAME)
    script.on("get", Fault(stale=True), times=2)
    newest = await store.get(NAME, newest=True)
    assert newest is None
    assert await read(store) == b"second"


def test_seeded_plan_repeats_itself() -> None:
    faults = [failing(), reply_lost()]
    plans = [Seeded(seed, {"put": 0.5}, faults) for seed in (7, 7, 8)]
    drawn = [[plan(Call("put", NAME)) for _ in range(50)] for plan in plans]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {fault in drawn[0] for fault in (None, *faults)} == {True}
    assert plans[0](Call("get", NAME)) is None


async def test_late_change_fails_and_is_made_when_it_lands(store: Faulty, script: Script) -> None:
    script.on("put", late())
    with pytest.raises(StoreUnavailable):
        await store.put(NAME, b"late")
    assert await store.get(NAME) == Blob(b"second", etag_of(b"second"))
    await store.land()
    assert await store.get(NAME) == Blob(b"late", etag_of(b"late"))
    script.on("delete", late())
    with pytest.raises(StoreUnavailable):
        await store.delete(NAME)
    await store.land()
    assert await store.get(NAME) is None


async def test_late_change_does_not_undo_a_newer_one(store: Faulty, script: Script) -> None:
    for op in ("put", "delete"):
        script.on(op, late())
    with pytest.raises(StoreUnavailable):
        await store.put(NAME, b"late")
    with pytest.raises(StoreUnavailable):
        await store.delete(NAME)
    await store.put(NAME, b"newer")
    await store.land()
    assert await store.get(NAME) == Blob(b"newer", etag_of(b"newer"))


async def test_late_change_of_a_server_that_died_can_be_forgotten(
    store: Faulty, script: Script
) -> None:
    script.on("put", late())
    with pytest.raises(StoreUnavailable):
        await store.put(NAME, b"late")
    store.forget_late()
    await store.land()
    assert await store.get(NAME) == Blob(b"second", etag_of(b"second"))
