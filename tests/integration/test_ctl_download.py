# SPDX-License-Identifier: MIT
import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.cli import common
from swiftnbd.cli.ctl_download import download, put_out
from swiftnbd.cli.ctl_setup import SetupRequest, setup
from swiftnbd.cli.image import ImageFile, open_image
from swiftnbd.cli.summary import Summary
from swiftnbd.errors import CorruptObject, Locked, StoreUnavailable, SwiftnbdError
from swiftnbd.export.layout import PART_PREFIX, Geometry, object_name
from swiftnbd.export.lock import Lock
from swiftnbd.export.objects import PRESENCE, store_presence
from swiftnbd.export.presence import Presence, State
from swiftnbd.store.base import Blob, Store
from swiftnbd.store.memory import MemoryStore
from tests.integration.conftest import HELD, HOLDER, NAME, OBJECT_SIZE, Told, metadata
from tests.support import clients


@pytest.fixture
async def disk(disk: Store) -> Store:
    """One of which nobody knows what it holds, for tests that put objects behind our back."""
    await disk.delete(PRESENCE)
    return disk


@pytest.fixture
def image(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder / "disk.raw"


async def run(store: Store, image: Path, told: Told, *, quiet: bool = True) -> Summary:
    with ImageFile(str(image), force=False, container=NAME) as file:
        return await download(store, name=NAME, file=file, quiet=quiet, tell=told)


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
    summary = await run(disk, image, told)
    assert content(image) == first + bytes(6 * OBJECT_SIZE) + last
    assert space_taken(image) <= 2 * OBJECT_SIZE
    assert summary["bytes"] == 8 * OBJECT_SIZE
    assert summary["bytes_fetched"] == 3 * OBJECT_SIZE
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
    data = b"x" * size + bytes(8 * OBJECT_SIZE - size)
    for index in range(8):
        await disk.put(object_name(index), data[index * OBJECT_SIZE :][:OBJECT_SIZE])
    await run(disk, image, told)
    assert content(image) == b"x" * size


@pytest.mark.parametrize("at", [OBJECT_SIZE + 2, 5 * OBJECT_SIZE])
async def test_data_written_behind_the_image_are_not_cut_off(
    disk: Store, image: Path, told: Told, at: int
) -> None:
    await disk.set_metadata({"swiftnbd-image-size": str(OBJECT_SIZE + 1)})
    data = bytearray(8 * OBJECT_SIZE)
    data[0], data[at] = 1, 1
    for index in (0, at // OBJECT_SIZE):
        await disk.put(object_name(index), data[index * OBJECT_SIZE :][:OBJECT_SIZE])
    await run(disk, image, told)
    assert content(image) == data


async def test_progress_is_told_in_lines_without_a_terminal(
    disk: Store, image: Path, told: Told
) -> None:
    await run(disk, image, told, quiet=False)
    assert told[0] == "Downloading disk [10%]"
    assert told[-1] == "Downloading disk [100%]"


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


async def test_object_that_was_lost_is_an_error_and_no_zeros(
    disk: Store, image: Path, told: Told
) -> None:
    """As one that Swift found damaged and set aside; the last holder had stored it."""
    presence = Presence(8)
    presence.set(1, State.PRESENT)
    lock = Lock(disk, HOLDER)
    await lock.acquire()
    await store_presence(disk, presence, lock.tenure.binding)
    await lock.release()
    with pytest.raises(CorruptObject, match="00000001 was stored and is not found any more"):
        await run(disk, image, told)
    with pytest.raises(CorruptObject, match="00000001 was stored and is not found any more"):
        await put_out(disk, name=NAME, quiet=True, tell=told)


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


async def started(limit: int, image: Path) -> tuple[Watched, "asyncio.Task[Summary]"]:
    store = Watched(limit)
    request = SetupRequest(Geometry(100, OBJECT_SIZE))
    await setup(store, name=NAME, request=request, tell=Told())
    await store.delete(PRESENCE)
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
    monkeypatch.setattr(common, "BUFFER_BYTES_MAX", 3 * OBJECT_SIZE)
    store, task = await started(3, image)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(store.names) == 3
    store.go_on.set()
    await task


async def test_interrupted_download_leaves_nothing(image: Path) -> None:
    store, task = await started(16, image)
    assert beside(image)
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


def random_disk(objects: int = 8) -> bytes:
    """Data in every second object."""
    return b"".join(
        os.urandom(OBJECT_SIZE) if index % 2 else bytes(OBJECT_SIZE) for index in range(objects)
    )


async def fill(store: Store, data: bytes) -> None:
    for index in range(len(data) // OBJECT_SIZE):
        block = data[index * OBJECT_SIZE :][:OBJECT_SIZE]
        if any(block):
            await store.put(object_name(index), block)


@pytest.mark.parametrize("left", ["right", "torn", "stale", "longer", "empty"])
async def test_interrupted_download_goes_on_whatever_was_left(
    disk: Store, image: Path, told: Told, left: str
) -> None:
    data = random_disk()
    await fill(disk, data)
    part = image.with_name("disk.raw.part")
    part.with_name("disk.raw.part.from").write_text(NAME)
    found = {
        "right": data[: 4 * OBJECT_SIZE],
        "torn": data[: 3 * OBJECT_SIZE + 7],
        "stale": os.urandom(8 * OBJECT_SIZE),
        "longer": data + b"x",
        "empty": b"",
    }
    part.write_bytes(found[left])
    summary = await run(disk, image, told)
    assert content(image) == data
    there = {"right": 2, "torn": 1, "stale": 0, "longer": 4, "empty": 0}
    assert summary["objects_already_there"] == there[left]
    assert beside(image) == [image.name]


async def test_download_that_failed_keeps_what_it_has(disk: Store, image: Path, told: Told) -> None:
    data = random_disk()
    await fill(disk, data)
    await disk.put(object_name(7), b"short")
    with pytest.raises(CorruptObject):
        await run(disk, image, told)
    assert sorted(beside(image)) == ["disk.raw.part", "disk.raw.part.from"]
    assert told[-1] == f"what was written stays in {image}.part: the same command goes on there"
    await disk.put(object_name(7), data[7 * OBJECT_SIZE :])
    await run(disk, image, told)
    assert content(image) == data


async def test_part_of_another_container_is_not_touched(
    disk: Store, image: Path, told: Told
) -> None:
    part = image.with_name("disk.raw.part")
    part.write_text("precious")
    part.with_name("disk.raw.part.from").write_text("other")
    with pytest.raises(SwiftnbdError, match="exists, and not from a download of this container"):
        await run(disk, image, told)
    assert part.read_text() == "precious"


async def test_two_downloads_do_not_write_one_image(disk: Store, image: Path, told: Told) -> None:
    with (
        ImageFile(str(image), force=False, container=NAME),
        pytest.raises(SwiftnbdError, match=r"disk.raw.part is being written by another download"),
    ):
        await run(disk, image, told)


async def test_what_is_known_to_be_absent_is_not_asked_for(image: Path, told: Told) -> None:
    store = Watched(1)
    await setup(store, name=NAME, request=SetupRequest(Geometry(100, OBJECT_SIZE)), tell=told)
    await run(store, image, told)
    assert store.names == set()
    assert content(image) == bytes(100 * OBJECT_SIZE)


@pytest.mark.parametrize("size", [None, 0, 1, 4 * OBJECT_SIZE + 1, 8 * OBJECT_SIZE])
@pytest.mark.parametrize("behind", [0, 5 * OBJECT_SIZE + 3])
async def test_stream_is_the_image_and_any_data_behind_it(
    disk: Store,
    told: Told,
    capfdbinary: pytest.CaptureFixture[bytes],
    size: int | None,
    behind: int,
) -> None:
    length = 8 * OBJECT_SIZE if size is None else size
    data = bytearray(random_disk()[:length].ljust(8 * OBJECT_SIZE, b"\0"))
    if size is not None:
        await disk.set_metadata({"swiftnbd-image-size": str(size)})
    if behind:
        data[behind] = 1
    await fill(disk, bytes(data))
    await put_out(disk, name=NAME, quiet=True, tell=told)
    out = capfdbinary.readouterr().out
    assert out == data[: max(length, behind + 1 if behind else 0)]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A block device of the disk's size, full of something."""
    file = tmp_path / "device"
    file.write_bytes(b"?" * 8 * OBJECT_SIZE)
    done = clients.run("losetup", "-f", "--show", file, check=False)
    if done.returncode:
        pytest.skip(f"no loop device here: {done.stderr}")
    yield Path(done.stdout.strip())
    clients.run("losetup", "-d", done.stdout.strip())


async def test_device_is_written_by_force_and_only_where_it_differs(
    disk: Store, told: Told, device: Path
) -> None:
    data = random_disk()
    await fill(disk, data)
    with (
        pytest.raises(SwiftnbdError, match="is a block device; to write over it, use --force"),
        open_image(str(device), force=False, container=NAME),
    ):
        pass
    for there in (0, 4):
        with open_image(str(device), force=True, container=NAME) as file:
            summary = await download(disk, name=NAME, file=file, quiet=True, tell=told)
        assert content(device) == data
        assert summary["objects_already_there"] == there


async def test_device_that_is_too_small_is_left_alone(
    store: Store, told: Told, device: Path
) -> None:
    request = SetupRequest(Geometry(9, OBJECT_SIZE))
    await setup(store, name=NAME, request=request, tell=told)
    with (
        pytest.raises(SwiftnbdError, match="has 32 KiB, too little for 36 KiB"),
        open_image(str(device), force=True, container=NAME) as file,
    ):
        await download(store, name=NAME, file=file, quiet=True, tell=told)
    assert content(device) == b"?" * 8 * OBJECT_SIZE
