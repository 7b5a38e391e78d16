# SPDX-License-Identifier: MIT
"""The devices of our plugins, against a plain array of bytes; and what a file can do to one."""

import asyncio
import ctypes
import os
import random
import threading
from collections.abc import Callable, Iterator
from errno import EIO, ENOSPC, ENOTSUP, EOPNOTSUPP
from pathlib import Path

import pytest

from swiftnbd.api import ConfigError, Device, ExportError, Opening
from swiftnbd.api.threads import Threads
from swiftnbd.plugins import file as file_plugin
from swiftnbd.plugins.file import File, FileDevice
from swiftnbd.plugins.full import FullDevice
from swiftnbd.plugins.memory import PAGE_BYTES, MemoryDevice
from swiftnbd.plugins.pattern import pattern
from swiftnbd.plugins.split import Split, SplitDevice
from tests.support.clients import run

MiB = 1024 * 1024
SIZE = 5 * PAGE_BYTES + 1000
Make = Callable[[Path], Device]


def memory(path: Path) -> Device:
    return MemoryDevice(SIZE)


def sparse_file(path: Path) -> FileDevice:
    with path.open("wb") as file:
        file.truncate(SIZE)
    return FileDevice(path, 2, read_only=False)


def three_files(path: Path) -> SplitDevice:
    """One is empty, and they meet inside of pages."""
    threads, files = Threads(2, "split"), []
    for number, size in enumerate((PAGE_BYTES + 700, 0, SIZE - PAGE_BYTES - 700)):
        part = path.with_suffix(f".{number}")
        with part.open("wb") as file:
            file.truncate(size)
        files.append(FileDevice(part, threads, read_only=False))
    return SplitDevice(files, threads, read_only=False)


@pytest.mark.parametrize("make", [memory, sparse_file, three_files])
@pytest.mark.parametrize("seed", range(3))
async def test_device_is_an_array_of_bytes(make: Make, seed: int, tmp_path: Path) -> None:
    device, model = make(tmp_path / "disk"), bytearray(SIZE)
    chance = random.Random(seed)
    for _ in range(150):
        offset = chance.randrange(SIZE)
        length = min(chance.choice((1, 700, PAGE_BYTES, 3 * PAGE_BYTES)), SIZE - offset)
        match chance.choice(("write", "write_now", "zero", "zero", "trim", "read")):
            case "zero":
                await device.zero(offset, length, no_hole=chance.random() < 0.5)
                model[offset : offset + length] = bytes(length)
            case "trim":
                await device.trim(offset, length)
                after = b"".join(await device.read(offset, length))
                model[offset : offset + length] = after  # whatever it is now
            case "read":
                assert b"".join(await device.read(offset, length)) == model[offset:][:length]
                pieces = device.read_now(offset, length)
                assert pieces is None or b"".join(pieces) == model[offset : offset + length]
            case how:
                data = chance.randbytes(length)
                if how == "write" or not device.write_now(offset, data):
                    await device.write(offset, data)
                model[offset : offset + length] = data
    await check_extents(device, model)
    await device.close()


async def check_extents(device: Device, model: bytearray) -> None:
    """What is said to be zeros is zeros, and the whole disk is told of."""
    at = 0
    while at < SIZE:
        for length, _, zero in await device.extents(at, SIZE - at, count=3):
            assert length > 0
            assert not zero or not any(model[at : at + length])
            at += length
    assert at == SIZE


async def test_pieces_of_memory_do_not_change_afterwards() -> None:
    device = MemoryDevice(SIZE)
    device.write_now(0, b"before")
    pieces = device.read_now(0, 6)
    device.write_now(0, b"after!")
    assert pieces is not None
    assert b"".join(pieces) == b"before"


@pytest.mark.parametrize("offset", [0, 1, 7, 8, 4093])
@pytest.mark.parametrize("length", [1, 8, 23])
def test_pattern_is_the_offset_of_each_word(offset: int, length: int) -> None:
    whole = b"".join(at.to_bytes(8, "big") for at in range(0, 8192, 8))
    assert pattern(offset, length) == whole[offset : offset + length]


async def test_flush_that_failed_once_fails_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes what it could not write for written."""
    device = sparse_file(tmp_path / "disk")

    def failing(descriptor: int) -> None:
        raise OSError(EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(OSError, match="Input/output error"):
            await device.flush()
    with pytest.raises(OSError, match="Input/output error"):
        await device.flush()
    with pytest.raises(OSError, match="Input/output error"):
        await device.close()


async def test_file_that_has_become_shorter_is_an_error_not_zeros(tmp_path: Path) -> None:
    device = sparse_file(tmp_path / "disk")
    os.truncate(tmp_path / "disk", 1000)
    assert device.read_now(0, 2000) is None
    with pytest.raises(ExportError, match="has become shorter"):
        await device.read(0, 2000)
    await device.close()


async def test_zeros_are_written_where_holes_cannot_be_punched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: object) -> int:
        ctypes.set_errno(EOPNOTSUPP)
        return -1

    monkeypatch.setattr(file_plugin, "_fallocate", unable)
    device = sparse_file(tmp_path / "disk")
    await device.write(0, b"x" * 5000)
    with pytest.raises(ExportError) as caught:
        await device.zero(10, 100, fast=True)
    assert caught.value.errno == ENOTSUP
    await device.trim(0, 1000)
    await device.zero(10, 100)
    assert b"".join(await device.read(0, 200)) == b"x" * 10 + bytes(100) + b"x" * 90
    await device.close()


async def test_no_extent_is_empty_where_a_hole_is_made_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is told of one takes us for broken, and goes."""
    device = sparse_file(tmp_path / "disk")
    await device.write(0, b"x" * PAGE_BYTES)
    seek = os.lseek

    def punched(descriptor: int, offset: int, what: int) -> int:
        if what == os.SEEK_HOLE:
            device._trim(0, PAGE_BYTES)
        return seek(descriptor, offset, what)

    monkeypatch.setattr(os, "lseek", punched)
    assert await device.extents(0, SIZE, count=9) == [(SIZE, True, True)]
    await device.close()


async def test_write_that_is_given_up_is_over_when_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it could undo what the client wrote on another connection since."""
    device = sparse_file(tmp_path / "disk")
    loop, began, written = asyncio.get_running_loop(), asyncio.Event(), list[bytes]()
    go_on = threading.Event()
    write = os.pwrite

    def slow(descriptor: int, data: bytes, offset: int) -> int:
        loop.call_soon_threadsafe(began.set)
        go_on.wait(30)
        written.append(bytes(data))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    task = asyncio.create_task(device.write(0, b"old"))
    await began.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert written == [b"old"]
    await device.close()


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A block device, and the file below it."""
    below = tmp_path / "below"
    with below.open("wb") as file:
        file.truncate(MiB)
    done = run("losetup", "-f", "--show", below, check=False)
    if done.returncode:
        pytest.skip(f"no loop device can be made here: {done.stderr.strip()}")
    yield Path(done.stdout.strip()), below
    run("losetup", "-d", done.stdout.strip())


async def test_block_device_is_a_disk(loop_device: tuple[Path, Path]) -> None:
    path, below = loop_device
    device = FileDevice(path, 2, read_only=False)
    assert device.size == MiB
    await device.write(100, b"x" * 300_000)
    await device.zero(4096, 8192)
    await device.zero(20_000, 100)  # in no sectors of its own
    await device.trim(65536, 65536)
    await device.flush()
    expected = bytearray(b"x" * 300_000)
    for begin, length in ((4096 - 100, 8192), (20_000 - 100, 100)):
        expected[begin : begin + length] = bytes(length)
    found = b"".join(await device.read(100, 300_000))
    expected[65436 : 65436 + 65536] = found[65436 : 65436 + 65536]  # whatever it is now
    assert found == expected
    assert below.read_bytes()[100:4096] == b"x" * 3996
    (extent,) = await device.extents(0, MiB, count=5)
    assert extent == (MiB, False, False)
    await device.close()


async def test_folder_and_pipe_are_no_disks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(ConfigError, match="is neither a file nor a block device"):
            await File(file=path).open(Opening("disk", read_only=True))
    with pytest.raises(IsADirectoryError):
        await File(file=tmp_path).open(Opening("disk"))


async def test_full_disk_takes_nothing() -> None:
    device = FullDevice(SIZE)
    assert not device.write_now(0, b"x")
    for refused in (
        device.write(0, b"x"), device.zero(0, 1), device.zero(0, 1, fast=True), device.trim(0, 1),
    ):  # fmt: skip
        with pytest.raises(ExportError) as caught:
            await refused
        assert caught.value.errno == ENOSPC
    assert not any(b"".join(await device.read(0, SIZE)))
    await device.flush()


# Several files as one


async def test_bytes_of_a_disk_of_files_are_where_they_belong(tmp_path: Path) -> None:
    device = three_files(tmp_path / "disk")
    border = PAGE_BYTES + 700
    await device.write(border - 3, b"abcdef")
    assert b"".join(await device.read(border - 4, 8)) == b"\0abcdef\0"
    assert (tmp_path / "disk.0").read_bytes()[-3:] == b"abc"
    assert (tmp_path / "disk.2").read_bytes()[:3] == b"def"
    with pytest.raises(ExportError) as caught:
        await device.zero(border - 3, 6, fast=True)
    assert caught.value.errno == ENOTSUP
    assert b"".join(await device.read(border - 3, 6)) == b"abcdef"
    await device.close()


async def test_flush_of_several_files_tries_all_and_fails_if_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, synced = three_files(tmp_path / "disk"), list[int]()
    fdatasync = os.fdatasync

    def failing(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 1:
            raise OSError(EIO, "Input/output error")
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        await device.flush()
    assert len(set(synced)) == 2
    with pytest.raises(OSError, match="Input/output error"):
        await device.flush()
    with pytest.raises(OSError, match="Input/output error"):
        await device.close()


async def test_file_of_several_that_is_missing_leaves_none_open(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"x")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        await Split(file=(tmp_path / "there", tmp_path / "gone")).open(Opening("disk"))
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ConfigError, match="there have to be 1 to"):
        Split(file=())
