# SPDX-License-Identifier: MIT
"""Requests for a disk's objects, and what is learnt from their answers and from their absence."""

import asyncio
from errno import EIO

import pytest

from swiftnbd.errors import ExportError, StoreUnavailable
from swiftnbd.export.layout import Geometry
from swiftnbd.export.objects import DiskObjects
from swiftnbd.export.presence import State
from swiftnbd.export.slots import Slots
from swiftnbd.metrics import Counters
from swiftnbd.store.memory import MemoryObject, MemoryStore
from tests.store.contract import etag_of
from tests.support.disks import begun, name, turns
from tests.support.faulty import Fault, Faulty, Gate, Script, failing, reply_lost, short_body

SIZE = 512
A, B = b"a" * SIZE, b"b" * SIZE


class Objects:
    """Eight objects in a faulty memory store."""

    def __init__(self, *, exclusive: bool = True, request_seconds: float = 65.0) -> None:
        self.script = Script()
        self.memory = MemoryStore("disk")
        self.store = Faulty(self.memory, self.script)
        self.counters = Counters()
        self.slots = Slots(3, 1)
        self.disk = DiskObjects(
            self.store,
            Geometry(8, SIZE),
            self.slots,
            self.counters,
            exclusive=exclusive,
            request_seconds=request_seconds,
        )

    @property
    def stored(self) -> dict[str, MemoryObject]:
        return self.memory.account.containers["disk"].objects

    def lay(self, index: int, data: bytes) -> None:
        self.stored[name(index)] = MemoryObject(data, etag_of(data))

    async def get(self, index: int, start: int = 0, end: int = SIZE) -> bytes | None:
        return await self.disk.get(index, lambda: (start, end), urgent=lambda: True)

    async def put(self, index: int, data: bytes) -> None:
        await self.disk.in_turn(lambda: self.disk.put(index, data))

    async def delete(self, index: int) -> None:
        await self.disk.in_turn(lambda: self.disk.delete(index))

    def state(self, index: int) -> State:
        return self.disk.presence.get(index)


async def made(*, exclusive: bool = True, request_seconds: float = 65.0) -> Objects:
    objects = Objects(exclusive=exclusive, request_seconds=request_seconds)
    await objects.memory.create_container()
    return objects


async def test_get_learns_what_is_there_and_what_is_not() -> None:
    objects = await made()
    objects.lay(1, A)
    assert objects.state(1) is objects.state(2) is State.UNKNOWN
    assert await objects.get(1) == A
    assert await objects.get(2) is None
    assert (objects.state(1), objects.state(2)) == (State.PRESENT, State.ABSENT)
    assert objects.disk.is_absent(2)
    assert not objects.disk.is_absent(1)
    assert objects.counters.store_in == SIZE


async def test_part_of_an_object_is_asked_for_as_such() -> None:
    objects = await made()
    objects.lay(1, bytes(range(256)) * 2)
    assert await objects.get(1, 100, 110) == bytes(range(100, 110))
    assert objects.counters.store_in == 10


async def test_put_and_delete_prove_what_is_there() -> None:
    objects = await made()
    await objects.put(1, A)
    assert objects.state(1) is State.PRESENT
    await objects.delete(1)
    assert objects.state(1) is State.ABSENT
    await objects.delete(2)  # was not there
    assert objects.state(2) is State.ABSENT
    assert objects.counters.store_out == SIZE


@pytest.mark.parametrize("fault", [failing(), reply_lost()])
@pytest.mark.parametrize("op", ["put", "delete"])
async def test_change_that_was_not_answered_leaves_its_object_unknown_until_one_is(
    op: str, fault: Fault
) -> None:
    objects = await made()
    await objects.put(1, A) if op == "delete" else await objects.delete(1)
    objects.script.on(op, fault)
    with pytest.raises(StoreUnavailable):
        await (objects.put(1, B) if op == "put" else objects.delete(1))
    assert objects.state(1) is State.UNKNOWN
    for _ in range(2):
        objects.script.on("get", Fault(stale=True))  # believed, were it not for newest
        there = objects.stored.get(name(1))
        assert await objects.get(1) == (None if there is None else there.data)
        assert objects.state(1) is State.UNKNOWN
    await objects.put(1, A)
    assert objects.state(1) is State.PRESENT
    assert await objects.get(1) == A


@pytest.mark.parametrize("there", [False, True])
async def test_put_that_was_given_up_and_lands_late_makes_its_object_no_other(there: bool) -> None:
    """A read sees what is there before it lands; whoever reads afterwards must not be refused."""
    objects = await made()
    if there:
        await objects.put(1, A)
    objects.script.on("put", failing())
    with pytest.raises(StoreUnavailable):
        await objects.put(1, B)
    assert await objects.get(1) == (A if there else None)
    objects.lay(1, B)
    assert await objects.get(1, 3, 9) == B[3:9]
    await objects.put(1, A)
    assert await objects.get(1) == A


@pytest.mark.parametrize("there", [False, True])
async def test_object_stored_again_and_again_while_it_is_read_is_no_other(there: bool) -> None:
    """Each answer is of the object before a change that has ended when the answer arrives."""
    objects = await made()
    if there:
        await objects.put(1, A)
    gates = [Gate() for _ in range(4)]
    for gate in gates:
        objects.script.on("get", Fault(after=gate))
    get = await begun(objects.get(1))
    for number, gate in enumerate(gates):
        if number < 3:
            await objects.put(1, bytes([number]) * SIZE)
        assert not get.done()
        gate.open()
        await turns()
    assert await get == b"\2" * SIZE
    assert objects.state(1) is State.PRESENT


async def test_object_is_unknown_while_it_is_being_changed() -> None:
    objects = await made()
    await objects.delete(1)
    gate = objects.script.hold("put")
    put = await begun(objects.put(1, A))
    assert objects.state(1) is State.UNKNOWN
    gate.open()
    await put
    assert objects.state(1) is State.PRESENT


@pytest.mark.parametrize("change", ["put", "delete"])
async def test_nothing_is_learnt_from_a_get_that_a_change_overtook(change: str) -> None:
    objects = await made()
    if change == "delete":
        objects.lay(1, A)
    gate = Gate()
    objects.script.on("get", Fault(after=gate))
    get = await begun(objects.get(1))
    await (objects.put(1, B) if change == "put" else objects.delete(1))
    expected = objects.state(1)
    gate.open()
    await get
    assert objects.state(1) is expected is (State.PRESENT if change == "put" else State.ABSENT)
    assert await objects.get(1) == (B if change == "put" else None)


async def test_nothing_is_learnt_from_a_get_that_began_during_a_change() -> None:
    objects = await made()
    gate = objects.script.hold("put")
    put = await begun(objects.put(1, A))
    assert await objects.get(1) is None
    assert objects.state(1) is State.UNKNOWN
    put.cancel()
    await asyncio.gather(put, return_exceptions=True)
    gate.open()
    assert objects.state(1) is State.UNKNOWN


async def test_two_changes_of_one_object_at_once_are_a_bug() -> None:
    objects = await made()
    gate = objects.script.hold("put")
    put = await begun(objects.put(1, A))
    with pytest.raises(AssertionError, match="two changes"):
        await objects.delete(1)
    gate.open()
    await put


async def test_first_answer_is_of_the_newest_replica_and_later_ones_are_compared() -> None:
    objects = await made()
    await objects.put(1, A)
    await objects.put(1, B)
    objects.script.on("get", Fault(stale=True))
    assert await objects.get(1) == B
    assert objects.store.count("get") == 2
    assert await objects.get(1, 3, 9) == B[3:9]
    assert objects.store.count("get") == 3


async def test_object_that_is_another_one_is_an_error() -> None:
    objects = await made()
    await objects.put(1, A)
    objects.lay(1, B)
    with pytest.raises(ExportError, match=f"{name(1)} is not the one that was stored last"):
        await objects.get(1)


@pytest.mark.parametrize("length", [0, 1, SIZE - 1])
async def test_body_of_a_wrong_size_is_an_error(length: int) -> None:
    objects = await made()
    objects.lay(1, A[:length])
    with pytest.raises(ExportError, match=f"gave {length} bytes, not {SIZE}") as caught:
        await objects.get(1)
    assert caught.value.errno == EIO


async def test_short_body_of_a_part_is_an_error() -> None:
    objects = await made()
    objects.lay(1, A)
    objects.script.on("get", short_body())
    with pytest.raises(ExportError, match="gave 9 bytes, not 10"):
        await objects.get(1, 100, 110)


@pytest.mark.parametrize("data", [A[:-1], A + b"x"])
async def test_part_of_an_object_of_a_wrong_size_is_an_error(data: bytes) -> None:
    objects = await made()
    objects.lay(1, data)
    with pytest.raises(ExportError, match=f"has {len(data)} bytes, not {SIZE}") as caught:
        await objects.get(1, 100, 110)
    assert caught.value.errno == EIO


async def test_nothing_is_remembered_of_a_disk_that_others_may_change() -> None:
    objects = await made(exclusive=False)
    assert await objects.get(1) is None
    objects.lay(1, A)
    assert await objects.get(1) == A
    objects.lay(1, B)
    assert await objects.get(1) == B
    assert objects.state(1) is State.UNKNOWN


async def test_waiting_for_a_turn_counts_against_the_time_and_gives_it_back() -> None:
    objects = await made(request_seconds=0.2)
    let_go = asyncio.Event()
    others = [await begun(objects.slots.run(let_go.wait, urgent=False)) for _ in range(2)]
    with pytest.raises(ExportError, match="no answer within") as caught:
        await objects.put(1, A)
    let_go.set()
    await asyncio.gather(*others)
    assert caught.value.errno == EIO
    assert objects.store.count("put") == 0
    assert objects.slots.free == objects.slots.total
    await objects.put(1, A)


async def test_store_that_does_not_answer_is_given_up() -> None:
    objects = await made(request_seconds=0.2)
    gate = objects.script.hold("put")
    with pytest.raises(ExportError, match="no answer within"):
        await objects.put(1, A)
    assert objects.state(1) is State.UNKNOWN
    gate.open()
    await objects.put(1, B)
    assert await objects.get(1) == B


async def test_listing_names_the_objects_of_the_range_only() -> None:
    objects = await made()
    for index in range(8):
        objects.lay(index, A)
    objects.stored["disk.part/0000000x"] = objects.stored[name(0)]
    pages = [page async for page in objects.disk.listed(2, 6)]
    assert pages == [[2, 3, 4, 5]]
    assert [page async for page in objects.disk.listed(0, 8)] == [list(range(8))]
    assert objects.state(2) is State.UNKNOWN  # a hint, no proof


async def test_object_known_to_exist_that_is_not_found_is_an_error_and_no_zeros() -> None:
    objects = await made()
    objects.disk.presence.set(3, State.PRESENT)  # as the last holder remembered
    with pytest.raises(ExportError, match=r"disk\.part/00000003 is not the one") as caught:
        await objects.get(3)
    assert caught.value.errno == EIO
    assert objects.state(3) is State.PRESENT


async def test_object_known_to_exist_is_still_known_when_a_head_does_not_find_it() -> None:
    objects = await made()
    objects.disk.presence.set(3, State.PRESENT)
    assert await objects.disk.head(3) is None
    assert objects.state(3) is State.PRESENT
