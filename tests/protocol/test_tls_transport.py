# SPDX-License-Identifier: MIT
"""Transmission inside TLS: limits, ends and broken streams (rows A6.18, A6.19, E21, E27)."""

import asyncio
import ssl
import struct
import time
from collections.abc import AsyncIterator

import pytest

from swiftnbd.server import transmission
from swiftnbd.server.config import ServerConfig, TcpAddress, TlsConfig
from swiftnbd.server.tls_transport import TlsTransport
from swiftnbd.server.transmission import Transmission
from tests.support import nbd_client as nbd
from tests.support.certificates import Certificates
from tests.support.gated_store import GatedStore
from tests.support.loopback import (
    Serving,
    exports_of,
    option_bytes,
    request_bytes,
    serving,
    soon,
    until,
)
from tests.support.tls_peer import TlsPeer

KiB, MiB = 1024, 1024 * 1024
OBJECT = 64 * KiB
ENDS = ["close_notify", "FIN", "both"]


@pytest.fixture
def trusting(certificates: Certificates) -> ssl.SSLContext:
    return certificates.client_context()


@pytest.fixture
async def store() -> GatedStore:
    store = GatedStore("disk", 1024)
    await store.set_up()
    return store


def config(certificates: Certificates, seconds: float = 10.0) -> ServerConfig:
    tls = TlsConfig(certificates=certificates.server)
    return ServerConfig((TcpAddress(port=0),), handshake_seconds_max=seconds, tls=tls)


@pytest.fixture
async def served(store: GatedStore, certificates: Certificates) -> AsyncIterator[Serving]:
    async with serving(*exports_of(store), config=config(certificates)) as served:
        yield served


@pytest.fixture
async def peer(served: Serving, trusting: ssl.SSLContext) -> AsyncIterator[TlsPeer]:
    """A client in transmission, inside TLS."""
    async with await attached(served, trusting) as peer:
        yield peer
    await served.check_full_service()


async def attached(served: Serving, context: ssl.SSLContext, *, receive_buffer: int = 0) -> TlsPeer:
    peer = await TlsPeer.connect(served.port, receive_buffer=receive_buffer)
    await peer.greet()
    await peer.start_tls(context)
    await peer.go(b"disk")
    return peer


def only_connection(served: Serving) -> Transmission:
    (found,) = served.server._transmissions
    return found


def end(peer: TlsPeer, way: str) -> None:
    """Say that nothing more will come, and go on reading."""
    if way != "FIN":
        peer.send_close_notify()
    if way != "close_notify":
        peer.writer.write_eof()


# Bytes however they are cut


@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_records_may_come_in_any_pieces(peer: TlsPeer, step: int) -> None:
    data = bytes(range(256)) * 10
    records = peer.encrypt(request_bytes(nbd.WRITE, 512, len(data), cookie=1), data)
    for start in range(0, len(records), step):
        peer.send_raw(records[start : start + step])
        await asyncio.sleep(0)
    assert await peer.reply() == (1, 0, b"")
    assert await peer.read(512, len(data)) == data
    await peer.disconnect()


async def test_request_may_be_cut_over_many_records(peer: TlsPeer) -> None:
    for byte in request_bytes(nbd.WRITE, 512, 4, cookie=1) + b"data":
        peer.send(bytes([byte]))
    assert await peer.reply() == (1, 0, b"")
    assert await peer.read(512, 4) == b"data"
    await peer.disconnect()


async def test_requests_right_behind_go_are_answered(
    served: Serving, trusting: ssl.SSLContext
) -> None:
    async with await TlsPeer.encrypted(served, trusting) as peer:
        peer.send(
            option_bytes(nbd.GO, b"\0\0\0\4disk\0\0"),
            request_bytes(nbd.WRITE, 0, 4, cookie=1),
            b"data",
            request_bytes(nbd.FLUSH, cookie=2),
        )
        assert (await peer.replies(nbd.GO))[-1][0] == nbd.ACK
        assert {await peer.reply(), await peer.reply()} == {(1, 0, b""), (2, 0, b"")}
        await peer.disconnect()


async def test_large_payloads_pass_whole(peer: TlsPeer) -> None:
    data = bytes(range(251)) * (8 * MiB // 251)
    await peer.write(1, data)
    assert await peer.read(1, len(data)) == data
    await peer.disconnect()


@pytest.mark.parametrize("length", [1, OBJECT, MiB, 8 * MiB])
async def test_e21_payload_of_a_refused_write_is_drained_inside_tls(
    peer: TlsPeer, length: int
) -> None:
    peer.request(nbd.WRITE, 1 << 62, length, data=request_bytes(nbd.DISC) * (length // 28 + 1))
    surplus = (length // 28 + 1) * 28 - length
    assert surplus <= 28
    cookie, error, _ = await peer.reply()
    assert (cookie, error) == (1, nbd.ENOSPC)


@pytest.mark.parametrize("flags", [0, 0x8000])
async def test_e21_stream_is_in_sync_after_a_refused_write(peer: TlsPeer, flags: int) -> None:
    peer.request(nbd.WRITE, 0 if flags else 1 << 62, MiB, flags=flags, data=b"\xff" * MiB)
    _, error, _ = await peer.reply()
    assert error == (nbd.EINVAL if flags else nbd.ENOSPC)
    assert await peer.read(0, 4) == bytes(4)
    await peer.disconnect()


# Limits


async def test_client_that_reads_no_replies_is_not_read_from(
    served: Serving, trusting: ssl.SSLContext
) -> None:
    greedy = await attached(served, trusting, receive_buffer=4096)
    greedy.send(*(request_bytes(nbd.READ, 0, MiB, cookie=i) for i in range(20_000)))
    connection = only_connection(served)
    await until(lambda: not (connection._outbox.writable or connection._reading))
    transport = connection._transport
    assert isinstance(transport, TlsTransport)
    assert not transport._below.is_reading()
    sent = served.exports["disk"].counters.client_out
    held = transport.get_write_buffer_size()
    assert held <= 1.01 * (transmission.UNSENT_BYTES_MAX + transmission.BYTES_AT_WORK_MAX)
    async with await attached(served, trusting) as other:
        for number in range(20):
            await other.write(number * OBJECT, b"served")
            assert await other.read(number * OBJECT, 6) == b"served"
        await other.disconnect()
    assert served.exports["disk"].counters.client_out < sent + MiB
    await greedy.reset()
    await served.check_full_service()


async def test_client_that_reads_late_gets_everything(
    served: Serving, trusting: ssl.SSLContext
) -> None:
    peer = await attached(served, trusting, receive_buffer=4096)
    count = 300
    peer.send(*(request_bytes(nbd.READ, i * 512, OBJECT, cookie=i) for i in range(count)))
    connection = only_connection(served)
    await until(lambda: not connection._outbox.writable)
    cookies = set()
    for _ in range(count):
        cookie, error, data = await peer.reply(OBJECT)
        assert (error, len(data)) == (0, OBJECT)
        cookies.add(cookie)
    assert cookies == set(range(count))
    await peer.disconnect()
    await peer.close()


async def test_stalled_connection_goes_on_with_what_is_decrypted_already(
    peer: TlsPeer, store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transmission, "REQUESTS_AT_WORK_MAX", 2)
    gate = store.gate("get disk.part")
    peer.send(*(request_bytes(nbd.READ, i * OBJECT, 1, cookie=i) for i in range(20)))
    await gate.reached(2)
    gate.open()
    assert {(await peer.reply(1))[0] for _ in range(20)} == set(range(20))
    await peer.disconnect()


# Ends


@pytest.mark.parametrize("way", ["DISC", *ENDS])
async def test_what_is_at_work_is_answered_after_the_clients_end(
    peer: TlsPeer, store: GatedStore, way: str
) -> None:
    gate = store.gate("put disk.part")
    peer.request(nbd.WRITE, 0, 4, flags=nbd.FUA, data=b"last")
    if way == "DISC":
        peer.request(nbd.DISC)
        peer.send_close_notify()
    else:
        end(peer, way)
    await gate.reached()
    gate.open()
    assert await peer.reply() == (1, 0, b"")
    assert await peer.ended() == b""  # with a close_notify
    assert store.part(0) is not None


@pytest.mark.parametrize("way", ENDS)
async def test_e27_idle_client_that_ends_the_stream_is_let_go(
    peer: TlsPeer, served: Serving, way: str
) -> None:
    end(peer, way)
    assert await peer.ended() == b""
    await served.idle()


@pytest.mark.parametrize("way", ENDS)
async def test_e27_client_that_ends_the_stream_in_the_handshake_is_let_go(
    served: Serving, trusting: ssl.SSLContext, way: str
) -> None:
    async with await TlsPeer.encrypted(served, trusting) as peer:
        end(peer, way)
        assert await peer.ended() == b""
    await served.check_full_service()


@pytest.mark.parametrize("way", ENDS)
async def test_e27_half_open_connection_costs_no_time(
    peer: TlsPeer, store: GatedStore, way: str
) -> None:
    gate = store.gate("put disk.part")
    peer.request(nbd.WRITE, 0, 4, flags=nbd.FUA, data=b"last")
    await gate.reached()
    end(peer, way)
    began = time.process_time()
    await asyncio.sleep(0.3)  # how much time passes is what is measured
    assert time.process_time() - began < 0.15
    gate.open()
    assert await peer.reply() == (1, 0, b"")


async def test_fin_is_seen_while_the_connection_does_not_read(
    served: Serving, trusting: ssl.SSLContext, store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transmission, "REQUESTS_AT_WORK_MAX", 1)
    gate = store.gate("put disk.part")
    async with await attached(served, trusting) as peer:
        for index in range(2):
            peer.request(nbd.WRITE, index * OBJECT, 4, flags=nbd.FUA, data=b"data")
        await gate.reached()
        connection = only_connection(served)
        assert not connection.is_leaving
        peer.writer.write_eof()
        await until(lambda: connection.is_leaving)
        gate.open()
        assert await peer.reply() == (1, 0, b"")
    await served.check_full_service()


async def test_reset_is_survived(
    served: Serving, trusting: ssl.SSLContext, store: GatedStore
) -> None:
    gate = store.gate("put disk.part")
    peer = await attached(served, trusting)
    peer.request(nbd.WRITE, 0, 4, flags=nbd.FUA, data=b"data")
    peer.request(nbd.WRITE, OBJECT, 8 * MiB, data=bytes(MiB))
    await gate.reached()
    await peer.reset()
    gate.open()
    await served.check_full_service()


@pytest.mark.parametrize(
    "noise", [b"\x17\x03\x03\x00\x20" + bytes(32), b"\x25\x60\x95\x13" * 8, b"\x15\x03\x03\x40\xff"]
)
async def test_bytes_that_are_not_from_the_peer_end_the_connection(
    served: Serving, trusting: ssl.SSLContext, noise: bytes
) -> None:
    async with await attached(served, trusting) as peer:
        peer.send_raw(noise)
        with pytest.raises((ssl.SSLError, EOFError)):
            await peer.ended()
    await served.check_full_service()


async def test_tampered_record_writes_nothing(
    served: Serving, trusting: ssl.SSLContext, store: GatedStore
) -> None:
    async with await attached(served, trusting) as peer:
        records = bytearray(peer.encrypt(request_bytes(nbd.WRITE, 0, 4), b"evil"))
        records[-20] ^= 1
        peer.send_raw(bytes(records))
        with pytest.raises(ssl.SSLError, match=r"(?i)alert bad record mac"):
            await peer.ended()
    await served.idle()
    assert store.part(0) is None
    await served.check_full_service()


# The TLS handshake


def client_hello(context: ssl.SSLContext) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_client_that_leaves_in_the_tls_handshake_ends_only_its_connection(
    served: Serving, trusting: ssl.SSLContext, way: str
) -> None:
    hello = client_hello(trusting)
    for length in (0, 1, 5, 6, len(hello) // 2, len(hello) - 1, len(hello)):
        peer = await TlsPeer.greeted(served)
        assert await peer.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
        peer.send_raw(hello[:length])
        await (peer.reset() if way == "reset" else peer.close())
    await served.check_full_service()


@pytest.mark.parametrize("length", [0, 1, 100])
async def test_handshakes_time_limit_covers_that_of_tls(
    store: GatedStore, certificates: Certificates, trusting: ssl.SSLContext, length: int
) -> None:
    hello = client_hello(trusting)
    async with serving(*exports_of(store), config=config(certificates, 0.3)) as served:
        async with await TlsPeer.greeted(served) as peer:
            assert await peer.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
            peer.send_raw(hello[:length])
            assert await peer.ended() == b""
        await served.check_full_service()


async def test_time_that_tls_took_is_not_given_again(
    store: GatedStore, certificates: Certificates, trusting: ssl.SSLContext
) -> None:
    async with serving(*exports_of(store), config=config(certificates, 0.5)) as served:
        began = time.monotonic()
        async with await TlsPeer.greeted(served) as peer:
            assert await peer.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
            await asyncio.sleep(0.3)  # time that passes is what is tested
            await peer.shake_hands(trusting)
            with pytest.raises(EOFError):
                await peer.receive(1)
        assert time.monotonic() - began < 0.75


@pytest.mark.parametrize("length", [0, 100])
async def test_shutdown_does_not_wait_for_a_tls_handshake(
    store: GatedStore, certificates: Certificates, trusting: ssl.SSLContext, length: int
) -> None:
    async with serving(*exports_of(store), config=config(certificates, 3600)) as served:
        peer = await TlsPeer.greeted(served)
        assert await peer.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
        peer.send_raw(client_hello(trusting)[:length])
        await soon(served.server.stop())
        await peer.close()


async def test_shutdown_inside_tls_answers_what_is_at_work(
    served: Serving, trusting: ssl.SSLContext, store: GatedStore
) -> None:
    gate = store.gate("put disk.part")
    async with await attached(served, trusting) as peer:
        peer.request(nbd.WRITE, 0, 4, flags=nbd.FUA, data=b"last")
        await gate.reached()
        stopping = asyncio.create_task(served.server.stop())
        gate.open()
        assert await peer.reply() == (1, 0, b"")
        assert await peer.ended() == b""
        await peer.close()
        assert await soon(stopping)


async def test_many_small_replies_leave_in_few_records(peer: TlsPeer) -> None:
    await peer.read(0, 1)  # cached now
    count = 64
    peer.send(*(request_bytes(nbd.READ, i, 16, cookie=i) for i in range(count)))
    data = await peer.receive(1)
    records = peer.records_received
    rest = await peer.receive(count * 32 - 1)
    assert struct.unpack(">I", (data + rest)[:4]) == (0x67446698,)
    assert peer.records_received - records <= 2
    await peer.disconnect()
