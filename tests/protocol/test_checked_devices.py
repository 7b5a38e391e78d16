# SPDX-License-Identifier: MIT
"""Plugins and filters with mistakes in them: the client gets EIO and the next reply is in step, the
log says in a sentence what is wrong."""

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from swiftnbd.api import Buffer, Device, Extent, Filter, FilterPlugin, Opening, Pending, Plugin
from swiftnbd.errors import ExportUnusable, SwiftnbdError
from swiftnbd.export.device_export import DeviceExport
from swiftnbd.filters.rate import Rate
from swiftnbd.filters.stats import Stats
from swiftnbd.plugins.memory import Memory, MemoryDevice
from tests.support import nbd_client as nbd
from tests.support.log_watch import Announce
from tests.support.loopback import Peer, serving
from tests.support.nbd_client import NbdError

MiB = 1024 * 1024
Method = Callable[..., Any]


@dataclass
class Mistaken(Plugin):
    """A disk of ``b"x"`` whose methods are those of ``methods`` where there are."""

    methods: dict[str, Any]

    async def open(self, opening: Opening) -> Device:
        device: Device = type("MistakenDevice", (Disk,), self.methods)()
        return device


class Disk(MemoryDevice):
    def __init__(self) -> None:
        super().__init__(MiB)

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        return False

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        return [b"x" * length]


def returns(result: object) -> Method:
    async def method(*arguments: object, **options: object) -> object:
        return result

    return method


def returns_now(result: object) -> Method:
    return lambda *arguments, **options: result


async def asked(peer: Peer, method: str) -> None:
    """Have the device's method called."""
    match method:
        case "read" | "read_now":
            await peer.ask(nbd.READ, 4096, 512)
        case "write" | "write_now":
            await peer.write(4096, bytes(512))
        case "flush":
            await peer.flush()
        case "zero":
            await peer.ask(nbd.WRITE_ZEROES, 0, 512)
        case "trim":
            await peer.ask(nbd.TRIM, 0, 512)
        case "prefetch":
            await peer.ask(nbd.CACHE, 0, 512)


WRONG_READS = [
    (b"x" * 512, r"returned bytes; it has to return a sequence of buffers, like \[data\]"),
    (memoryview(b"x" * 512), "returned memoryview; it has to return a sequence of buffers"),
    (None, "returned None; it has to return a sequence of buffers"),
    ("x" * 512, "returned str with str in it, which is no buffer"),
    ([120] * 512, "returned list with int in it"),
    ([b"x" * 511], "returned 511 bytes; it has to return 512"),
    ([b"x" * 512, b"x"], "returned 513 bytes; it has to return 512"),
    ([], "returned 0 bytes; it has to return 512"),
    ([memoryview(b"x" * 2048).cast("I")], "items are not bytes"),
    ([memoryview(b"x" * 1024)[::2]], "items are not bytes"),
]


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize(("result", "said"), WRONG_READS)
async def test_read_that_returns_something_else_fails_and_the_next_one_is_in_step(
    result: object, said: str, structured: bool, expects_log: Announce
) -> None:
    async def read(self: Device, offset: int, length: int) -> object:
        return result if offset == 4096 else [b"y" * length]

    expects_log(rf"plugin Mistaken: MistakenDevice.read\(4096, 512\) .*{said}")
    async with (
        serving(DeviceExport("disk", Mistaken({"read": read}))) as served,
        await served.greeted() as peer,
    ):
        if structured:
            await peer.option(nbd.STRUCTURED_REPLY)
        await peer.go(b"disk")
        if structured:
            assert (await peer.ask_chunks(nbd.READ, 4096, 512))[0].error
            assert (await peer.ask_chunks(nbd.READ, 0, 512))[0].data[8:] == b"y" * 512
        else:
            with pytest.raises(NbdError) as caught:
                await peer.read(4096, 512)
            assert caught.value.number == nbd.EIO
            assert await peer.read(0, 512) == b"y" * 512
        await peer.disconnect()


@pytest.mark.parametrize("method", ["read", "write", "zero", "trim", "flush", "prefetch"])
async def test_method_without_async_is_told_of(method: str, expects_log: Announce) -> None:
    expects_log(f"MistakenDevice.{method} is no coroutine: write async def {method}")
    async with (
        serving(DeviceExport("disk", Mistaken({method: returns_now(None)}))) as served,
        await served.attached() as peer,
    ):
        with pytest.raises(NbdError) as caught:
            await asked(peer, method)
        assert caught.value.number == nbd.EIO
        await peer.disconnect()


@pytest.mark.parametrize(
    ("extents", "said"),
    [
        (None, "returned None; it has to return a sequence of Extent"),
        ([], "returned 0 extents; it has to return 1 to"),
        ([Extent(1, hole=False, zero=False)] * 5000, "returned 5000 extents"),
        ([Extent(0, hole=False, zero=False)], "an extent of 0 bytes"),
        ([Extent(-512, hole=True, zero=True)], "an extent of -512 bytes"),
        ([Extent(MiB + 1, hole=True, zero=True)], "more than it was asked for"),
        ([512], "returned int that is no Extent"),
        ([(0.5, True, True)], "returned tuple that is no Extent"),
    ],
)
async def test_extents_that_cannot_be_are_told_of(
    extents: object, said: str, expects_log: Announce
) -> None:
    expects_log(rf"plugin Mistaken: MistakenDevice.extents\(0, 1048576, count=\d+\) .*{said}")
    async with (
        serving(DeviceExport("disk", Mistaken({"extents": returns(extents)}))) as served,
        await served.greeted() as peer,
    ):
        await peer.option(nbd.STRUCTURED_REPLY)
        await peer.option(nbd.SET_META_CONTEXT, nbd.context_query(b"disk", b"base:allocation"))
        await peer.go(b"disk")
        assert (await peer.ask_chunks(nbd.BLOCK_STATUS, 0, MiB))[0].error
        await peer.disconnect()


@pytest.mark.parametrize(
    ("method", "result", "said"),
    [
        ("read_now", returns_now([b"xx"]), r"read_now\(4096, 512\) returned 2 bytes"),
        ("read_now", returns([b"x" * 512]), r"read_now\(4096, 512\) returned coroutine"),
        (
            "read_now",
            lambda self, offset, length: 1 // 0,
            r"read_now failed: test_\w+.py, line \d+:",
        ),
        ("write_now", returns(True), r"write_now\(4096, 512 bytes\) returned coroutine; it has"),
        ("write_now", returns_now(None), r"write_now\(4096, 512 bytes\) returned None; it has to"),
        ("write_now", lambda self, offset, data: 1 // 0, "write_now failed: .*ZeroDivisionError"),
    ],
)
async def test_fast_path_that_goes_wrong_has_declined(
    method: str, result: Any, said: str, expects_log: Announce
) -> None:
    """Above all a write that nobody has done is not answered."""
    expects_log(f"plugin Mistaken: MistakenDevice.{said}")
    done: list[int] = []

    async def write(self: Device, offset: int, data: Buffer, *, fua: bool = False) -> None:
        done.append(offset)

    methods = {"write": write, method: result}
    async with (
        serving(DeviceExport("disk", Mistaken(methods))) as served,
        await served.attached() as peer,
    ):
        if method == "read_now":
            assert await peer.read(4096, 512) == b"x" * 512
        else:
            await peer.write(4096, bytes(512))
            assert done == [4096]
        await peer.disconnect()


async def test_exception_is_told_of_in_a_sentence(expects_log: Announce) -> None:
    """Where it was, and no more: the rest is in the log's details."""
    expects_log(r"MistakenDevice.read failed: test_checked_devices.py, line \d+: KeyError: 4096$")

    async def read(self: Device, offset: int, length: int) -> object:
        return {0: [b"y" * length]}[offset]

    async with (
        serving(DeviceExport("disk", Mistaken({"read": read}))) as served,
        await served.attached() as peer,
    ):
        with pytest.raises(NbdError):
            await peer.read(4096, 512)
        assert await peer.read(0, 512) == b"y" * 512
        await peer.disconnect()


# What is called in another way than it was written for


def takes(*names: str, flags: str = "") -> Method:
    """A method with these parameters."""
    head = ", ".join(["self", *names, *(["*", f"{flags}=False"] if flags else [])])
    made: dict[str, Any] = {}
    exec(f"async def method({head}):\n    pass\n", made)
    method: Method = made["method"]
    return method


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        ("read", takes("offset"), r"write it as async def read\(self, offset, length\), for it"),
        ("read", takes("offset", "length", "flags"), "missing a required argument: 'flags'"),
        ("write", takes("offset", "data"), r"write\(self, offset, data, \*, fua=False\), for it"),
        (
            "zero",
            takes("offset", "length", flags="fua"),
            r"zero\(.*, \*, no_hole=False, fua=False, f",
        ),
        ("extents", takes("offset", "length"), r"extents\(self, offset, length, \*, count\)"),
        ("flush", takes("flags"), r"write it as async def flush\(self\)"),
        ("read_now", 1, r"read_now\(self, offset, length\) has to be a method, and it is 1"),
    ],
)
async def test_method_that_cannot_be_called_so_is_told_of_before_it_is(
    name: str, method: Any, said: str
) -> None:
    with pytest.raises(ExportUnusable, match=rf"MistakenDevice.{name}: .*{said}"):
        await DeviceExport("disk", Mistaken({name: method})).load()


async def test_open_and_wrap_that_cannot_be_called_so_are_told_of() -> None:
    class Odd(Plugin):
        async def open(self) -> Device:  # type: ignore[override]
            raise AssertionError

    class OddFilter(FilterPlugin):
        async def wrap(self, device: Device) -> Device:  # type: ignore[override]
            raise AssertionError

    with pytest.raises(SwiftnbdError, match=r"write it as async def open\(self, opening\)"):
        await DeviceExport("disk", Odd()).load()
    with pytest.raises(SwiftnbdError, match=r"write it as async def wrap\(self, device, opening"):
        await DeviceExport("disk", Mistaken({}), [OddFilter()]).load()


async def test_name_with_a_letter_wrong_is_told_of(expects_log: Announce) -> None:
    expects_log(r"MistakenDevice.flsuh is never called: is it to be flush\?")
    methods = {"flsuh": takes(), "other": takes(), "_raed": takes()}
    async with serving(DeviceExport("disk", Mistaken(methods))):
        pass


# Requests that a device takes on


class Later(Disk):
    """Takes requests on, as ``ways`` has it by their offsets."""

    ways: ClassVar[dict[int, Callable[["Later", Pending], object]]] = {}

    def read_soon(self, offset: int, length: int, pending: Pending) -> bool:
        return self.ways[offset](self, pending)  # type: ignore[return-value]

    def write_soon(self, offset: int, data: Buffer, pending: Pending) -> bool:
        return self.ways[offset](self, pending)  # type: ignore[return-value]


def soon_with(*outcomes: object, result: object = True, at_once: bool = False) -> Any:
    """Pieces that are given later, one after the other."""

    def ask(device: Later, pending: Pending) -> object:
        for pieces in outcomes:
            if at_once:
                pending.done(pieces)  # type: ignore[arg-type]
            else:
                asyncio.get_running_loop().call_soon(partial(pending.done, pieces))  # type: ignore[arg-type]
        return result

    return ask


def in_a_thread(device: Later, pending: Pending) -> bool:
    thread = threading.Thread(target=pending.done, args=([b"z" * 512],))
    thread.start()
    thread.join()
    return True


@dataclass
class LaterPlugin(Plugin):
    """`Later`."""

    async def open(self, opening: Opening) -> Device:
        return Later()


@pytest.mark.parametrize(
    ("way", "data"),
    [
        (soon_with([b"z" * 512]), b"z" * 512),
        (soon_with(result=False), b"x" * 512),
        (soon_with([b"z" * 512], at_once=True), b"z" * 512),
        (soon_with([b"z" * 512], at_once=True, result=False), b"z" * 512),
        (in_a_thread, b"z" * 512),
    ],
)
async def test_read_that_a_device_takes_on_is_answered(
    way: Any, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Later, "ways", {0: way})
    async with (
        serving(DeviceExport("disk", LaterPlugin())) as served,
        await served.attached() as peer,
    ):
        assert await peer.read(0, 512) == data
        assert await peer.read(0, 512) == data
        await peer.disconnect()


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (soon_with([b"z" * 511]), "returned 511 bytes; it has to return 512"),
        (soon_with(None), "returned None; it has to return a sequence"),
        (soon_with([b"z" * 512], [b"z" * 512], result=None), "has to return True, or False and do"),
        (lambda device, pending: 1 // 0, "read_soon.* failed: .*ZeroDivisionError"),
    ],
)
async def test_read_that_a_device_takes_on_and_spoils_fails(
    way: Any, said: str, monkeypatch: pytest.MonkeyPatch, expects_log: Announce
) -> None:
    expects_log(said)
    expects_log("Later.read_soon")
    monkeypatch.setattr(Later, "ways", {0: way, 4096: soon_with([b"y" * 512])})
    async with (
        serving(DeviceExport("disk", LaterPlugin())) as served,
        await served.attached() as peer,
    ):
        with pytest.raises(NbdError) as caught:
            await peer.read(0, 512)
        assert caught.value.number == nbd.EIO
        assert await peer.read(4096, 512) == b"y" * 512
        await peer.disconnect()


async def test_write_that_nobody_knows_whether_it_was_done_fails(
    monkeypatch: pytest.MonkeyPatch, expects_log: Announce
) -> None:
    expects_log("Later.write_soon")
    monkeypatch.setattr(Later, "ways", {0: soon_with(result=None), 4096: soon_with(None)})
    async with (
        serving(DeviceExport("disk", LaterPlugin())) as served,
        await served.attached() as peer,
    ):
        with pytest.raises(NbdError):
            await peer.write(0, bytes(512))
        await peer.write(4096, bytes(512))
        await peer.disconnect()


@dataclass
class Shout(FilterPlugin):
    """``made`` is what is put in front of a device."""

    made: Callable[[Device], object]

    async def wrap(self, device: Device, opening: Opening) -> Device:
        return self.made(device)  # type: ignore[return-value]


class Loud(Filter):
    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        return b"".join(await self.device.read(offset, length)).upper()  # type: ignore[return-value]


class Unfinished(Filter):
    def __init__(self, device: Device) -> None:
        self.below = device


async def test_mistake_of_a_filter_is_said_to_be_its_own(expects_log: Announce) -> None:
    expects_log(r"filter Shout: Loud.read\(0, 512\) returned bytes")
    async with (
        serving(DeviceExport("disk", Mistaken({}), [Shout(Loud)])) as served,
        await served.attached() as peer,
    ):
        with pytest.raises(NbdError):
            await peer.read(0, 512)
        await peer.disconnect()


async def test_mistake_of_a_plugin_is_not_said_to_be_the_filters(expects_log: Announce) -> None:
    expects_log(r"plugin Mistaken: MistakenDevice.read\(0, 512\) returned bytes")
    mistaken = Mistaken({"read": returns(bytes(512))})
    async with (
        serving(DeviceExport("disk", mistaken, [Shout(Loud)])) as served,
        await served.attached() as peer,
    ):
        with pytest.raises(NbdError):
            await peer.read(0, 512)
        await peer.disconnect()


@pytest.mark.parametrize(
    ("filters", "is_shared"),
    [
        ([Shout(Loud)], True),
        ([Rate(rate=1), Shout(Loud)], True),
        ([Shout(Loud), Rate(rate=1)], False),  # Loud, made for each, may keep things to itself
        ([Stats(statsfile=Path("stats")), Rate(rate=1)], True),
    ],
)
def test_connections_see_one_disk_as_far_as_is_known(
    filters: list[FilterPlugin], is_shared: bool
) -> None:
    assert DeviceExport("disk", Memory(size=MiB), filters).shares_device is is_shared


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda device: None, "a plugin or filter made a NoneType, not a Device"),
        (Unfinished, r"Unfinished has no size \(a filter gets that by super\(\).__init__\(device"),
    ],
)
async def test_device_below_a_filter_that_is_none_is_closed(
    made: Callable[[Device], object], said: str
) -> None:
    closed: list[str] = []

    async def close(self: Device) -> None:
        closed.append("closed")

    export = DeviceExport("disk", Mistaken({"close": close}), [Shout(made)])
    with pytest.raises(SwiftnbdError, match=said):
        await export.load()
    assert closed == ["closed"]
    await export.shut_down()


class Hasty(Plugin):
    def open(self, opening: Opening) -> Device:  # type: ignore[override]
        return MemoryDevice(MiB)


async def test_open_without_async_is_told_of() -> None:
    with pytest.raises(
        SwiftnbdError, match=r"opening it failed: test_\w+.py, line \d+: it has to be an async def"
    ):
        await DeviceExport("disk", Hasty()).load()


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"size": -1}, "a device with a size of -1 bytes cannot be served"),
        ({"size": "1M"}, "its size is '1M', and has to be an int of bytes"),
        ({"size": 1024.0}, r"its size is 1024.0, and has to be an int"),
        ({"block_size": None}, "its block_size is None, and has to be an int"),
        ({"description": 5}, "its description is 5, and no str"),
    ],
)
async def test_attribute_that_cannot_be_is_told_of(attributes: dict[str, Any], said: str) -> None:
    class Wrong(MemoryDevice):
        pass

    async def open_(self: Plugin, opening: Opening) -> Device:
        device = Wrong(MiB)
        vars(device).update(attributes)
        return device

    plugin = type("Odd", (Plugin,), {"open": open_})()
    with pytest.raises(SwiftnbdError, match=re.compile(f"Wrong: {said}")):
        await DeviceExport("disk", plugin).load()


async def test_our_own_devices_are_called_without_a_detour() -> None:
    export = DeviceExport("disk", Memory(size=MiB))
    async with serving(export) as served, await served.attached() as peer:
        device = next(iter(export._shared.values())).device
        assert type(device) is MemoryDevice
        await peer.disconnect()
