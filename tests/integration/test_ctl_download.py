# SPDX-License-Identifier: MIT
import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.cli import ctl_download
from swiftnbd.cli.ctl_download import download
from swiftnbd.cli.ctl_setup import SetupRequest, setup
from swiftnbd.cli.image import ImageFile
from swiftnbd.errors import CorruptObject, Locked, StoreUnavailable, SwiftnbdError
from swiftnbd.export.layout import PART_PREFIX, Geometry, object_name
from swiftnbd.store.base import Blob, Store
from swiftnbd.store.memory import MemoryStore
from tests.integration.conftest import HELD, HOLDER, NAME, OBJECT_SIZE, Told, metadata


@pytest.fixture
def image(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder / "disk.raw"


async def run(store: Store, image: Path, told: Told, *, quiet: bool = True) -> None:
    with ImageFile(str(image), force=False) as file:
        await download(store, name=NAME, file=file, quiet=quiet, tell=told)


def content(image: Path) -> bytes:
    return image.read_bytes()


def beside(image: Path) -> list[str]:
    return [path.name for path in image.parent.iterdir()]


def space_taken(image: Path) -> int:
    return image.stat().st_blocks * 512


async def assert_nothing_happened(store: Store, image: Path) -> None:
    assert beside(image) == []
    assert "client" not in await metadata(store)


async def test_image_is_the_disk_with_zeros_for_absent_objects(
    disk: Store, image: Path, told: Told
) -> None:
    first, last = os.urandom(OBJECT_SIZE), os.urandom(OBJECT_SIZE)
    await disk.put(object_name(0), first)
    await disk.put(object_name(3), bytes(OBJECT_SIZE))
    await disk.put(object_name(7), last)
    await run(disk, image, told)
    assert content(image) == first + bytes(6 * OBJECT_SIZE) + last
    assert space_taken(image) <= 2 * OBJECT_SIZE
    assert told == [f"Done, {8 * OBJECT_SIZE} bytes written"]
    assert beside(image) == [image.name]
    found = await metadata(disk)
    assert "client" not in found
    assert "last" in found


async def test_many_objects_arrive_in_their_places(disk: Store, image: Path, told: Told) -> None:
    request = SetupRequest(Geometry(300, OBJECT_SIZE), force=True)
    await setup(disk, name=NAME, request=request, tell=told)
    for index in range(300):
        await disk.put(object_name(index), b"%04d" % index * (OBJECT_SIZE // 4))
    await run(disk, image, told)
    data = content(image)
    assert [data[i * OBJECT_SIZE :][:4] for i in range(300)] == [b"%04d" % i for i in range(300)]


@pytest.mark.parametrize("size", [0, 1, OBJECT_SIZE, OBJECT_SIZE + 1, 8 * OBJECT_SIZE])
async def test_image_that_was_uploaded_gets_its_size_back(
    disk: Store, image: Path, told: Told, size: int
) -> None:
    await disk.set_metadata({"swiftnbd-image-size": str(size)})
    for index in range(8):
        await disk.put(object_name(index), b"x" * OBJECT_SIZE)
    await run(disk, image, told)
    assert content(image) == b"x" * size


async def test_progress_is_told_in_lines_without_a_terminal(
    disk: Store, image: Path, told: Told
) -> None:
    await run(disk, image, told, quiet=False)
    assert told[0] == "Downloading disk [10%]"
    assert told[-2:] == ["Downloading disk [100%]", "Done, 32768 bytes written"]


async def test_locked_container_is_not_downloaded(disk: Store, image: Path, told: Told) -> None:
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    with pytest.raises(Locked, match=f"^{HELD}$"):
        await run(disk, image, told)
    assert beside(image) == []
    assert (await metadata(disk))["client"] == HOLDER


@pytest.mark.parametrize("size", [0, OBJECT_SIZE - 1, OBJECT_SIZE + 1])
async def test_object_of_another_size_is_an_error(
    disk: Store, image: Path, told: Told, size: int
) -> None:
    await disk.put(object_name(5), bytes(size))
    with pytest.raises(CorruptObject, match=rf"disk.part/00000005.* {size} bytes, expected"):
        await run(disk, image, told)
    await assert_nothing_happened(disk, image)


async def test_full_disk_is_one_sentence_and_leaves_nothing(
    disk: Store, image: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    await disk.put(object_name(5), b"x" * OBJECT_SIZE)
    with ImageFile(str(image), force=False) as file:
        monkeypatch.setattr(file, "_write_all", full)
        with pytest.raises(SwiftnbdError, match=r"cannot write \S+raw.part: No space left on dev"):
            await download(disk, name=NAME, file=file, quiet=True, tell=told)
    await assert_nothing_happened(disk, image)


class Watched(MemoryStore):
    """Counts what is in flight; `reached` is set when so many are, and then they wait."""

    def __init__(self, limit: int) -> None:
        super().__init__(NAME)
        self.limit = limit
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.names: set[str] = set()
        self.newest: set[bool] = set()

    async def get(self, name: str, **options: Any) -> Blob | None:
        if not name.startswith(PART_PREFIX):
            return await super().get(name, **options)
        self.names.add(name)
        self.newest.add(bool(options["newest"]))
        if len(self.names) == self.limit:
            self.reached.set()
        await self.go_on.wait()
        return None


async def started(limit: int, image: Path) -> tuple[Watched, "asyncio.Task[None]"]:
    store = Watched(limit)
    request = SetupRequest(Geometry(100, OBJECT_SIZE))
    await setup(store, name=NAME, request=request, tell=Told())
    task = asyncio.create_task(run(store, image, Told()))
    await store.reached.wait()
    return store, task


async def test_sixteen_objects_of_the_latest_version_are_fetched_at_once(image: Path) -> None:
    store, task = await started(16, image)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(store.names) == 16
    store.go_on.set()
    await task
    assert len(store.names) == 100
    assert store.newest == {True}


async def test_large_objects_are_fetched_so_that_memory_is_bounded(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctl_download, "BUFFER_BYTES_MAX", 3 * OBJECT_SIZE)
    store, task = await started(3, image)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(store.names) == 3
    store.go_on.set()
    await task


async def test_interrupted_download_leaves_nothing(image: Path) -> None:
    store, task = await started(16, image)
    assert beside(image) == ["disk.raw.part"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_nothing_happened(store, image)


async def test_lost_store_leaves_no_image(disk: Store, image: Path, told: Told) -> None:
    get = disk.get

    async def fail(name: str, **options: Any) -> Blob | None:
        if name.startswith(PART_PREFIX):
            raise StoreUnavailable("no answer in 15 s")
        return await get(name, **options)

    disk.get = fail  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable, match="no answer"):
        await run(disk, image, told)
    await assert_nothing_happened(disk, image)
