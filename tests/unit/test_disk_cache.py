# SPDX-License-Identifier: MIT
"""The local disk cache: what it keeps, when it may be believed, and that it never harms."""

import asyncio
import fcntl
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from errno import EIO, ENOSPC, EROFS
from hashlib import md5
from pathlib import Path

import pytest

from swiftnbd.buffers import Pieces
from swiftnbd.errors import ExportUnusable
from swiftnbd.export import disk_cache, slot_file
from swiftnbd.export.disk_cache import QUEUE_BYTES_MAX, Cached, DiskCache
from swiftnbd.export.local_blocks import LocalBlocks
from tests.support.disks import begin
from tests.support.log_watch import LogWatch
from tests.support.loopback import until

SIZE = 4096
LIMIT = 1 << 20
OFF = r"disk: going on without the disk cache .*\.blocks: "


def block(seed: int, size: int = SIZE) -> bytes:
    return bytes([seed % 256]) * size


def etag(data: bytes) -> str:
    return md5(data).hexdigest()


async def open_cache(
    directory: Path, *, name: str = "disk", binding: str | None = "1", limit: int = LIMIT
) -> DiskCache:
    return await DiskCache.open(
        directory / "cache",
        name,
        label="disk",
        object_size=SIZE,
        block_size=SIZE,
        limit_bytes=limit,
        binding=binding,
    )


@asynccontextmanager
async def cache_in(
    directory: Path, *, name: str = "disk", binding: str | None = "1", limit: int = LIMIT
) -> AsyncIterator[DiskCache]:
    """A session that ends well: the same binding is kept."""
    cache = await open_cache(directory, name=name, binding=binding, limit=limit)
    yield cache
    await cache.close(binding)


async def written(cache: DiskCache) -> None:
    """Wait until what was put is written."""
    while cache._writes:
        await asyncio.wait(cache._writes)


async def keep(cache: DiskCache, *indexes: int) -> None:
    for index in indexes:
        cache.put(index, block(index), etag(block(index)))
        await written(cache)


def found(index: int, *, proven: bool = True) -> Cached:
    return Cached(block(index), etag(block(index)), proven)


def the_file(directory: Path) -> Path:
    (path,) = (directory / "cache").iterdir()
    return path


def change(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


# Keeping


async def test_block_is_found_after_it_was_put(tmp_path: Path) -> None:
    async with cache_in(tmp_path) as cache:
        assert await cache.get(7) is None
        await keep(cache, 7, 10**15)
        assert await cache.get(7) == found(7)
        assert await cache.get(10**15) == found(10**15)
        assert await cache.get(8) is None
        assert len(cache) == 2


async def test_dropped_block_is_gone_also_after_a_restart(tmp_path: Path) -> None:
    async with cache_in(tmp_path) as cache:
        await keep(cache, 1, 2)
        cache.drop(1)
        cache.drop(99)
        assert await cache.get(1) is None
    async with cache_in(tmp_path) as cache:
        assert await cache.get(1) is None
        assert await cache.get(2) == found(2)


@pytest.mark.parametrize(("first", "end"), [(0, 10**15), (2, 5), (3, 3)])
async def test_range_is_dropped(tmp_path: Path, first: int, end: int) -> None:
    async with cache_in(tmp_path) as cache:
        await keep(cache, 1, 2, 4, 5)
        cache.drop_range(first, end)
        left = [index for index in (1, 2, 4, 5) if await cache.get(index) is not None]
        assert left == [index for index in (1, 2, 4, 5) if not first <= index < end]


@pytest.mark.parametrize("text", ["x" * 33, "\u20ac"])
async def test_block_with_an_etag_that_does_not_fit_is_not_kept(tmp_path: Path, text: str) -> None:
    async with cache_in(tmp_path) as cache:
        cache.put(1, block(1), text)
        await written(cache)
        assert await cache.get(1) is None


# Believing


async def test_block_is_proven_after_a_clean_end_with_the_same_binding(tmp_path: Path) -> None:
    cache = await open_cache(tmp_path, binding=None)
    await keep(cache, 1)
    await cache.close("epoch 7, last a:1@2")
    async with cache_in(tmp_path, binding="epoch 7, last a:1@2") as cache:
        assert await cache.get(1) == found(1)


@pytest.mark.parametrize(("closed", "opened"), [("1", "2"), ("1", None), (None, "1"), (None, None)])
async def test_block_is_unproven_with_another_binding(
    tmp_path: Path, closed: str | None, opened: str | None
) -> None:
    cache = await open_cache(tmp_path)
    await keep(cache, 1)
    await cache.close(closed)
    async with cache_in(tmp_path, binding=opened) as cache:
        assert await cache.get(1) == found(1, proven=False)


async def test_block_is_unproven_after_a_crash(tmp_path: Path) -> None:
    async with cache_in(tmp_path) as cache:
        await keep(cache, 1)
    cache = await open_cache(tmp_path)
    assert await cache.get(1) == found(1)
    crashed = the_file(tmp_path).read_bytes()
    await cache.close("1")
    the_file(tmp_path).write_bytes(crashed)
    async with cache_in(tmp_path) as cache:
        assert await cache.get(1) == found(1, proven=False)


async def test_use_is_on_disk_before_open_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a crash would leave the binding of the session before, and blocks changed since."""
    async with cache_in(tmp_path) as cache:
        await keep(cache, 1)
    calls = list[object]()
    write, sync = os.pwrite, os.fsync

    def noted_write(fd: int, data: bytes, offset: int) -> int:
        calls.append(offset)
        return write(fd, data, offset)

    def noted_sync(fd: int) -> None:
        calls.append("sync")
        sync(fd)

    monkeypatch.setattr(os, "pwrite", noted_write)
    monkeypatch.setattr(os, "fsync", noted_sync)
    cache = await open_cache(tmp_path)
    assert calls == [0, "sync"]
    del calls[:]
    await keep(cache, 2)
    cache.drop(1)
    assert "sync" not in calls
    del calls[:]
    await cache.close("1")
    assert calls == [4096, "sync", 0, "sync"]  # the table, and only then the binding


async def test_block_confirmed_by_its_etag_is_proven(tmp_path: Path) -> None:
    async with cache_in(tmp_path, binding="1") as cache:
        await keep(cache, 1, 2, 3)
    async with cache_in(tmp_path, binding="2") as cache:
        cache.confirm(1, etag(block(1)))
        cache.confirm(2, "other")
        cache.confirm(99, "other")
        assert await cache.get(1) == found(1)
        assert await cache.get(2) is None
    async with cache_in(tmp_path, binding="2") as cache:
        assert await cache.get(1) == found(1)
        assert await cache.get(3) == found(3, proven=False)


# Races


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writes and reads of slots wait for it."""
    event = threading.Event()
    write, read = slot_file.SlotFile.write, slot_file.SlotFile.read

    def late(method: Callable[..., object]) -> Callable[..., object]:
        def wait_first(*args: object) -> object:
            event.wait()
            return method(*args)

        return wait_first

    monkeypatch.setattr(slot_file.SlotFile, "write", late(write))
    monkeypatch.setattr(slot_file.SlotFile, "read", late(read))
    yield event
    event.set()


async def test_block_dropped_while_it_is_written_does_not_come_back(
    tmp_path: Path, gate: threading.Event
) -> None:
    async with cache_in(tmp_path) as cache:
        cache.put(1, block(1), "old")
        cache.drop(1)
        cache.put(2, block(2), "old")
        cache.drop_range(0, 10**15)
        gate.set()
        await written(cache)
        assert await cache.get(1) is None
        assert await cache.get(2) is None
    async with cache_in(tmp_path) as cache:
        assert len(cache) == 0


async def test_block_put_again_while_it_is_written_is_the_newer(
    tmp_path: Path, gate: threading.Event
) -> None:
    async with cache_in(tmp_path) as cache:
        cache.put(1, block(1), "old")
        cache.put(1, block(2), "new")
        gate.set()
        await written(cache)
        assert await cache.get(1) == Cached(block(2), "new", True)
    async with cache_in(tmp_path) as cache:
        assert await cache.get(1) == Cached(block(2), "new", True)


async def test_put_replaces_what_was_kept(tmp_path: Path, gate: threading.Event) -> None:
    gate.set()
    async with cache_in(tmp_path) as cache:
        await keep(cache, 7)
        gate.clear()
        cache.put(7, block(8), "other")
        assert await cache.get(7) is None
        gate.set()
        await written(cache)
        assert await cache.get(7) == Cached(block(8), "other", True)


@pytest.mark.parametrize("index", [1, 2])
async def test_block_whose_slot_is_given_away_while_it_is_read_is_not_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    """The bytes were read before: they are whole, and of the record there was."""
    was_read, go_on = threading.Event(), threading.Event()
    read = slot_file.SlotFile.read

    def slow_read(file: slot_file.SlotFile, slot: int, record: bytes) -> bytes | None:
        data = read(file, slot, record)
        was_read.set()
        go_on.wait()
        return data

    async with cache_in(tmp_path, limit=8192 + SIZE + 64) as cache:
        await keep(cache, 1)
        monkeypatch.setattr(slot_file.SlotFile, "read", slow_read)
        task = asyncio.create_task(cache.get(1))
        await asyncio.to_thread(was_read.wait)
        cache.put(index, block(3), "new")
        await written(cache)
        go_on.set()
        assert await task is None
        assert await cache.get(index) == Cached(block(3), "new", True)


@pytest.mark.parametrize("again", [False, True])
async def test_block_dropped_while_it_is_read_is_not_returned(
    tmp_path: Path, gate: threading.Event, again: bool
) -> None:
    gate.set()
    async with cache_in(tmp_path) as cache:
        await keep(cache, 1)
        gate.clear()
        read = asyncio.create_task(cache.get(1))
        await asyncio.sleep(0)
        cache.drop(1)
        if again:
            cache.put(1, block(2), "new")
        gate.set()
        await written(cache)
        assert await read is None


async def test_block_is_returned_while_another_is_confirmed(
    tmp_path: Path, gate: threading.Event
) -> None:
    gate.set()
    async with cache_in(tmp_path) as cache:
        await keep(cache, 1)
    async with cache_in(tmp_path, binding="2") as cache:
        gate.clear()
        read = asyncio.create_task(cache.get(1))
        await asyncio.sleep(0)
        cache.confirm(1, etag(block(1)))
        gate.set()
        assert await read == found(1)


async def test_close_finishes_what_is_queued(tmp_path: Path, gate: threading.Event) -> None:
    cache = await open_cache(tmp_path)
    for index in range(20):
        cache.put(index, block(index), etag(block(index)))
    close = asyncio.create_task(cache.close("1"))
    await asyncio.sleep(0)
    gate.set()
    await close
    assert await cache.get(1) is None
    async with cache_in(tmp_path) as cache:
        assert [await cache.get(index) for index in range(20)] == [*map(found, range(20))]


# Limits


async def test_file_never_exceeds_the_limit_and_the_oldest_go(tmp_path: Path) -> None:
    async with cache_in(tmp_path, limit=50_000) as cache:
        for index in range(30):
            await keep(cache, index)
        assert the_file(tmp_path).stat().st_size <= 50_000
        assert len(cache) == 10
        left = [index for index in range(30) if await cache.get(index) == found(index)]
        assert left == list(range(20, 30))


async def test_block_that_is_read_stays_longer(tmp_path: Path) -> None:
    async with cache_in(tmp_path, limit=50_000) as cache:
        await keep(cache, *range(10))
        for index in range(10, 40):
            assert await cache.get(3) == found(3)
            await keep(cache, index)
        assert await cache.get(4) is None


async def test_blocks_of_the_session_before_stay_while_there_is_room(tmp_path: Path) -> None:
    async with cache_in(tmp_path, limit=50_000) as cache:
        await keep(cache, *range(5))
    async with cache_in(tmp_path, limit=50_000) as cache:
        await keep(cache, *range(5, 10))
        assert [await cache.get(index) for index in range(10)] == [*map(found, range(10))]


async def test_file_grows_no_larger_for_blocks_that_are_replaced(tmp_path: Path) -> None:
    async with cache_in(tmp_path) as cache:
        await keep(cache, *range(10))
        size = the_file(tmp_path).stat().st_size
        for _ in range(3):
            await keep(cache, *range(10))
        assert the_file(tmp_path).stat().st_size == size


async def test_slots_of_dropped_blocks_are_used_again(tmp_path: Path) -> None:
    async with cache_in(tmp_path, limit=50_000) as cache:
        await keep(cache, *range(10))
        for index in range(5):
            await cache.get(index)
            cache.drop(index)
        await keep(cache, *range(20, 25))
        assert len(cache) == 10
        for index in (*range(5, 10), *range(20, 25)):
            assert await cache.get(index) == found(index)


async def test_part_that_waits_to_be_written_does_not_keep_the_whole_in_memory(
    tmp_path: Path, gate: threading.Event
) -> None:
    """The queue is bounded by its blocks, and each may be of another object of 64 MiB."""
    whole = b"".join(map(block, range(4)))
    async with cache_in(tmp_path) as cache:
        local = LocalBlocks(cache, SIZE, 4)
        referred = sys.getrefcount(whole)
        local.keep_changed(1, whole, "changed", [5])
        local.keep_changed(2, Pieces([whole[:SIZE], memoryview(whole)[SIZE:]]), "pieces", [8, 11])
        local.keep(3, 0, whole, "fetched")
        assert cache._queued_bytes == 7 * SIZE
        assert sys.getrefcount(whole) == referred
        gate.set()
        await written(cache)
        assert await cache.get(5) == Cached(whole[SIZE : 2 * SIZE], "changed", True)
        assert await cache.get(8) == Cached(whole[:SIZE], "pieces", True)
        assert await cache.get(11) == Cached(whole[3 * SIZE :], "pieces", True)
        assert await cache.get(14) == Cached(whole[2 * SIZE : 3 * SIZE], "fetched", True)
        assert len(cache) == 7


async def test_more_than_the_queue_holds_is_not_kept(tmp_path: Path, gate: threading.Event) -> None:
    async with cache_in(tmp_path, limit=4 * QUEUE_BYTES_MAX) as cache:
        many = 2 * QUEUE_BYTES_MAX // SIZE
        for index in range(many):
            cache.put(index, block(index), etag(block(index)))
        assert cache._queued_bytes == QUEUE_BYTES_MAX
        gate.set()
        await written(cache)
        assert len(cache) == many // 2
        await keep(cache, many)
        assert await cache.get(many) == found(many)


async def test_nothing_is_kept_when_all_slots_are_being_written(
    tmp_path: Path, gate: threading.Event
) -> None:
    async with cache_in(tmp_path, limit=50_000) as cache:
        for index in range(12):
            cache.put(index, block(index), etag(block(index)))
        gate.set()
        await written(cache)
        assert [await cache.get(index) is not None for index in range(12)] == 10 * [True] + 2 * [
            False
        ]


async def test_a_block_larger_than_the_queue_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "QUEUE_BYTES_MAX", SIZE // 2)
    async with cache_in(tmp_path) as cache:
        await keep(cache, 1)
        assert await cache.get(1) == found(1)


@pytest.mark.parametrize("limit", [60_000, 40_000])
async def test_another_limit_begins_anew(tmp_path: Path, limit: int) -> None:
    async with cache_in(tmp_path, limit=50_000) as cache:
        await keep(cache, *range(10))
    async with cache_in(tmp_path, limit=limit) as cache:
        assert len(cache) == 0
        assert the_file(tmp_path).stat().st_size < SIZE
        await keep(cache, 1)
        assert await cache.get(1) == found(1)


# Damage


async def test_every_changed_byte_of_a_slot_is_noticed(tmp_path: Path) -> None:
    async with cache_in(tmp_path, limit=50_000) as cache:
        await keep(cache, 1, 2)
        for at in (0, 1000, SIZE - 1):
            begin = the_file(tmp_path).read_bytes().rindex(block(1))
            change(the_file(tmp_path), begin + at, b"x")
            assert await cache.get(1) is None
            assert len(cache) == 1
            await keep(cache, 1)
        assert await cache.get(2) == found(2)


async def test_slot_with_another_slots_bytes_is_not_believed(tmp_path: Path) -> None:
    async with cache_in(tmp_path, limit=50_000) as cache:
        await keep(cache, 1, 2)
        path = the_file(tmp_path)
        change(path, path.read_bytes().index(block(1)), block(2))
        assert await cache.get(1) is None


async def test_bytes_that_an_earlier_file_left_are_not_believed(tmp_path: Path) -> None:
    async with cache_in(tmp_path, limit=50_000) as cache:
        await keep(cache, 1)
    old = the_file(tmp_path).read_bytes()
    the_file(tmp_path).unlink()
    async with cache_in(tmp_path, limit=50_000) as cache:
        await keep(cache, 1)
        change(the_file(tmp_path), 4096, old[4096:])
        assert old[8192:] == the_file(tmp_path).read_bytes()[8192:]
    change(the_file(tmp_path), 4096, old[4096:])
    async with cache_in(tmp_path, limit=50_000) as cache:
        assert await cache.get(1) is None


@pytest.mark.parametrize("at", [0, 20, 28, 36, 50, 70, 90, 120, 150])
async def test_damaged_header_begins_anew(tmp_path: Path, at: int) -> None:
    async with cache_in(tmp_path) as cache:
        await keep(cache, 1)
    old = the_file(tmp_path).read_bytes()[at]
    change(the_file(tmp_path), at, bytes([old ^ 1]))
    async with cache_in(tmp_path) as cache:
        assert len(cache) == 0


async def test_damaged_table_is_not_proven(tmp_path: Path) -> None:
    async with cache_in(tmp_path, binding="1") as cache:
        await keep(cache, 1)
    async with cache_in(tmp_path, binding="2"):
        pass
    path = the_file(tmp_path)
    assert path.read_bytes()[4096] == 1
    change(path, 4096, b"\3")
    async with cache_in(tmp_path, binding="2") as cache:
        assert await cache.get(1) == found(1, proven=False)


@pytest.mark.parametrize("length", [0, 100, 5000, 9000])
async def test_file_cut_short_gives_no_wrong_bytes(tmp_path: Path, length: int) -> None:
    async with cache_in(tmp_path, limit=50_000) as cache:
        await keep(cache, 1, 2)
    os.truncate(the_file(tmp_path), length)
    async with cache_in(tmp_path, limit=50_000) as cache:
        assert await cache.get(1) is None
        assert await cache.get(2) is None
        await keep(cache, 1)
        assert await cache.get(1) == found(1)


async def test_cache_of_another_container_is_another_file(tmp_path: Path) -> None:
    async with cache_in(tmp_path, name="a") as cache:
        await keep(cache, 1)
    first = the_file(tmp_path)
    async with cache_in(tmp_path, name="b") as cache:
        assert len(cache) == 0
    (second,) = set((tmp_path / "cache").iterdir()) - {first}
    first.replace(second)
    async with cache_in(tmp_path, name="b") as cache:
        assert len(cache) == 0


# The disk


async def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with cache_in(tmp_path):
            assert stat.S_IMODE(the_file(tmp_path).parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(the_file(tmp_path).stat().st_mode) == 0o600
        the_file(tmp_path).chmod(0o644)
        async with cache_in(tmp_path):
            assert stat.S_IMODE(the_file(tmp_path).stat().st_mode) == 0o600
    finally:
        os.umask(before)


async def test_file_in_use_is_refused(tmp_path: Path) -> None:
    async with cache_in(tmp_path) as cache:
        await keep(cache, 1)
        with pytest.raises(ExportUnusable, match="another process uses this disk cache"):
            await open_cache(tmp_path)
        assert await cache.get(1) == found(1)
    async with cache_in(tmp_path) as cache:
        assert await cache.get(1) == found(1)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Set once a file is open, and what its opening waits for then."""
    is_open, go_on = threading.Event(), threading.Event()
    load = slot_file.SlotFile._load

    def late(file: slot_file.SlotFile, binding: str | None) -> bytearray:
        is_open.set()
        assert go_on.wait(60)
        return load(file, binding)

    monkeypatch.setattr(slot_file.SlotFile, "_load", late)
    yield is_open, go_on
    go_on.set()


async def test_file_is_let_go_of_by_who_was_cancelled_while_it_was_opened(
    tmp_path: Path, opened: tuple[threading.Event, threading.Event]
) -> None:
    is_open, go_on = opened
    opening = begin(open_cache(tmp_path))
    assert await asyncio.to_thread(is_open.wait, 30)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    go_on.set()
    await until(lambda: not is_in_use(tmp_path))


@pytest.mark.expects_log(OFF + "not open within")
async def test_file_that_is_open_too_late_is_let_go_of(
    tmp_path: Path,
    opened: tuple[threading.Event, threading.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also if the cache without it was closed before."""
    is_open, go_on = opened
    monkeypatch.setattr(disk_cache, "OPEN_SECONDS_MAX", 0.01)
    monkeypatch.setattr(disk_cache, "CLOSE_SECONDS_MAX", 0.01)
    cache = await open_cache(tmp_path)
    assert await asyncio.to_thread(is_open.wait, 30)
    await cache.close(None)
    go_on.set()
    await until(lambda: not is_in_use(tmp_path))


def is_in_use(directory: Path) -> bool:
    with the_file(directory).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


async def is_off(cache: DiskCache) -> bool:
    """It finds nothing, keeps nothing, and all calls go on to work."""
    assert len(cache) == 0
    await keep(cache, 5)
    cache.drop(5)
    cache.drop_range(0, 100)
    cache.confirm(5, "etag")
    return len(cache) == 0 and await cache.get(1) is None


@pytest.mark.expects_log(OFF + ".*File exists")
async def test_directory_that_cannot_be_made_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    async with cache_in(tmp_path) as cache:
        assert await is_off(cache)


@pytest.mark.expects_log(OFF + ".*symbolic links")
async def test_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    async with cache_in(tmp_path):
        pass
    path = the_file(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    async with cache_in(tmp_path) as cache:
        assert await is_off(cache)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.expects_log(OFF + ".*not a file of ours")
async def test_file_of_another_kind_is_one_warning(tmp_path: Path) -> None:
    async with cache_in(tmp_path):
        pass
    path = the_file(tmp_path)
    path.unlink()
    os.mkfifo(path)
    async with cache_in(tmp_path) as cache:
        assert await is_off(cache)


@pytest.mark.expects_log(OFF + r".*its limit of 8192 bytes leaves no room")
async def test_limit_too_small_for_a_block_is_one_warning(tmp_path: Path) -> None:
    async with cache_in(tmp_path, limit=8192) as cache:
        assert await is_off(cache)


def failing(monkeypatch: pytest.MonkeyPatch, function: str, errno: int, *, after: int = 0) -> None:
    """From its call number ``after`` on, an `os` function fails."""
    working, calls = getattr(os, function), []

    def fail(*args: object) -> object:
        calls.append(args)
        if len(calls) > after:
            raise OSError(errno, os.strerror(errno))
        return working(*args)

    monkeypatch.setattr(os, function, fail)


@pytest.mark.expects_log(OFF)
@pytest.mark.parametrize(
    ("function", "errno"), [("pwrite", EROFS), ("fsync", EIO), ("pread", EIO), ("open", EROFS)]
)
async def test_disk_that_fails_from_the_start_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, errno: int
) -> None:
    async with cache_in(tmp_path) as cache:
        await keep(cache, 1)
    failing(monkeypatch, function, errno)
    async with cache_in(tmp_path) as cache:
        assert await is_off(cache)


@pytest.mark.expects_log(OFF + ".*No space left")
@pytest.mark.parametrize("after", [0, 1])
async def test_full_disk_turns_it_off_and_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    async with cache_in(tmp_path) as cache:
        await keep(cache, 1)
    async with cache_in(tmp_path) as cache:
        with monkeypatch.context() as patch:
            failing(patch, "pwrite", ENOSPC, after=after)
            await keep(cache, 2, 3, 4)
        assert await is_off(cache)
    async with cache_in(tmp_path) as cache:
        assert await cache.get(1) == found(1, proven=False)
        assert await cache.get(2) is None


@pytest.mark.expects_log(OFF + ".*Input/output error")
async def test_read_error_turns_it_off_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_watch: LogWatch
) -> None:
    async with cache_in(tmp_path) as cache:
        await keep(cache, 1, 2)
        failing(monkeypatch, "pread", EIO)
        assert [*await asyncio.gather(cache.get(1), cache.get(2))] == [None, None]
        assert await is_off(cache)
    assert len(log_watch.lines) == 1


@pytest.mark.expects_log(OFF + "a read took more than")
async def test_disk_that_hangs_turns_it_off(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.set()
    cache = await open_cache(tmp_path)
    await keep(cache, 1)
    gate.clear()
    monkeypatch.setattr(disk_cache, "READ_SECONDS_MAX", 0.01)
    assert await cache.get(1) is None
    gate.set()
    assert await is_off(cache)
    await cache.close("1")


@pytest.mark.expects_log(OFF)
@pytest.mark.parametrize("after", [0, 1])
async def test_failing_sync_at_the_end_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The first is that of the blocks: then the binding must not be written."""
    cache = await open_cache(tmp_path)
    await keep(cache, 1)
    with monkeypatch.context() as patch:
        failing(patch, "fsync", EIO, after=after)
        await cache.close("1")
    async with cache_in(tmp_path, binding="1") as cache:
        assert await cache.get(1) == found(1, proven=after == 1)


@pytest.mark.expects_log(OFF + "not saved within")
async def test_disk_that_hangs_at_the_end_does_not_hold_up_the_server(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "CLOSE_SECONDS_MAX", 0.01)
    cache = await open_cache(tmp_path)
    cache.put(1, block(1), "etag")
    await cache.close("1")
    gate.set()
    assert cache._ending is not None
    await cache._ending
    async with cache_in(tmp_path) as cache:
        assert not [None for index in (1,) if (got := await cache.get(index)) and got.proven]
