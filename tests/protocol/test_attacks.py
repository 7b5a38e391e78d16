# SPDX-License-Identifier: MIT
"""What hostile peers send, and that it harms nobody else (docs/SECURITY.md lists it all).

Each test names its row of the acceptance table. After each attack a new client is served in
full (`Serving.check_full_service`), and when the server has stopped, tasks and descriptors are
back where they were (`serving`); where memory is attacked, that is too.
"""

import asyncio
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator

import pytest

from swiftnbd.export.settings import CacheSettings
from swiftnbd.protocol.handshake import OPTIONS_MAX, OPTIONS_PER_EXPORT_MAX
from swiftnbd.server import server as server_module
from swiftnbd.server import transmission
from tests.support import nbd_client as nbd
from tests.support.gated_store import GatedStore
from tests.support.loopback import (
    Peer,
    Serving,
    exports_of,
    option_bytes,
    query_bytes,
    request_bytes,
    serving,
    until,
)
from tests.support.memory import memory_comes_back

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
OBJECT = 64 * KiB
HUGE_OBJECT = 8 * MiB
HUGE_SIZE = 5 * GiB


@pytest.fixture
async def store() -> GatedStore:
    store = GatedStore("disk", 1024)
    await store.set_up()
    return store


@pytest.fixture
async def served(store: GatedStore) -> AsyncIterator[Serving]:
    async with serving(*exports_of(store)) as served:
        yield served


# Handshake


@pytest.mark.parametrize("option", [nbd.EXPORT_NAME, nbd.INFO, nbd.GO])
@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x80000000, 1 << 24])
async def test_name_of_4_gib_takes_no_memory(served: Serving, option: int, length: int) -> None:
    """E1: with an option that is as long as the name claims to be."""
    with memory_comes_back(peak_max=2 * MiB):
        async with await served.greeted() as peer:
            header = b"IHAVEOPT" + struct.pack(">III", option, length, length)
            peer.send(header, b"n" * 64 * KiB)
            assert await peer.closed_by_server()
        await served.check_full_service()


@pytest.mark.expects_log("does not exist")
async def test_name_of_any_length_is_refused_in_sync(served: Serving) -> None:
    """E1, E2: lengths that lie, and real bytes up to the longest option."""
    async with await served.greeted() as peer:
        for option in (nbd.INFO, nbd.GO):
            for length, kind in [
                (3000, nbd.ERR_UNKNOWN),
                (4096, nbd.ERR_UNKNOWN),
                (4097, nbd.ERR_INVALID),
                (65530, nbd.ERR_INVALID),
                (65536, nbd.ERR_INVALID),
            ]:
                replies = await peer.option(option, query_bytes(b"n" * length))
                assert [found for found, _ in replies] == [kind]
            lie = struct.pack(">I4sH", 0xFFFFFFFF, b"disk", 0)
            assert [found for found, _ in await peer.option(option, lie)] == [nbd.ERR_INVALID]
        await peer.abort()
    await served.check_full_service()


@pytest.mark.expects_log("does not exist")
@pytest.mark.parametrize("option", [nbd.LIST_META_CONTEXT, nbd.SET_META_CONTEXT])
async def test_contexts_of_a_long_unknown_name_are_refused_with_a_short_text(
    served: Serving, option: int
) -> None:
    """E3."""
    async with await served.greeted() as peer:
        await peer.option(nbd.STRUCTURED_REPLY)
        data = nbd.context_query(b"n" * 4096, b"base:allocation")
        ((kind, text),) = await peer.option(option, data)
        assert kind == nbd.ERR_UNKNOWN
        assert len(text) < 300
        await peer.abort()
    await served.check_full_service()


async def test_unknown_option_of_4_gib_is_not_read_away(served: Serving) -> None:
    """E4: closed at its header, however slowly its data comes."""
    async with await served.greeted() as peer:
        peer.send(b"IHAVEOPT" + struct.pack(">II", 0x63, 0xFFFFFFFF))
        assert await peer.closed_by_server()
    await served.check_full_service()


@pytest.mark.parametrize("start", [0, 4, 20])
async def test_1000_connections_that_say_little_take_no_lock_and_nobodys_place(
    served: Serving, store: GatedStore, start: int
) -> None:
    """E5: connects that stop at once, after the client's flags, or in an option."""
    store.calls.clear()
    said = (b"\0\0\0\3" + option_bytes(nbd.LIST))[:start]
    for _ in range(20):
        peers = [await served.connect() for _ in range(50)]
        for peer in peers:
            peer.send(said)
        async with await served.greeted() as honest:
            assert (await honest.option(nbd.LIST))[-1] == (nbd.ACK, b"")
            await honest.abort()
        for peer in peers:
            await peer.close()
    await served.idle()
    assert store.calls == []
    await served.check_full_service()


async def test_endless_options_are_cut_off(served: Serving) -> None:
    """E19: a hundred thousand LISTs."""
    limit = OPTIONS_MAX + OPTIONS_PER_EXPORT_MAX
    async with await served.greeted() as peer:
        peer.send(option_bytes(nbd.LIST) * 100_000)
        answered = await peer.ended()
        assert len(answered) <= limit * (20 + 4 + 4 + 20)
    await served.check_full_service()


NAMES = {
    "a path": b"../disk",
    "percent": b"%64isk",
    "upper case": b"DISK",
    "a space behind": b"disk ",
    "escapes": b"\n\x1b[31m",
    "emoji": "\N{PILE OF POO}".encode() * 256,
    "another way to write it": "di\N{LATIN SMALL LETTER S WITH CARON}k".encode(),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.expects_log("does not exist")
async def test_strange_name_is_no_export(
    served: Serving, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """E24: names are matched exactly, and shown on one line, in printable characters only."""
    async with await served.greeted() as peer:
        for option in (nbd.INFO, nbd.GO):
            with pytest.raises(nbd.Refused) as caught:
                await peer.go(NAMES[name], option=option)
            assert caught.value.kind == nbd.ERR_UNKNOWN
        await peer.abort()
    for record in caplog.records:
        assert record.getMessage().isprintable()
    await served.check_full_service()


async def test_name_with_nul_is_invalid(served: Serving) -> None:
    """E24."""
    async with await served.greeted() as peer:
        with pytest.raises(nbd.Refused) as caught:
            await peer.go(b"disk\0")
        assert caught.value.kind == nbd.ERR_INVALID
        await peer.abort()
    await served.check_full_service()


# Transmission


@pytest.fixture
async def huge() -> AsyncIterator[Serving]:
    """A disk that reaches beyond 4 GiB, in large objects."""
    store = GatedStore("disk", HUGE_SIZE // HUGE_OBJECT, HUGE_OBJECT)
    await store.set_up()
    (export,) = exports_of(store)
    export.cache = CacheSettings(cache_bytes=4 * HUGE_OBJECT)
    async with serving(export) as served:
        yield served


@pytest.mark.parametrize("command", [nbd.TRIM, nbd.WRITE_ZEROES, nbd.CACHE])
async def test_effect_of_4_gib_at_odd_offsets_ends_where_it_should(
    huge: Serving, command: int
) -> None:
    """E15: lengths and offsets around 2^32, which no rounding to objects may carry over."""
    length = 0xFFFFFFFF
    mark = b"kept"
    async with await huge.attached() as peer:
        for offset in (1, 511, HUGE_OBJECT + 1, HUGE_SIZE - length - 1, HUGE_SIZE - length):
            before, after = offset - len(mark), offset + length
            if before >= 0:
                await peer.write(before, mark)
            if after + len(mark) <= HUGE_SIZE:
                await peer.write(after, mark)
            await peer.ask(command, offset, length)
            if before >= 0:
                assert await peer.read(before, len(mark)) == mark
            if after + len(mark) <= HUGE_SIZE:
                assert await peer.read(after, len(mark)) == mark
        for offset in (2**32 - 1, HUGE_SIZE - length + 1, 2**64 - length):
            with pytest.raises(nbd.NbdError) as caught:
                await peer.ask(command, offset, length)
            expected = nbd.ENOSPC if command == nbd.WRITE_ZEROES else nbd.EINVAL
            assert caught.value.number == expected
        await peer.ask(nbd.TRIM, 0, 4 * GiB - HUGE_OBJECT)
        await peer.ask(nbd.TRIM, 4 * GiB - HUGE_OBJECT, HUGE_SIZE - 4 * GiB + HUGE_OBJECT)
        await peer.disconnect()
    await huge.check_full_service()


@pytest.mark.parametrize(
    ("command", "offset", "length", "expected"),
    [
        (nbd.READ, 2**64 - 1, 2, nbd.EINVAL),
        (nbd.WRITE_ZEROES, 2**64 - 1, 2, nbd.ENOSPC),
        (nbd.TRIM, 2**64 - 1, 2, nbd.EINVAL),
        (nbd.READ, 1024 * OBJECT + 1, 0, nbd.EINVAL),
        (nbd.READ, 1024 * OBJECT, 0, 0),
        (nbd.TRIM, 1024 * OBJECT, 0, 0),
    ],
)
async def test_range_that_wraps_is_refused(
    served: Serving, command: int, offset: int, length: int, expected: int
) -> None:
    """E16."""
    async with await served.attached() as peer:
        cookie = peer.request(command, offset, length)
        assert await peer.reply() == (cookie, expected, b"")
        assert await peer.read(0, 1) == b"\0"
        await peer.disconnect()
    await served.check_full_service()


async def test_payloads_that_never_come_take_no_more_than_the_budget(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E17: headers of large WRITEs, and a byte of payload now and then."""
    monkeypatch.setattr(server_module, "BYTES_AT_WORK_MAX", 16 * MiB)
    count = 32
    each = transmission.RECEIVE_BYTES + 128 * KiB  # and what asyncio takes for both its ends
    async with serving(*exports_of(store)) as served:
        with memory_comes_back(peak_max=16 * MiB + count * each + 4 * MiB):
            peers = [await served.attached() for _ in range(count)]
            for peer in peers:
                peer.request(nbd.WRITE, 0, 4 * MiB, data=b"x")
            await until(lambda: served.server._budget.wanted)
            async with await served.attached() as honest:
                for number in range(20):
                    for peer in peers:
                        peer.send(b"x")
                    data = bytes([number]) * 512 * KiB
                    await honest.write(0, data)
                    assert await honest.read(0, len(data)) == data
                await honest.ask(nbd.WRITE_ZEROES, 0, MiB)
                await honest.disconnect()
            for peer in peers:
                await peer.reset()
            del data, peer, peers
            await served.check_full_service()


async def test_replies_that_are_never_read_take_no_more_than_their_bounds(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E18: large READs without end, on several connections."""
    monkeypatch.setattr(server_module, "BYTES_AT_WORK_MAX", 16 * MiB)
    monkeypatch.setattr(transmission, "UNSENT_BYTES_MAX", MiB)
    count = 8
    each = transmission.RECEIVE_BYTES + transmission.OWN_BYTES + 3 * MiB
    async with serving(*exports_of(store)) as served:
        with memory_comes_back(peak_max=16 * MiB + count * each + 4 * MiB):
            peers = [await served.attached(receive_buffer=4096) for _ in range(count)]
            for peer in peers:
                many = request_bytes(nbd.READ, 0, 4 * MiB) * 1000
                peer.send(many)
            await until(lambda: served.server._budget.wanted)
            async with await served.attached() as honest:
                for _ in range(20):
                    assert await honest.read(0, 512 * KiB) == bytes(512 * KiB)
                await honest.disconnect()
            for peer in peers:
                await peer.reset()
            del peer, peers
            await served.check_full_service()


async def test_tiny_replies_that_are_never_read_take_no_more_than_large_ones(
    served: Serving,
) -> None:
    """E18: a reply of 17 bytes in objects of its own would take twenty times as much."""
    async with await served.attached() as other:
        await other.read(0, 1)  # now it is cached
        peer = await served.attached(receive_buffer=4096)
        many = request_bytes(nbd.READ, 0, 1) * 200_000
        connection = next(x for x in served.server._transmissions if str(x) == name_of(peer))
        outbox = connection._outbox
        kernel = connection._transport.get_extra_info("socket")
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with memory_comes_back(peak_max=6 * MiB):
            sending = asyncio.create_task(send_all(peer, many))
            outbox = next(
                each._outbox for each in served.server._transmissions if str(each) == name_of(peer)
            )
            await until(lambda: not outbox.writable)
            await peer.reset()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await until(lambda: len(served.server._transmissions) == 1)
            del peer, connection, sending
        await other.disconnect()
    await served.check_full_service()


def name_of(peer: Peer) -> str:
    """What the server calls its connection."""
    host, port = peer.writer.get_extra_info("sockname")
    return f"{host}:{port} disk"


async def send_all(peer: Peer, data: bytes) -> None:
    """Send as the server takes it, without holding a second copy."""
    for at in range(0, len(data), OBJECT):
        peer.send(data[at : at + OBJECT])
        await peer.writer.drain()


async def test_million_reads_of_a_byte_leave_others_their_turn(served: Serving) -> None:
    """E19: 28 MB of requests on one connection; the other's reads take as long as a turn."""
    flooding, other = await served.attached(), await served.attached()
    count = 1_000_000
    await other.read(0, 1)
    sending = asyncio.create_task(flood(flooding, count))
    delays: list[float] = []
    while len(delays) < 20:
        began = time.perf_counter()
        await other.read(0, 1)
        delays.append(time.perf_counter() - began)
    answered = served.exports["disk"].counters.client_out
    assert sorted(delays)[10] < 0.5  # the median, on a busy machine in development mode
    assert answered < count  # it was not over by then
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await flooding.reset()
    await other.disconnect()
    await served.check_full_service()


async def flood(peer: Peer, count: int) -> None:
    """So many reads of one byte, and their replies taken."""
    sent = request_bytes(nbd.READ, 0, 1) * 1000
    for _ in range(count // 1000):
        peer.send(sent)
        await peer.reader.readexactly(17 * 1000)


@pytest.mark.parametrize("refusal", ["flags", "range", "read-only", "size"])
async def test_payload_that_looks_like_requests_is_no_request(
    store: GatedStore, refusal: str
) -> None:
    """E21: the payload of a refused WRITE is drained, never looked at."""
    evil = request_bytes(nbd.WRITE_ZEROES, 0, 4, cookie=666) * 5000
    offset, flags, length = 0, 0, len(evil)
    if refusal == "flags":
        flags = 1 << 9
    elif refusal == "range":
        offset = 1024 * OBJECT - 1
    elif refusal == "size":
        evil, length = evil * 300, len(evil) * 300
    async with serving(*exports_of(store, read_only=refusal == "read-only")) as served:
        async with await served.attached() as peer:
            cookie = peer.request(nbd.WRITE, offset, length, flags=flags, data=evil)
            assert (await peer.reply())[0] == cookie
            assert await peer.read(0, 4) == bytes(4)
            await peer.disconnect()
        if refusal != "read-only":
            await served.check_full_service()


async def test_nothing_of_what_is_stored_or_asked_for_is_in_the_log(
    served: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    """E30: neither payloads nor the data of options, even in detail."""
    secret = b"correct horse battery staple"
    caplog.set_level(logging.DEBUG)
    async with await served.greeted() as peer:
        await peer.option(0x63, secret)
        await peer.option(nbd.LIST, secret)
        await peer.go(b"disk")
        await peer.ask(nbd.WRITE, 0, len(secret), flags=nbd.FUA, data=secret)
        assert await peer.read(0, len(secret)) == secret
        peer.request(nbd.WRITE, 0, len(secret), flags=1 << 9, data=secret)
        await peer.reply()
        await peer.disconnect()
    assert "WRITE 0+28" in caplog.text
    for word in (secret, secret[:7], secret.hex().encode()):
        assert word.decode() not in caplog.text
    await served.check_full_service()
