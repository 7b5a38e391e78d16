# SPDX-License-Identifier: MIT
"""An export with a cache on a local disk: what it spares the store, and what it never gives."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from errno import EIO, ENOSPC
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.errors import ExportError, StoreError
from swiftnbd.export import disk as disk_module
from swiftnbd.export import disk_cache, slot_file
from swiftnbd.export.disk import ObjectDevice
from swiftnbd.export.export import Client, Export
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.export.local_blocks import Found, LocalBlocks
from swiftnbd.export.watch import break_lock, sight
from swiftnbd.server.config import AuthConfig, ExportConfig
from swiftnbd.store.login import LoginSettings
from swiftnbd.store.memory import MemoryObject, MemoryStore
from tests.store.contract import etag_of
from tests.support.disks import SIZE, begin, begun, caching, joined, name, turns
from tests.support.faulty import Fault, Faulty, Gate, Script, failing, reply_lost
from tests.support.log_watch import LogWatch

OBJECTS = 8
CLIENT = Client("peer", "client.example", 4242)
OFF = "disk: going on without the disk cache .*"
PART = 128  # the block of those tests in which an object has four


def content(index: int, version: int = 0) -> bytes:
    return (b"%d.%d " % (index, version)).ljust(SIZE, b".")


class Server(Export):
    """One life of a server with one export."""

    @property
    def disk(self) -> ObjectDevice:
        assert self.device is not None
        return self.device

    async def read(self, index: int, *, at: int = 0, length: int = SIZE) -> bytes:
        return joined(await self.disk.read(index * SIZE + at, length))

    async def written(self) -> None:
        """What is to be kept is on the disk."""
        cache = self._disk_cache
        while cache is not None and cache._writes:
            await asyncio.wait(cache._writes)

    async def crash(self) -> None:
        """As the process's end would leave it; then somebody frees the container."""
        await self.written()
        await self.abandon()
        if self._disk_cache is not None:
            await asyncio.to_thread(self._disk_cache._let_go)
        await break_lock(self.store, "unlock:1@1700000000", await sight(self.store))


class World:
    """A container of eight objects, a local disk, and the servers that come and go."""

    cached = 4  # objects in memory

    def __init__(self, directory: Path, block: int | None = None) -> None:
        self.directory = directory / "cache"
        self.block = block
        self.script = Script()
        self.memory = MemoryStore("disk")
        self.store = Faulty(self.memory, self.script)

    async def set_up(self) -> None:
        await self.memory.create_container(setup_metadata(Geometry(OBJECTS, SIZE)))
        for index in range(OBJECTS):
            self.lay(index, content(index))

    def lay(self, index: int, data: bytes) -> None:
        """Store an object behind everybody's back."""
        stored = self.memory.account.containers["disk"].objects
        stored[name(index)] = MemoryObject(data, etag_of(data))

    def server(self, *, read_only: bool = False, disk: bool = True, **others: Any) -> Server:
        settings = caching(
            self.cached,
            block_bytes=self.block,
            disk_directory=self.directory if disk else None,
            disk_bytes=1 << 20,
            **others,
        )
        return Server("disk", self.store, read_only, settings)

    @asynccontextmanager
    async def serving(self, *, read_only: bool = False, disk: bool = True) -> AsyncIterator[Server]:
        """A server that is started, used by one client, and let go of the container in order."""
        server = self.server(read_only=read_only, disk=disk)
        await started(server)
        self.store.calls.clear()
        yield server
        await server.written()
        await server.detach()
        assert not server.attached

    @property
    def asked(self) -> list[str]:
        """What the store was asked about objects, but for their being changed."""
        return sorted(
            call.op
            for call, times in self.store.calls.items()
            for _ in range(times)
            if call.name.startswith("disk.part/") and call.op in ("get", "head")
        )


async def started(server: Server) -> None:
    await server.load()
    await server.attach(CLIENT)


@asynccontextmanager
async def world(directory: Path, block: int | None = None) -> AsyncIterator[World]:
    found = World(directory, block)
    await found.set_up()
    yield found


async def fill(world: World) -> None:
    """All objects have been read once."""
    async with world.serving() as server:
        for index in range(OBJECTS):
            assert await server.read(index) == content(index)
        assert world.asked == ["get"] * OBJECTS


async def check_all(server: Server, *changed: int) -> None:
    for index in range(OBJECTS):
        assert await server.read(index) == content(index, int(index in changed)), index


# What it spares


async def test_nothing_is_asked_after_a_clean_restart(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await fill(w)
        for _ in range(2):
            async with w.serving() as server:
                await check_all(server)
                assert w.asked == []


async def test_block_that_was_evicted_comes_back_from_the_disk(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.serving() as server:
        await check_all(server)
        await server.written()
        await check_all(server)
        assert w.asked == ["get"] * OBJECTS


async def test_what_was_stored_is_kept(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        async with w.serving() as server:
            await server.disk.write(3 * SIZE, content(3, 1), fua=True)
        async with w.serving() as server:
            assert await server.read(3) == content(3, 1)
            assert w.asked == []


async def test_partial_write_needs_no_fetch_of_what_is_on_the_disk(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await fill(w)
        async with w.serving() as server:
            await server.disk.write(3 * SIZE + 100, b"new", fua=True)
            assert w.asked == []
        expected = content(3)[:100] + b"new" + content(3)[103:]
        assert w.memory.account.containers["disk"].objects[name(3)].data == expected


async def test_download_in_between_changes_nothing(tmp_path: Path) -> None:
    """It locks, and says on unlocking that it changed nothing."""
    from swiftnbd.export.lock import Lock

    async with world(tmp_path) as w:
        await fill(w)
        lock = Lock(w.store, "ctl:1@1700000000")
        await lock.acquire()
        await lock.release(changed=False)
        async with w.serving() as server:
            await check_all(server)
            assert w.asked == []


# What it takes to be believed


async def test_after_a_crash_every_block_is_confirmed_and_none_fetched(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        server = w.server()
        await started(server)
        await check_all(server)
        await server.crash()
        async with w.serving() as server:
            await check_all(server)
            assert w.asked == ["head"] * OBJECTS
            await check_all(server)
            assert w.asked == ["head"] * OBJECTS
        async with w.serving() as server:
            await check_all(server)
            assert w.asked == []


async def test_what_another_holder_changed_is_fetched(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await fill(w)
        async with w.serving(disk=False) as server:
            await server.disk.write(2 * SIZE, content(2, 1))
            await server.disk.trim(5 * SIZE, SIZE)
        async with w.serving() as server:
            assert await server.read(2) == content(2, 1)
            assert w.asked == ["get", "head"]
            assert await server.read(5) == bytes(SIZE)
            assert await server.read(4) == content(4)
            assert w.asked == ["get", "head", "head"]  # the absence was remembered


async def test_what_0_11_changed_is_fetched(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await fill(w)
        await w.memory.set_metadata({"swiftnbd-client": "old:1@1700000000"})
        w.lay(2, content(2, 1))
        await w.memory.set_metadata({"swiftnbd-client": "", "swiftnbd-last": "old:1@1700000000"})
        async with w.serving() as server:
            await check_all(server, 2)
            assert w.asked == ["get"] + ["head"] * OBJECTS


async def test_without_a_lock_every_read_is_confirmed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await fill(w)
        async with w.serving(read_only=True) as server:
            await check_all(server)
            assert w.asked == ["head"] * OBJECTS
            w.lay(2, content(2, 1))
            await server.read(5, length=3 * SIZE)
            await check_all(server, 2)
            assert w.asked == ["get"] + ["head"] * (2 * OBJECTS - 3)


async def test_blocks_are_not_proven_after_changes_by_who_came_before_the_unlock(
    tmp_path: Path, saving: tuple[threading.Event, threading.Event]
) -> None:
    """One epoch binds one table, and nobody changes the disk between that and its end."""
    saved, go_on = saving
    async with world(tmp_path) as w:
        server = w.server()
        await started(server)
        assert await server.read(3) == content(3)
        await server.written()
        leaving = begin(server.detach())
        assert await asyncio.to_thread(saved.wait, 30)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        go_on.set()
        await server.attach(CLIENT)
        await server.disk.write(3 * SIZE, content(3, 1))
        await server.detach()
        async with w.serving() as server:
            assert await server.read(3) == content(3, 1)


async def test_who_comes_while_the_file_is_saved_has_its_cache(
    tmp_path: Path, saving: tuple[threading.Event, threading.Event]
) -> None:
    saved, go_on = saving
    async with world(tmp_path) as w:
        server = w.server()
        await started(server)
        assert await server.read(3) == content(3)
        await server.written()
        leaving = begin(server.detach())
        assert await asyncio.to_thread(saved.wait, 30)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        coming = await begun(server.attach(CLIENT))
        await turns()
        go_on.set()
        await coming
        w.store.calls.clear()
        assert await server.read(3) == content(3)
        assert w.asked == []
        await server.detach()


@pytest.fixture
def saving(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Set once a table was saved, and what its writer waits for then."""
    saved, go_on = threading.Event(), threading.Event()
    save = slot_file.SlotFile.save

    def slowly(file: slot_file.SlotFile, table: bytearray, binding: str | None) -> None:
        save(file, table, binding)
        saved.set()
        go_on.wait(60)

    monkeypatch.setattr(slot_file.SlotFile, "save", slowly)
    yield saved, go_on
    go_on.set()


async def test_container_that_was_deleted_and_set_up_again_is_another(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await fill(w)
        del w.memory.account.containers["disk"]
        await w.set_up()
        w.lay(1, content(1, 1))
        async with w.serving() as server:
            await check_all(server, 1)
            assert w.asked == ["get"] + ["head"] * OBJECTS


async def test_disk_cut_into_other_objects_begins_anew(tmp_path: Path) -> None:
    """Its blocks are of the same size as before."""
    async with world(tmp_path, block=PART) as w:
        await fill(w)
        del w.memory.account.containers["disk"]
        await w.memory.create_container(setup_metadata(Geometry(OBJECTS, 2 * SIZE)))
        w.cached = 8
        async with w.serving() as server:
            assert server._disk_cache is not None
            assert len(server._disk_cache) == 0


# Changes


@pytest.mark.parametrize("fault", [failing(), reply_lost()])
@pytest.mark.parametrize("change", ["put", "delete"])
async def test_change_with_an_unknown_end_leaves_nothing(
    tmp_path: Path, change: str, fault: Fault
) -> None:
    async with world(tmp_path) as w:
        await fill(w)
        server = w.server()
        await started(server)
        w.script.on(change, fault)
        data = content(2, 1) if change == "put" else bytes(SIZE)
        with pytest.raises(StoreError):
            await server.disk.write(2 * SIZE, data, fua=True)
        assert server._disk_cache is not None
        assert await server._disk_cache.get(2) is None
        await server.crash()
        expected = w.memory.account.containers["disk"].objects.get(name(2))
        async with w.serving() as server:
            assert await server.read(2) == (expected.data if expected else bytes(SIZE))


@pytest.mark.parametrize("is_confirmed", [True, False])
async def test_fetch_that_a_change_overtakes_is_not_kept(
    tmp_path: Path, is_confirmed: bool
) -> None:
    """The old bytes are on their way already, and come when the new ones are stored."""
    async with world(tmp_path) as w:
        async with w.serving() as server:
            w.script.on("get", Fault(after=(gate := Gate())))
            read = begin(server.read(2))
            await gate.arrived.wait()
            await server.disk.write(2 * SIZE, content(2, 1))
            if is_confirmed:
                await server.disk.flush()
            else:
                w.script.on("put", reply_lost())
                with pytest.raises(StoreError):
                    await server.disk.flush()
            gate.open()
            assert await read == content(2, 1)
            await server.written()
            assert server._disk_cache is not None
            assert (2 in server._disk_cache) is is_confirmed
        async with w.serving() as server:
            assert await server.read(2) == content(2, 1)


async def test_trimmed_object_is_gone_from_the_disk(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await fill(w)
        async with w.serving() as server:
            await server.disk.trim(0, OBJECTS * SIZE, fua=True)
            assert server._disk_cache is not None
            assert len(server._disk_cache) == 0
        async with w.serving() as server:
            assert await server.read(0, length=OBJECTS * SIZE) == bytes(OBJECTS * SIZE)


# Several blocks to an object


async def test_only_what_is_missing_of_an_object_is_fetched(tmp_path: Path) -> None:
    async with world(tmp_path, block=PART) as w:
        async with w.serving() as server:
            await server.read(2, at=PART, length=PART)
            assert server.counters.store_in == PART
        async with w.serving() as server:
            assert await server.read(2) == content(2)
            assert server.counters.store_in == SIZE  # the gap begins with the first block
        async with w.serving() as server:
            assert await server.read(2) == content(2)
            assert w.asked == []


async def test_fetch_of_the_rest_confirms_what_is_there(tmp_path: Path) -> None:
    async with world(tmp_path, block=PART) as w:
        server = w.server()
        await started(server)
        await server.read(2, length=2 * PART)
        await server.crash()
        async with w.serving() as server:
            assert await server.read(2) == content(2)
            assert w.asked == ["get"]
            assert server.counters.store_in == 2 * PART


async def test_blocks_of_two_versions_are_never_put_together(tmp_path: Path) -> None:
    async with world(tmp_path, block=PART) as w:
        async with w.serving() as server:
            await server.read(2, length=2 * PART)
        async with w.serving(disk=False) as server:
            await server.disk.write(2 * SIZE, content(2, 1))
        async with w.serving() as server:
            assert await server.read(2) == content(2, 1)
            assert w.asked == ["get", "get"]


async def test_write_to_one_block_keeps_the_others_of_its_object(tmp_path: Path) -> None:
    async with world(tmp_path, block=PART) as w:
        async with w.serving() as server:
            await server.read(2, length=3 * PART)
            await server.written()
            await server.disk.write(2 * SIZE + PART, b"new", fua=True)
        async with w.serving() as server:
            expected = content(2)[:PART] + b"new" + content(2)[PART + 3 :]
            assert await server.read(2) == expected
            assert w.asked == []  # the last one was fetched for the upload


# Read-ahead


@pytest.fixture
def is_found(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Object 3 is looked for on the local disk until it is set."""
    is_found, find = asyncio.Event(), LocalBlocks.find

    async def found_late(self: LocalBlocks, index: int, start: int, end: int) -> Found | None:
        found = await find(self, index, start, end)
        if index == 3:
            await is_found.wait()
        return found

    monkeypatch.setattr(LocalBlocks, "find", found_late)
    monkeypatch.setattr(disk_module, "READ_AHEAD_BYTES_MIN", 1)
    return is_found


@asynccontextmanager
async def reading_ahead(w: World, is_found: asyncio.Event) -> AsyncIterator[Server]:
    """After a crash, so the store is asked of all that is on the disk; object 3 is read ahead."""
    is_found.set()
    await fill(w)
    await started(server := w.server())
    await server.crash()
    await started(server := w.server(read_ahead_bytes=SIZE, requests=1, reads_reserved=1))
    is_found.clear()
    for index in range(3):
        await server.read(index)
    yield server
    await server.detach()


async def test_reader_of_what_is_being_read_ahead_does_not_wait_for_those_who_write_back(
    tmp_path: Path, is_found: asyncio.Event
) -> None:
    async with world(tmp_path) as w, reading_ahead(w, is_found) as server:
        uploading = w.script.hold("put")
        await server.disk.write(6 * SIZE, content(6, 1))
        flush = begin(server.disk.flush())
        await uploading.arrived.wait()
        read = begin(server.read(3))
        await turns()
        is_found.set()
        assert await asyncio.wait_for(read, 10) == content(3)
        uploading.open()
        await flush


async def test_upload_does_not_wait_for_ever_for_what_is_being_read_ahead(
    tmp_path: Path, is_found: asyncio.Event
) -> None:
    async with world(tmp_path) as w, reading_ahead(w, is_found) as server:
        await server.disk.write(3 * SIZE, content(3, 1)[:4])
        flush = begin(server.disk.flush())
        await turns()
        is_found.set()
        await asyncio.wait_for(flush, 10)
        assert await server.read(3) == content(3, 1)


# The lease


async def test_nothing_is_given_out_while_suspended(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await fill(w)
        async with w.serving() as server:
            server.suspend()
            read = begin(server.read(2))
            await turns(1000)
            assert not read.done()
            server.resume()
            assert await read == content(2)


@pytest.mark.expects_log("disk: the lock is lost; 0 bytes were not written back")
async def test_who_lost_the_lock_lets_go_of_the_file_unbound(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        server = w.server()
        await started(server)
        await check_all(server)
        server.fail("the lock is lost")
        with pytest.raises(ExportError, match="the lock is lost"):
            await server.read(2)
        assert server._closing is not None
        await server._closing
        await break_lock(w.store, "unlock:1@1700000000", await sight(w.store))
        async with w.serving() as other:
            await check_all(other)
            assert w.asked == ["head"] * OBJECTS
        await server.abandon()


@pytest.mark.expects_log("disk: kept locked, trying again")
async def test_lock_lost_while_unlocking_proves_nothing(tmp_path: Path) -> None:
    """The file is bound to a tenure whose end nobody has seen."""
    async with world(tmp_path) as w:
        server = w.server()
        await started(server)
        await check_all(server)
        w.script.on("renew", failing(), times=3)
        w.script.on("set_metadata", failing(), times=3)
        await server.detach()
        assert server.attached
        await server.abandon()
        w.script.clear()
        await break_lock(w.store, "unlock:1@1700000000", await sight(w.store))
        w.lay(2, content(2, 1))
        async with w.serving() as other:
            await check_all(other, 2)
            assert w.asked == ["get"] + ["head"] * OBJECTS


# A disk that is no help


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, nothing more fits on the disk."""
    event = threading.Event()
    pwrite = os.pwrite

    def write(fd: int, data: bytes, offset: int) -> int:
        if event.is_set():
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    return event


@pytest.mark.expects_log(OFF + "No space left on device")
async def test_full_disk_is_said_once_until_the_server_is_started_again(
    tmp_path: Path, full: threading.Event, log_watch: LogWatch
) -> None:
    async with world(tmp_path) as w:
        server = w.server()
        await started(server)
        full.set()
        await check_all(server)
        await server.written()
        await server.disk.write(2 * SIZE, content(2, 1), fua=True)
        await check_all(server, 2)
        await server.detach()
        await server.attach(CLIENT)
        await check_all(server, 2)
        await server.detach()
        assert len(log_watch.lines) == 1
        full.clear()
        async with w.serving() as server:
            await check_all(server, 2)
        async with w.serving() as server:
            await check_all(server, 2)
            assert w.asked == []


@pytest.mark.expects_log(OFF + "No space left on device")
async def test_full_disk_is_tried_again_when_the_export_is_changed(
    tmp_path: Path, full: threading.Event
) -> None:
    async with world(tmp_path) as w:
        server = w.server()
        await started(server)
        full.set()
        await check_all(server)
        await server.written()
        await server.detach()
        full.clear()
        server.change(w.server())
        await started(server)
        await check_all(server)
        await server.written()
        assert server._disk_cache is not None
        assert len(server._disk_cache) == OBJECTS
        await server.detach()


@pytest.mark.expects_log(OFF + "Input/output error")
async def test_disk_that_cannot_be_read_costs_a_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as w:
        await fill(w)

        def fail(*args: object) -> bytes:
            raise OSError(EIO, os.strerror(EIO))

        async with w.serving() as server:
            monkeypatch.setattr(slot_file.SlotFile, "read", fail)
            await check_all(server)
            assert w.asked == ["get"] * OBJECTS


async def test_damaged_slot_costs_a_fetch(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await fill(w)
        (path,) = w.directory.iterdir()
        data = path.read_bytes()
        path.write_bytes(data.replace(content(2), content(3)))
        async with w.serving() as server:
            await check_all(server)
            assert w.asked == ["get"]


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Reads, writes and openings of slots wait for it, once it is cleared."""
    event = threading.Event()
    event.set()
    for method in ("read", "write", "save", "_load"):
        plain = getattr(slot_file.SlotFile, method)

        def wait_first(*args: object, plain: object = plain) -> object:
            event.wait()
            return plain(*args)  # type: ignore[operator]

        monkeypatch.setattr(slot_file.SlotFile, method, wait_first)
    yield event
    event.set()


@pytest.mark.expects_log(OFF + "a read took more than")
async def test_disk_that_hangs_holds_nobody_up_for_long(
    tmp_path: Path, hung: threading.Event, monkeypatch: pytest.MonkeyPatch, log_watch: LogWatch
) -> None:
    async with world(tmp_path) as w:
        await fill(w)
        async with w.serving() as server:
            monkeypatch.setattr(disk_cache, "READ_SECONDS_MAX", 0.05)
            monkeypatch.setattr(disk_cache, "CLOSE_SECONDS_MAX", 0.05)
            hung.clear()
            await asyncio.gather(*(server.read(index) for index in range(OBJECTS)))
            await check_all(server)
            cache = server._disk_cache
            assert cache is not None
        assert len(log_watch.lines) == 1
        hung.set()
        assert cache._ending is not None
        await cache._ending


@pytest.mark.expects_log(OFF + "not open within")
async def test_disk_that_hangs_at_the_start_is_not_waited_for(
    tmp_path: Path, hung: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "OPEN_SECONDS_MAX", 0.05)
    hung.clear()
    async with world(tmp_path) as w:
        server = w.server()
        await started(server)
        await check_all(server)
        hung.set()
        await server.detach()
        assert not server.attached


@pytest.mark.expects_log(OFF + "a write took more than")
async def test_writes_that_hang_are_noticed(
    tmp_path: Path, hung: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "WRITE_SECONDS_MAX", 0.0)
    monkeypatch.setattr(disk_cache, "QUEUE_BYTES_MAX", 2 * SIZE)
    async with world(tmp_path) as w:
        server = w.server()
        await started(server)
        hung.clear()
        await check_all(server)
        hung.set()
        await server.detach()


@pytest.mark.expects_log("disk: going on without the disk cache: .*another process uses")
async def test_file_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.serving(read_only=True) as first:
        await check_all(first)
        async with w.serving(read_only=True) as second:
            await check_all(second)
        await first.written()
        assert first._disk_cache is not None
        assert len(first._disk_cache) == OBJECTS


async def test_exports_share_a_folder_and_no_block(tmp_path: Path) -> None:
    async with world(tmp_path) as one, world(tmp_path) as two:
        for index in range(OBJECTS):
            two.lay(index, content(index, 7))
        await fill(one)
        server = two.server()
        server.origin = "elsewhere"
        await started(server)
        assert await server.read(3) == content(3, 7)
        await server.detach()
        assert len(list(one.directory.iterdir())) == 2


def test_thread_that_hangs_does_not_keep_the_process_from_ending() -> None:
    program = """
import asyncio, threading
from swiftnbd.api.threads import Threads

async def main():
    hung = Threads(1, "hung").run(threading.Event().wait)
    await asyncio.wait([hung], timeout=0.01)

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_same_name_elsewhere_is_another_file_and_no_secret_is_in_its_name() -> None:
    def origin(url: str, user: str, secret: str, region: str | None = None) -> str:
        options = (("auth_url", url), ("username", user), ("password", secret))
        login = LoginSettings("v3password", options, region=region)
        return ExportConfig("disk", login=login).origin(AuthConfig())

    one = origin("http://a", "alice", "hunter2")
    assert one == origin("http://a", "alice", "another")
    others = {
        origin("http://b", "alice", "hunter2"),
        origin("http://a", "bob", "hunter2"),
        origin("http://a", "alice", "hunter2", "here"),
        ExportConfig("disk").origin(AuthConfig(directory=Path("/disks"))),
    }
    assert len(others - {one}) == 4
