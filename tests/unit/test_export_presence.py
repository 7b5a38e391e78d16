# SPDX-License-Identifier: MIT
"""The map of which objects exist: kept at a clean end, and used only while nobody else wrote."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from swiftnbd.api.device import Extent
from swiftnbd.export.disk import ObjectDevice
from swiftnbd.export.export import Client, Export
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.export.objects import PRESENCE
from swiftnbd.export.watch import break_lock, sight
from swiftnbd.store.memory import MemoryStore
from tests.support.disks import SIZE, begin, caching, joined, name
from tests.support.faulty import Fault, Faulty, Gate, Script, failing, late, reply_lost

OBJECTS = 8
A, B = b"a" * SIZE, b"b" * SIZE
KNOWN = [Extent(SIZE, False, False), Extent((OBJECTS - 1) * SIZE, True, True)]  # object 0 exists


class Container:
    """A disk that servers come to, one after the other."""

    def __init__(self) -> None:
        self.script = Script()
        self.memory = MemoryStore("disk")
        self.store = Faulty(self.memory, self.script)

    async def attached(self) -> tuple[Export, ObjectDevice]:
        export = Export("disk", self.store, cache=caching())
        await export.load()
        device = await export.attach(Client("peer", "client.example", 4242))
        assert isinstance(device, ObjectDevice)
        return export, device

    @asynccontextmanager
    async def served(self) -> AsyncIterator[ObjectDevice]:
        """By a server that ends in order."""
        export, device = await self.attached()
        yield device
        await export.detach()
        assert not export.attached

    async def know(self) -> None:
        """A holder finds out about every object, and stores the first."""
        async with self.served() as device:
            await device.read(0, OBJECTS * SIZE)
            await device.write(0, A)


@pytest.fixture
async def container() -> Container:
    container = Container()
    await container.memory.create_container(setup_metadata(Geometry(OBJECTS, SIZE)))
    return container


async def extents(device: ObjectDevice) -> list[Extent]:
    return list(await device.extents(0, OBJECTS * SIZE, count=OBJECTS))


async def test_next_holder_knows_what_the_last_one_knew(container: Container) -> None:
    await container.know()
    async with container.served() as device:
        before = container.store.count("get")
        assert await extents(device) == KNOWN
        assert joined(await device.read(SIZE, SIZE)) == bytes(SIZE)
        assert container.store.count("get") == before
        assert joined(await device.read(0, SIZE)) == A


async def test_map_is_not_used_after_a_server_that_was_killed(container: Container) -> None:
    """The map is still the one of the holder before it, and does not know what it stored."""
    await container.know()
    _, device = await container.attached()
    await device.write(SIZE, B, fua=True)
    await break_lock(container.memory, "unlock:1@1700000000", await sight(container.memory))
    async with container.served() as device:
        assert await extents(device) == [Extent(OBJECTS * SIZE, False, False)]
        assert joined(await device.read(SIZE, SIZE)) == B


async def test_map_is_not_used_after_0_11_was_there(container: Container) -> None:
    await container.know()
    mark = "old.example:7@1700000000"
    await container.memory.set_metadata({"swiftnbd-client": mark})
    await container.memory.put(name(1), B)
    await container.memory.set_metadata({"swiftnbd-client": "", "swiftnbd-last": mark})
    async with container.served() as device:
        assert joined(await device.read(SIZE, SIZE)) == B


@pytest.mark.parametrize("fault", [failing(), reply_lost(), late()])
async def test_map_that_was_not_written_is_not_used_nor_is_the_one_before(
    container: Container, fault: Fault
) -> None:
    await container.know()
    container.script.on("put", fault, name=PRESENCE)
    async with container.served() as device:
        await device.write(SIZE, B)
    async with container.served() as device:
        await container.store.land()
        assert joined(await device.read(SIZE, SIZE)) == B
        await device.write(2 * SIZE, B)
    container.script.on("put", failing(), name=PRESENCE)
    async with container.served() as device:
        await device.write(3 * SIZE, B)
    async with container.served() as device:
        assert joined(await device.read(0, OBJECTS * SIZE)) == A + B * 3 + bytes(4 * SIZE)


async def test_map_is_not_used_after_changes_by_who_came_before_the_unlock(
    container: Container,
) -> None:
    """One epoch tells one map, and nobody changes the disk between that and its end."""
    export, device = await container.attached()
    await device.read(0, OBJECTS * SIZE)
    stored = Gate()
    container.script.on("put", Fault(after=stored), name=PRESENCE)
    leaving = begin(export.detach())
    await stored.arrived.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    again = await export.attach(Client("another", "client.example", 4243))
    await again.write(SIZE, B)
    container.script.on("put", failing(), name=PRESENCE)
    await export.detach()
    async with container.served() as device:
        assert joined(await device.read(SIZE, SIZE)) == B


async def test_damaged_map_is_not_used(container: Container) -> None:
    await container.know()
    kept = container.memory.account.containers["disk"].objects[PRESENCE]
    kept.data = kept.data[:-1] + bytes([kept.data[-1] ^ 1])
    async with container.served() as device:
        assert await extents(device) == [Extent(OBJECTS * SIZE, False, False)]
        assert joined(await device.read(0, SIZE)) == A
