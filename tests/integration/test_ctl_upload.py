# SPDX-License-Identifier: MIT
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.cli.common import held
from swiftnbd.cli.ctl_download import download
from swiftnbd.cli.ctl_setup import SetupRequest, setup
from swiftnbd.cli.ctl_upload import UploadRequest, upload
from swiftnbd.cli.image import ImageFile
from swiftnbd.cli.source import Source
from swiftnbd.cli.summary import Summary
from swiftnbd.cli.unfinished import UPLOAD
from swiftnbd.errors import Locked, StoreError, SwiftnbdError
from swiftnbd.export.layout import PART_PREFIX, Geometry, object_name
from swiftnbd.export.objects import PRESENCE
from swiftnbd.export.pace import Pace
from swiftnbd.store.base import Body, Store
from swiftnbd.store.memory import MemoryStore
from tests.integration.conftest import HELD, HOLDER, NAME, OBJECT_SIZE, Told, metadata

DISK_BYTES = 8 * OBJECT_SIZE


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image"


async def run(
    store: Store,
    image: Path,
    told: Told,
    *,
    force: bool = False,
    set_up: SetupRequest | None = None,
    quiet: bool = True,
) -> Summary:
    with Source(str(image)) as source:
        request = UploadRequest(set_up, force, quiet, Pace())
        return await upload(store, name=NAME, source=source, request=request, tell=told)


async def stored(store: Store) -> dict[int, bytes]:
    """The disk's objects, whether anybody knows of them or not."""
    found = {}
    for index in range(300):
        blob = await store.get(object_name(index))
        if blob is not None:
            found[index] = blob.data
    return found


async def content(store: Store, objects: int = 8) -> bytes:
    blocks = await stored(store)
    return b"".join(blocks.get(index, bytes(OBJECT_SIZE)) for index in range(objects))


def write(image: Path, data: bytes) -> None:
    image.write_bytes(data)


def read(image: Path) -> bytes:
    return image.read_bytes()


def blocks(**data: bytes) -> bytes:
    """A disk's bytes: ``_3=b"x"`` fills object 3."""
    found = [bytes(OBJECT_SIZE)] * 8
    for key, byte in data.items():
        found[int(key[1:])] = byte * OBJECT_SIZE
    return b"".join(found)


async def test_only_data_are_stored(disk: Store, image: Path, told: Told) -> None:
    write(image, blocks(_1=b"a", _6=b"b"))
    summary = await run(disk, image, told)
    assert await stored(disk) == {1: b"a" * OBJECT_SIZE, 6: b"b" * OBJECT_SIZE}
    assert (summary["objects_sent"], summary["objects_deleted"]) == (2, 0)
    assert (await metadata(disk)).keys() & {"client", "image-size"} == set()
    assert await disk.head(UPLOAD) is None


@pytest.mark.parametrize("size", [1, OBJECT_SIZE - 1, OBJECT_SIZE, OBJECT_SIZE + 1, DISK_BYTES - 1])
async def test_image_shorter_than_the_disk_ends_in_zeros(
    disk: Store, image: Path, told: Told, size: int
) -> None:
    for index in range(8):
        await disk.put(object_name(index), b"old" + bytes(OBJECT_SIZE - 3))
    await disk.delete(PRESENCE)
    write(image, b"x" * size)
    await run(disk, image, told, force=True)
    assert await content(disk) == (b"x" * size).ljust(DISK_BYTES, b"\0")
    # only where nobody can have made use of what lies behind it in whole objects
    short = {"image-size": str(size)} if size == DISK_BYTES - 1 else {}
    found = await metadata(disk)
    assert {key: found[key] for key in found.keys() & {"image-size"}} == short


async def test_holes_are_neither_read_nor_stored(disk: Store, image: Path, told: Told) -> None:
    with image.open("wb") as file:
        file.truncate(9 * OBJECT_SIZE)
        file.seek(200 * OBJECT_SIZE)
        file.write(b"x")
        file.truncate(300 * OBJECT_SIZE + 5)
    larger = SetupRequest(Geometry(301, OBJECT_SIZE), force=True)
    await setup(disk, name=NAME, request=larger, tell=told)
    summary = await run(disk, image, told)
    assert list(await stored(disk)) == [200]
    assert summary["objects_sent"] == 1
    assert (await metadata(disk))["image-size"] == str(300 * OBJECT_SIZE + 5)


async def test_empty_image_makes_an_empty_disk(disk: Store, image: Path, told: Told) -> None:
    await disk.put(object_name(3), b"x" * OBJECT_SIZE)
    await disk.delete(PRESENCE)
    write(image, b"")
    await run(disk, image, told, force=True)
    assert await stored(disk) == {}


async def test_image_that_is_too_large_changes_nothing(
    disk: Store, image: Path, told: Told
) -> None:
    write(image, bytes(DISK_BYTES + 1))
    before = await metadata(disk)
    with pytest.raises(SwiftnbdError, match=r"\(\d+ bytes\) and does not fit: disk"):
        await run(disk, image, told)
    assert await metadata(disk) == before


@pytest.mark.parametrize("known", [True, False])
async def test_data_are_overwritten_only_by_force(
    disk: Store, image: Path, told: Told, known: bool
) -> None:
    write(image, blocks(_2=b"a"))
    await run(disk, image, told)
    if not known:
        await disk.delete(PRESENCE)
    write(image, blocks(_3=b"b"))
    with pytest.raises(SwiftnbdError, match="disk holds data; to write over it, use --force"):
        await run(disk, image, told)
    assert await content(disk) == blocks(_2=b"a")
    summary = await run(disk, image, told, force=True)
    assert await content(disk) == blocks(_3=b"b")
    # a refusal forgets nothing of what was known of the disk
    assert summary["objects_deleted"] == (1 if known else 7)


async def test_refusal_believes_the_map_where_the_listing_lags(image: Path, told: Told) -> None:
    class Lagging(MemoryStore):
        async def listing(self, *, prefix: str = "", **bounds: Any) -> list[Any]:
            return [] if prefix == PART_PREFIX else await super().listing(prefix=prefix, **bounds)

    store = Lagging(NAME)
    await setup(store, name=NAME, request=SetupRequest(Geometry(8, OBJECT_SIZE)), tell=told)
    write(image, blocks(_2=b"a"))
    await run(store, image, told)
    with pytest.raises(SwiftnbdError, match="holds data"):
        await run(store, image, told)


async def test_what_is_there_is_not_sent_again(disk: Store, image: Path, told: Told) -> None:
    write(image, blocks(_1=b"a", _2=b"b", _3=b"c"))
    await run(disk, image, told)
    write(image, blocks(_1=b"a", _2=b"x", _4=b"d"))
    summary = await run(disk, image, told, force=True)
    assert await content(disk) == blocks(_1=b"a", _2=b"x", _4=b"d")
    assert summary["objects_already_there"] == 1
    assert summary["objects_sent"] == 2
    assert summary["objects_deleted"] == 1


class Interrupted(MemoryStore):
    """Stops at the n-th PUT of a disk's object, of which a torn or old version is then there."""

    def __init__(self, puts: int) -> None:
        super().__init__(NAME)
        self.puts = puts
        self.reached = asyncio.Event()

    async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
        if name.startswith(PART_PREFIX):
            self.puts -= 1
            if self.puts < 0:
                self.reached.set()
                await asyncio.Event().wait()
        return await super().put(name, data, if_absent=if_absent)


async def interrupted(image: Path, told: Told, objects: int = 8) -> Interrupted:
    """An upload that was cancelled in the middle."""
    store = Interrupted(3)
    await setup(store, name=NAME, request=SetupRequest(Geometry(objects, OBJECT_SIZE)), tell=told)
    task = asyncio.create_task(run(store, image, told))
    await store.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "client" not in await metadata(store)
    store.puts = 1000
    return store


async def test_interrupted_upload_goes_on_without_force(image: Path, told: Told) -> None:
    write(image, blocks(_0=b"a", _1=b"b", _3=b"c", _5=b"d", _7=b"e"))
    store = await interrupted(image, told)
    assert told[-1] == "disk is incomplete; the same command goes on where this one stopped"
    summary = await run(store, image, told)
    assert "disk: going on with an upload that was interrupted" in told
    assert await content(store) == read(image)
    assert summary["objects_already_there"] == 3
    assert summary["objects_sent"] == 2
    # what was zeros and known to be absent is still known to be
    assert summary["objects_deleted"] == 0


async def test_another_image_over_an_interrupted_upload_leaves_nothing_of_it(
    image: Path, told: Told
) -> None:
    write(image, blocks(_0=b"a", _1=b"b", _3=b"c", _5=b"d", _7=b"e"))
    store = await interrupted(image, told)
    write(image, blocks(_1=b"z"))
    await run(store, image, told)
    assert await content(store) == blocks(_1=b"z")


async def test_interrupted_upload_that_somebody_has_used_needs_force(
    image: Path, told: Told
) -> None:
    write(image, blocks(_0=b"a", _1=b"b", _3=b"c", _5=b"d", _7=b"e"))
    store = await interrupted(image, told)
    async with held(store, NAME):
        await store.put(object_name(4), b"new" + bytes(OBJECT_SIZE - 3))
    with pytest.raises(SwiftnbdError, match="was interrupted, and somebody has held it since"):
        await run(store, image, told)
    await run(store, image, told, force=True)
    assert await content(store) == read(image)


async def test_interrupted_upload_goes_on_after_somebody_has_only_looked(
    image: Path, told: Told, tmp_path: Path
) -> None:
    write(image, blocks(_0=b"a", _1=b"b", _3=b"c", _5=b"d", _7=b"e"))
    store = await interrupted(image, told)
    with ImageFile(str(tmp_path / "out"), force=False, container=NAME) as file:
        await download(store, name=NAME, file=file, quiet=True, tell=told)
    assert (await run(store, image, told))["objects_already_there"] == 3
    assert await content(store) == read(image)


async def test_etag_of_a_listing_alone_is_not_believed(image: Path, told: Told) -> None:
    class Stale(MemoryStore):
        """Its listing says what an object was like before the last write."""

        before: Mapping[str, Any] = {}

        async def listing(self, **bounds: Any) -> list[Any]:
            page = await super().listing(**bounds)
            return [self.before.get(row.name, row) for row in page]

    store = Stale(NAME)
    await setup(store, name=NAME, request=SetupRequest(Geometry(8, OBJECT_SIZE)), tell=told)
    write(image, blocks(_1=b"a"))
    await run(store, image, told)
    store.before = {row.name: row for row in await store.listing()}
    await store.put(object_name(1), b"z" * OBJECT_SIZE)
    await run(store, image, told, force=True)
    assert await content(store) == blocks(_1=b"a")


async def test_locked_container_is_not_written(disk: Store, image: Path, told: Told) -> None:
    write(image, blocks(_1=b"a"))
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    with pytest.raises(Locked, match=f"^{HELD}$"):
        await run(disk, image, told)
    assert await stored(disk) == {}


async def test_image_that_changes_meanwhile_is_said(image: Path, told: Told) -> None:
    class Touching(MemoryStore):
        async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
            if name.startswith(PART_PREFIX):
                os.utime(image, ns=(1, 1))
            return await super().put(name, data, if_absent=if_absent)

    store = Touching(NAME)
    await setup(store, name=NAME, request=SetupRequest(Geometry(8, OBJECT_SIZE)), tell=told)
    write(image, blocks(_1=b"a"))
    with pytest.raises(SwiftnbdError, match="image was changed while it was read"):
        await run(store, image, told)
    assert await store.head(UPLOAD)


async def test_store_that_fails_leaves_an_upload_to_go_on_with(image: Path, told: Told) -> None:
    class Full(Interrupted):
        async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
            if name == object_name(5) and self.puts < 100:
                raise StoreError("quota")
            self.puts += 1
            return await super().put(name, data, if_absent=if_absent)

    store = Full(50)
    await setup(store, name=NAME, request=SetupRequest(Geometry(8, OBJECT_SIZE)), tell=told)
    write(image, blocks(_0=b"a", _5=b"d"))
    with pytest.raises(StoreError, match="quota"):
        await run(store, image, told)
    assert "client" not in await metadata(store)
    store.puts = 1000
    await run(store, image, told)
    assert await content(store) == read(image)


# As a program


def ctl(folder: Path, *arguments: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    program = Path(sys.executable).with_name("swiftnbd-ctl")
    return subprocess.run(
        [sys.executable, str(program), "-a", "file:store", *arguments],
        cwd=folder,
        capture_output=True,
        timeout=60,
        check=False,
        **how,
    )


def test_image_comes_back_through_pipes(tmp_path: Path) -> None:
    data = os.urandom(300_000) + bytes(400_000) + os.urandom(11)
    done = ctl(tmp_path, "upload", "-q", "--setup", "--size", "1M", "-", "disk", input=data)
    assert done.returncode == 0, done.stderr
    assert ctl(tmp_path, "download", "-q", "disk", "-").stdout == data.ljust(1 << 20, b"\0")
    (tmp_path / "image").write_bytes(data)
    done = ctl(tmp_path, "upload", "--setup", "--json", "image", "other")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] == len(data)
    assert ctl(tmp_path, "download", "-q", "other", "-").stdout == data  # and not a byte more


def test_full_disk_behind_standard_output_is_named(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("swiftnbd-ctl")
    command = [sys.executable, str(program), "-a", "file:store", "download", "-q", "disk", "-"]
    assert ctl(tmp_path, "setup", "disk", "1").returncode == 0
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr == (b"swiftnbd-ctl: cannot write standard output: No space left on device\n")


@pytest.mark.parametrize(
    ("code", "sentence", "arguments"),
    [
        (1, "cannot read none: No such file or directory", ["none", "disk"]),
        (1, "cannot read store: it is a folder", ["store", "disk"]),
        (
            1,
            "has 68.4 KiB (70001 bytes) and does not fit: disk is a disk of 64 KiB",
            ["big", "disk"],
        ),
        (2, "--size, --object-size and --policy are for --setup", ["big", "disk", "--size", "1G"]),
        (
            2,
            "has 68.4 KiB (70001 bytes), more than --size 64 KiB",
            ["--setup", "--size=64K", "big", "new"],
        ),
        (2, "empty is empty: give the disk's --size", ["--setup", "empty", "new"]),
        (2, "standard input does not say its size: give", ["--setup", "-", "new"]),
        (1, "standard input does not fit on the disk of 64 KiB", ["-f", "-", "disk"]),
        (4, "new doesn't exist; to make it, add --setup", ["big", "new"]),
        (3, "locked is locked by", ["empty", "locked"]),
        (
            1,
            "has already been setup with 1 object of 64 KiB, 64 KiB, not with 2 objects of 64 KiB",
            ["--setup", "big", "disk"],
        ),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, code: int, sentence: str, arguments: list[str]
) -> None:
    for name in ("disk", "locked"):
        assert ctl(tmp_path, "setup", name, "1").returncode == 0
    assert ctl(tmp_path, "lock", "locked").returncode == 0
    (tmp_path / "big").write_bytes(b"x" * 70_001)
    (tmp_path / "empty").touch()
    done = ctl(tmp_path, "upload", "-q", *arguments, input=b"x" * 70_001)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
