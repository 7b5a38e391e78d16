# SPDX-License-Identifier: MIT
"""A request that failed is forgotten at once: with it goes what it was to write, or has read.

An error keeps the frames that it came through alive, and with them all that is in them. One that
is kept somewhere, or kept by what is in one of these frames, would keep megabytes.
"""

import gc
import os
import weakref
from collections.abc import Coroutine, Iterator
from errno import EIO
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.api import Device
from swiftnbd.errors import Locked, StoreBusy, StoreFull, StoreUnavailable, SwiftnbdError, afresh
from swiftnbd.filters.cow import Cow
from tests.support.disks import SIZE, a_disk, begin, turns
from tests.support.faulty import failing
from tests.support.loopback import until
from tests.unit.test_filter_cow import OPENING, Base
from tests.unit.test_plugin_devices import sparse_file


class Held:
    """What is in the frame of whoever made the request."""


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def _request(work: Coroutine[Any, Any, Any], held: Held) -> bool:
    try:
        await work
    except (SwiftnbdError, OSError):
        return held is not None
    return False


class Requests:
    """Those that are to fail."""

    def __init__(self) -> None:
        self._held: list[weakref.ref[Held]] = []
        self._failed: list[bool] = []

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        held = Held()
        self._held.append(weakref.ref(held))
        task = begin(_request(work, held))
        task.add_done_callback(lambda task: self._failed.append(task.result()))

    async def end(self) -> None:
        await until(lambda: len(self._failed) == len(self._held))

    async def are_forgotten(self) -> bool:
        await self.end()
        await turns()
        assert self._failed == [True] * len(self._held), "they were to fail"
        return not any(held() for held in self._held)


async def test_those_on_a_disk_that_has_failed_for_good() -> None:
    """A client may go on for days; each write of some MiB would stay in memory."""
    async with a_disk() as disk:
        requests = Requests()
        disk.device.fail("gone")
        for _ in range(2):
            requests.begin(disk.device.write(0, bytes(SIZE)))
            requests.begin(disk.device.flush())
            requests.begin(disk.read(0, SIZE))
            await turns()
        assert await requests.are_forgotten()


async def test_those_that_wait_when_a_disk_fails_for_good() -> None:
    async with a_disk() as disk:
        requests = Requests()
        gate = disk.script.hold("put", times=8)
        requests.begin(disk.device.write(0, b"x" * SIZE, fua=True))
        requests.begin(disk.device.write(SIZE, b"x" * 4 * SIZE))  # there is no room
        requests.begin(disk.device.flush())
        await turns()
        disk.device.fail("gone")
        gate.open()
        assert await requests.are_forgotten()


async def test_those_whose_upload_fails() -> None:
    async with a_disk() as disk:
        requests = Requests()
        disk.script.on("put", failing(), times=2)
        for _ in range(2):
            requests.begin(disk.device.write(0, b"x" * SIZE, fua=True))
        for _ in range(2):
            requests.begin(disk.device.flush())
        await turns()
        disk.script.clear()
        assert await requests.are_forgotten()
        await disk.device.flush()


async def test_those_for_which_no_room_could_be_made() -> None:
    async with a_disk() as disk:
        requests = Requests()
        disk.script.on("put", failing(), times=1000)
        for _ in range(2):
            requests.begin(disk.device.write(0, b"x" * 8 * SIZE))
        await requests.end()
        disk.script.clear()
        assert await requests.are_forgotten()
        await disk.device.flush()


async def test_reads_of_what_cannot_be_fetched() -> None:
    async with a_disk() as disk:
        requests = Requests()
        disk.script.on("get", failing(), times=4)
        for _ in range(2):
            requests.begin(disk.read(0, 3 * SIZE))
        await turns()
        disk.script.clear()
        assert await requests.are_forgotten()


@pytest.mark.parametrize("kind", ["file", "cow"])
async def test_those_after_a_flush_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(EIO, "Input/output error")

    device: Device
    if kind == "file":
        device = sparse_file(tmp_path / "disk")
    else:
        device = await Cow(cow_file=tmp_path / "overlay").wrap(Base(100_000), OPENING)
    requests = Requests()
    await device.write(0, b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        requests.begin(device.flush())
        await requests.end()
    for _ in range(2):
        requests.begin(device.flush())
    assert await requests.are_forgotten()
    with pytest.raises(OSError, match="Input/output error"):
        await device.close()


@pytest.mark.parametrize(
    "error",
    [
        Locked("held", holder="host:1@2"),
        StoreBusy("later", retry_after=3.0),
        StoreFull("no"),
        OSError(EIO, "broken", "file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_raised_afresh_says_the_same(error: Exception) -> None:
    error.__cause__ = StoreUnavailable("why")
    with pytest.raises(type(error)):
        raise error
    again = afresh(error)
    assert again is not error
    assert again.__traceback__ is None
    assert (type(again), str(again)) == (type(error), str(error))
    assert vars(again) == vars(error)
    assert again.__cause__ is error.__cause__
