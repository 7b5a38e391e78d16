# SPDX-License-Identifier: MIT
"""The filter cow: the disk below does not change, and an overlay that stays survives a crash."""

import asyncio
import ctypes
import os
import random
import shutil
import struct
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from errno import EIO, ENOSPC, EOPNOTSUPP
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.api import Buffer, ConfigError, Device, Extent, Opening, Plugin
from swiftnbd.errors import ExportUnusable
from swiftnbd.export.device_export import DeviceExport
from swiftnbd.filters import cow
from swiftnbd.filters.cow import Cow, CowFilter, overlay
from swiftnbd.filters.rate import Rate
from swiftnbd.plugins.memory import Memory, MemoryDevice
from swiftnbd.server import server as server_module
from tests.support import nbd_client as nbd
from tests.support.device_oracle import is_array_of_bytes
from tests.support.loopback import serving, soon, until
from tests.support.nbd_client import NbdError
from tests.support.writers_oracle import check_writers

KiB, MiB = 1024, 1024 * 1024
BLOCK = 4096
OPENING = Opening("disk")


class Base(MemoryDevice):
    """A disk in whole blocks, in no hurry, of which the first half is random."""

    block_size_max = 64 * KiB

    def __init__(self, size: int, *, least: int = 1, chance: random.Random | None = None) -> None:
        super().__init__(size)
        self.chance = chance or random.Random(1)
        super().write_now(0, self.chance.randbytes(size // 2))
        self.before = self.image()
        self.block_size_min = least

    def image(self) -> bytes:
        return b"".join(self._pieces(0, self.size))

    def check(self, offset: int, length: int) -> None:
        assert not (offset | length) % self.block_size_min
        assert 0 <= offset < offset + length <= self.size

    async def read(self, offset: int, length: int) -> list[Buffer]:
        self.check(offset, length)
        assert length <= self.block_size_max
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(0)
        return self._pieces(offset, length)

    async def extents(self, offset: int, length: int, *, count: int) -> list[Extent]:
        self.check(offset, length)
        return list(await super().extents(offset, length, count=count))


@asynccontextmanager
async def opened(device: Device, tmp_path: Path, **told: Any) -> AsyncIterator[CowFilter]:
    filtered = await Cow(**{"cow_block_size": BLOCK, "cow_directory": tmp_path, **told}).wrap(
        device, OPENING
    )
    assert isinstance(filtered, CowFilter)
    try:
        yield filtered
    finally:
        await filtered.close()


@pytest.mark.parametrize("seed", range(4))
async def test_disk_with_an_overlay_is_an_array_of_bytes(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    least = 512 if seed % 2 else 1
    base = Base((200_000 + 700 * seed) // least * least, least=least, chance=chance)
    base.read_only = seed == 2
    on_read, on_cache = seed == 3, seed == 1
    async with opened(base, tmp_path, cow_on_read=on_read, cow_on_cache=on_cache) as device:
        assert not device.read_only
        model = bytearray(base.before)
        await is_array_of_bytes(device, model, chance, 60)
    assert base.image() == base.before
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("keeps", [False, True])
async def test_blocks_are_put_there_by_one_at_a_time(keeps: bool, tmp_path: Path) -> None:
    """Whole blocks, from writes to a part of each, and from reads, with none lost."""
    chance = random.Random(8)
    for _ in range(8):
        base = Base(20_000, chance=chance)
        async with opened(base, tmp_path, cow_on_read=keeps) as device:
            await check_writers(device, bytearray(base.before), chance)
        assert base.image() == base.before


async def test_blocks_are_cleared_by_one_at_a_time(tmp_path: Path) -> None:
    """A block that is read to be kept while it becomes zeros stays zeros."""
    for seed in range(20):
        base = Base(20_000, chance=random.Random(seed))
        async with opened(base, tmp_path, cow_on_read=True) as device:
            reading = asyncio.create_task(device.read(0, 10_000))
            for _ in range(seed % 5):
                await asyncio.sleep(0)
            await device.trim(0, 3 * BLOCK)
            await reading
            assert not any(b"".join(await device.read(0, 3 * BLOCK)))


@pytest.mark.parametrize("seed", range(3))
async def test_overlay_that_stays_is_found_again(seed: int, tmp_path: Path) -> None:
    chance, base = random.Random(seed), Base(150_001)
    model = bytearray(base.before)
    for _ in range(3):
        async with opened(base, tmp_path, cow_file=tmp_path / "overlay") as device:
            await is_array_of_bytes(device, model, chance, 25)
    assert base.image() == base.before


async def test_after_a_crash_all_is_there_that_was_flushed(tmp_path: Path) -> None:
    base = Base(100_000)
    model = bytearray(base.before)
    async with opened(base, tmp_path, cow_file=tmp_path / "overlay") as device:
        await device.write(10_000, b"a" * 20_000)
        model[10_000:30_000] = b"a" * 20_000
        await device.flush()
        await device.write(50_000, b"b" * 5_000)
        shutil.copy(tmp_path / "overlay", tmp_path / "left")  # with all that was ever written
        await device.write(20_000, b"c" * 10)
    async with opened(base, tmp_path, cow_file=tmp_path / "left") as device:
        assert b"".join(await device.read(0, 100_000)) == model
        await device.write(50_001, b"d")  # beside what was written and never came to be
        model[50_001:50_002] = b"d"
        assert b"".join(await device.read(0, 100_000)) == model


async def test_block_is_said_to_be_there_only_when_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[str] = []
    pwrite, fdatasync = os.pwrite, os.fdatasync

    def writing(descriptor: int, data: Buffer, place: int) -> int:
        did.append("block" if place >= 8192 else "bitmap")
        return pwrite(descriptor, data, place)

    def syncing(descriptor: int) -> None:
        did.append("sync")
        fdatasync(descriptor)

    async with opened(Base(100_000), tmp_path, cow_file=tmp_path / "overlay") as device:
        monkeypatch.setattr(os, "pwrite", writing)
        monkeypatch.setattr(os, "fdatasync", syncing)
        await device.write(0, b"x" * BLOCK)
        await device.flush()
        await device.write(0, b"y" * BLOCK)
        await device.flush()
    assert did == ["block", "sync", "bitmap", "sync", "block", "sync", "sync"]


async def test_flush_that_failed_once_fails_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(EIO, "Input/output error")

    device = await Cow(cow_file=tmp_path / "overlay").wrap(Base(100_000), OPENING)
    await device.write(0, b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(OSError, match="Input/output error"):
            await device.flush()
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            await device.close()


async def test_overlay_is_written_back_and_emptied_at_the_end(tmp_path: Path) -> None:
    chance, base = random.Random(7), Base(150_016, least=512)
    model = bytearray(base.before)
    path = tmp_path / "overlay"
    async with opened(base, tmp_path, cow_file=path) as device:
        await is_array_of_bytes(device, model, chance, 40)
        await device.zero(8192, 40_000)
        model[8192:48_192] = bytes(40_000)
    assert base.image() == base.before
    async with opened(base, tmp_path, cow_file=path, cow_commit=True):
        pass
    assert base.image() == model
    base.before = bytes(model)
    async with opened(base, tmp_path, cow_file=path) as device:
        await MemoryDevice.write(base, 0, b"seen")
        assert b"".join(await device.read(0, 4)) == b"seen"
        assert not any(each.hole for each in await device.extents(0, 4096, count=9))


@dataclass(frozen=True)
class Given(Plugin):
    """Serves a device that is there already."""

    device: Device

    async def open(self, opening: Opening) -> Device:
        return self.device


class Slow(Base):
    """Takes its time to be written to."""

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await asyncio.sleep(0.1)
        await super().write(offset, data)


async def test_server_does_not_end_before_an_overlay_is_written_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all it takes longer than a server waits for what stands still."""
    monkeypatch.setattr(server_module, "SHUTDOWN_SECONDS_MORE", 0.5)
    monkeypatch.setattr(cow, "COMMIT_BYTES", 2 * BLOCK)
    base = Slow(16 * BLOCK)
    told = Cow(cow_block_size=BLOCK, cow_file=tmp_path / "overlay", cow_commit=True)
    data = random.Random(9).randbytes(16 * BLOCK)
    async with serving(DeviceExport("disk", Given(base), [told])) as up:
        async with await up.attached(b"disk") as peer:
            await peer.write(0, data)
            await peer.disconnect()
        assert await soon(up.server.stop())
    assert base.image() == data


async def test_writing_back_that_fails_can_be_done_again(tmp_path: Path) -> None:
    class Fails(Base):
        writes = flushes = 0

        async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
            self.writes += 1
            if self.writes == 2:
                raise OSError(EIO, "Input/output error")
            await super().write(offset, data)

        async def flush(self) -> None:
            self.flushes += 1
            if self.flushes == 1:
                raise OSError(EIO, "Input/output error")

    base, path = Fails(100_000), tmp_path / "overlay"
    told = Cow(cow_file=path, cow_commit=True, cow_block_size=BLOCK)
    device = await told.wrap(base, OPENING)
    for at in (0, 20_000, 90_000):
        await device.write(at, b"new")
    model = b"".join(await device.read(0, 100_000))
    for _ in range(2):  # a write fails, and then the flush
        with pytest.raises(OSError, match="Input/output error"):
            await device.close()
        base_now = base.image()
        await MemoryDevice.write(base, 0, bytes(100_000))  # as if it had been lost
        assert b"".join(await device.read(0, 3)) == b"new"
        await MemoryDevice.write(base, 0, base_now)
        assert b"".join(await device.read(0, 100_000)) == model
    await device.close()
    assert base.image() == model


class Held:
    """A function that waits for ``go_on`` when it is called for the first time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.go_on, self.began = threading.Event(), asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def __call__(self, *arguments: Any) -> Any:
        if not self.began.is_set():
            self.loop.call_soon_threadsafe(self.began.set)
            self.go_on.wait(30)
        return self.function(*arguments)


async def test_flush_that_takes_longer_does_not_undo_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Base(100_000)
    async with opened(base, tmp_path, cow_file=tmp_path / "overlay") as device:
        held = Held(os.fdatasync)
        monkeypatch.setattr(os, "fdatasync", held)
        await device.write(0, b"first")
        first = asyncio.create_task(device.flush())
        await held.began.wait()
        await device.write(50_000, b"second")
        second = asyncio.create_task(device.flush())
        _, waits = await asyncio.wait([second], timeout=0.2)
        assert waits
        held.go_on.set()
        await asyncio.gather(first, second)
        shutil.copy(tmp_path / "overlay", tmp_path / "left")
    async with opened(base, tmp_path, cow_file=tmp_path / "left") as device:
        assert b"".join(await device.read(50_000, 6)) == b"second"


async def test_write_that_is_given_up_is_over_when_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(Base(100_000), tmp_path) as device:
        held = Held(os.pwrite)
        monkeypatch.setattr(os, "pwrite", held)
        old = asyncio.create_task(device.write(0, b"old"))
        await held.began.wait()
        old.cancel()
        new = asyncio.create_task(device.write(0, b"new"))
        _, waits = await asyncio.wait([old, new], timeout=0.2)
        assert len(waits) == 2
        held.go_on.set()
        await new
        assert b"".join(await device.read(0, 3)) == b"new"


async def test_write_that_is_given_up_leaves_the_disk_below_in_sight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Base(100_000)
    async with opened(base, tmp_path) as device:
        task = asyncio.create_task(device.write(100, b"x" * 10_000))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await device.write(0, b"y")
        after = b"".join(await device.read(0, 100_000))
    assert after[:1] == b"y"
    assert after[10_100:] == base.before[10_100:]
    assert after[1:100] == base.before[1:100]


async def test_full_disk_fails_the_write_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: Buffer, place: int) -> int:
        raise OSError(ENOSPC, "No space left on device")

    base = Base(100_000)
    async with opened(base, tmp_path, cow_on_read=True) as device:
        await device.write(0, b"x" * BLOCK)
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            await device.write(50_000, b"x")
        after = b"".join(await device.read(0, 100_000))
    assert after == b"x" * BLOCK + base.before[BLOCK:]


async def test_zeros_are_written_where_the_overlay_cannot_have_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: object) -> int:
        ctypes.set_errno(EOPNOTSUPP)
        return -1

    monkeypatch.setattr(overlay, "_fallocate", unable)
    base = Base(3 * MiB)
    async with opened(base, tmp_path) as device:
        await device.write(0, b"x" * 8192)
        await device.zero(100, 2 * MiB)
        await device.trim(0, 4096)
        after = b"".join(await device.read(0, 3 * MiB))
    assert after == bytes(2 * MiB + 100) + base.before[2 * MiB + 100 :]


async def test_holes_of_the_overlay_hide_what_is_below(tmp_path: Path) -> None:
    async with opened(Base(64 * BLOCK), tmp_path) as device:
        await device.trim(BLOCK, 8 * BLOCK)
        found = await device.extents(0, 64 * BLOCK, count=9)
        assert [(each.length // BLOCK, each.zero) for each in found][:2] == [(1, False), (8, True)]


async def test_no_extent_is_empty_where_a_hole_is_made_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seek = os.lseek
    async with opened(Base(64 * BLOCK), tmp_path) as device:
        await device.write(0, b"x" * 64 * BLOCK)

        def punched(descriptor: int, offset: int, what: int) -> int:
            if what == os.SEEK_HOLE:
                device._overlay.clear(0, 64 * BLOCK)
            return seek(descriptor, offset, what)

        monkeypatch.setattr(os, "lseek", punched)
        assert await device.extents(0, 64 * BLOCK, count=9) == [(64 * BLOCK, True, True)]


async def test_runs_of_blocks_are_found_however_long(tmp_path: Path) -> None:
    """100,000 blocks, against one look at each."""
    blocks, chance = 100_000, random.Random(3)
    found = overlay.Overlay(blocks * BLOCK - 5, BLOCK, None, tmp_path)
    model = bytearray(blocks)
    for _ in range(12):
        start = chance.randrange(blocks)
        end = min(blocks, start + chance.choice((1, 8, 9, 40_000)))
        found.mark(start, end)
        model[start:end] = b"\1" * (end - start)
    at = 0
    while at < blocks:
        is_here, stop = found.run(at, blocks)
        assert model[at:stop] == bytes([is_here]) * (stop - at)
        assert stop == blocks or model[stop] != is_here
        at = stop
    found.close()


def broken(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(
    ("at", "data", "sentence"),
    [
        (0, b"!", "is no overlay: it was not written by this filter"),
        (16, b"\7", "is an overlay of version 7"),
        (20, struct.pack("<I", 512), "is the overlay of a disk of 100000 bytes in blocks of 512"),
        (24, struct.pack("<Q", 5), "is the overlay of a disk of 5 bytes in blocks of 4096"),
        (32, struct.pack("<Q", 1 << 60), "is damaged: its header and its length do not fit"),
        (4096 + 3, b"\x80", "is damaged: it has blocks beyond its end"),
        (8191, b"\1", "is damaged: it has blocks beyond its end"),
    ],
)
async def test_overlay_that_is_none_is_told_of(
    at: int, data: bytes, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "overlay"
    async with opened(Base(100_000), tmp_path, cow_file=path):
        pass
    broken(path, at, data)
    with pytest.raises(ExportUnusable, match=sentence):
        await Cow(cow_file=path, cow_block_size=BLOCK).wrap(Base(100_000), OPENING)


async def test_overlay_is_not_shared_not_cut_and_not_made_of_other_files(tmp_path: Path) -> None:
    path = tmp_path / "overlay"
    told = Cow(cow_file=path, cow_block_size=BLOCK)
    async with opened(Base(100_000), tmp_path, cow_file=path):
        with pytest.raises(ExportUnusable, match="in use as the overlay of another disk"):
            await told.wrap(Base(100_000), OPENING)
    os.truncate(path, 50_000)
    with pytest.raises(ExportUnusable, match="is damaged"):
        await told.wrap(Base(100_000), OPENING)
    path.write_text("a letter")
    with pytest.raises(ExportUnusable, match="is no overlay"):
        await told.wrap(Base(100_000), OPENING)
    assert path.read_text() == "a letter"


async def test_what_does_not_go_together_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no power of two from 4K to 16M"):
        Cow(cow_block_size=5000)
    with pytest.raises(ConfigError, match="needs a cow-file"):
        Cow(cow_commit=True)
    read_only = Base(100_000)
    read_only.read_only = True
    with pytest.raises(ExportUnusable, match="the disk is read-only"):
        await Cow(cow_commit=True, cow_file=tmp_path / "overlay").wrap(read_only, OPENING)
    with pytest.raises(ExportUnusable, match="less than the disk's smallest block"):
        await Cow(cow_block_size=BLOCK).wrap(Base(128 * KiB, least=8192), OPENING)
    with pytest.raises(ExportUnusable, match="give a larger cow-block-size"):
        await Cow(cow_block_size=BLOCK).wrap(MemoryDevice(1 << 60), OPENING)


@pytest.mark.parametrize("stays", [False, True])
async def test_clients_see_the_same_overlay_above_a_filter_of_each(
    stays: bool, tmp_path: Path
) -> None:
    """Also those who only ask what there is; and with the last of them it is thrown away."""
    cow = Cow(cow_directory=tmp_path, cow_file=tmp_path / "overlay" if stays else None)
    export = DeviceExport("disk", Memory(size=MiB), [cow, Rate(rate=1 << 40)])
    async with serving(export) as served:
        async with await served.attached() as one, await served.attached() as two:
            await one.write(5, b"kept")
            assert (await export.look("disk")).size == MiB
            assert await two.read(5, 4) == b"kept"
            await one.disconnect()
            await until(lambda: export.connections == 1)
            assert await two.read(5, 4) == b"kept"
            await two.disconnect()
        await served.idle()
        async with await served.attached() as three:
            assert await three.read(5, 4) == (b"kept" if stays else bytes(4))
            await three.disconnect()


async def test_last_client_writes_the_overlay_back(tmp_path: Path) -> None:
    cow = Cow(cow_file=tmp_path / "overlay", cow_commit=True, cow_block_size=BLOCK)
    base = Base(100_000)
    one, two = await cow.wrap(base, OPENING), await cow.wrap(base, OPENING)
    await one.write(0, b"new")
    await one.close()
    assert base.image() == base.before
    seen = await cow.wrap(base, Opening("disk", only_look=True))
    await two.close()
    await seen.close()  # who looked changes nothing
    assert base.image() == base.before
    await (await cow.wrap(base, OPENING)).close()
    assert base.image() == b"new" + base.before[3:]


async def test_disk_of_another_size_is_not_put_below_an_overlay_in_use(tmp_path: Path) -> None:
    cow = Cow(cow_directory=tmp_path)
    one = await cow.wrap(Base(100_000), OPENING)
    with pytest.raises(ExportUnusable, match="the disk has 50000 bytes, and 100000 for other"):
        await cow.wrap(Base(50_000), OPENING)
    await one.close()


async def test_holes_smaller_than_the_blocks_of_the_disk_are_written_back(tmp_path: Path) -> None:
    """As one in a block that was cleared and then written to: it took for ever."""
    base = Base(256 * KiB, least=64 * KiB)
    cow = Cow(cow_file=tmp_path / "overlay", cow_commit=True, cow_block_size=64 * KiB)
    device = await cow.wrap(base, OPENING)
    model = bytearray(base.before)
    await device.trim(0, 192 * KiB)
    await device.write(20 * KiB, b"x" * 4 * KiB)
    model[: 192 * KiB] = bytes(192 * KiB)
    model[20 * KiB : 24 * KiB] = b"x" * 4 * KiB
    await soon(device.close())
    assert base.image() == model


async def test_read_only_export_with_an_overlay_takes_writes(tmp_path: Path) -> None:
    """And so is one without, or with the overlay below something, as it is said to be."""
    memory, cow = Memory(size=MiB), Cow(cow_directory=tmp_path)
    async with (
        serving(DeviceExport("disk", memory, [cow], read_only=True)) as served,
        await served.attached() as peer,
    ):
        await peer.write(5, b"kept")
        assert await peer.read(5, 4) == b"kept"
        await peer.disconnect()
    async with (
        serving(DeviceExport("disk", memory, read_only=True)) as served,
        await served.attached() as peer,
    ):
        with pytest.raises(NbdError) as caught:
            await peer.write(5, b"x")
        assert caught.value.number == nbd.EPERM
        await peer.disconnect()
