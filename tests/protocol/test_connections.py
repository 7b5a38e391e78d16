# SPDX-License-Identifier: MIT
"""Connections that come to nothing or are hostile: each ends alone (E4, E11, E12, A1.8)."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from typing import cast

import pytest

from swiftnbd.errors import ConfigError
from swiftnbd.server import sockets
from swiftnbd.server.config import ServerConfig, TcpAddress
from swiftnbd.server.server import Server
from tests.support import nbd_client as nbd
from tests.support.gated_store import GatedStore
from tests.support.log_watch import Announce
from tests.support.loopback import Serving, exports_of, serving, soon, until

HANDSHAKE = (
    b"\0\0\0\3"
    + b"IHAVEOPT\0\0\0\x08\0\0\0\0"
    + b"IHAVEOPT\0\0\0\3\0\0\0\0"
    + b"IHAVEOPT\0\0\0\x63\0\0\0\5dummy"
    + b"IHAVEOPT\0\0\0\6\0\0\0\x0c\0\0\0\4disk\0\1\0\3"
    + b"IHAVEOPT\0\0\0\7\0\0\0\x0a\0\0\0\4disk\0\0"
    + b"\x25\x60\x95\x13\0\0\0\1\0\0\0\0\0\0\0\7\0\0\0\0\0\0\0\0\0\0\0\4data"
    + b"\x25\x60\x95\x13\0\0\0\3\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0\0"
)


@pytest.fixture
async def store() -> GatedStore:
    store = GatedStore("disk")
    await store.set_up()
    return store


@pytest.fixture
async def served(store: GatedStore) -> AsyncIterator[Serving]:
    async with serving(*exports_of(store)) as served:
        yield served


def impatient(seconds: float) -> ServerConfig:
    """A server that waits so long for a client's handshake."""
    return ServerConfig((TcpAddress(port=0),), handshake_seconds_max=seconds)


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_e11_client_that_leaves_after_any_byte_ends_only_its_connection(
    served: Serving, store: GatedStore, way: str
) -> None:
    for end in range(len(HANDSHAKE) + 1):
        peer = await served.connect()
        peer.send(HANDSHAKE[:end])
        await (peer.reset() if way == "reset" else peer.close())
    await served.idle()
    assert store.holder == ""
    await served.check_full_service()


NOISE = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "one byte": b"\xff",
    "a MiB": random.Random(1).randbytes(1 << 20),
    "zeros": bytes(1 << 16),
    "unknown flags": b"\x80\0\0\3" + HANDSHAKE[4:],
    "huge option": b"\0\0\0\3IHAVEOPT\0\0\0\x63\xff\xff\xff\xff" + bytes(1 << 16),
    "huge name": b"\0\0\0\3IHAVEOPT\0\0\0\1\xff\xff\xff\xff" + bytes(1 << 16),
    "option before fixed newstyle": b"\0\0\0\0IHAVEOPT\0\0\0\3\0\0\0\0",
    "unknown export name": b"\0\0\0\3IHAVEOPT\0\0\0\1\0\0\0\5other",
    "NUL export name": b"\0\0\0\3IHAVEOPT\0\0\0\1\0\0\0\4di\0k",
}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.allows_log("export 'other' does not exist")
async def test_e12_noise_closes_the_connection_alone(
    served: Serving, store: GatedStore, noise: str
) -> None:
    async with await served.connect() as peer:
        peer.send(NOISE[noise])
        if noise == "one byte":
            peer.writer.write_eof()
        assert await peer.ended() in (b"NBDMAGICIHAVEOPT\0\3", b"")
    assert store.holder == ""
    await served.check_full_service()


async def test_socket_is_closed_of_a_client_whose_task_ends_before_it_began(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = served.server.accept

    def accept_and_cancel(transport: asyncio.Transport) -> None:
        before = set(served.server._connections)
        accept(transport)
        (task,) = served.server._connections - before
        task.cancel()

    monkeypatch.setattr(served.server._listeners, "_accept", accept_and_cancel)
    async with await served.connect() as peer:
        assert await peer.closed_by_server()


async def test_e12_connect_and_reset_is_no_event(served: Serving) -> None:
    for _ in range(50):
        await (await served.connect()).reset()
    await served.check_full_service()


@pytest.mark.parametrize(
    "name", ["../x", "%64isk", "disk/", "Disk", "disk ", "\n\x1b[31m", "\u202eksid", "😀" * 256]
)
async def test_e24_name_is_matched_exactly_and_shown_escaped(
    served: Serving, caplog: pytest.LogCaptureFixture, expects_log: Announce, name: str
) -> None:
    shown = f"export {name!r} does not exist"
    expects_log(re.escape(shown))
    async with await served.greeted() as peer:
        with pytest.raises(nbd.Refused) as caught:
            await peer.go(name.encode())
        assert (caught.value.kind, caught.value.text) == (nbd.ERR_UNKNOWN, shown)
        await peer.abort()
    assert all(record.getMessage().replace(name, "").isprintable() for record in caplog.records)
    await served.check_full_service()


@pytest.mark.expects_log("does not exist")
async def test_e3_name_of_4096_bytes_is_refused_with_a_short_text(served: Serving) -> None:
    async with await served.greeted() as peer:
        for option in (nbd.INFO, nbd.GO):
            with pytest.raises(nbd.Refused) as caught:
                await peer.go(b"n" * 4096, option=option)
            assert caught.value.kind == nbd.ERR_UNKNOWN
            assert len(caught.value.text) < 300
        await peer.abort()
    await served.check_full_service()


@pytest.mark.parametrize("start", [b"", b"\0\0\0\3", HANDSHAKE[:25], HANDSHAKE[:60]])
async def test_client_that_stops_talking_is_dropped_in_time(
    store: GatedStore, start: bytes
) -> None:
    async with serving(*exports_of(store), config=impatient(0.05)) as served:
        async with await served.connect() as peer:
            peer.send(start)
            await peer.ended()
        await served.idle()


async def test_client_that_dribbles_is_dropped_in_time(store: GatedStore) -> None:
    async with serving(*exports_of(store), config=impatient(0.1)) as served:
        async with await served.connect() as peer:
            for byte in b"\0\0\0\3" + b"IHAVEOPT\0\0\0\x63\0\0\xff\xff" + bytes(65535):
                peer.send(bytes([byte]))
                await asyncio.sleep(0.005)  # not synchronisation: the dribble
                if (
                    peer.reader.at_eof()
                    or peer.reader.exception()
                    or not served.server._connections
                ):
                    break
        await served.idle()


async def test_time_that_our_store_takes_does_not_count_as_the_clients(store: GatedStore) -> None:
    async with (
        serving(*exports_of(store), config=impatient(0.2)) as served,
        await served.greeted() as peer,
    ):
        gate = store.gate("^info")
        peer.send(b"IHAVEOPT\0\0\0\7\0\0\0\6" + bytes(6))
        await gate.reached()
        await asyncio.sleep(0.3)  # not synchronisation: the time in question
        gate.open()
        await peer.replies(nbd.GO)
        await peer.disconnect()


@pytest.mark.expects_log("127.0.0.9:[0-9]+: refused, there are 5 connections")
async def test_e6_connection_over_the_cap_is_refused_and_the_others_are_served(
    store: GatedStore,
) -> None:
    config = ServerConfig((TcpAddress(port=0),), connections_max=5)
    async with serving(*exports_of(store), config=config) as served:
        peers = [await served.greeted() for _ in range(5)]
        async with await served.connect("127.0.0.9") as late:
            assert await late.closed_by_server()
        await peers[0].go(b"disk")
        await peers[0].write(0, b"served")
        for peer in peers:
            await peer.close()
        await served.check_full_service()


@pytest.mark.expects_log("127.0.0.9:[0-9]+: refused, it has 5 connections")
async def test_e5_address_that_takes_all_its_places_leaves_those_of_others(
    store: GatedStore,
) -> None:
    config = ServerConfig((TcpAddress(port=0),), connections_max=6, connections_per_address_max=5)
    async with serving(*exports_of(store), config=config) as served:
        greedy = [await served.greeted("127.0.0.9") for _ in range(5)]
        for _ in range(10):
            async with await served.connect("127.0.0.9") as late:
                assert await late.closed_by_server()
        async with await served.attached() as peer:
            await peer.write(0, b"served")
            await peer.disconnect()
        for each in greedy:
            await each.close()
        await served.check_full_service()


async def test_client_that_reads_none_of_its_option_replies_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It must not keep its socket for ever once it is no connection that counts."""
    monkeypatch.setattr(sockets, "CLOSE_SECONDS_MAX", 0.01)
    stores = [GatedStore(f"{'n' * 200}{number}") for number in range(60)]
    for store in stores:
        await store.set_up()
    async with serving(*exports_of(*stores), config=impatient(0.3)) as served:
        peer = await served.connect(receive_buffer=4096)
        await peer.greet()
        cast(asyncio.Transport, peer.writer.transport).pause_reading()
        peer.send(b"IHAVEOPT\0\0\0\3\0\0\0\0" * 1900)
        await served.idle()
        local = peer.writer.get_extra_info("sockname")[1]
        await until(lambda: not _is_connected(served.port, local))
        await peer.reset()


def _is_connected(port: int, client_port: int) -> bool:
    """Whether the server still has its end of a connection, by what the kernel says."""
    with open("/proc/net/tcp") as table:
        wanted = (f":{port:04X}", f":{client_port:04X}")
        rows = [line.split() for line in table.readlines()[1:]]
    return any(
        (local[-5:], remote[-5:]) == wanted and state == "01"
        for _, local, remote, state, *_ in rows
    )


async def test_1000_connects_without_a_word_take_no_lock_and_are_forgotten(
    served: Serving, store: GatedStore
) -> None:
    store.calls.clear()
    for _ in range(20):
        peers = [await served.connect() for _ in range(50)]
        for peer in peers:
            await peer.close()
    await served.idle()
    assert store.calls == []
    await served.check_full_service()


async def test_ipv6_is_served(store: GatedStore) -> None:
    (export,) = exports_of(store)
    await export.load()
    server = Server({"disk": export}, ServerConfig((TcpAddress("::1", 0),)))
    try:
        (place,) = await server.start()
    except ConfigError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert place.uri("disk") == f"nbd://[::1]:{place.port}/disk"
    reader, writer = await asyncio.open_connection("::1", place.port)
    assert await soon(reader.readexactly(18)) == b"NBDMAGICIHAVEOPT\0\3"
    writer.close()
    assert await soon(server.stop())
