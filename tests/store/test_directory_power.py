# SPDX-License-Identifier: MIT
"""What the directory store has promised is there after the power failed, whatever else is not.

The disk of the test remembers nothing but what was synced: the bytes of a file as they were at
its last fsync, and the names in a folder as they were at that folder's. A worse disk does not
exist; a milder one also keeps names that were not synced, in the order in which they were made.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swiftnbd.store.base import Blob
from swiftnbd.store.directory import DirectoryStore
from tests.store.contract import etag_of

NAME = "disk.part/00000042"
OLD, NEW = b"old" * 1000, b"new" * 2000


class Disk:
    """What is durable of all below ``root``. ``on_sync`` is called whenever that has changed."""

    def __init__(self, root: Path, lost: Path) -> None:
        self.root = root
        self.on_sync: Callable[[], None] = lambda: None
        self._lost = lost  # where it is laid out to be looked at
        self._looks = 0
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}
        self._sync = os.fsync

    def fsync(self, fd: int) -> None:
        self._sync(fd)
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            self._names[found.st_ino] = _names(Path(f"/proc/self/fd/{fd}"))
        else:
            self._bytes[found.st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()
        self.on_sync()

    def after_a_power_cut(self, *, names_survive: bool) -> Path:
        """The root as it is found afterwards."""
        self._looks += 1
        found = self._lost / str(self._looks)
        self._lay_out(self.root, self.root.stat().st_ino, found, names_survive)
        return found

    def _lay_out(self, now: Path, folder: int, to: Path, names_survive: bool) -> None:
        to.mkdir(parents=True)
        names = _names(now) if names_survive else self._names.get(folder, {})
        for name, (inode, is_folder) in names.items():
            if is_folder:
                self._lay_out(now / name, inode, to / name, names_survive)
            else:
                (to / name).write_bytes(self._bytes.get(inode, b""))


def _names(folder: Path) -> dict[str, tuple[int, bool]]:
    with os.scandir(folder) as entries:
        return {entry.name: (entry.inode(), entry.is_dir()) for entry in entries}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path / "root", tmp_path / "after")
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


@pytest.fixture(params=[True, False], ids=["generations", "no generations"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it can tell a folder from another one with its inode number."""

    def version(*_: object) -> bytes:
        if not request.param:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return b"\1" * 8

    monkeypatch.setattr(fcntl, "ioctl", version)


@pytest.fixture
def store(disk: Disk, file_system: None) -> Iterator[DirectoryStore]:
    store = DirectoryStore(disk.root, "disk")
    yield store
    store._threads.shutdown()


async def found(root: Path, name: str) -> Blob | None:
    store = DirectoryStore(root, "disk")
    try:
        return await store.get(name)
    finally:
        await store.close()


@pytest.mark.parametrize("names_survive", [False, True])
async def test_what_was_answered_survives_a_power_cut(
    store: DirectoryStore, disk: Disk, names_survive: bool
) -> None:
    async def seen(name: str) -> bytes | None:
        blob = await found(disk.after_a_power_cut(names_survive=names_survive), name)
        return None if blob is None else blob.data

    await store.create_container({"key": "value"})
    assert await seen(NAME) is None  # and no error: the container is there
    for data in (OLD, NEW):
        await store.put(NAME, data)
        assert await seen(NAME) == data
    await store.put("new/folder/name", OLD, if_absent=True)
    assert await seen("new/folder/name") == OLD
    assert await seen(NAME) == NEW
    assert await store.renew(NAME, "token")
    await store.set_metadata({"key": "other"})
    after = DirectoryStore(disk.after_a_power_cut(names_survive=names_survive), "disk")
    info = await after.info()
    assert info is not None
    assert info.metadata == {"key": "other"}
    await after.close()
    await store.delete(NAME)
    assert await seen(NAME) is None
    assert await seen("new/folder/name") == OLD


@pytest.mark.parametrize("names_survive", [False, True])
async def test_power_cut_in_the_middle_leaves_the_old_object_or_the_new_one(
    store: DirectoryStore, disk: Disk, names_survive: bool
) -> None:
    await store.create_container()
    for data, legal in ((OLD, (None, OLD)), (NEW, (OLD, NEW)), (None, (NEW, None))):
        cuts: list[Path] = []

        def cut(cuts: list[Path] = cuts) -> None:
            cuts.append(disk.after_a_power_cut(names_survive=names_survive))

        disk.on_sync = cut
        if data is None:
            await store.delete(NAME)
        else:
            await store.put(NAME, data)
        disk.on_sync = lambda: None
        assert cuts
        for root in cuts:
            blob = await found(root, NAME)
            assert (None if blob is None else blob.data) in legal
            assert blob is None or blob.etag == etag_of(blob.data)


async def test_disk_of_the_test_forgets_what_was_not_synced(disk: Disk) -> None:
    """The test of the test."""
    disk.root.mkdir()
    (disk.root / "a").write_bytes(b"a")
    assert list(disk.after_a_power_cut(names_survive=False).iterdir()) == []
    assert (disk.after_a_power_cut(names_survive=True) / "a").read_bytes() == b""
    for path in (disk.root / "a", disk.root):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    assert (disk.after_a_power_cut(names_survive=False) / "a").read_bytes() == b"a"
