# SPDX-License-Identifier: MIT
import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from swiftnbd.cli.copying import Windows
from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.ctl_copy import CopyRequest, copy
from swiftnbd.cli.ctl_info import examine
from swiftnbd.cli.ctl_setup import SetupRequest, setup
from swiftnbd.cli.run import run
from swiftnbd.cli.unfinished import COPY, UPLOAD
from swiftnbd.errors import (
    CopyUnsupported,
    CorruptObject,
    Locked,
    StoreError,
    SwiftnbdError,
)
from swiftnbd.export.layout import Geometry, object_name
from swiftnbd.store.base import Place, Store
from swiftnbd.store.directory import DirectoryStore
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from tests.integration.conftest import HOLDER, OBJECT_SIZE, Told, metadata
from tests.support.faulty import Fault, Faulty, Gate, Script, failing

Open = Callable[[str], Store]


@pytest.fixture(params=["memory", "directory"])
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens containers of one home."""
    account, stores = MemoryAccount(), []

    def open_one(name: str) -> Store:
        memory = request.param == "memory"
        store = MemoryStore(name, account) if memory else DirectoryStore(tmp_path / "d", name)
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        await store.close()


async def set_up(store: Store, name: str, objects: int, size: int = OBJECT_SIZE) -> None:
    await setup(store, name=name, request=SetupRequest(Geometry(objects, size)), tell=Told())


async def fill(store: Store, indexes: list[int], size: int = OBJECT_SIZE) -> None:
    """As by somebody who keeps no map."""
    await store.set_metadata({"swiftnbd-last": HOLDER})
    for index in indexes:
        await store.put(object_name(index), os.urandom(size))


async def content(store: Store) -> bytes:
    """The disk as its metadata describe it."""
    found = await metadata(store)
    size = int(found["object-size"])
    blobs = [await store.get(object_name(index)) for index in range(int(found["objects"]))]
    return b"".join(bytes(size) if blob is None else blob.data for blob in blobs)


def request(**options: object) -> CopyRequest:
    return CopyRequest("one", "two", quiet=True, **options)  # type: ignore[arg-type]


async def test_copy_of_a_disk_that_is_not_whole_warns(opened: Open, told: Told) -> None:
    one, two = opened("one"), opened("two")
    await set_up(one, "one", 2)
    await one.put(UPLOAD, b"{}")
    await copy(one, two, request=request(setup=True), tell=told)
    assert "WARNING: an upload into one did not come to its end: a part of it is missing" in told


async def test_copy_is_the_same_disk_and_as_sparse(opened: Open, told: Told) -> None:
    one, two = opened("one"), opened("two")
    await set_up(one, "one", 12)
    await fill(one, [0, 3, 4, 11])
    await one.set_metadata({"swiftnbd-image-size": "49000"})
    tally, _ = await copy(one, two, request=request(setup=True), tell=told)
    assert (tally.copied, tally.copied_bytes, tally.server_side) == (4, 4 * OBJECT_SIZE, True)
    assert await content(two) == await content(one)
    assert len(await two.listing(prefix="disk.part/")) == 4
    assert (await metadata(two))["image-size"] == "49000"
    for store in (one, two):
        assert "client" not in await metadata(store)
        presence = (await examine(store, name="x")).presence
        assert presence == {"unknown": 0, "absent": 8, "present": 4}
    assert await two.head(COPY) is None


async def test_what_the_target_held_besides_reads_as_zeros(opened: Open, told: Told) -> None:
    one, two = opened("one"), opened("two")
    await set_up(one, "one", 8)
    await set_up(two, "two", 12)
    await fill(one, [1, 2])
    await fill(two, [0, 2, 7, 11])
    with pytest.raises(SwiftnbdError, match="two holds data; to write over it, use --force"):
        await copy(one, two, request=request(), tell=told)
    tally, _ = await copy(one, two, request=request(force=True), tell=told)
    assert (tally.copied, tally.deleted) == (2, 3)
    assert await content(two) == await content(one) + bytes(4 * OBJECT_SIZE)
    tally, _ = await copy(one, two, request=request(force=True), tell=told)
    assert (tally.copied, tally.already_there, tally.deleted) == (0, 2, 0)


@pytest.mark.parametrize(
    ("source_size", "target_size"),
    [(4096, 16384), (16384, 4096), (4096, 6144), (6144, 4096), (12288, 8192), (512, 4096)],
)
async def test_objects_of_any_size_become_objects_of_any_size(
    opened: Open, told: Told, source_size: int, target_size: int
) -> None:
    one, two = opened("one"), opened("two")
    objects = 23
    await one.create_container(
        {"swiftnbd-version": "1", "swiftnbd-objects": str(objects)}
        | {"swiftnbd-object-size": str(source_size)}
    )
    await fill(one, [0, 1, 5, 6, 7, 22], source_size)
    await one.put(object_name(10), bytes(source_size))  # stored zeros are not copied
    wanted = request(setup=True, object_size=target_size)
    tally, _ = await copy(one, two, request=wanted, tell=told)
    before = await content(one)
    assert (await content(two)).rstrip(b"\0") == before.rstrip(b"\0")
    assert not tally.server_side
    count = -(-objects * source_size // target_size)
    pieces = [before[i * target_size : (i + 1) * target_size] for i in range(count)]
    assert tally.copied == sum(any(piece) for piece in pieces)
    assert len(await two.listing(prefix="disk.part/")) == tally.copied
    await fill(two, [count - 1], target_size)
    again = request(force=True)
    tally, _ = await copy(one, two, request=again, tell=told)
    assert (await content(two)).rstrip(b"\0") == before.rstrip(b"\0")
    assert tally.copied == 1


@pytest.mark.parametrize("source", [512, 4096, 65536, 98304, 64 << 20])
@pytest.mark.parametrize("target", [65536, 98304, 1 << 20, 64 << 20])
def test_windows_cover_the_disk_once_and_fit_into_memory(source: int, target: int) -> None:
    objects = max(3, min(1001, (1 << 28) // source))
    windows = Windows(source, target)
    found = [windows.targets(number, objects) for number in range(windows.count(objects))]
    covered = [index for each in found for index in each]
    assert covered == list(range(-(-objects * source // target)))
    for number, targets in enumerate(found):
        sources = windows.sources(number, objects)
        assert sources.start * source <= targets.start * target
        assert sources.stop * source >= min(targets.stop * target, objects * source)
    assert windows.at_once * windows.size <= 256 << 20
    assert windows.at_once * windows.within <= 16


async def test_source_that_does_not_fit_is_refused(opened: Open, told: Told) -> None:
    one, two = opened("one"), opened("two")
    await set_up(one, "one", 8)
    await set_up(two, "two", 7)
    with pytest.raises(SwiftnbdError, match="run: swiftnbd-ctl resize two 32768"):
        await copy(one, two, request=request(), tell=told)


async def test_both_are_locked_by_name(opened: Open, told: Told) -> None:
    one, two = opened("one"), opened("two")
    await set_up(one, "one", 8)
    await set_up(two, "two", 8)
    for held, free in ((one, two), (two, one)):
        await held.set_metadata({"swiftnbd-client": HOLDER})
        with pytest.raises(Locked):
            await copy(one, two, request=request(), tell=told)
        await held.set_metadata({"swiftnbd-client": ""})
        assert "client" not in await metadata(free)


def faulty_pair(script: Script) -> tuple[MemoryStore, Faulty]:
    account = MemoryAccount()
    return MemoryStore("one", account), Faulty(MemoryStore("two", account), script)


async def test_interrupted_copy_goes_on_where_it_stopped(told: Told) -> None:
    script = Script()
    one, two = faulty_pair(script)
    await set_up(one, "one", 64)
    await fill(one, list(range(64)))
    await set_up(two, "two", 64)
    gate = Gate()
    script.on("copy", Fault(before=gate), name=object_name(30))
    task = asyncio.create_task(copy(one, two, request=request(), tell=told))
    await asyncio.wait_for(gate.arrived.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert any("goes on where this one stopped" in line for line in told)
    for store in (one, two):
        assert "client" not in await metadata(store)
    done = len(await two.listing(prefix="disk.part/"))
    assert 0 < done < 64
    script.clear()
    tally, _ = await copy(one, two, request=request(), tell=told)
    assert (tally.copied, tally.already_there) == (64 - done, done)
    assert await content(two) == await content(one)
    assert await two.head(COPY) is None


@pytest.mark.parametrize("who", ["a client", "another copy", "0.11"])
async def test_copy_does_not_go_on_over_what_somebody_wrote_since(told: Told, who: str) -> None:
    script = Script()
    one, two = faulty_pair(script)
    await set_up(one, "one", 8)
    await fill(one, [1, 2])
    await set_up(two, "two", 8)
    script.on("copy", failing(StoreError("no")), name=object_name(2))
    with pytest.raises(StoreError, match="no"):
        await copy(one, two, request=request(), tell=told)
    if who == "a client":
        from swiftnbd.cli.common import locked

        async with locked(two, "two"):
            pass
    elif who == "0.11":
        await two.set_metadata({"swiftnbd-last": "192.0.2.7:4242@1700000000"})
    wanted = CopyRequest("other" if who == "another copy" else "one", "two", quiet=True)
    refusal = r"two holds data \(of a copy that was cut short\); to write over it, use --force"
    with pytest.raises(SwiftnbdError, match=refusal):
        await copy(one, two, request=wanted, tell=told)


async def test_store_that_cannot_copy_is_helped(told: Told) -> None:
    class Plain(MemoryStore):
        async def copy(self, name: str, source: Place, etag: str) -> None:
            await self.put(name, b"")  # what a Swift without COPY makes of it
            raise CopyUnsupported("no")

    account = MemoryAccount()
    one, two = MemoryStore("one", account), Plain("two", account)
    await set_up(one, "one", 40)
    await fill(one, list(range(0, 40, 3)))
    await set_up(two, "two", 40)
    tally, _ = await copy(one, two, request=request(), tell=told)
    assert (tally.copied, tally.server_side) == (14, False)
    assert await content(two) == await content(one)


async def test_between_homes_the_bytes_pass_through_here(told: Told) -> None:
    one, two = MemoryStore("one"), MemoryStore("two")
    await set_up(one, "one", 40)
    await fill(one, list(range(0, 40, 3)))
    tally, _ = await copy(one, two, request=request(setup=True), tell=told)
    assert (tally.copied, tally.server_side) == (14, False)
    assert await content(two) == await content(one)


async def test_object_of_the_wrong_size_stops_it(opened: Open, told: Told) -> None:
    one, two = opened("one"), opened("two")
    await set_up(one, "one", 8)
    await fill(one, [1])
    await one.put(object_name(2), b"short")
    with pytest.raises(CorruptObject, match=r"disk\.part/00000002 has 5 bytes, expected 4096"):
        await copy(one, two, request=request(setup=True), tell=told)
    wanted = request(setup=True, object_size=8192)
    with pytest.raises(CorruptObject, match=r"disk\.part/00000002 has 5 bytes, expected 4096"):
        await copy(one, opened("three"), request=wanted, tell=told)


@pytest.mark.parametrize("size", [OBJECT_SIZE, 2 * OBJECT_SIZE])
async def test_object_that_was_lost_is_not_copied_as_zeros(
    opened: Open, told: Told, size: int
) -> None:
    """As one that Swift found damaged and set aside. In the target it is stored again."""
    one, two = opened("one"), opened("two")
    await set_up(one, "one", 4)
    await fill(one, [0, 1, 2])
    await copy(one, opened("three"), request=request(setup=True), tell=told)  # learns what is there
    await copy(one, two, request=request(setup=True, object_size=size), tell=told)
    await two.delete(object_name(0))
    await copy(one, two, request=request(force=True), tell=told)
    whole = await content(two)
    assert whole == await content(one)
    await one.delete(object_name(1))
    for _ in range(2):
        with pytest.raises(CorruptObject, match="00000001 was stored and is not found any more"):
            await copy(one, two, request=request(force=True), tell=told)
        assert await content(two) == whole


async def test_object_that_no_listing_shows_is_copied(told: Told) -> None:
    class Forgetful(MemoryStore):
        async def listing(self, **options: str):  # type: ignore[no-untyped-def,override]
            rows = await super().listing(**options)  # type: ignore[arg-type]
            return [row for row in rows if not row.name.startswith("disk.part/")]

    account = MemoryAccount()
    one, two = Forgetful("one", account), Forgetful("two", account)
    await set_up(one, "one", 8)
    await fill(one, [1, 5])
    await copy(one, two, request=request(setup=True), tell=told)
    assert await content(two) == await content(one)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["-a", f"file:{tmp_path}"]
    assert run(ctl, "swiftnbd-ctl", [*where, "setup", "one", "--size", "1M"]) == 0
    part = tmp_path / "one" / "disk.part"
    part.mkdir()
    data = os.urandom(65536)
    (part / "00000003").write_bytes(data)
    assert run(ctl, "swiftnbd-ctl", [*where, "lock", "one"]) == 0  # so the map is not believed
    assert run(ctl, "swiftnbd-ctl", [*where, "unlock", "one"]) == 0
    assert run(ctl, "swiftnbd-ctl", [*where, "copy", "one", "two"]) == 4
    assert run(ctl, "swiftnbd-ctl", [*where, "copy", "one", "one"]) == 2
    assert run(ctl, "swiftnbd-ctl", [*where, "copy", "one", "two", "--policy", "x"]) == 2
    capsys.readouterr()
    assert run(ctl, "swiftnbd-ctl", [*where, "copy", "one", "two", "--setup", "--json", "-q"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found.pop("seconds") >= 0
    assert found == {
        "source": "one",
        "destination": "two",
        "size": 1 << 20,
        "objects_copied": 1,
        "bytes_copied": 65536,
        "objects_already_there": 0,
        "objects_deleted": 0,
        "server_side": True,
    }
    assert "is a copy of" not in said.err
    assert run(ctl, "swiftnbd-ctl", [*where, "copy", "one", "three", "--setup", "-q"]) == 0
    done = "three is a copy of one: 1 object (64 KiB) copied by the store itself"
    assert done in capsys.readouterr().err
    assert (tmp_path / "two" / "disk.part" / "00000003").read_bytes() == data
