# SPDX-License-Identifier: MIT
"""Exports that plugins make, and filters: what a client is told and gets, and how long it lasts."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from errno import ENOSPC

import pytest

from swiftnbd.api import (
    Buffer,
    Device,
    Filter,
    FilterPlugin,
    Opening,
    Plugin,
    StoreUnavailable,
)
from swiftnbd.errors import ExportUnusable
from swiftnbd.export.device_export import DeviceExport
from swiftnbd.export.export import Export
from swiftnbd.export.status import ExportState
from swiftnbd.filters.blocksize_policy import BlocksizePolicy
from swiftnbd.filters.exitlast import ExitLast
from swiftnbd.filters.fua import Fua, Mode
from swiftnbd.filters.limit import Limit
from swiftnbd.plugins.memory import Memory, MemoryDevice
from tests.support import nbd_client as nbd
from tests.support.gated_store import GatedStore
from tests.support.log_watch import Announce
from tests.support.loopback import serving
from tests.support.nbd_client import NbdError, Refused

KiB, MiB = 1024, 1024 * 1024
EXPORT, BLOCK_SIZE = 0, 3  # items of INFO


@dataclass
class Watched(Plugin):
    """A memory disk that writes down what becomes of it. ``make`` is what is asked for it."""

    size: int = MiB
    did: list[str] = field(default_factory=list)
    make: Callable[[Opening], Awaitable[Device]] | None = None

    async def start(self) -> None:
        self.did.append("start")

    async def open(self, opening: Opening) -> Device:
        who = "" if opening.client is None else " for one"
        self.did.append(f"open {opening.name}{who}")
        made = MemoryDevice(self.size) if self.make is None else await self.make(opening)
        return _Watching(made, self.did, opening.name)

    async def names(self) -> Sequence[str]:
        return ("red", "blue")

    async def stop(self) -> None:
        self.did.append("stop")


class PerConnection(Watched):
    per_connection = True


class AnyName(Watched):
    any_name = True


class _Watching(Filter):
    def __init__(self, device: Device, did: list[str], name: str) -> None:
        super().__init__(device)
        self.did, self.name = did, name

    async def close(self) -> None:
        self.did.append(f"close {self.name}")
        await super().close()


@dataclass
class Shift(FilterPlugin):
    """Begins so many bytes later."""

    by: int

    async def wrap(self, device: Device, opening: Opening) -> Device:
        return Shifted(device, self.by)


class Shifted(Filter):
    def __init__(self, device: Device, by: int) -> None:
        super().__init__(device)
        self.by, self.size = by, device.size - by

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        return await self.device.read(offset + self.by, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self.device.write(offset + self.by, data)


@dataclass
class Tagged(FilterPlugin):
    """The first bytes are who reads them: each connection has a filter of its own."""

    per_connection = True
    did: list[str] = field(default_factory=list)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        self.did.append("wrap" if opening.client is None else "wrap for one")
        return _Watching(device, self.did, "filter")


async def test_disk_of_a_plugin_outlives_its_clients_and_ends_with_the_server() -> None:
    plugin = Watched()
    async with serving(DeviceExport("disk", plugin)) as served:
        for expected in (bytes(5), b"still"):
            async with await served.attached(b"disk") as peer:
                assert await peer.read(1000, 5) == expected
                await peer.write(1000, b"still")
                await peer.disconnect()
        await served.idle()
        assert plugin.did == ["start", "open disk"]
    assert plugin.did == ["start", "open disk", "close disk", "stop"]


async def test_connection_with_a_device_of_its_own_sees_nothing_of_others() -> None:
    plugin = PerConnection()
    async with serving(DeviceExport("disk", plugin)) as served:
        one, other = await served.attached(), await served.attached()
        await one.write(0, b"mine")
        assert await other.read(0, 4) == bytes(4)
        await one.disconnect()
        await other.disconnect()
        await served.idle()
        assert plugin.did == ["start", *["open disk for one"] * 2, *["close disk"] * 2]
        async with await served.greeted() as peer:
            flags = (await peer.go(option=nbd.INFO))[EXPORT][8:]
            assert not int.from_bytes(flags) & 1 << 8  # CAN_MULTI_CONN
            await peer.abort()


async def test_plugin_that_answers_to_any_name_has_a_device_for_each() -> None:
    plugin = AnyName()
    async with serving(DeviceExport("disk", plugin)) as served:
        async with await served.greeted() as peer:
            replies = await peer.option(nbd.LIST)
            assert [data[4:] for kind, data in replies if kind == nbd.SERVER] == [b"red", b"blue"]
            await peer.abort()
        red, again, blue = [await served.attached(name) for name in (b"red", b"red", b"blue")]
        await red.write(0, b"red")
        assert await again.read(0, 3) == b"red"
        assert await blue.read(0, 3) == bytes(3)
        for peer in (red, again, blue):
            await peer.disconnect()
        await served.idle()
        opened = [each for each in plugin.did if each.startswith("open")]
        assert opened == ["open red", "open blue"]
        assert sorted(plugin.did[3:]) == ["close blue", "close red"]


async def test_first_filter_is_asked_first() -> None:
    """4 KiB of a disk of 16: where the two filters meet, their order would not show."""
    plugin = Watched(16 * KiB)
    export = DeviceExport("disk", plugin, [Shift(4 * KiB), Shift(8 * KiB), Tagged()])
    async with serving(export) as served, await served.attached() as peer:
        await peer.write(0, b"here")
        device = export._shared["disk"].device
        assert device.size == 16 * KiB  # the last filter is each connection's own, and so all are
        assert b"".join(await device.read(12 * KiB, 4)) == b"here"
        with pytest.raises(NbdError) as caught:
            await peer.read(4 * KiB, 1)
        assert caught.value.number == nbd.EINVAL
        await peer.disconnect()


async def test_filter_of_a_connection_ends_with_it_and_leaves_the_device() -> None:
    plugin, tagged = Watched(), Tagged()
    async with serving(DeviceExport("disk", plugin, [tagged])) as served:
        async with await served.attached() as peer:
            await peer.write(0, b"kept")
            await peer.disconnect()
        await served.idle()
        assert tagged.did == ["wrap for one", "close filter"]
        async with await served.attached() as peer:
            assert await peer.read(0, 4) == b"kept"
            await peer.disconnect()
    assert plugin.did == ["start", "open disk", "close disk", "stop"]


async def test_filters_stand_in_front_of_a_container() -> None:
    store = GatedStore("disk", 4, 64 * KiB)
    await store.set_up()
    tagged = Tagged()
    export = Export("disk", store, filters=(tagged, Shift(64 * KiB)))
    async with serving(export) as served:
        async with await served.greeted() as peer:
            told = await peer.go(b"disk", BLOCK_SIZE, option=nbd.INFO)
            assert int.from_bytes(told[EXPORT][:8]) == 3 * 64 * KiB
            assert not export.attached
            got = await peer.go(b"disk", BLOCK_SIZE)
            assert got == told
            await peer.write(0, b"second object")
            await peer.flush()
            await peer.disconnect()
        await served.idle()
        assert not export.attached
    blob = await store.get("disk.part/00000001")
    assert blob is not None
    assert blob.data[:13] == b"second object"
    assert await store.get("disk.part/00000000") is None
    assert tagged.did[-1] == "close filter"


async def test_container_is_told_alike_before_and_after_it_is_attached() -> None:
    store = GatedStore("disk", 4, 64 * KiB)
    await store.set_up()
    async with serving(Export("disk", store)) as served, await served.greeted() as peer:
        told = await peer.go(b"disk", 1, 2, BLOCK_SIZE, option=nbd.INFO)
        assert await peer.go(b"disk", 1, 2, BLOCK_SIZE) == told
        assert int.from_bytes(told[EXPORT][8:]) == 0x0D6D
        await peer.disconnect()


class Blocky(MemoryDevice):
    """Takes whole sectors only, and little at once; without FUA of its own."""

    block_size_min = 512
    block_size_max = 8 * KiB
    block_size = 4 * KiB
    can_fua = False

    def __init__(self) -> None:
        super().__init__(MiB)
        self.flushes = 0

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return None if (offset | length) % 512 else super().read_now(offset, length)

    async def flush(self) -> None:
        self.flushes += 1


async def blocky() -> tuple[DeviceExport, Blocky]:
    device = Blocky()

    async def make(opening: Opening) -> Device:
        return device

    return DeviceExport("disk", Watched(make=make)), device


async def test_request_that_does_not_suit_the_block_sizes_is_refused() -> None:
    export, _ = await blocky()
    async with serving(export) as served, await served.greeted() as peer:
        told = await peer.go(b"", BLOCK_SIZE)
        assert told[BLOCK_SIZE] == b"\0\0\x02\0\0\0\x10\0\0\0\x20\0"
        for offset, length in ((1, 512), (512, 511), (0, 8 * KiB + 512)):
            with pytest.raises(NbdError) as caught:
                await peer.read(offset, length)
            assert caught.value.number == nbd.EINVAL
        assert await peer.read(512, 8 * KiB) == bytes(8 * KiB)
        await peer.disconnect()


async def test_fua_becomes_a_flush_where_the_device_has_none() -> None:
    export, device = await blocky()
    async with serving(export) as served, await served.attached() as peer:
        await peer.write(0, bytes(512))
        assert device.flushes == 0
        await peer.write(0, bytes(512), nbd.FUA)
        assert device.flushes == 1
        await peer.ask(nbd.TRIM, 0, 512, flags=nbd.FUA)
        await peer.ask(nbd.WRITE_ZEROES, 0, 512, flags=nbd.FUA)
        assert device.flushes == 3
        await peer.disconnect()


async def test_error_of_the_system_reaches_the_client_as_what_it_is(expects_log: Announce) -> None:
    class Full(MemoryDevice):
        def write_now(self, offset: int, data: Buffer) -> bool:
            return False

        async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
            raise OSError(ENOSPC, "No space left on device")

    async def make(opening: Opening) -> Device:
        return Full(MiB)

    expects_log("No space left on device")
    async with (
        serving(DeviceExport("disk", Watched(make=make))) as served,
        await served.attached() as peer,
    ):
        with pytest.raises(NbdError) as caught:
            await peer.write(0, b"x")
        assert caught.value.number == nbd.ENOSPC
        await peer.disconnect()


async def test_device_that_cannot_be_made_is_refused(
    expects_log: Announce,
) -> None:
    async def make(opening: Opening) -> Device:
        raise FileNotFoundError(2, "No such file or directory", "/gone")

    expects_log("/gone: No such file or directory")
    async with (
        serving(DeviceExport("disk", PerConnection(make=make))) as served,
        await served.greeted() as peer,
    ):
        with pytest.raises(Refused):
            await peer.go(b"disk")
        await peer.abort()


async def test_export_that_takes_one_connection_refuses_the_second(expects_log: Announce) -> None:
    expects_log("serves one connection at a time")
    async with (
        serving(DeviceExport("disk", Watched(), multi_conn=False)) as served,
        await served.attached() as one,
        await served.greeted() as other,
    ):
        with pytest.raises(Refused):
            await other.go(b"disk")
        await other.abort()
        await one.disconnect()


async def test_read_only_export_of_a_plugin_takes_no_write() -> None:
    async with (
        serving(DeviceExport("disk", Memory(size=MiB), read_only=True)) as served,
        await served.attached() as peer,
    ):
        with pytest.raises(NbdError) as caught:
            await peer.write(0, b"x")
        assert caught.value.number == nbd.EPERM
        await peer.disconnect()


@dataclass
class Reluctant(FilterPlugin):
    """Can be closed only when it may: its last bytes have no place yet."""

    may: bool = False
    tries: int = 0

    async def wrap(self, device: Device, opening: Opening) -> Device:
        return ReluctantFilter(device, self)


class ReluctantFilter(Filter):
    def __init__(self, device: Device, plugin: Reluctant) -> None:
        super().__init__(device)
        self.plugin = plugin

    async def close(self) -> None:
        self.plugin.tries += 1
        if not self.plugin.may:
            raise OSError(ENOSPC, "No space left on device")
        await self.device.write(0, b"the last bytes")
        await super().close()


async def kept(filters: Sequence[FilterPlugin]) -> tuple[GatedStore, Export]:
    store = GatedStore("disk", 4, 64 * KiB)
    await store.set_up()
    return store, Export("disk", store, filters=tuple(filters))


async def test_container_is_kept_until_its_filters_can_be_closed(
    expects_log: Announce, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swiftnbd.export.export.KEPT_RETRY_SECONDS", 0.01)
    expects_log("disk: kept locked, trying again: No space left on device")
    filter_ = Reluctant()
    store, export = await kept([filter_])
    async with serving(export) as served:
        async with await served.attached() as peer:
            await peer.write(100, b"before")
            await peer.disconnect()
        await served.idle()
        await until(lambda: filter_.tries >= 3)
        assert export.attached
        assert export.status.state is ExportState.KEPT
        async with await served.attached() as peer:  # finds all as it was
            assert await peer.read(100, 6) == b"before"
            filter_.may = True
            await peer.disconnect()
        await served.idle()
        assert not export.attached
        blob = await store.get("disk.part/00000000")
        assert blob is not None
        assert blob.data[:14] == b"the last bytes"
        assert blob.data[100:106] == b"before"


async def test_container_whose_filters_cannot_be_closed_at_the_end_keeps_its_lock(
    expects_log: Announce,
) -> None:
    expects_log("kept locked, trying again: No space left on device")
    expects_log("disk: No space left on device")
    expects_log("disk: stays locked")
    filter_ = Reluctant()
    store, export = await kept([filter_])
    async with serving(export, stops_whole=False) as served:
        async with await served.attached() as peer:
            await peer.disconnect()
        await served.idle()
    assert store.metadata["swiftnbd-client"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


@dataclass
class Refusing(FilterPlugin):
    """Opens only when it may."""

    may: bool = False

    async def wrap(self, device: Device, opening: Opening) -> Device:
        if not self.may:
            raise ExportUnusable("the passphrase is wrong")
        return Filter(device)


class RefusingEach(Refusing):
    per_connection = True


@pytest.mark.parametrize("kind", [Refusing, RefusingEach])
async def test_container_whose_filter_refuses_to_open_does_not_stay_locked(
    kind: type[Refusing], expects_log: Announce, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swiftnbd.export.export.KEPT_RETRY_SECONDS", 0.01)
    expects_log("the passphrase is wrong")
    filter_ = kind()
    store, export = await kept([filter_])
    async with serving(export) as served:
        async with await served.greeted() as peer:
            with pytest.raises(Refused):
                await peer.go(b"disk")
            await peer.abort()
        await until(lambda: not export.attached)
        assert not store.metadata.get("swiftnbd-client")
        filter_.may = True
        async with await served.attached(b"disk") as peer:
            await peer.write(0, b"taken")
            await peer.disconnect()
        await served.idle()
    assert not store.metadata.get("swiftnbd-client")


async def test_failure_to_close_is_reported_at_the_end(expects_log: Announce) -> None:
    class Stubborn(MemoryDevice):
        async def close(self) -> None:
            raise OSError(5, "Input/output error", "/disk")

    async def make(opening: Opening) -> Device:
        return Stubborn(MiB)

    expects_log("/disk: Input/output error")
    expects_log("disk: could not be closed")
    async with serving(DeviceExport("disk", Watched(make=make)), stops_whole=False):
        pass


async def test_changed_plugin_is_opened_anew_and_the_old_one_is_closed() -> None:
    first, second = Watched(), Watched(2 * MiB)
    export = DeviceExport("disk", first)
    async with serving(export) as served:
        export.change(DeviceExport("disk", second))
        await export.look_again()
        assert first.did == ["start", "open disk", "close disk", "stop"]
        async with await served.greeted() as peer:
            assert int.from_bytes((await peer.go(b"disk"))[EXPORT][:8]) == 2 * MiB
            await peer.disconnect()


async def test_plugin_out_of_reach_can_be_loaded_later() -> None:
    tries = []

    async def make(opening: Opening) -> Device:
        tries.append(opening.name)
        if len(tries) == 1:
            raise StoreUnavailable("not yet")
        return MemoryDevice(MiB)

    plugin = Watched(make=make)
    export = DeviceExport("disk", plugin)
    with pytest.raises(StoreUnavailable):
        await export.load()
    async with serving(export):
        assert plugin.did == ["start", "open disk", "open disk"]


@dataclass
class Lasting(FilterPlugin):
    """Writes down how long it is there. ``how`` is what it is told."""

    how: str
    did: list[str] = field(compare=False)

    async def start(self) -> None:
        self.did.append(f"start {self.how}")

    async def wrap(self, device: Device, opening: Opening) -> Device:
        self.did.append(f"wrap {self.how}")
        return _Watching(device, self.did, self.how)

    async def stop(self) -> None:
        self.did.append(f"stop {self.how}")


async def test_filter_is_there_from_the_start_to_the_end_of_the_server() -> None:
    did: list[str] = []
    filters = [Lasting("upper", did), Lasting("lower", did)]
    async with serving(DeviceExport("disk", Memory(size=MiB), filters)):
        assert did == ["start lower", "start upper", "wrap lower", "wrap upper"]
        did.clear()
    assert did == ["close upper", "close lower", "stop upper", "stop lower"]


async def test_filter_of_a_container_is_there_from_the_start_to_the_end() -> None:
    store, did = GatedStore("disk", 4, 64 * KiB), list[str]()
    await store.set_up()
    async with serving(Export("disk", store, filters=(Lasting("one", did),))) as served:
        assert did == ["start one"]
        for _ in range(2):
            async with await served.attached(b"disk") as peer:
                await peer.disconnect()
            await served.idle()
    assert did == ["start one", *["wrap one", "close one"] * 2, "stop one"]


async def test_only_filters_that_are_changed_are_stopped() -> None:
    did: list[str] = []
    store = GatedStore("disk", 4, 64 * KiB)
    await store.set_up()
    old = (Lasting("kept", did), Lasting("gone", did))
    new = (Lasting("new", did), Lasting("kept", did))
    for export, changed in (
        (DeviceExport("disk", Memory(size=MiB), old), DeviceExport("disk", Memory(size=MiB), new)),
        (Export("disk", store, filters=old), Export("disk", store, filters=new)),
    ):
        async with serving(export):
            did.clear()
            export.change(changed)  # type: ignore[arg-type]
            await export.look_again()
            there = [each for each in did if each.startswith(("start", "stop"))]
            assert there == ["stop gone", "start new"]


async def test_filter_that_is_there_twice_is_so_after_a_change() -> None:
    did: list[str] = []
    twice = (Lasting("one", did), Lasting("one", did))
    more = (Lasting("one", did), Lasting("two", did), Lasting("one", did))
    export = DeviceExport("disk", Memory(size=MiB), twice)
    async with serving(export):
        assert did.count("start one") == 2
        export.change(DeviceExport("disk", Memory(size=MiB), more))
        await export.look_again()
        assert (did.count("start one"), did.count("start two")) == (2, 1)
        assert did.count("stop one") == 0
    assert (did.count("stop one"), did.count("stop two")) == (2, 1)


async def test_look_takes_no_place_of_a_connection(expects_log: Announce) -> None:
    """A client that only asks what there would be takes no place of one that comes."""
    expects_log("as many connections as it may have")
    export = DeviceExport("disk", Memory(size=MiB), [Limit()])
    async with serving(export) as served, await served.greeted() as peer:
        for _ in range(3):
            await peer.go(b"disk", option=nbd.INFO)
        await peer.go(b"disk")
        async with await served.greeted() as other:
            with pytest.raises(Refused, match="as many connections as it may have"):
                await other.go(b"disk")
            await other.abort()
        await peer.disconnect()


async def test_server_ends_when_a_filter_says_so() -> None:
    async with serving(DeviceExport("disk", Memory(size=MiB), [ExitLast()])) as served:
        one, other = await served.attached(), await served.attached()
        await one.disconnect()
        assert not served.server._stopping.is_set()
        await other.disconnect()
        await served.idle()
        await until(served.server._stopping.is_set)


async def test_client_is_told_what_the_filters_say_of_fua_and_block_sizes() -> None:
    policy = BlocksizePolicy(blocksize_minimum=4096, blocksize_preferred=8192)
    export = DeviceExport("disk", Memory(size=MiB), [Fua(fuamode=Mode.NONE), policy])
    async with serving(export) as served, await served.greeted() as peer:
        told = await peer.go(b"", BLOCK_SIZE)
        assert told[BLOCK_SIZE] == b"\0\0\x10\0\0\0\x20\0\x02\0\0\0"
        assert not int.from_bytes(told[EXPORT][8:]) & 1 << 3  # SEND_FUA
        await peer.write(1, b"x")  # and what does not keep to it is allowed
        with pytest.raises(NbdError) as caught:
            await peer.write(0, b"x", nbd.FUA)
        assert caught.value.number == nbd.EINVAL
        await peer.disconnect()
