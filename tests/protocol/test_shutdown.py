# SPDX-License-Identifier: MIT
"""How a connection and the server end: in order, and when that is cut short."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from swiftnbd.export.export import Export
from swiftnbd.export.settings import CacheSettings, OnOutage, OutageSettings
from swiftnbd.server import negotiation, sockets, transmission
from swiftnbd.server import server as server_module
from swiftnbd.server.config import OnEnd, ServerConfig, TcpAddress
from swiftnbd.server.supervision import Supervision
from swiftnbd.store.base import Body
from tests.support import nbd_client as nbd
from tests.support.gated_store import GatedStore
from tests.support.loopback import (
    SECONDS_MAX,
    Serving,
    exports_of,
    option_bytes,
    query_bytes,
    request_bytes,
    serving,
    soon,
    until,
)

OBJECT = 65536
SIMPLE_REPLY = b"\x67\x44\x66\x98" + bytes(11)  # no error; one more byte makes the cookie


@pytest.fixture
async def store() -> GatedStore:
    store = GatedStore("disk")
    await store.set_up()
    return store


@pytest.fixture
def goodbyes_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that keep their end open, though the server ends, are hardly waited for."""
    monkeypatch.setattr(sockets, "GOODBYE_SECONDS", 0.05)
    monkeypatch.setattr(negotiation, "GOODBYE_SECONDS_MAX", 0.05)


@pytest.fixture
async def served(store: GatedStore) -> AsyncIterator[Serving]:
    async with serving(*exports_of(store)) as served:
        yield served


# A connection


@pytest.mark.parametrize("ending", ["DISC", "DISC with a length", "DISC and more", "half-close"])
async def test_requests_at_work_are_answered_before_the_connection_closes(
    served: Serving, store: GatedStore, ending: str
) -> None:
    gate = store.gate("(get|put) disk.part")
    async with await served.attached() as peer:
        peer.request(nbd.READ, 0, 4, cookie=1)
        data = b"x" * OBJECT
        peer.request(nbd.WRITE, 5 * OBJECT, OBJECT, flags=nbd.FUA, data=data, cookie=2)
        if ending == "half-close":
            peer.writer.write_eof()
        else:
            peer.request(nbd.DISC, 0, 77 if ending == "DISC with a length" else 0)
            if ending == "DISC and more":
                peer.request(nbd.WRITE, 0, 4, data=b"late")
        await gate.reached(2)
        gate.open()
        read, wrote = SIMPLE_REPLY + b"\1" + bytes(4), SIMPLE_REPLY + b"\2"
        assert await peer.ended() in (read + wrote, wrote + read)
    assert store.part(5) == data
    assert store.part(0) is None
    await served.check_full_service()


@pytest.mark.parametrize("more", [1, 100_000, 3_000_000])
async def test_last_replies_arrive_whatever_the_client_sent_behind_disc(
    served: Serving, more: int
) -> None:
    """Unread input makes the kernel reset a closed connection, and forget what it has not sent."""
    async with await served.attached(receive_buffer=4096) as peer:
        for number in range(10):
            peer.request(nbd.READ, number * OBJECT, OBJECT)
        peer.request(nbd.DISC)
        peer.send(bytes(more))
        (connection,) = served.server._transmissions
        await until(lambda: connection._ending and not connection._at_work)
        await asyncio.sleep(0.1)  # not synchronisation: a wrong close would do its harm now
        assert len(await peer.ended()) == 10 * (16 + OBJECT)
    await served.check_full_service()


async def test_connection_that_is_closing_counts_until_it_is_closed(store: GatedStore) -> None:
    """Or peers that never close their end could pile up."""
    async with serving(*exports_of(store)) as served, await served.connect() as peer:
        peer.send(b"nonsense")
        assert await peer.ended() == b"NBDMAGICIHAVEOPT\0\3"
        assert len(served.server._connections) == served.server._admission._total == 1
        await served.idle()
        assert served.server._admission._total == 0
    await asyncio.sleep(0)


async def test_half_close_in_the_handshake_still_gets_its_answer(served: Serving) -> None:
    async with await served.greeted() as peer:
        peer.send(b"IHAVEOPT\0\0\0\3\0\0\0\0")
        peer.writer.write_eof()
        assert await peer.replies(nbd.LIST) == [(nbd.SERVER, b"\0\0\0\4disk"), (nbd.ACK, b"")]
        assert await peer.closed_by_server()
    await served.check_full_service()


async def test_half_close_behind_go_and_requests_gets_all_answers(served: Serving) -> None:
    async with await served.greeted() as peer:
        peer.send(b"IHAVEOPT\0\0\0\7\0\0\0\6" + bytes(6))
        peer.send(*(request_bytes(nbd.READ, 0, 1, cookie=i) for i in range(100)))
        peer.writer.write_eof()
        await peer.replies(nbd.GO)
        assert len(await peer.ended()) == 1700
    await served.check_full_service()


@pytest.mark.parametrize("length", [100, 300_000, 32 * 1024 * 1024])
@pytest.mark.parametrize("way", ["close", "reset", "half-close"])
@pytest.mark.parametrize("flags", [0, 1 << 9])
async def test_connection_that_ends_inside_a_payload_gives_its_bytes_back(
    store: GatedStore, way: str, length: int, flags: int
) -> None:
    store.objects = 1024
    await store.set_up()
    async with serving(*exports_of(store)) as served:
        peer = await served.attached()
        peer.request(nbd.WRITE, 0, length, flags=flags, data=b"x" * (length // 2))
        await soon(peer.writer.drain())
        if way == "half-close":
            peer.writer.write_eof()
            assert await peer.ended() == b""
        await (peer.reset() if way == "reset" else peer.close())
        await served.check_full_service()
        assert store.calls.count("put disk.part/00000000") <= 1  # only that of the check


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_e13_connection_that_ends_with_requests_at_work_leaves_nothing(
    served: Serving, store: GatedStore, way: str
) -> None:
    gate = store.gate("(get|put) disk.part")
    peer = await served.attached()
    for index in range(8):
        peer.request(nbd.READ, index * OBJECT, 4)
        peer.request(nbd.WRITE, index * OBJECT, OBJECT, flags=nbd.FUA, data=b"x" * OBJECT)
        peer.request(nbd.WRITE, index * OBJECT, 4, flags=nbd.FUA, data=b"xxxx")
    await gate.reached(8)
    await (peer.reset() if way == "reset" else peer.close())
    gate.open()
    await served.idle()
    for index in range(8):  # whole or not at all
        assert store.part(index) in (None, b"x" * OBJECT)
    async with await served.attached() as peer:
        await peer.ask(nbd.WRITE_ZEROES, 0, 16 * OBJECT)
        await peer.disconnect()
    await served.check_full_service()


@pytest.mark.parametrize("command", [nbd.TRIM, nbd.WRITE_ZEROES, nbd.CACHE])
@pytest.mark.parametrize("way", ["reset", "half-close"])
async def test_long_effect_ends_with_its_client(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch, command: int, way: str
) -> None:
    """Acceptance rows A6.17, E15: nothing further is begun; half a goodbye is heard for a while."""
    monkeypatch.setattr(transmission, "ANSWER_SECONDS_MAX", 0.1)
    store.objects = 1 << 16  # 4 GiB
    await store.set_up()
    (export,) = exports_of(store)
    export.cache = CacheSettings(cache_bytes=64 * OBJECT)  # what was accepted is stored
    async with serving(export) as served:
        peer = await served.attached()
        await peer.write(0, b"x" * 4 * OBJECT)
        await peer.flush()
        gate = store.gate("listing" if command == nbd.TRIM else "(get|delete) disk.part")
        peer.request(command, 0, 2**32 - 1)
        await gate.reached()
        if way == "reset":
            await peer.reset()
        else:
            peer.writer.write_eof()
            assert await peer.closed_by_server()
            await peer.close()
        begun = len(store.calls)
        gate.open()
        await served.check_full_service()
        assert len(store.calls) < begun + 200


# The server


async def test_stop_finishes_what_is_at_work_and_unlocks(store: GatedStore) -> None:
    async with serving(*exports_of(store)) as served, await served.attached() as peer:
        gate = store.gate("put disk.part")
        peer.request(nbd.WRITE, 0, 4, flags=nbd.FUA, data=b"last", cookie=1)
        await gate.reached()
        stopping = asyncio.create_task(served.server.stop())
        await until(lambda: not served.server._listeners._servers)
        with pytest.raises(ConnectionRefusedError):
            await served.connect()
        gate.open()
        assert await peer.reply() == (1, 0, b"")
        assert await peer.closed_by_server()
        await peer.close()
        assert await soon(stopping) is True
        assert (store.part(0) or b"")[:4] == b"last"
        assert store.holder == ""


async def test_server_that_closes_at_its_end_leaves_late_requests_to_the_next_one(
    store: GatedStore,
) -> None:
    """Nothing of them is answered or done, what was at work before is."""
    config = ServerConfig((TcpAddress(port=0),), on_end=OnEnd.CLOSE)
    async with (
        serving(*exports_of(store), config=config) as served,
        await served.attached() as peer,
    ):
        gate = store.gate("put disk.part")
        peer.request(nbd.WRITE, 0, 4, flags=nbd.FUA, data=b"last", cookie=1)
        await gate.reached()
        stopping = asyncio.create_task(served.server.stop())
        await until(lambda: not served.server._listeners._servers)
        peer.request(nbd.READ, 0, 4, cookie=2)
        peer.request(nbd.WRITE, OBJECT, 4, data=b"late", cookie=3)
        gate.open()
        assert await peer.ended() == SIMPLE_REPLY + b"\1"
        await peer.close()
        assert await soon(stopping) is True
    assert (store.part(0) or b"")[:4] == b"last"
    assert store.part(1) is None


@pytest.mark.usefixtures("goodbyes_are_short")
async def test_stop_ends_handshakes_and_connections_of_every_kind(store: GatedStore) -> None:
    async with serving(*exports_of(store)) as served:
        silent = await served.connect()
        greeted = await served.greeted()
        half_an_option = await served.greeted()
        half_an_option.send(b"IHAVEOPT\0\0")
        idle = await served.attached()
        half_a_payload = await served.attached()
        half_a_payload.request(nbd.WRITE, 0, OBJECT, data=b"half")
        peers = (silent, greeted, half_an_option, idle, half_a_payload)
        assert await soon(served.server.stop()) is True
        for peer in peers:
            await peer.ended()
            await peer.close()
    assert store.holder == ""
    assert store.part(0) is None


@pytest.mark.usefixtures("goodbyes_are_short")
async def test_stop_right_after_a_client_connected_does_not_wait_for_it(store: GatedStore) -> None:
    async with serving(*exports_of(store)) as served, await served.connect() as peer:
        assert await asyncio.wait_for(served.server.stop(), 5) is True
        await peer.ended()


@pytest.mark.usefixtures("goodbyes_are_short")
async def test_stop_while_a_client_attaches_lets_it_go_again(store: GatedStore) -> None:
    async with serving(*exports_of(store)) as served, await served.greeted() as peer:
        gate = store.gate("put swiftnbd/epoch")
        peer.send(b"IHAVEOPT\0\0\0\7\0\0\0\x0a", query_bytes(b"disk"))
        await gate.reached()
        stopping = asyncio.create_task(served.server.stop())
        await asyncio.sleep(0)
        gate.open()
        assert await soon(stopping) is True
        assert store.holder == ""
        await peer.ended()


async def test_handshake_after_the_end_began_is_refused_and_may_abort(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acceptance rows A1.12, E6."""
    monkeypatch.setattr(negotiation, "GOODBYE_SECONDS_MAX", SECONDS_MAX)  # this one says goodbye
    async with serving(*exports_of(store)) as served, await served.greeted() as peer:
        stopping = asyncio.create_task(served.server.stop())
        await until(lambda: not served.server._listeners._servers)
        for option, data in [(nbd.GO, query_bytes(b"disk")), (nbd.LIST, b""), (99, b"data")]:
            ((kind, text),) = await peer.option(option, data)
            assert kind == nbd.ERR_SHUTDOWN
            assert text == b"the server is shutting down"
        await peer.abort()
        assert await soon(stopping) is True
    assert store.holder == ""


async def test_choice_that_the_end_overtakes_is_refused(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acceptance row A1.12."""
    monkeypatch.setattr(negotiation, "GOODBYE_SECONDS_MAX", SECONDS_MAX)  # this one says goodbye
    async with serving(*exports_of(store)) as served, await served.greeted() as peer:
        gate = store.gate("put swiftnbd/epoch")
        peer.send(option_bytes(nbd.GO, query_bytes(b"disk")))
        await gate.reached()
        stopping = asyncio.create_task(served.server.stop())
        await asyncio.sleep(0)
        gate.open()
        assert await peer.replies(nbd.GO) == [(nbd.ERR_SHUTDOWN, b"the server is shutting down")]
        await peer.abort()
        assert await soon(stopping) is True
        assert served.exports["disk"].connections == 0
    assert store.holder == ""


@pytest.mark.usefixtures("goodbyes_are_short")
@pytest.mark.expects_log("shutdown was cut short")
@pytest.mark.expects_log("disk: stays locked; bytes not written back: 0-65535, 196608-327679")
async def test_second_signal_cuts_the_shutdown_short_and_reports_what_is_lost(
    store: GatedStore,
) -> None:
    async with serving(*exports_of(store)) as served, await served.attached() as peer:
        gate = store.gate("put disk.part")
        for index in (0, 3, 4):
            peer.request(nbd.WRITE, index * OBJECT, 4, flags=nbd.FUA, data=b"lost")
        await gate.reached(3)
        server = served.server
        server._on_signal()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        server._on_signal()
        assert await soon(stopping) is False  # though the store hangs
        assert store.holder
        assert await peer.closed_by_server()
        gate.open()
        served.exports["disk"].device = None  # as the process would end here
        served.exports["disk"]._holding.lock = None


@pytest.mark.usefixtures("goodbyes_are_short")
@pytest.mark.expects_log("shutdown was cut short")
@pytest.mark.expects_log("disk: stays locked; bytes not written back: 0-65535$")
async def test_requests_that_wait_for_a_store_do_not_keep_the_server_from_ending(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "SHUTDOWN_SECONDS_MORE", 0.05)
    exports = exports_of(store)
    for export in exports:
        export.outages = OutageSettings(0.05, OnOutage.WAIT)
    async with serving(*exports) as served, await served.attached() as peer:
        gate = store.gate("put disk.part")
        peer.request(nbd.WRITE, 0, 4, flags=nbd.FUA, data=b"lost")
        await gate.reached()
        assert await soon(served.server.stop()) is False  # after one signal
        assert await peer.closed_by_server()
        gate.open()
        served.exports["disk"].device = None  # as the process would end here
        served.exports["disk"]._holding.lock = None


async def test_stop_takes_as_long_as_writing_back_goes_on(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One object or two are stored between two looks at what is left: that is several of them."""
    looks, put = asyncio.Semaphore(0), store.put
    unstored: property = vars(Supervision)["unstored"]

    def look(supervision: Supervision) -> int:
        looks.release()
        return int(unstored.__get__(supervision))

    async def put_after_a_look(name: str, data: Body, *, if_absent: bool = False) -> str:
        if name.startswith("disk.part"):
            await looks.acquire()
        return await put(name, data, if_absent=if_absent)

    monkeypatch.setattr(store, "put", put_after_a_look)
    monkeypatch.setattr(server_module, "SHUTDOWN_SECONDS_MORE", 0.2)
    monkeypatch.setattr(Export, "patience_seconds", 0)
    async with serving(*exports_of(store)) as served:
        async with await served.attached() as peer:
            for index in range(9):
                await peer.write(index * OBJECT, b"slow")
            await peer.disconnect()
        monkeypatch.setattr(Supervision, "unstored", property(look))
        assert await soon(served.server.stop()) is True
    assert [(store.part(index) or b"")[:4] for index in range(9)] == [b"slow"] * 9
    assert store.holder == ""


@pytest.mark.usefixtures("goodbyes_are_short")
@pytest.mark.expects_log("shutdown was cut short")
@pytest.mark.expects_log("disk: stays locked; bytes not written back: none")
async def test_shutdown_that_is_cut_short_while_locking_reports_the_lock(
    store: GatedStore,
) -> None:
    async with serving(*exports_of(store)) as served, await served.greeted() as peer:
        gate = store.gate("set .*client", after=True)
        peer.send(b"IHAVEOPT\0\0\0\7\0\0\0\6" + bytes(6))
        await gate.reached()
        server = served.server
        server._on_signal()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        server._on_signal()
        assert await soon(stopping) is False
        assert store.holder
        served.exports["disk"]._holding.lock = None


@pytest.mark.expects_log("disk: kept locked, trying again")
@pytest.mark.expects_log("disk: memory:disk: put: 503 by script")
@pytest.mark.expects_log("disk: stays locked; bytes not written back: 0-65535")
async def test_stop_that_cannot_write_back_keeps_the_lock_and_says_what_is_lost(
    store: GatedStore,
) -> None:
    async with serving(*exports_of(store), stops_whole=False) as served:
        store.fail("put disk.part")
        async with await served.attached() as peer:
            await peer.write(0, b"lost")
    assert store.holder


@pytest.mark.expects_log("disk: kept locked, trying again")
@pytest.mark.expects_log("disk: memory:disk: put: 503 by script")
@pytest.mark.expects_log("bytes not written back: 0-4095, .*, 73728-77823 and 2 more ranges$")
async def test_ten_ranges_of_what_is_lost_are_named() -> None:
    store = GatedStore("disk", objects=24, object_size=4096)
    await store.set_up()
    async with serving(*exports_of(store), stops_whole=False) as served:
        store.fail("put disk.part")
        async with await served.attached() as peer:
            for index in range(0, 24, 2):
                await peer.write(index * 4096, b"lost")


@pytest.mark.usefixtures("goodbyes_are_short")
async def test_client_that_never_reads_its_replies_does_not_keep_the_server_from_stopping(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "CLOSE_SECONDS_MAX", 0.01)
    async with serving(*exports_of(store)) as served:
        peer = await served.attached(receive_buffer=4096)
        for _ in range(64):
            peer.request(nbd.READ, 0, 16 * OBJECT)
        (at_work,) = served.server._transmissions
        await until(lambda: not at_work._outbox.writable)
        assert await soon(served.server.stop()) is True
        await peer.reset()
