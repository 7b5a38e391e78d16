# SPDX-License-Identifier: MIT
"""What only the directory store has: files, other processes, a full disk, kill -9."""

import asyncio
import errno
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.errors import (
    AccessRefused,
    ContainerMissing,
    ContainerNotEmpty,
    CorruptObject,
    LeaseOver,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from swiftnbd.store import folder, folder_files, folder_tree
from swiftnbd.store.base import Blob, Buffer
from swiftnbd.store.directory import DirectoryStore, containers
from swiftnbd.store.folder_names import file_part, name_part
from swiftnbd.store.leave import asking

NAME = "disk.part/00000042"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[DirectoryStore]:
    store = DirectoryStore(root, "disk")
    await store.create_container()
    yield store
    await store.close()


# listing


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each walk through the folders."""
    walks: list[str] = []

    def object_names(top: int, prefix: str = "") -> Iterator[str]:
        walks.append(prefix)
        return folder_tree.object_names(top, prefix)

    monkeypatch.setattr(folder, "object_names", object_names)
    return walks


async def page(store: DirectoryStore, after: str, limit: int = 2) -> list[str]:
    return [row.name for row in await store.listing(prefix="n/", after=after, limit=limit)]


async def put_numbers(store: DirectoryStore, count: int) -> None:
    for number in range(count):
        await store.put(f"n/{number}", b"x")


async def test_one_walk_serves_the_pages_that_follow(
    store: DirectoryStore, walks: list[str]
) -> None:
    await put_numbers(store, 5)
    assert await page(store, "") == ["n/0", "n/1"]
    await store.delete("n/2")
    assert await page(store, "n/1") == ["n/3"]  # what was deleted meanwhile is left out
    assert await page(store, "n/3") == ["n/4"]
    assert walks == ["n/"]
    assert await page(store, "n/4") == []
    assert await page(store, "") == ["n/0", "n/1"]
    assert await page(store, "n/1", limit=9) == ["n/3", "n/4"]


async def test_a_walk_looks_only_so_far_ahead(
    store: DirectoryStore, walks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "PAGES_AHEAD", 2)
    await put_numbers(store, 6)
    pages = [await page(store, after) for after in ("", "n/1", "n/3", "n/5")]
    assert pages == [["n/0", "n/1"], ["n/2", "n/3"], ["n/4", "n/5"], []]
    assert len(walks) == 3


async def test_a_page_within_other_bounds_takes_a_walk_of_its_own(
    store: DirectoryStore, walks: list[str]
) -> None:
    await put_numbers(store, 5)
    await page(store, "")
    assert [row.name for row in await store.listing(after="n/1", before="n/3")] == ["n/2"]
    await page(store, "")
    assert await page(store, "n/2") == ["n/3", "n/4"]
    assert len(walks) == 4


async def test_names_found_long_ago_are_not_listed(
    store: DirectoryStore, walks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_numbers(store, 5)
    await page(store, "")
    await store.put("n/11", b"x")
    monkeypatch.setattr(folder, "AHEAD_SECONDS_MAX", -1.0)
    assert await page(store, "n/1") == ["n/11", "n/2"]
    assert len(walks) == 2


# names


async def test_objects_are_plain_files(store: DirectoryStore, root: Path) -> None:
    await store.put(NAME, b"data")
    assert (root / "disk" / "disk.part" / "00000042").read_bytes() == b"data"


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("00000042", "00000042"),
        ("disk.part", "disk.part"),
        ("", "%"),
        (".", "%2E"),
        ("..", "%2E."),
        (".tmp", "%2Etmp"),
        ("100%", "100%25"),
        ("%2E", "%252E"),
        ("é", "%C3%A9"),
        ("a b~", "a b~"),
    ],
)
def test_names_and_files(part: str, file: str) -> None:
    assert file_part(part) == file
    assert name_part(file) == part


@pytest.mark.parametrize("file", ["%41", "%zz", "%2etmp", "%FF", "é", "a%", "\udcff", ".hidden"])
def test_files_that_are_none_of_ours_have_no_name(file: str) -> None:
    assert name_part(file) is None


@pytest.mark.parametrize("container", ["..", ".", ".lock", "%", "é", "a b"])
async def test_hostile_container_names_stay_under_the_root(root: Path, container: str) -> None:
    store = DirectoryStore(root, container)
    assert await store.create_container() is True
    await store.put("../../up", b"x")
    assert containers(root) == [container]
    assert {path.name for path in root.parent.iterdir()} == {"root"}
    await store.delete("../../up")
    assert await store.delete_container() is True
    assert containers(root) == []
    await store.close()


def test_containers_of_nothing(tmp_path: Path) -> None:
    assert containers(tmp_path / "none") == []
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    assert containers(tmp_path) == []


async def test_foreign_files_are_not_listed(store: DirectoryStore, root: Path) -> None:
    await store.put(NAME, b"x")
    (root / "disk" / "caf\u00e9").write_text("x")
    (root / "disk" / "disk.part" / ".DS_Store").write_text("x")
    os.mkfifo(root / "disk" / "fifo")
    assert [row.name for row in await store.listing()] == [NAME]
    with pytest.raises(StoreError, match="not a regular file"):
        await store.get("fifo")


# one name cannot be both an object and a folder


async def test_an_object_below_an_object_is_refused(store: DirectoryStore) -> None:
    await store.put("a", b"x")
    with pytest.raises(StoreError, match="a part of it is an object"):
        await store.put("a/b", b"x")
    assert await store.get("a/b") is None
    assert await store.delete("a/b") is False


@pytest.mark.parametrize("if_absent", [False, True])
async def test_an_object_above_an_object_is_refused(store: DirectoryStore, if_absent: bool) -> None:
    await store.put("a/b/c", b"x")
    with pytest.raises(StoreError, match="objects are below it"):
        await store.put("a", b"x", if_absent=if_absent)
    assert await store.get("a") is None
    assert await store.head("a") is None
    assert await store.delete("a") is False
    await store.delete("a/b/c")
    await store.put("a", b"y", if_absent=if_absent)  # the empty folders give way
    assert await store.get("a") == Blob(b"y", md5(b"y").hexdigest())


# a disk that is not there


async def test_an_unmounted_disk_is_no_disk_of_zeros(store: DirectoryStore, root: Path) -> None:
    await store.put(NAME, b"x")
    (root / "disk").rename(root / "away")
    for make_mount_point in (False, True):
        if make_mount_point:
            (root / "disk").mkdir()
        for operation in (
            store.get(NAME),
            store.head(NAME),
            store.put(NAME, b""),
            store.delete(NAME),
            store.renew(NAME, "t"),
            store.listing(),
        ):
            with pytest.raises(ContainerMissing):
                await operation
        assert await store.info() is None


# metadata


async def test_metadata_changes_of_many_stores_are_all_kept(root: Path) -> None:
    stores = [DirectoryStore(root, "disk") for _ in range(4)]
    await stores[0].create_container()
    await asyncio.gather(
        *(
            store.set_metadata({f"k{n}-{i}": "v"})
            for i in range(5)
            for n, store in enumerate(stores)
        )
    )
    info = await stores[0].info()
    assert info is not None
    assert len(info.metadata) == 20
    for store in stores:
        await store.close()


async def test_metadata_waits_for_another_process(store: DirectoryStore, root: Path) -> None:
    with folder_files.opened(str(root / ".lock"), os.O_RDONLY) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        change = asyncio.create_task(store.set_metadata({"key": "value"}))
        done, _ = await asyncio.wait([change], timeout=0.1)
        assert not done
        assert await store.get(NAME) is None  # objects do not wait
    await change


async def test_damaged_metadata_is_an_error(store: DirectoryStore, root: Path) -> None:
    (root / "disk" / ".container.json").write_text("{")
    with pytest.raises(StoreError, match=r"file:disk: info: \.container\.json is damaged"):
        await store.info()


async def test_a_container_with_foreign_files_is_not_deleted(
    store: DirectoryStore, root: Path
) -> None:
    await store.set_metadata({"key": "value"})
    (root / "disk" / ".note").write_text("x")
    with pytest.raises(ContainerNotEmpty):
        await store.delete_container()
    info = await store.info()
    assert info is not None
    assert dict(info.metadata) == {"key": "value"}


async def test_objects_are_counted_only_on_demand(store: DirectoryStore) -> None:
    await store.put("one", b"123")
    info, counted = await store.info(), await store.info(count=True)
    assert info is not None
    assert counted is not None
    assert (info.objects, info.bytes_used) == (None, None)
    assert (counted.objects, counted.bytes_used) == (1, 3)


# ETags


async def test_a_changed_byte_on_disk_is_noticed(store: DirectoryStore, root: Path) -> None:
    await store.put(NAME, b"good")
    path = root / "disk" / NAME
    stat = path.stat()
    path.write_bytes(b"Good")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(CorruptObject, match="written with"):
        await store.get(NAME)


async def test_ranges_of_a_file_put_by_others_are_hashed_once_it_is_old(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "disk" / "n"
    path.write_bytes(b"x" * 1000)
    hashed = 0
    real = md5

    def counting(data: Any) -> Any:
        nonlocal hashed
        hashed += 1
        return real(data)

    monkeypatch.setattr("swiftnbd.store.folder.md5", counting)
    for age, expected in ((0, 3), (60, 1)):
        os.utime(path, (path.stat().st_mtime - age,) * 2)
        hashed = 0
        for _ in range(3):
            assert await store.get("n", start=1, length=2) is not None
        assert hashed == expected


def test_etags_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_files, "ETAGS_MAX", 2)
    etags = folder_files.Etags()
    stats = []
    for number in range(3):
        (tmp_path / str(number)).write_text("x")
        stats.append((tmp_path / str(number)).stat())
        etags.remember(stats[-1], str(number), exact=True)
        etags.recall(stats[0])
    assert [etags.recall(stat) for stat in stats] == ["0", None, "2"]


# errors


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs to be root and to be allowed to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk(small_disk: Path) -> None:
    store = DirectoryStore(small_disk, "disk")
    await store.create_container()
    await store.put(NAME, b"a" * 300_000)
    with pytest.raises(StoreFull, match=r"file:disk: PUT n: No space left on device") as caught:
        await store.put("n", b"b" * 900_000)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(StoreFull):
        await store.put(NAME, b"b" * 900_000)
    assert await store.get(NAME) == Blob(b"a" * 300_000, md5(b"a" * 300_000).hexdigest())
    assert list((small_disk / "disk" / ".tmp").iterdir()) == []
    await store.put(NAME, b"c" * 400_000)
    await store.close()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EROFS, AccessRefused),
        (errno.EACCES, AccessRefused),
        (errno.EMFILE, StoreUnavailable),
        (errno.EIO, StoreError),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
async def test_a_failing_put_leaves_the_old_object_and_no_temporary_file(
    store: DirectoryStore,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    error: type[StoreError],
    call: str,
) -> None:
    await store.put(NAME, b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StoreError) as caught:
            await store.put(NAME, b"new")
    assert type(caught.value) is error
    blob = await store.get(NAME)
    assert blob is not None
    assert blob.data == b"old"
    assert list((root / "disk" / ".tmp").iterdir()) == []


async def test_a_put_is_synced_in_order(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file before it gets its name, the folder after, and both before put returns."""
    monkeypatch.setattr(
        fcntl, "ioctl", lambda *_: b"\1" * struct.calcsize("l")
    )  # tmpfs cannot tell folders apart
    await store.put("disk.part/0", b"")
    calls: list[str] = []
    for call in ("write", "fsync", "rename", "link", "unlink"):
        real = getattr(os, call)

        def record(*args: Any, _real: Any = real, _call: str = call, **options: Any) -> Any:
            if _call == "fsync":
                calls.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{args[0]}")))
            elif _call != "unlink":
                calls.append(_call)
            return _real(*args, **options)

        monkeypatch.setattr(os, call, record)
    await store.put(NAME, b"data")
    assert [call.partition("-")[0] for call in calls] == [
        "write",
        f"sync {os.getpid()}",
        "rename",
        "sync disk.part",
    ]
    calls.clear()
    await store.delete(NAME)
    assert calls == ["sync disk.part"]
    calls.clear()
    await store.put("new/folder/n", b"", if_absent=True)
    assert [call for call in calls if str(os.getpid()) not in call] == [
        "sync disk",
        "sync new",
        "link",
        "sync folder",
    ]


@pytest.mark.parametrize("generations", [True, False])
@pytest.mark.parametrize("made_by", ["us", "another process"])
async def test_a_folder_made_again_with_the_same_inode_is_synced_in_its_parent(
    store: DirectoryStore,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    made_by: str,
    generations: bool,
) -> None:
    synced: list[str] = []
    real_stat, real_sync = os.fstat, os.fsync
    generation = 1

    def stat(fd: int) -> os.stat_result:
        found = real_stat(fd)
        is_part = os.readlink(f"/proc/self/fd/{fd}").endswith("/disk.part")
        return os.stat_result((found.st_mode, 7, *found[2:])) if is_part else found

    def sync(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        real_sync(fd)

    def version(*_: object) -> bytes:
        if not generations:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return generation.to_bytes(struct.calcsize("l"), sys.byteorder)

    monkeypatch.setattr(os, "fstat", stat)
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(fcntl, "ioctl", version)
    await store.put(NAME, b"old")
    await store.put(NAME, b"older")
    await store.delete(NAME)
    assert await store.delete_container()
    await store.create_container()
    generation += 1
    if made_by == "another process":
        (root / "disk" / "disk.part").mkdir()
    synced.clear()
    await store.put(NAME, b"new")
    assert "disk" in synced
    assert synced.index("disk") < synced.index("disk.part")


async def test_a_folder_found_again_is_not_synced_in_its_parent(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: b"\1" * struct.calcsize("l"))
    await store.put(NAME, b"old")
    synced: list[str] = []
    real = os.fsync

    def sync(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fsync", sync)
    await store.put(NAME, b"new")
    assert "disk" not in synced


def _no_ioctl(*_: Any) -> Any:
    raise OSError(errno.EOPNOTSUPP, "no reflinks here")


@pytest.mark.parametrize("after", [0, 1, 700_000])
async def test_what_the_kernel_does_not_copy_is_copied_by_hand(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """As between file systems, on old kernels, and wherever it stops half-way."""
    other = DirectoryStore(root, "other")
    await other.create_container()
    data = bytes(range(251)) * 10_000
    etag = await other.put(NAME, data)
    real = os.copy_file_range

    def gives_up(source: int, target: int, count: int, offset: int) -> int:
        if offset >= after:
            raise OSError(errno.EXDEV, "not between these")
        return real(source, target, min(count, after - offset), offset)

    monkeypatch.setattr(os, "copy_file_range", gives_up)
    monkeypatch.setattr(folder_files, "_clone", _no_ioctl)
    await store.copy(NAME, other.place, etag)
    assert (root / "disk" / NAME).read_bytes() == data
    await other.close()


async def test_source_that_was_damaged_on_disk_is_not_copied(
    store: DirectoryStore, root: Path
) -> None:
    other = DirectoryStore(root, "other")
    await other.create_container()
    etag = await other.put(NAME, b"sound")
    (root / "other" / NAME).write_bytes(b"wound")
    await store.put(NAME, b"before")
    with pytest.raises(CorruptObject, match="copied with MD5"):
        await store.copy(NAME, other.place, etag)
    assert (root / "disk" / NAME).read_bytes() == b"before"
    assert os.listdir(root / "disk" / ".tmp") == []
    await other.close()


async def test_a_cancelled_put_has_ended_when_it_returns(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    real = folder_files.write_all

    def slow(fd: int, data: Buffer) -> None:
        began.set()
        go_on.wait()
        real(fd, data)

    monkeypatch.setattr(folder_files, "write_all", slow)
    put = asyncio.create_task(store.put(NAME, b"data"))
    await asyncio.to_thread(began.wait)
    put.cancel()
    done, _ = await asyncio.wait([put], timeout=0.1)
    assert not done
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await put
    blob = await store.get(NAME)
    assert blob is not None
    assert blob.data == b"data"


async def test_a_put_that_was_cancelled_before_it_began_is_not_done(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swiftnbd.store.directory.THREADS", 1)
    store = DirectoryStore(root, "disk")
    await store.create_container()
    gate = threading.Event()
    busy = store._threads.submit(gate.wait)
    put = asyncio.create_task(store.put(NAME, b"data"))
    await asyncio.sleep(0)
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    gate.set()
    busy.result()
    assert await store.get(NAME) is None
    await store.close()


async def test_a_closed_store_says_so(root: Path) -> None:
    store = DirectoryStore(root, "disk")
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.get(NAME)


# other processes

WRITER = """
import asyncio, sys
from pathlib import Path
from swiftnbd.store.directory import DirectoryStore

async def main():
    store = DirectoryStore(Path(sys.argv[1]), "disk")
    print("ready", flush=True)
    for number in range(1, 10**9):
        body = bytes([number % 251]) * 300_000
        await asyncio.gather(*(store.put(f"disk.part/{i}", body) for i in range(4)))
        await store.renew("disk.part/0", f"token-{number}")
        await store.set_metadata({"number": str(number)})

asyncio.run(main())
"""


def _start_writer(root: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE)


async def test_kill_in_the_middle_of_puts_leaves_old_or_new(root: Path) -> None:
    store = DirectoryStore(root, "disk")
    await store.create_container()
    leftovers = attempt = 0
    while attempt < 6 or not leftovers:  # until a kill has hit a put, or this times out
        writer = _start_writer(root)
        assert writer.stdout is not None
        assert await asyncio.to_thread(writer.stdout.readline) == b"ready\n"
        await asyncio.to_thread(_wait_for_file, root / "disk" / "disk.part" / "3", attempt % 6)
        writer.send_signal(signal.SIGKILL)
        await asyncio.to_thread(writer.wait)
        writer.stdout.close()
        leftovers += len(list((root / "disk" / ".tmp").iterdir()))
        for number in range(4):
            blob = await store.get(f"disk.part/{number}")
            assert blob is not None
            assert blob.data == blob.data[:1] * 300_000
        assert await store.info() is not None
        assert await store.head("disk.part/0") is not None
        assert [row.name for row in await store.listing()] == [f"disk.part/{n}" for n in range(4)]
        attempt += 1
    await store.put(NAME, b"x")
    assert list((root / "disk" / ".tmp").iterdir()) == []
    await store.close()


def _wait_for_file(path: Path, attempt: int) -> None:
    """Until the file has been replaced some times."""
    seen: set[int] = set()
    while len(seen) < 2 + attempt:
        if path.exists():
            seen.add(path.stat().st_mtime_ns)


async def test_a_living_writers_temporary_file_is_left(root: Path) -> None:
    store = DirectoryStore(root, "disk")
    await store.create_container()
    top = os.open(root / "disk", os.O_RDONLY)
    with folder_files.temp_file(top) as temp:
        (root / "disk" / ".tmp" / "left-by-the-dead").write_text("x")
        await store.put(NAME, b"x")
        assert [path.name for path in (root / "disk" / ".tmp").iterdir()] == [
            os.path.basename(temp.path)
        ]
    os.close(top)
    assert list((root / "disk" / ".tmp").iterdir()) == []
    await store.close()


async def test_a_temporary_file_taken_by_a_cleaner_is_made_anew(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cleaner of another process comes between open and flock, once."""
    real = fcntl.flock
    removed: list[Path] = []

    def flock(fd: int, how: int) -> None:
        if not removed and how == fcntl.LOCK_EX:
            removed.append(path := next((root / "disk" / ".tmp").iterdir()))
            path.unlink()
        real(fd, how)

    await store.put("first", b"")  # it has cleaned
    monkeypatch.setattr(fcntl, "flock", flock)
    await store.put(NAME, b"data")
    assert removed
    blob = await store.get(NAME)
    assert blob is not None
    assert blob.data == b"data"


# copies of a folder


async def test_renew_token_does_not_go_with_a_copied_folder(
    root: Path, store: DirectoryStore
) -> None:
    """As docs/format.md says: nothing is believed of what a copy, or a backup, may be a mixture."""
    await store.put("swiftnbd/epoch/1", b"claim")
    assert await store.renew("swiftnbd/epoch/1", "TOKEN:released")
    shutil.copytree(root, root.with_name("copy"))
    copy = DirectoryStore(root.with_name("copy"), "disk")
    there, here = await copy.head("swiftnbd/epoch/1"), await store.head("swiftnbd/epoch/1")
    assert there is not None
    assert here is not None
    assert (there.etag, there.token, here.token) == (here.etag, "", "TOKEN:released")
    await copy.close()


# the lease of a lock


async def test_change_whose_lease_ends_while_it_is_synced_does_not_land(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was stopped in a sync, and taken over from, put old bytes over newer ones."""
    await store.put(NAME, b"old")
    await store.set_metadata({"swiftnbd-client": "next"})
    is_over = False

    def check() -> None:
        if is_over:
            raise LeaseOver("the lock's lease is over")

    def finish(temp: folder_files.Temp) -> None:
        nonlocal is_over
        is_over = True  # as if the process stood still here for minutes
        finished(temp)

    finished = folder_files.Temp.finish
    monkeypatch.setattr(folder_files.Temp, "finish", finish)
    for change in (
        lambda: store.put(NAME, b"new"),
        lambda: store.put("disk.part/1", b"new", if_absent=True),
        lambda: store.set_metadata({"swiftnbd-client": "ours"}),
    ):
        is_over = False
        with asking(check), pytest.raises(LeaseOver):
            await change()
    with asking(check), pytest.raises(LeaseOver):  # in the queue for a thread
        await store.delete(NAME)
    assert await store.get(NAME) == Blob(b"old", md5(b"old").hexdigest())
    assert [each.name for each in await store.listing()] == [NAME]
    info = await store.info()
    assert info is not None
    assert info.metadata == {"swiftnbd-client": "next"}
    assert list((root / "disk" / ".tmp").iterdir()) == []
