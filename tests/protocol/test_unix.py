# SPDX-License-Identifier: MIT
"""Clients on Unix sockets: who they are, what they share, how their end is noticed."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from swiftnbd.server import server as server_module
from swiftnbd.server import transmission as transmission_module
from swiftnbd.server.access import Access, Family
from swiftnbd.server.config import ServerConfig, TcpAddress, UnixAddress
from tests.support import nbd_client as nbd
from tests.support.another_process import AnotherProcess, another_process
from tests.support.gated_store import GatedStore
from tests.support.loopback import Peer, Serving, exports_of, serving, soon, until
from tests.support.nbd_client import Refused

OBJECT = 65536
UNIX, ALL = frozenset({Family.UNIX}), frozenset(Family)


@pytest.fixture
async def store() -> GatedStore:
    store = GatedStore("disk")
    await store.set_up()
    return store


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return ServerConfig((UnixAddress(tmp_path / "nbd.sock"),))


@pytest.fixture
async def served(store: GatedStore, config: ServerConfig) -> AsyncIterator[Serving]:
    async with serving(*exports_of(store), config=config) as served:
        yield served
    assert store.holder == ""


@pytest.fixture
def other() -> Iterator[AnotherProcess]:
    with another_process() as other:
        yield other


async def attach(served: Serving, sock: socket.socket) -> Peer:
    """Attach over a socket that another process has connected."""
    peer = await Peer.on(sock)
    try:
        await peer.greet()
        await peer.go(b"disk")
    except BaseException:
        await peer.close()
        raise
    return peer


async def test_client_gets_full_service(served: Serving) -> None:
    await served.check_full_service()


async def test_connections_of_one_process_are_one_client(served: Serving) -> None:
    async with await served.attached() as one, await served.attached() as two:
        await one.write(5, b"shared")
        assert await two.read(5, 6) == b"shared"
        await one.disconnect()
        await two.disconnect()
    await served.idle()


@pytest.mark.expects_log(r"process \d+ \(user \d+\): refused 'disk': disk is in use by \S+ since")
async def test_another_process_is_another_client(served: Serving, other: AnotherProcess) -> None:
    path = served.places[0].path
    async with await served.attached() as ours:
        with pytest.raises(Refused) as caught:
            await attach(served, other.connect(path))
        assert caught.value.kind == nbd.ERR_POLICY
        await ours.disconnect()
    await served.idle()
    async with await attach(served, other.connect(path)) as theirs:
        await theirs.write(0, b"theirs")
        await theirs.disconnect()
    await served.idle()


async def test_mark_names_this_machine_and_the_process(
    served: Serving, store: GatedStore, other: AnotherProcess
) -> None:
    async with await attach(served, other.connect(served.places[0].path)) as peer:
        host = re.escape(socket.gethostname())
        assert re.fullmatch(rf"{host}:{other.pid}@[0-9]+", store.holder)
        await peer.disconnect()
    await served.idle()


async def test_unix_and_tcp_are_served_at_once(
    store: GatedStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s"
    config = ServerConfig((UnixAddress(path), TcpAddress(port=0), TcpAddress("127.0.0.2", 0)))
    async with serving(*exports_of(store, read_only=True), config=config) as served:
        unix, *tcp = served.places
        assert unix.path == str(path)
        peers = [await Peer.connect_unix(unix.path)]
        for place in tcp:
            assert place.port is not None
            sock = socket.create_connection((place.host, place.port))
            peers.append(await Peer.on(sock))
        for peer in peers:
            await peer.greet()
            await peer.go(b"disk")
            assert await peer.read(0, 4) == bytes(4)
            await peer.disconnect()
        await served.idle()
    assert not path.exists()


async def test_connection_that_we_do_not_read_from_is_seen_to_have_closed(
    served: Serving, store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many requests are at work that the server does not read: it gets no end of file."""
    monkeypatch.setattr(server_module, "LEAVING_SECONDS_MAX", 0.01)
    older = await served.attached()
    gate = store.gate("get disk.part/00000000")
    for _ in range(transmission_module.REQUESTS_AT_WORK_MAX + 1):
        older.request(nbd.WRITE, 0, 4, flags=nbd.FUA, data=b"old!")
    await gate.reached()
    await until(lambda: not next(iter(served.server._transmissions))._reading)
    await older.close()
    opening = asyncio.create_task(served.attached())
    await until(lambda: not served.server._transmissions)
    gate.open()  # what was accepted is stored before anybody else is let in
    async with await soon(opening) as newer:
        await newer.write(0, b"N" * OBJECT)
        assert await newer.read(0, 4) == b"NNNN"
        await newer.disconnect()
    await served.idle()
    assert store.part(0) == b"N" * OBJECT


# multi-conn = off


@pytest.mark.expects_log("refused 'disk': disk is in use by")
@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_without_multi_conn_one_connection_is_the_whole_client(
    store: GatedStore, config: ServerConfig, kind: str
) -> None:
    config = config if kind == "unix" else ServerConfig((TcpAddress(port=0),))
    async with serving(*exports_of(store, multi_conn=False), config=config) as served:
        async with await served.greeted() as one, await served.greeted() as two:
            answer = await one.go(b"disk")
            assert not answer[nbd.INFO_EXPORT][8] & 0x01  # CAN_MULTI_CONN, bit 8
            with pytest.raises(Refused):
                await two.go(b"disk")
            await one.disconnect()
            await until(lambda: served.exports["disk"].connections == 0)
            await two.go(b"disk")
            await two.close()  # without a word
        async with await served.attached() as three:
            await three.write(0, b"after")
            await three.disconnect()
        await served.check_full_service()


# Who may connect


@pytest.mark.expects_log("process .*: refused, its address is not allowed here")
async def test_peer_that_the_server_denies_gets_no_byte(
    store: GatedStore, config: ServerConfig
) -> None:
    config = ServerConfig(
        (*config.listen, TcpAddress(port=0)), access=Access((ip_network("127.0.0.1"),), (ALL,))
    )
    async with serving(*exports_of(store), config=config) as served:
        unix, tcp = served.places
        async with await Peer.connect_unix(unix.path) as denied:
            assert await denied.ended() == b""
        assert tcp.port is not None
        async with await Peer.connect(tcp.port) as allowed:
            await allowed.greet()
            await allowed.go(b"disk")
            await allowed.disconnect()
        await served.idle()


@pytest.mark.expects_log("refused, its address is not allowed here")
async def test_denied_address_gets_no_byte_and_another_does(store: GatedStore) -> None:
    access = Access(deny=(ip_network("127.0.0.2/32"),))
    config = ServerConfig((TcpAddress(port=0),), access=access)
    async with serving(*exports_of(store), config=config) as served:
        async with await served.connect("127.0.0.2") as denied:
            assert await denied.ended() == b""
        await served.check_full_service()


@pytest.mark.expects_log("refused 'secret': export 'secret' does not exist")
@pytest.mark.expects_log("refused 'absent': export 'absent' does not exist")
async def test_denied_export_looks_like_one_that_does_not_exist() -> None:
    stores = [GatedStore(name) for name in ("open", "secret")]
    for store in stores:
        await store.set_up()
    config = ServerConfig(
        (TcpAddress(port=0),), export_access={"secret": Access((ip_network("127.0.0.2"),), (ALL,))}
    )
    async with serving(*exports_of(*stores), config=config) as served:
        async with await served.greeted() as denied:
            assert await denied.option(nbd.LIST) == [(nbd.SERVER, b"\0\0\0\4open"), (nbd.ACK, b"")]
            texts = []
            for name in ("secret", "absent"):
                for option in (nbd.INFO, nbd.GO):
                    with pytest.raises(Refused) as caught:
                        await denied.go(name.encode(), option=option)
                    assert caught.value.kind == nbd.ERR_UNKNOWN
                    texts.append(caught.value.text.replace(name, "NAME"))
            assert len(set(texts)) == 1
            await denied.abort()
        async with await served.attached(b"secret", source="127.0.0.2") as allowed:
            await allowed.write(0, b"seen")
            await allowed.disconnect()
        await served.idle()
