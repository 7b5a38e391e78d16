# SPDX-License-Identifier: MIT
"""The plugin nbd, in front of our own server and of servers that misbehave."""

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from errno import EIO, ENOSPC, ENOTSUP
from pathlib import Path

import pytest

from swiftnbd.api import Buffer, ConfigError, Device, ExportError, Opening, StoreUnavailable
from swiftnbd.errors import ExportUnusable
from swiftnbd.export.device_export import DeviceExport
from swiftnbd.plugins.full import FullDevice
from swiftnbd.plugins.memory import MemoryDevice
from swiftnbd.plugins.nbd import Nbd, connection, remote
from swiftnbd.plugins.nbd.device import NbdDevice
from swiftnbd.server.config import ServerConfig, TcpAddress, TlsConfig
from tests.protocol.test_devices import Blocky, Watched, until
from tests.support.certificates import Certificates
from tests.support.log_watch import Announce
from tests.support.loopback import Serving, serving, soon

KiB, MiB = 1024, 1024 * 1024


class Remembering(MemoryDevice):
    """What it was asked for. ``hold``: changes wait for it."""

    can_prefetch = True

    def __init__(self, size: int = MiB) -> None:
        super().__init__(size)
        self.did: list[str] = []
        self.hold: asyncio.Event | None = None
        self.began = asyncio.Event()

    def write_now(self, offset: int, data: Buffer) -> bool:
        return False

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        self.began.set()
        if self.hold is not None:
            await self.hold.wait()
        self.did.append("write fua" if fua else "write")
        super().write_now(offset, data)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        given = {"no_hole": no_hole, "fua": fua, "fast": fast}
        self.did.append(" ".join(["zero", *(name for name, is_set in given.items() if is_set)]))
        await super().zero(offset, length, no_hole=no_hole, fua=fua, fast=fast)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        self.did.append(f"trim {length}")
        await super().trim(offset, length, fua=fua)

    async def flush(self) -> None:
        self.did.append("flush")

    async def prefetch(self, offset: int, length: int) -> None:
        self.did.append(f"prefetch {offset} {length}")


def export_of(device: Device) -> DeviceExport:
    async def make(opening: Opening) -> Device:
        return device

    return DeviceExport("disk", Watched(make=make))


async def opened(served: Serving, **keys: object) -> NbdDevice:
    keys = {"uri": f"nbd://127.0.0.1:{served.port}/disk", "retry": 0, **keys}
    device = await Nbd(**keys).open(Opening("nbd"))  # type: ignore[arg-type]
    assert isinstance(device, NbdDevice)
    return device


@asynccontextmanager
async def proxied(inner: Device, **keys: object) -> AsyncIterator[NbdDevice]:
    async with serving(export_of(inner)) as served:
        device = await opened(served, **keys)
        try:
            yield device
        finally:
            await device.close()
            await served.idle()


async def read(device: Device, offset: int, length: int) -> bytes:
    return b"".join(await device.read(offset, length))


@pytest.mark.parametrize("connections", [1, 3])
async def test_remote_disk_is_an_array_of_bytes(connections: int) -> None:
    model, chance = bytearray(MiB), random.Random(connections)
    async with proxied(MemoryDevice(MiB), connections=connections) as device:
        assert len(device._remote._connections) == connections
        for _ in range(150):
            offset = chance.randrange(MiB)
            length = min(chance.choice((1, 700, 64 * KiB, 200 * KiB)), MiB - offset)
            match chance.choice(("write", "zero", "read", "extents")):
                case "write":
                    data = chance.randbytes(length)
                    await device.write(offset, data, fua=chance.random() < 0.3)
                    model[offset : offset + length] = data
                case "zero":
                    await device.zero(offset, length, no_hole=chance.random() < 0.5)
                    model[offset : offset + length] = bytes(length)
                case "read":
                    assert await read(device, offset, length) == model[offset : offset + length]
                case "extents":
                    at = offset
                    for size, _, zero in await device.extents(offset, length, count=5):
                        assert not zero or not any(model[at : at + size])
                        at += size
                    assert offset < at <= offset + length
        assert await read(device, 0, MiB) == model


async def test_many_at_once_are_not_mixed_up() -> None:
    async with proxied(MemoryDevice(MiB), connections=2) as device:
        blocks = [bytes([n]) * 4096 for n in range(250)]
        await asyncio.gather(*(device.write(n * 4096, data) for n, data in enumerate(blocks)))
        found = await asyncio.gather(*(read(device, n * 4096, 4096) for n in range(250)))
        assert found == blocks


async def test_everything_is_passed_on() -> None:
    inner = Remembering()
    async with proxied(inner) as device:
        for name in ("can_flush", "can_fua", "can_trim", "can_prefetch", "can_fast_zero"):
            assert getattr(device, name), name
        assert (device.size, device.block_size, device.read_only) == (MiB, 64 * KiB, False)
        await device.write(0, b"x", fua=True)
        await device.zero(0, 512, no_hole=True, fua=True, fast=True)
        await device.trim(0, 512)
        await device.flush()
        await device.prefetch(512, 1024)
        assert inner.did == [
            "write fua", "zero no_hole fua fast", "trim 512", "flush", "prefetch 512 1024",
        ]  # fmt: skip


async def test_what_the_server_cannot_is_not_claimed() -> None:
    class Plain(Device):
        size = 8 * KiB

        async def read(self, offset: int, length: int) -> Sequence[Buffer]:
            return (b"r" * length,)

    async with proxied(Plain()) as device:
        assert device.read_only
        told = (device.can_flush, device.can_fua, device.can_trim, device.can_prefetch)
        assert not any(told)
    async with proxied(Blocky()) as device:
        sizes = device.block_size_min, device.block_size, device.block_size_max
        assert sizes == (512, 4 * KiB, 8 * KiB)


async def test_long_ranges_are_asked_for_in_parts() -> None:
    size = 5 << 30
    inner = Remembering(size)
    async with proxied(inner) as device:
        await device.write(size - 1, b"x")
        await device.zero(0, size, fast=True)
        assert inner.did[1:] == ["zero fast", *["zero"] * 4]
        await device.trim(0, size)
        assert inner.did[-5:] == [f"trim {1 << 30}"] * 5
        (extent,) = await device.extents(0, size, count=9)
        assert extent == (1 << 30, True, True)


async def test_error_is_the_servers(expects_log: Announce) -> None:
    expects_log("the disk is full")
    async with proxied(FullDevice(MiB)) as device:
        with pytest.raises(ExportError, match="the server says WRITE 0") as caught:
            await device.write(0, b"x")
        assert caught.value.errno == ENOSPC
        assert await read(device, 0, 10) == bytes(10)

    class Slow(MemoryDevice):
        async def zero(self, offset: int, length: int, *, fast: bool = False, **_: object) -> None:
            raise ExportError(ENOTSUP, "not fast")

    async with proxied(Slow(MiB)) as device:
        with pytest.raises(ExportError) as caught:
            await device.zero(0, 512, fast=True)
        assert caught.value.errno == ENOTSUP


async def test_write_that_is_given_up_is_over_when_that_is_known() -> None:
    """Else it could undo what the client wrote on another connection since."""
    inner = Remembering()
    inner.hold = asyncio.Event()
    async with proxied(inner) as device:
        task = asyncio.create_task(device.write(0, b"old"))
        await inner.began.wait()
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0.05)
        assert not done
        inner.hold.set()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
        inner.hold = None
        await device.write(0, b"new")
        assert await read(device, 0, 3) == b"new"


async def test_read_that_is_given_up_does_not_shift_the_others() -> None:
    async with proxied(MemoryDevice(MiB), connections=1) as device:
        await device.write(0, b"a" * 100 + b"b" * 100)
        task = asyncio.create_task(read(device, 0, 100))
        await asyncio.sleep(0)
        task.cancel()
        assert await read(device, 100, 100) == b"b" * 100
        with suppress(asyncio.CancelledError):
            await task


# Connections that are lost


async def cut(served: Serving) -> None:
    """End all connections, from the server's side."""
    tasks = set(served.server._connections)
    for each in tasks:
        each.cancel()
    if tasks:
        await asyncio.wait(tasks)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RETRY_SECONDS", 0.001)


@pytest.mark.usefixtures("quick")
async def test_connection_that_is_lost_is_made_again(expects_log: Announce) -> None:
    expects_log("the connection is lost")
    inner = Remembering()
    async with serving(export_of(inner)) as served:
        device = await opened(served, connections=2)
        await device.write(0, b"kept")
        await device.flush()
        await cut(served)
        assert await read(device, 0, 4) == b"kept"
        assert not device.is_spent
        await device.write(0, b"more")
        await device.flush()
        assert await read(device, 0, 4) == b"more"
        await device.close()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("when", ["before the flush", "before the answer"])
async def test_flush_is_never_acknowledged_after_a_loss(when: str, expects_log: Announce) -> None:
    """The server may have been started anew, without what it had not flushed."""
    expects_log("the connection is lost")
    inner = Remembering()
    async with serving(export_of(inner)) as served:
        device = await opened(served)
        if when == "before the flush":
            await device.write(0, b"gone")
            await cut(served)
        else:
            inner.hold = asyncio.Event()
            task = asyncio.create_task(device.write(0, b"gone", fua=True))
            await inner.began.wait()
            await cut(served)
            with pytest.raises(ExportError) as caught:
                await soon(task)
            assert caught.value.errno == EIO
            inner.hold = None
        await until(lambda: device.is_spent)
        changes: list[Callable[[], Awaitable[object]]] = [
            device.flush, lambda: device.write(0, b"x"), lambda: device.write(0, b"x", fua=True),
            lambda: device.zero(0, 512), lambda: device.trim(0, 512),
            # the server may have forgotten what it answered, and would give older bytes
            lambda: read(device, 0, 4), lambda: device.extents(0, 512, count=1),
        ]  # fmt: skip
        for change in changes:
            with pytest.raises(ExportError, match="before all was flushed") as caught:
                await change()
            assert caught.value.errno == EIO
        with pytest.raises(ExportError, match="before all was flushed"):
            await device.close()
        await device.close()


async def test_durable_write_leaves_nothing_to_lose(quick: None, expects_log: Announce) -> None:
    expects_log("the connection is lost")
    async with serving(export_of(MemoryDevice(MiB))) as served:
        device = await opened(served)
        await device.write(0, b"safe", fua=True)
        await cut(served)
        await device.write(4, b"er", fua=True)
        assert await read(device, 0, 6) == b"safeer"
        await device.close()


async def test_spent_device_is_replaced_when_its_clients_have_left(
    quick: None, expects_log: Announce
) -> None:
    expects_log("the connection is lost")
    expects_log("before all was flushed")
    async with serving(export_of(Remembering())) as far:
        plugin = Nbd(uri=f"nbd://127.0.0.1:{far.port}/disk", retry=3, connections=1)
        async with serving(DeviceExport("near", plugin)) as near:
            client = await near.attached()
            await client.write(0, b"gone")
            await cut(far)
            with pytest.raises(Exception, match="5"):
                await client.flush()
            await client.disconnect()
            await near.idle()
            client = await near.attached()
            await client.write(0, b"anew")
            await client.flush()
            assert await client.read(0, 4) == b"anew"
            await client.disconnect()


@pytest.mark.usefixtures("quick")
async def test_disk_that_comes_back_as_another_is_not_used(expects_log: Announce) -> None:
    expects_log("the connection is lost")
    async with serving(export_of(MemoryDevice(MiB))) as served:
        device = await opened(served, connections=1)
        export, new = served.exports["disk"], export_of(MemoryDevice(2 * MiB))
        export.turns.when_idle(lambda: export.change(new))  # type: ignore[arg-type]
        await cut(served)
        with pytest.raises(ExportError, match="it came back as something else, with 2097152"):
            await device.read(0, 512)
        await device.close()


async def test_server_that_stays_away_is_an_error_in_the_end(
    quick: None, expects_log: Announce
) -> None:
    expects_log("the connection is lost")
    async with serving(export_of(MemoryDevice(MiB))) as served:
        device = await opened(served, retry=3)
    reads = (device.read(at, 512) for at in range(0, 8192, 512))
    for error in await asyncio.gather(*reads, return_exceptions=True):
        assert isinstance(error, ExportError)
        assert error.errno == EIO
    await device.close()


class Hanging(MemoryDevice):
    """Reads at 0 and all flushes wait for ``go_on``, for ever unless it is set."""

    def __init__(self) -> None:
        super().__init__(MiB)
        self.go_on = asyncio.Event()

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return None

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        if not offset:
            await self.go_on.wait()
        return await super().read(offset, length)

    async def flush(self) -> None:
        await self.go_on.wait()


@pytest.mark.usefixtures("quick")
async def test_read_that_is_never_answered_fails_and_others_go_on(expects_log: Announce) -> None:
    expects_log("the connection is lost: no answer in 0.3 s")
    inner = Hanging()
    async with proxied(inner, timeout=0.3, connections=1, retry=5) as device:
        hangs = asyncio.create_task(read(device, 0, 512))
        while not hangs.done():  # others that are answered do not put it off
            with suppress(ExportError):
                assert await soon(read(device, 4096, 512)) == bytes(512)
            await asyncio.sleep(0.01)
        with pytest.raises(ExportError, match=r"no answer in 0\.3 s") as caught:
            await hangs
        assert caught.value.errno == EIO
        assert not device.is_spent
        inner.go_on.set()
        assert await read(device, 0, 512) == bytes(512)  # on a new connection


@pytest.mark.usefixtures("quick")
async def test_flush_that_is_never_answered_fails_and_the_disk_is_spent(
    expects_log: Announce,
) -> None:
    expects_log("the connection is lost: no answer in 0.2 s")
    inner = Hanging()
    async with serving(export_of(inner)) as served:
        device = await opened(served, timeout=0.2, connections=1, retry=5)
        await device.write(0, b"kept?")
        with pytest.raises(ExportError, match=r"no answer in 0\.2 s") as caught:
            await soon(device.flush())
        assert caught.value.errno == EIO
        assert device.is_spent
        with pytest.raises(ExportError, match="before all was flushed"):
            await device.close()
        await device.close()
        inner.go_on.set()


async def test_idle_connection_is_not_overdue() -> None:
    inner = Hanging()
    async with proxied(inner, timeout=0.1, connections=1) as device:
        for _ in range(3):
            await read(device, 4096, 512)
            await asyncio.sleep(0.15)  # no more can be seen than that nothing is lost
        inner.go_on.set()


async def test_handshake_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HANDSHAKE_SECONDS_MAX", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server_that(silent) as uri:
        with pytest.raises(StoreUnavailable, match="no answer"):
            await soon(Nbd(uri=uri, retry=0).open(Opening("nbd")))


class Forgetful(MemoryDevice):
    """Of a server that is killed, and comes back with what it has flushed and nothing else."""

    def __init__(self) -> None:
        super().__init__(BLOCKS * 512)
        self.durable = bytes(self.size)
        self.is_dead = False

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        return False

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        await self._alive()
        return await super().read(offset, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self._alive()
        super().write_now(offset, data)
        if fua:
            await self.flush()

    async def flush(self) -> None:
        await self._alive()
        self.durable = b"".join(await super().read(0, self.size))

    async def _alive(self) -> None:
        await asyncio.sleep(0)
        if self.is_dead:
            await asyncio.Event().wait()

    async def die(self, served: Serving) -> None:
        """Answer nothing from this moment on, and come back."""
        self.is_dead = True
        await cut(served)
        super().write_now(0, self.durable)
        self.is_dead = False


BLOCKS = 8


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_acknowledged_that_is_lost(seed: int, expects_log: Announce) -> None:
    """Each block holds what was last flushed, or something that was written since; and as long
    as nothing fails, what was written last."""
    expects_log("the connection is lost")
    chance, inner = random.Random(seed), Forgetful()
    safe, since, number = [0] * BLOCKS, [[0] for _ in range(BLOCKS)], 0
    async with serving(export_of(inner)) as served:
        device = await opened(served, retry=5, connections=chance.choice((1, 3)))
        for _ in range(60):
            block, kind = chance.randrange(BLOCKS), chance.choice("wwwfurrk")
            killer = None
            if kind == "k" or chance.random() < 0.1:
                killer = asyncio.create_task(inner.die(served))
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            try:
                match kind:
                    case "w" | "u":
                        number += 1
                        since[block].append(number)
                        await device.write(block * 512, number.to_bytes(512), fua=kind == "u")
                        if kind == "u":
                            safe[block], since[block] = number, [number]
                    case "f":
                        await device.flush()
                        since = [written[-1:] for written in since]
                        safe = [written[0] for written in since]
                    case "r":
                        found = int.from_bytes(await read(device, block * 512, 512))
                        assert found == since[block][-1]
            except ExportError:
                pass  # what may be there then is looked at below
            if killer is not None:
                await killer
            if device.is_spent:
                with suppress(ExportError):
                    await device.close()
                device = await opened(served, retry=5)
                for at, written in enumerate(since):
                    found = int.from_bytes(await read(device, at * 512, 512))
                    assert found in (safe[at], *written)
                    since[at] = [found]
        with suppress(ExportError):
            await device.close()


# TLS


async def test_it_is_encrypted(certificates: Certificates) -> None:
    config = ServerConfig(
        (TcpAddress(port=0),),
        tls=TlsConfig(required=True, certificates=certificates.server, verify_peer=True),
    )
    async with serving(export_of(MemoryDevice(MiB)), config=config) as served:
        keys = {
            "uri": f"nbds://localhost:{served.port}/disk",
            "tls_certificates": certificates.client,
        }
        device = await opened(served, **keys)
        await device.write(0, b"x" * 100_000)
        assert await read(device, 0, 100_000) == b"x" * 100_000
        await device.close()
        with pytest.raises(ExportUnusable, match=r"self.signed|local issuer"):
            await opened(served, uri=keys["uri"])
        with pytest.raises(ExportUnusable, match="TLS"):
            await opened(served)


async def test_server_without_tls_is_used_only_if_that_is_allowed() -> None:
    async with serving(export_of(MemoryDevice(MiB))) as served:
        await (await opened(served, tls=connection.TlsMode.ON)).close()
        with pytest.raises(ExportUnusable, match="it cannot encrypt"):
            await opened(served, tls=connection.TlsMode.REQUIRE)


# Servers that misbehave

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server_that(talk: Talk) -> AsyncIterator[str]:
    """A URI where every connection is answered so."""

    talks: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.current_task())  # type: ignore[arg-type]
        with suppress(EOFError, OSError):
            await talk(reader, writer)
            await reader.read()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield f"nbd://127.0.0.1:{port}/"
    server.close()
    await soon(asyncio.gather(*talks))


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"NBDMAGICIHAVEOPT\0\1")  # without NO_ZEROES
    assert await reader.readexactly(4) == b"\0\0\0\1"


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: int) -> int:
    """Refuse one option."""
    _, option, length = struct.unpack(">QII", await reader.readexactly(16))
    await reader.readexactly(length)
    if option != 1:
        writer.write(struct.pack(">QIII", 0x3E889045565A9, option, 1 << 31 | error, 0))
    return int(option)


async def simple(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server of the oldest sort that there still is."""
    await greet(reader, writer)
    while await refuse(reader, writer, 1) != 1:
        pass
    writer.write(struct.pack(">QH", 1000, 1 | 4) + bytes(124))
    while True:
        _, _, command, cookie, offset, length = struct.unpack(
            ">IHHQQI", await reader.readexactly(28)
        )
        if command == 2:
            return
        payload = bytes((offset + n) % 256 for n in range(length)) if command == 0 else b""
        if command == 1:
            await reader.readexactly(length)
        writer.write(struct.pack(">IIQ", 0x67446698, 0, cookie) + payload)


async def test_server_with_the_least_there_can_be() -> None:
    async with server_that(simple) as uri:
        device = await Nbd(uri=uri, retry=0).open(Opening("nbd"))
        assert (device.size, device.can_fua, device.can_trim) == (1000, False, False)
        assert await read(device, 7, 300) == bytes(n % 256 for n in range(7, 307))
        (extent,) = await device.extents(0, 1000, count=5)
        assert extent == (1000, False, False)
        await device.zero(0, 1000)
        await device.flush()
        await device.close()


async def talks_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def gone_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def refuses_everything(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await greet(reader, writer)
    while True:
        await refuse(reader, writer, 6)


async def shuts_down(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await greet(reader, writer)
    while True:
        await refuse(reader, writer, 7)


async def answers_without_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await greet(reader, writer)
    writer.write(struct.pack(">QIII", 0x3E889045565A9, 8, 3, 4) * 200 + bytes(100))


@pytest.mark.parametrize(
    ("talk", "kind", "text"),
    [
        (talks_http, ExportUnusable, "no NBD server"),
        (gone_at_once, StoreUnavailable, "it closed the connection"),
        (refuses_everything, ExportUnusable, "it refused, with 6"),
        (shuts_down, StoreUnavailable, "it refused, with 7"),
        (answers_without_end, ExportUnusable, "makes no sense|has no end"),
    ],
)
async def test_server_that_is_of_no_use_is_said_in_a_sentence(
    talk: Talk, kind: type[Exception], text: str
) -> None:
    async with server_that(talk) as uri:
        with pytest.raises(kind, match=text):
            await Nbd(uri=uri, retry=0).open(Opening("nbd"))


async def lies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await greet(reader, writer)
    while await refuse(reader, writer, 1) != 1:
        pass
    writer.write(struct.pack(">QH", 1000, 1) + bytes(124))
    request = await reader.readexactly(28)
    if request[7] == 0:
        writer.write(struct.pack(">IIQ", 0x67446698, 0, 12345) + b"not yours")


async def test_server_that_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    for keys, text in (
        ({"uri": "nbd://127.0.0.1:1"}, "127.0.0.1:1: Connection refused"),
        ({"socket": tmp_path / "none"}, "none: No such file or directory"),
    ):
        with pytest.raises(StoreUnavailable, match=text):
            await Nbd(retry=0, **keys).open(Opening("nbd"))


async def test_reply_to_another_request_ends_the_connection(
    quick: None, expects_log: Announce
) -> None:
    expects_log("a reply to nothing")
    async with server_that(lies) as uri:
        device = await Nbd(uri=uri, retry=0).open(Opening("nbd"))
        with pytest.raises(ExportError, match="a reply to nothing"):
            await device.read(0, 9)
        await device.close()


# What it is told


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"uri": "nbd://host"}, ("host", 10809, "", "")),
        ({"uri": "nbd://[::1]:7/a%20b"}, ("::1", 7, "", "a b")),
        ({"uri": "nbds://host/x/y"}, ("host", 10809, "", "x/y")),
        ({"uri": "nbd+unix:///x?socket=/tmp/s"}, ("", 0, "/tmp/s", "x")),
        ({"hostname": "host", "port": "nbd", "export": "x"}, ("host", "nbd", "", "x")),
        ({"socket": Path("/tmp/s")}, ("", "10809", "/tmp/s", "")),
    ],
)
def test_place(keys: dict[str, object], place: tuple[object, ...]) -> None:
    found = Nbd(**keys)._server()  # type: ignore[arg-type]
    assert (found.host, found.port, found.path, found.export) == place
    assert (found.tls is connection.TlsMode.REQUIRE) == ("nbds" in str(keys))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({}, "just one of uri, hostname and socket"),
        ({"uri": "nbd://h", "hostname": "h"}, "just one of"),
        ({"uri": "http://h"}, "uri: write nbd://HOST"),
        ({"uri": "nbd+unix:///x"}, "uri: write"),
        ({"uri": "nbd+unix://h/x?socket=/s"}, "uri: write"),
        ({"uri": "nbd://h:99999"}, "uri: Port out of range"),
        ({"uri": "nbd://h/x", "export": "y"}, "the export is part of the URI"),
        ({"uri": "nbds://h", "tls": connection.TlsMode.ON}, "does not go with"),
    ],
)
def test_mistake_is_said_in_a_sentence(keys: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Nbd(**keys)  # type: ignore[arg-type]
