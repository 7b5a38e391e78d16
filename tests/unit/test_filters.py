# SPDX-License-Identifier: MIT
"""The filters that change no byte: alone and in stacks they are the array of bytes below them."""

import asyncio
import json
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from errno import EINVAL, EIO, ENOSPC, ENOTSUP, EPERM, EROFS, ESHUTDOWN
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.api import (
    Client,
    ConfigError,
    Device,
    ExportError,
    ExportUnusable,
    FilterPlugin,
    Opening,
    Profile,
)
from swiftnbd.api.ending import ENDING
from swiftnbd.api.parameters import values_of
from swiftnbd.errors import Locked
from swiftnbd.export.device_export import DeviceExport
from swiftnbd.filters.blocksize_policy import BlocksizePolicy
from swiftnbd.filters.delay import Delay
from swiftnbd.filters.error import Error
from swiftnbd.filters.exitlast import ExitLast
from swiftnbd.filters.exitwhen import ExitWhen
from swiftnbd.filters.fua import Fua
from swiftnbd.filters.limit import Limit
from swiftnbd.filters.log import Log
from swiftnbd.filters.offset import Offset
from swiftnbd.filters.pause import Pause
from swiftnbd.filters.protect import Protect
from swiftnbd.filters.rate import Rate
from swiftnbd.filters.retry_request import RetryRequest
from swiftnbd.filters.stats import Stats
from swiftnbd.filters.truncate import Truncate
from swiftnbd.plugins.memory import PAGE_BYTES, Memory, MemoryDevice
from tests.support import nbd_client as nbd
from tests.support.byte_device import BLOCK, ByteDevice
from tests.support.device_oracle import is_array_of_bytes
from tests.support.log_watch import Announce
from tests.support.loopback import serving, soon, until

SIZE = 4 * PAGE_BYTES
OPENING = Opening("disk", client=Client("one", "host", 1))


def told(kind: type[Any], **keys: object) -> Any:
    """As the configuration makes one."""
    given = [(key.replace("_", "-"), str(value)) for key, value in keys.items()]
    return kind(**values_of(kind, given))


@asynccontextmanager
async def stacked(device: Device, *filters: FilterPlugin) -> AsyncIterator[Device]:
    """The first filter is asked first."""
    for each in reversed(filters):
        await each.start()
    try:
        for each in reversed(filters):
            device = await each.wrap(device, OPENING)
            Profile.of(device)
        yield device
        await device.close()
    finally:
        for each in filters:
            await each.stop()


def several(folder: Path) -> list[FilterPlugin]:
    """One of each, told to do something where it may."""
    return [
        told(Rate, rate="100G", connection_rate="90G", client_rate="80G"),
        told(Error, error_pread_rate="1", error_pread_file=folder / "absent"),
        told(Delay, delay_trim="1us", wdelay="0"),
        told(Log, logfile=folder / "log"),
        told(BlocksizePolicy, blocksize_preferred="64K"),
        told(Fua, fuamode="force"),
        told(Limit, limit_requests=2),
        told(Stats, statsfile=folder / "stats"),
        told(RetryRequest),
        told(Pause, pause_control=folder / "control"),
        told(ExitLast),
        told(ExitWhen, exit_when_file_created=folder / "stop"),
        told(Truncate, round_up=PAGE_BYTES),
        told(Offset),
    ]


@pytest.mark.parametrize("which", [*range(14), "all", "all reversed"])
async def test_device_behind_filters_is_an_array_of_bytes(which: int | str, tmp_path: Path) -> None:
    filters = several(tmp_path)
    if isinstance(which, int):
        filters = [filters[which]]
    elif which != "all":
        filters.reverse()
    device, model = MemoryDevice(SIZE), bytearray(SIZE)
    async with stacked(device, *filters) as made:
        profile = Profile.of(made)
        assert profile.can_flush
        assert profile.can_trim
        assert profile.multi_conn is Profile.of(device).multi_conn
        await is_array_of_bytes(made, model, random.Random(5))
    assert b"".join(await device.read(0, SIZE)) == model


@pytest.mark.parametrize("multi_conn", [None, False, True])
@pytest.mark.parametrize("can", [False, True])
async def test_filters_say_of_a_disk_what_it_is(
    can: bool, multi_conn: bool | None, tmp_path: Path
) -> None:
    """But for those of which the page says something else: luks, cow, checkwrite and fua are none
    of these, nor are images."""
    device = ByteDevice()
    for name in ("can_flush", "can_trim", "can_prefetch", "can_zero", "can_fast_zero"):
        setattr(device, name, can)
    device.can_fua, device.multi_conn, device.read_only = can, multi_conn, not can
    told_of = [each for each in several(tmp_path) if not isinstance(each, Fua)]
    told_of += [told(Truncate, truncate=BLOCK), told(Truncate, truncate=1 << 30)]
    told_of += [told(Offset, offset=BLOCK), told(Protect, protect="1-")]
    expected = replace(Profile.of(device), size=0, block_size=BLOCK, block_sizes_told=None)
    for filter in told_of:
        async with stacked(device, filter) as made:
            found = Profile.of(made)
            assert replace(found, size=0, block_size=BLOCK, block_sizes_told=None) == expected


AROUND = [
    told(Error, error_cache_rate="1", error_cache_file="/absent"),
    told(Delay, delay_close="0"),
    told(Limit, limit_requests=9),
    told(RetryRequest),
    told(Fua, fuamode="native"),
    told(Fua, fuamode="pass"),
]


@pytest.mark.parametrize("filter", AROUND, ids=lambda each: type(each).__name__)
async def test_flags_reach_the_device_and_the_end_does_too(filter: FilterPlugin) -> None:
    device = ByteDevice()
    async with stacked(device, filter) as made:
        await made.write(0, b"abc", fua=True)
        await made.zero(0, 10, no_hole=True, fast=True)
        await made.zero(0, 10)
        await made.trim(0, BLOCK, fua=True)
        await made.flush()
        await made.prefetch(0, 1)
        found = await made.extents(0, 2 * BLOCK, count=1)
        assert len(found) == 1
        assert await made.read(0, 3)
    assert [name for name, _, _ in device.calls] == [
        "write fua", "zero no_hole fast", "zero", "trim fua", "flush", "prefetch", "extents",
        "read", "close",
    ]  # fmt: skip


# Errors


async def failed(work: Awaitable[object]) -> int:
    with pytest.raises(ExportError) as caught:
        await work
    return caught.value.errno


async def test_injected_error_means_that_nothing_was_done(tmp_path: Path) -> None:
    device, file = ByteDevice(), tmp_path / "inject"
    filter = told(
        Error, error="enospc", error_rate="100%", error_pread="EIO", error_trim_rate=0,
        error_zero_file=file,
    )  # fmt: skip
    async with stacked(device, filter) as made:
        assert made.read_now(0, 1) is None
        assert await failed(made.write(0, b"x")) == ENOSPC
        assert await failed(made.read(0, 1)) == EIO
        assert await failed(made.extents(0, 1, count=1)) == ENOSPC
        assert await failed(made.prefetch(0, 1)) == ENOSPC
        await made.zero(0, 1)
        file.touch()
        assert await failed(made.zero(0, 1)) == ENOSPC
        file.unlink()
        await made.zero(0, 1)
        await made.trim(0, 1)
        await made.flush()
    assert [name for name, _, _ in device.calls] == ["zero", "zero", "trim", "flush", "close"]


async def test_share_of_requests_fails() -> None:
    filter = told(Error, error_rate="20%")
    filter.chance.seed(1)
    async with stacked(ByteDevice(), filter) as made:
        results = await asyncio.gather(
            *(made.read(0, 1) for _ in range(1000)), return_exceptions=True
        )
    assert 150 < sum(isinstance(each, ExportError) for each in results) < 250


def test_error_that_nbd_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not one of EPERM, EIO"):
        told(Error, error="EAGAIN")


# Delay


async def test_each_request_waits_for_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = list[float]()

    async def note(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(ENDING, "sleep", note)
    filter = told(
        Delay, rdelay="1", wdelay="2", delay_zero="3", delay_extents="4", delay_cache="500ms",
        delay_open="6", delay_close="7", delay_fast_zero="no",
    )  # fmt: skip
    async with stacked(ByteDevice(), filter) as made:
        await made.read(0, 1)
        await made.write(0, b"x")
        await made.zero(0, 1)
        await made.trim(0, 1)
        await made.extents(0, 1, count=1)
        await made.prefetch(0, 1)
        await made.flush()
        assert await failed(made.zero(0, 1, fast=True)) == ENOTSUP
    assert slept == [6, 1, 2, 3, 2, 4, 0.5, 7]
    slept.clear()
    await filter.wrap(ByteDevice(), Opening("disk"))  # who only looks
    assert slept == []
    with pytest.raises(ConfigError, match="are the same"):
        told(Delay, rdelay=1, delay_read=1)


async def test_delayed_write_of_a_gone_client_never_happens() -> None:
    device = ByteDevice()
    async with stacked(device, told(Delay, wdelay="1h")) as made:
        task = asyncio.create_task(made.write(0, b"x"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [name for name, _, _ in device.calls] == ["close"]


async def test_delayed_requests_are_done_when_the_server_ends() -> None:
    export = DeviceExport("disk", Memory(size=PAGE_BYTES), [told(Delay, wdelay="1h")])
    async with serving(export) as up, await up.attached(b"disk") as peer:
        peer.request(nbd.WRITE, 0, 3, data=b"abc")
        peer.request(nbd.READ, 0, 1)
        await peer.reply(1)
        assert await soon(up.server.stop())
        assert await peer.reply() == (1, 0, b"")
        assert await peer.closed_by_server()


async def test_opening_and_closing_that_is_delayed_does_not_delay_the_end() -> None:
    opens, closes = told(Delay, delay_open="1h"), told(Delay, delay_close="1h")
    made = await closes.wrap(ByteDevice(), OPENING)
    opening = asyncio.create_task(opens.wrap(ByteDevice(), OPENING))
    closing = asyncio.create_task(made.close())
    await asyncio.sleep(0)
    with ending():
        assert await soon(opening)
        await soon(closing)
        made = await soon(closes.wrap(ByteDevice(), OPENING))
        await soon(made.close())
    assert not ENDING._sleeping


@contextmanager
def ending() -> Iterator[None]:
    ENDING.begin(print)
    try:
        yield
    finally:
        ENDING.is_over()


# Log


async def lines(path: Path) -> list[dict[str, Any]]:
    await asyncio.sleep(0)
    return parsed(path)


def parsed(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_log_has_a_line_for_each_begin_and_end(tmp_path: Path) -> None:
    path, device = tmp_path / "log", ByteDevice()
    path.write_text("old")
    async with stacked(device, told(Log, logfile=path)) as made:
        await made.write(10, b"abc", fua=True)
        device.error = ExportError(ENOSPC, "full")
        await failed(made.trim(0, 5))
        device.error = None
        device.gate.clear()
        task = asyncio.create_task(made.flush())
        await until(lambda: device.calls[-1][0] == "flush")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        device.gate.set()
    found = await lines(path)
    assert found[0]["client"] == "host:1"
    assert found[0]["device"]["size"] == device.size
    keys = ("event", "id", "request", "offset", "length", "flags", "error")
    short = [{key: each[key] for key in keys if key in each} for each in found[1:-1]]
    assert short == [
        {"event": "begin", "id": 1, "request": "write", "offset": 10, "length": 3,
         "flags": ["fua"]},
        {"event": "end", "id": 1, "request": "write"},
        {"event": "begin", "id": 2, "request": "trim", "offset": 0, "length": 5},
        {"event": "end", "id": 2, "request": "trim", "error": "ENOSPC"},
        {"event": "begin", "id": 3, "request": "flush"},
        {"event": "end", "id": 3, "request": "flush", "error": "cancelled"},
    ]  # fmt: skip
    assert (found[-1]["event"], found[-1]["requests"]) == ("disconnect", 3)
    async with stacked(device, told(Log, logfile=path, logappend="yes")):
        pass
    assert len(await lines(path)) == len(found) + 2


async def test_log_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with stacked(ByteDevice(), told(Log, logfile=path, logsize="64K")) as made:
        for _ in range(1000):
            await made.read(0, 1)
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1"]
    assert max(each.stat().st_size for each in os.scandir(tmp_path)) <= 64 * 1024
    assert (await lines(path))[-1]["event"] == "disconnect"


async def test_log_file_that_was_moved_away_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swiftnbd.filters.log.LOOK_SECONDS", 0.0)
    path = tmp_path / "log"
    async with stacked(ByteDevice(), told(Log, logfile=path)) as made:
        await made.read(0, 1)
        await asyncio.sleep(0)
        path.rename(tmp_path / "moved")
        await made.read(0, 1)
        await asyncio.sleep(0)
        assert len(await lines(path)) == 2


async def test_full_disk_loses_lines_and_no_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expects_log: Announce
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(ENOSPC, "No space left on device")

    path = tmp_path / "log"
    async with stacked(ByteDevice(), told(Log, logfile=path)) as made:
        await asyncio.sleep(0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            expects_log("log: requests are not written down: No space left on device")
            await made.read(0, 1)
            await asyncio.sleep(0)
            await made.read(0, 1)
            await asyncio.sleep(0)
        expects_log("log: 4 lines are missing")
        await made.read(0, 1)
    assert [each["event"] for each in await lines(path)][-3:] == ["begin", "end", "disconnect"]


async def test_log_into_a_folder_or_pipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        await told(Log, logfile=tmp_path).start()
    with pytest.raises(ConfigError, match="/dev/null is no regular file"):
        await told(Log, logfile="/dev/null").start()


# Block sizes and FUA


async def test_block_sizes_are_told_or_insisted_on() -> None:
    device = MemoryDevice(SIZE)
    keys = {"blocksize_minimum": 4096, "blocksize_preferred": "128K", "blocksize_maximum": "1M"}
    async with stacked(device, told(BlocksizePolicy, **keys)) as made:
        profile = Profile.of(made)
        assert profile.told == (4096, 131072, 1 << 20)
        assert (profile.block_size_min, profile.block_size_max) == (1, device.block_size_max)
    keys["blocksize_error_policy"] = "error"
    async with stacked(device, told(BlocksizePolicy, **keys)) as made:
        profile = Profile.of(made)
        assert (profile.block_size_min, profile.block_size_max) == (4096, 1 << 20)
        assert profile.told == (4096, 131072, 1 << 20)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"blocksize_minimum": 1000}, "a block_size_min of 1000 bytes"),
        ({"blocksize_maximum": "64M"}, "the device takes blocks of 512 to 33554432 bytes, not of"),
        ({"blocksize_minimum": 256}, "the device takes blocks of 512 to"),
        ({"blocksize_preferred": "3K"}, "a block_size of 3072 bytes"),
    ],
)
async def test_block_sizes_that_cannot_be_are_refused(keys: dict[str, Any], text: str) -> None:
    device = MemoryDevice(SIZE)
    device.block_size_min = 512
    with pytest.raises((ConfigError, ExportUnusable), match=text):
        await told(BlocksizePolicy, **keys).wrap(device, OPENING)


class NoFua(ByteDevice):
    can_fua = False


@pytest.mark.parametrize(
    ("mode", "kind", "can_fua", "plain", "forced", "flushed"),
    [
        ("none", ByteDevice, None, ["write"], None, ["flush"]),
        ("emulate", ByteDevice, False, ["write"], None, ["flush"]),
        ("native", ByteDevice, True, ["write"], ["write fua"], ["flush"]),
        ("native", NoFua, True, ["write"], ["write", "flush"], ["flush"]),
        ("force", ByteDevice, True, ["write fua"], ["write fua"], ["flush"]),
        ("force", NoFua, True, ["write", "flush"], ["write", "flush"], ["flush"]),
        ("discard", ByteDevice, True, ["write"], ["write"], []),
    ],
)
async def test_fua_comes_about_as_told(
    mode: str, kind: type[ByteDevice], can_fua: bool | None, plain: list[str],
    forced: list[str] | None, flushed: list[str], expects_log: Announce,
) -> None:  # fmt: skip
    if mode == "discard":
        expects_log("a crash loses what was written")
    device = kind()
    async with stacked(device, told(Fua, fuamode=mode)) as made:
        assert Profile.of(made).can_fua is can_fua
        assert made.write_now(0, b"x") is (mode != "force")
        device.calls.clear()
        await made.write(0, b"x")
        assert [name for name, _, _ in device.calls] == plain
        if forced is not None:
            device.calls.clear()
            await made.write(0, b"x", fua=True)
            assert [name for name, _, _ in device.calls] == forced
            device.calls.clear()
            await made.zero(0, 1, fua=True)
            await made.trim(0, 1, fua=True)
            assert len(device.calls) == 2 * len(forced)
        device.calls.clear()
        await made.flush()
        assert [name for name, _, _ in device.calls] == flushed


async def test_fua_needs_something_that_can_be_flushed() -> None:
    device = MemoryDevice(SIZE)
    device.can_flush = device.can_fua = False
    for mode in ("emulate", "native", "force"):
        with pytest.raises(ExportUnusable, match="needs a device that can be flushed"):
            await told(Fua, fuamode=mode).wrap(device, OPENING)


# Limit


async def test_connections_beyond_the_limit_are_refused() -> None:
    filter = told(Limit, limit=2)
    one = await filter.wrap(ByteDevice(), OPENING)
    await filter.wrap(ByteDevice(), OPENING)
    with pytest.raises(Locked, match="disk has as many connections as it may have"):
        await filter.wrap(ByteDevice(), OPENING)
    await filter.wrap(ByteDevice(), Opening("disk"))  # who only looks
    await one.close()
    await filter.wrap(ByteDevice(), OPENING)


async def test_requests_beyond_the_limit_wait() -> None:
    device = ByteDevice()
    device.gate.clear()
    filter = told(Limit, limit=0, limit_requests=2)
    one, other = await filter.wrap(device, OPENING), await filter.wrap(device, OPENING)
    tasks = [asyncio.create_task(each.read(0, 1)) for each in (one, other, one, other, one)]
    await until(lambda: len(device.calls) == 2)
    assert one.read_now(0, 1) is None
    tasks[2].cancel()
    device.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert tasks[2].cancelled()
    assert len(device.calls) == 4
    assert other.read_now(0, 1)


# Stats


async def test_stats_are_written_at_the_end(tmp_path: Path) -> None:
    path, device = tmp_path / "stats", ByteDevice()
    path.write_text("old\n")
    async with stacked(device, told(Stats, statsfile=path)) as made:
        for at in range(4):
            assert made.read_now(at * BLOCK, BLOCK)
        await made.write(512, bytes(1000))
        device.error = ExportError(EIO, "broken")
        await failed(made.prefetch(0, 1))
        device.error = None
    text = path.read_text()
    assert text.startswith("total: 6 ops, ")
    assert "\nread: 4 ops, " in text
    assert ", 16 KiB, " in text
    assert (
        "\n    12 bits: 100.0% (4 reqs, 16 KiB total)\n        12 bit aligned: 100.0% (4)" in text
    )
    assert "        13 bit aligned:  50.0% (2)" in text
    assert "\n    9 bits: 100.0% (1 reqs, 1000 bytes total)\n         9 bit aligned" in text
    (line,) = [line for line in text.splitlines() if line.endswith(" 1 failed")]
    assert line.startswith("cache: 1 ops")
    async with stacked(device, told(Stats, statsfile=path, statsappend="1", statsthreshold=0)):
        pass
    assert path.read_text() == text + "total: 0 ops, " + path.read_text().rpartition(" ops, ")[2]


# Retrying


class Flaky(ByteDevice):
    """Fails so many times."""

    def __init__(self, failures: Sequence[int]) -> None:
        super().__init__(quick=False)
        self.failures = list(failures)

    async def _asked(self, method: str, offset: int, length: int) -> None:
        await super()._asked(method, offset, length)
        if self.failures and method != "close":
            raise ExportError(self.failures.pop(), "not now")


async def test_failed_request_is_done_again() -> None:
    device = Flaky([EIO, ENOSPC, EIO, EIO])
    filter = told(RetryRequest, retry_request_retries=4, retry_request_delay="1us")
    async with stacked(device, filter) as made:
        await made.write(5, b"abc", fua=True)
    assert device.calls[:-1] == [("write fua", 5, 3)] * 5
    assert device.image()[5:8] == b"abc"


@pytest.mark.parametrize(
    ("errno", "tries"),
    [(EIO, 3), (EINVAL, 1), (ENOTSUP, 1), (ESHUTDOWN, 1), (EPERM, 1), (EROFS, 1)],
)
async def test_request_that_fails_for_good_fails(errno: int, tries: int) -> None:
    device = Flaky([errno] * 9)
    async with stacked(device, told(RetryRequest, retry_request_delay="0")) as made:
        assert await failed(made.zero(0, 1, fast=True)) == errno
    assert len(device.calls) == tries + 1


@pytest.mark.parametrize(("failures", "tries"), [([EIO], 2), ([EIO] * 9, 2)])
async def test_request_is_tried_once_more_when_the_server_ends(
    failures: list[int], tries: int
) -> None:
    device = Flaky(list(failures))
    async with stacked(device, told(RetryRequest, retry_request_delay="1h")) as made:
        task = asyncio.create_task(made.write(0, b"x"))
        await until(lambda: bool(ENDING._sleeping))
        with ending():
            [outcome] = await soon(asyncio.gather(task, return_exceptions=True))
    assert isinstance(outcome, ExportError) is (len(failures) >= tries)
    assert len(device.calls) == tries + 1


# Pausing


class Control:
    """A client of the control socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setblocking(False)
        self.path = path

    async def __aenter__(self) -> "Control":
        await asyncio.get_running_loop().sock_connect(self.socket, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.close()

    async def say(self, text: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, text)

    async def hear(self) -> bytes:
        return await soon(asyncio.get_running_loop().sock_recv(self.socket, 100))


async def test_pause_ends_what_is_at_work_and_lets_nothing_begin(tmp_path: Path) -> None:
    device, path = ByteDevice(), tmp_path / "control"
    async with stacked(device, told(Pause, pause_control=path)) as made, Control(path) as control:
        assert path.stat().st_mode & 0o777 == 0o600
        device.gate.clear()
        task = asyncio.create_task(made.write(0, b"first"))
        await until(lambda: bool(device.calls))
        await control.say(b"p\n")
        await until(lambda: made.read_now(0, 1) is None)
        later = asyncio.create_task(made.write(0, b"later"))
        gone = asyncio.create_task(made.write(0, b"never"))
        await asyncio.sleep(0)
        assert not task.done()
        device.gate.set()
        assert await control.hear() == b"P"
        assert task.done()
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert device.image()[:5] == b"first"
        assert not made.write_now(0, b"x")
        await control.say(b"x")
        assert await control.hear() == b"X"
        await control.say(b"r")
        assert await control.hear() == b"R"
        await later
        assert device.image()[:5] == b"later"
        assert made.write_now(0, b"x")
    assert not path.exists()


async def test_server_ends_though_requests_are_paused(tmp_path: Path) -> None:
    path = tmp_path / "control"
    async with (
        stacked(ByteDevice(), told(Pause, pause_control=path)) as made,
        Control(path) as control,
    ):
        await control.say(b"p")
        assert await control.hear() == b"P"
        task = asyncio.create_task(made.write(0, b"x"))
        await asyncio.sleep(0)
        ENDING.begin(print)
        ENDING.is_over()
        assert await failed(task) == ESHUTDOWN
        assert await failed(made.read(0, 1)) == ESHUTDOWN


async def test_control_socket_that_is_left_over_is_replaced_and_another_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with stacked(ByteDevice(), told(Pause, pause_control=path)):
        with pytest.raises(ConfigError, match="cannot be the control socket: Address already"):
            await told(Pause, pause_control=path).start()
    path.write_text("mine")
    with pytest.raises(ConfigError, match="cannot be the control socket"):
        await told(Pause, pause_control=path).start()
    assert path.read_text() == "mine"


# The end of the server


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """What a server was asked for: to end."""
    asked: list[str] = []

    def end() -> None:
        asked.append("end")

    ENDING.servers.append(end)
    try:
        yield asked
    finally:
        ENDING.servers.remove(end)


async def test_server_ends_with_the_last_connection(asked: list[str]) -> None:
    filter = told(ExitLast)
    look = await filter.wrap(ByteDevice(), Opening("disk"))
    await look.close()
    one, other = [await filter.wrap(ByteDevice(), OPENING) for _ in range(2)]
    await one.close()
    assert not asked
    await other.close()
    assert asked == ["end"]


@pytest.mark.parametrize("kind", ["created", "deleted", "pipe", "process", "script"])
async def test_server_ends_when_something_happens_and_all_have_left(
    kind: str, tmp_path: Path, asked: list[str]
) -> None:
    path = tmp_path / "file"
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    keys: dict[str, object] = {
        "created": {"exit_when_file_created": path},
        "deleted": {"exit_when_file_deleted": tmp_path},
        "pipe": {"exit_when_pipe_closed": reading},
        "process": {"exit_when_process_exits": process.pid},
        "script": {"exit_when_script": f"test ! -e {path} || exit 88"},
    }[kind]  # type: ignore[assignment]
    if kind == "deleted":
        path.touch()
        keys = {"exit_when_file_deleted": path}
    filter = told(ExitWhen, exit_when_poll="0.05", **keys)
    async with stacked(ByteDevice(), filter) as made:
        await made.read(0, 1)
        other = await filter.wrap(ByteDevice(), OPENING)
        await other.close()
        assert not asked
        if kind == "deleted":
            path.unlink()
        else:
            path.touch()
        os.close(writing)
        process.stdin.close()
        await process.wait()
        await until(lambda: bool(filter._state.happened))
        with pytest.raises(Locked, match="the server ends, as "):
            await filter.wrap(ByteDevice(), OPENING)
        assert not asked  # there is a client still
        await made.read(0, 1)
    assert asked == ["end"]
    os.close(reading)


async def test_what_has_happened_before_the_server_is_there_ends_it(tmp_path: Path) -> None:
    filter = told(ExitWhen, exit_when_file_created=tmp_path)
    await filter.start()
    await until(lambda: bool(filter._state.happened))
    asked: list[None] = []
    ENDING.servers.append(lambda: asked.append(None))
    try:
        await until(lambda: bool(asked))
    finally:
        ENDING.servers.clear()
        await filter.stop()


async def test_script_that_fails_is_told_of_and_ends_nothing(expects_log: Announce) -> None:
    expects_log("exit-when-script: exit code 3")
    filter = told(ExitWhen, exit_when_script="exit 3")
    await filter._run_script(filter.exit_when_script)
    assert not filter._state.happened


@pytest.mark.parametrize("key", ["exit_when_pipe_closed", "exit_when_process_exits"])
def test_number_that_the_kernel_does_not_know_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a number from \d to 2147483647"):
        told(ExitWhen, **{key: 2**31})


async def test_descriptor_that_is_not_open_is_refused() -> None:
    with pytest.raises(ConfigError, match="descriptor 987 of exit-when-pipe-closed is not open"):
        await told(ExitWhen, exit_when_pipe_closed=987).start()


async def test_file_of_which_nothing_is_known_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expects_log: Announce
) -> None:
    """A folder that cannot be read any more, or no process to spare, is no event."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    file = tmp_path / "file"
    filter = told(ExitWhen, exit_when_file_created=file, exit_when_file_deleted=file)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", refused)
        filter._look()
        assert not filter._state.happened
        patch.setattr(asyncio, "create_subprocess_shell", refused)
        expects_log("exit-when-script cannot be run now: Permission denied")
        await filter._run_script("exit 88")
    filter._look()
    assert filter._state.happened == f"{file} is gone"
