# SPDX-License-Identifier: MIT
"""Who may use an export, what several connections share, and what becomes of its lock."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from swiftnbd.export import export as export_module
from swiftnbd.export.pace import Pace
from swiftnbd.export.settings import CacheSettings
from swiftnbd.server import server as server_module
from swiftnbd.server import transmission as transmission_module
from tests.support import nbd_client as nbd
from tests.support.gated_store import Gate, GatedStore
from tests.support.loopback import Peer, Serving, exports_of, query_bytes, serving, soon, until
from tests.support.nbd_client import NbdError, Refused

OBJECT = 65536
PEER = "127.0.0.2"


async def set_up(*names: str) -> list[GatedStore]:
    stores = [GatedStore(name) for name in names]
    for store in stores:
        await store.set_up()
    return stores


@pytest.fixture
async def store() -> GatedStore:
    return (await set_up("disk"))[0]


@pytest.fixture
async def served(store: GatedStore) -> AsyncIterator[Serving]:
    async with serving(*exports_of(store)) as served:
        yield served
    assert store.holder == ""


# Names


async def test_empty_name_is_the_only_export(served: Serving) -> None:
    async with await served.greeted() as peer:
        assert await peer.go(b"", nbd.INFO_NAME, option=nbd.INFO) == await peer.go(
            b"disk", nbd.INFO_NAME, option=nbd.INFO
        )
        await peer.go(b"")


@pytest.mark.expects_log("export '' does not exist")
async def test_empty_name_among_several_exports_is_unknown() -> None:
    async with serving(*exports_of(*await set_up("one", "two"))) as served:
        async with await served.greeted() as peer:
            with pytest.raises(Refused) as caught:
                await peer.go(b"")
            assert caught.value.kind == nbd.ERR_UNKNOWN
            await peer.abort()
        await served.check_full_service(b"one")
        await served.check_full_service(b"two")


async def test_list_names_every_export() -> None:
    exports = exports_of(*await set_up("one", "two"))
    async with serving(*exports) as served, await served.greeted() as peer:
        assert await peer.option(nbd.LIST) == [
            (nbd.SERVER, b"\0\0\0\3one"),
            (nbd.SERVER, b"\0\0\0\3two"),
            (nbd.ACK, b""),
        ]
        await peer.abort()


@pytest.mark.parametrize("read_only", [False, True])
async def test_info_then_go_answer_the_same(store: GatedStore, read_only: bool) -> None:
    exports = exports_of(store, read_only=read_only)
    async with serving(*exports) as served, await served.greeted() as peer:
        info = await peer.go(b"disk", 0, 1, 2, 3, option=nbd.INFO)
        assert await peer.go(b"disk", 0, 1, 2, 3) == info
        flags = b"\5\7" if read_only else b"\x0d\x6d"
        assert info == {
            0: (16 * OBJECT).to_bytes(8) + flags,
            1: b"disk",
            2: b"memory:disk, 65536 byte objects",
            3: b"\0\0\0\1" + b"\0\1\0\0" + b"\2\0\0\0",
        }


async def test_info_takes_no_lock(served: Serving, store: GatedStore) -> None:
    async with await served.greeted() as peer:
        await peer.go(option=nbd.INFO)
        await peer.option(nbd.LIST)
        assert store.holder == ""
        await peer.abort()
    assert not [call for call in store.calls if call.startswith(("set", "put"))]


@pytest.mark.parametrize(("flags", "length"), [(0, 134), (1, 134), (2, 10), (3, 10)])
async def test_export_name_attaches(served: Serving, flags: int, length: int) -> None:
    async with await served.greeted(flags=flags) as peer:
        peer.send(b"IHAVEOPT\0\0\0\1\0\0\0\4disk")
        assert await peer.receive(length) == (
            (16 * OBJECT).to_bytes(8) + b"\x0d\x6d" + bytes(length - 10)
        )
        await peer.write(0, b"data")
        await peer.disconnect()


# The lock


async def test_connections_of_one_peer_share_the_lock(served: Serving, store: GatedStore) -> None:
    async with await served.attached() as one, await served.attached() as two:
        mark = store.holder
        assert "@" in mark
        await one.write(0, b"shared")
        assert await two.read(0, 6) == b"shared"
        await one.disconnect()
        assert await two.read(0, 6) == b"shared"
        assert store.holder == mark
        await two.disconnect()
    await served.idle()
    assert store.holder == ""
    assert store.metadata["swiftnbd-last"] == mark


@pytest.mark.expects_log("disk is in use by")
async def test_another_peer_is_refused_with_the_holder_named(
    served: Serving, store: GatedStore
) -> None:
    async with await served.attached() as holder:
        async with await served.greeted(PEER) as other:
            with pytest.raises(Refused) as caught:
                await other.go(b"disk")
            assert caught.value.kind == nbd.ERR_POLICY
            assert store.holder.split("@")[0] in caught.value.text
            await other.abort()
        async with await served.greeted(PEER) as other:
            other.send(b"IHAVEOPT\0\0\0\1\0\0\0\4disk")
            assert await other.closed_by_server()
        await holder.disconnect()
    await served.idle()
    async with await served.attached(source=PEER) as other:
        await other.disconnect()


@pytest.mark.expects_log("disk is in use by")
async def test_of_two_peers_that_race_one_is_refused(served: Serving, store: GatedStore) -> None:
    gate = store.gate("^info")
    async with await served.greeted() as one, await served.greeted(PEER) as two:
        racers = [asyncio.ensure_future(peer.go(b"disk")) for peer in (one, two)]
        await gate.reached()
        gate.open()
        results = await soon(asyncio.gather(*racers, return_exceptions=True))
    assert sorted(type(result).__name__ for result in results) == ["Refused", "dict"]


async def test_read_only_export_is_shared_by_all_and_takes_no_lock(store: GatedStore) -> None:
    async with (
        serving(*exports_of(store, read_only=True)) as served,
        await served.attached() as one,
        await served.attached(source=PEER) as two,
    ):
        assert await one.read(0, 4) == await two.read(0, 4) == bytes(4)
        assert store.holder == ""
    assert not [call for call in store.calls if call.startswith(("set", "put", "delete"))]


async def test_flush_on_one_connection_covers_writes_of_another(
    served: Serving, store: GatedStore
) -> None:
    async with await served.attached() as one, await served.attached() as two:
        await one.write(5, b"of one")
        await two.flush()
        part = store.part(0)
        assert part is not None
        assert part[5:11] == b"of one"


@pytest.mark.expects_log("FLUSH 0.0 flags 0x0 failed")
async def test_flush_fails_on_every_connection_while_bytes_are_not_stored(
    served: Serving, store: GatedStore
) -> None:
    async with await served.attached() as one, await served.attached() as two:
        store.fail("put disk.part")
        await one.write(0, b"lost")
        for peer in (two, one, two):
            with pytest.raises(NbdError):
                await peer.flush()
        store.heal()
        await two.flush()
        assert (store.part(0) or b"")[:4] == b"lost"


async def test_what_a_client_that_crashed_had_written_is_written_back_and_unlocked(
    served: Serving, store: GatedStore
) -> None:
    one, other = await served.attached(), await served.attached()
    await one.write(0, b"one")
    await other.write(OBJECT, b"other")
    assert store.part(0) is store.part(1) is None
    assert store.holder
    await one.reset()
    await other.reset()
    await served.idle()
    assert store.part(0) == b"one" + bytes(OBJECT - 3)
    assert store.part(1) == b"other" + bytes(OBJECT - 5)
    assert store.holder == ""


@pytest.mark.parametrize("connections", [1, 2])
async def test_writes_into_one_block_that_is_being_fetched_are_all_kept(
    served: Serving, store: GatedStore, connections: int
) -> None:
    """The read-modify-write race: all of them need the same bytes of the store around them."""
    await store.put("disk.part/00000000", b"o" * OBJECT)
    async with await served.attached() as one, await served.attached() as other:
        two = one if connections == 1 else other
        gate = store.gate("get disk.part")
        one.request(nbd.WRITE, 10, 1, flags=nbd.FUA, data=b"1", cookie=1)
        two.request(nbd.WRITE, 11, 1, flags=nbd.FUA, data=b"2", cookie=2)
        await gate.reached()
        two.request(nbd.WRITE, OBJECT - 1, 1, flags=nbd.FUA, data=b"3", cookie=3)
        gate.open()
        replies = [await one.reply(), await two.reply(), await two.reply()]
        assert sorted(replies) == [(cookie, 0, b"") for cookie in (1, 2, 3)]
        assert store.part(0) == b"o" * 10 + b"12" + b"o" * (OBJECT - 13) + b"3"


# Stores that fail or hang


@pytest.mark.expects_log("refused 'disk': memory:disk: info: 503")
async def test_store_that_fails_at_attach_is_told_and_the_server_goes_on(
    served: Serving, store: GatedStore
) -> None:
    store.fail("^info")
    async with await served.greeted() as peer:
        with pytest.raises(
            Refused, match=r"'disk' is not available now; the server's log says why$"
        ):
            await peer.go(b"disk")
        store.heal()
        await peer.go(b"disk")
        await peer.disconnect()
    await served.check_full_service()


@pytest.mark.parametrize("pattern", ["set .*client", "put swiftnbd/epoch"])
@pytest.mark.expects_log("refused 'disk': memory:disk")
async def test_lock_that_failed_halfway_does_not_shut_us_out(
    served: Serving, store: GatedStore, pattern: str
) -> None:
    """A mark that was written, but whose reply was lost, is ours: nobody else takes it away."""
    store.fail(pattern)
    async with await served.greeted() as peer:
        with pytest.raises(Refused):
            await peer.go(b"disk")
        store.metadata["swiftnbd-client"] = served.exports["disk"]._holding.mark
        store.heal()
        await peer.go(b"disk")
        await peer.write(0, b"mine")
        await peer.disconnect()
    await served.check_full_service()


@pytest.mark.expects_log("disk: kept locked, trying again: .*503 by script")
async def test_unlock_that_fails_is_kept_and_the_next_client_attaches(
    served: Serving, store: GatedStore
) -> None:
    store.fail("set .*last")
    async with await served.attached() as peer:
        await peer.disconnect()
    await served.idle()
    assert store.holder
    store.heal()
    async with await served.attached(source=PEER) as peer:
        await peer.write(0, b"next")
        assert "swiftnbd/epoch/2" in store.account.containers["disk"].objects
        await peer.disconnect()
    await served.idle()
    assert store.holder == ""


@pytest.mark.expects_log("disk: kept locked, trying again: .*503 by script")
async def test_unlock_that_fails_is_tried_again_until_it_succeeds(
    served: Serving, store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "KEPT_RETRY_SECONDS", 0.001)
    store.fail("set .*last")
    retried = store.gate("set .*last")
    async with await served.attached() as peer:
        await peer.disconnect()
    retried.open()
    await retried.reached(3)
    unlocked = store.gate("set .*last", after=True)
    store.heal()
    unlocked.open()
    await unlocked.reached()
    await served.idle()
    await until(lambda: not served.exports["disk"].attached)
    assert store.holder == ""


@pytest.mark.expects_log("disk: kept locked, trying again: .*503 by script")
@pytest.mark.expects_log("refused 'disk': memory:disk")
async def test_retrying_goes_on_after_a_client_that_could_not_attach(
    served: Serving, store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "KEPT_RETRY_SECONDS", 0.001)
    store.fail("set .*last")
    async with await served.attached() as peer:
        await peer.disconnect()
    await served.idle()
    store.fail("^info")
    async with await served.greeted() as peer:
        with pytest.raises(Refused):
            await peer.go(b"disk")
        await peer.abort()
    store.heal()
    await until(lambda: not served.exports["disk"].attached)
    assert store.holder == ""


@pytest.mark.expects_log("disk: kept locked, trying again: .*503 by script")
async def test_bytes_not_written_back_are_there_for_the_next_client(
    served: Serving, store: GatedStore
) -> None:
    store.fail("put disk.part")
    async with await served.attached() as peer:
        await peer.write(0, b"kept")
        await peer.disconnect()
    await served.idle()
    store.heal()
    assert store.holder
    async with await served.attached(source=PEER) as peer:
        assert await peer.read(0, 4) == b"kept"
        await peer.disconnect()
    await served.idle()
    assert (store.part(0) or b"")[:4] == b"kept"
    assert store.holder == ""


@pytest.mark.expects_log("disk: kept locked, trying again")
@pytest.mark.expects_log("is lost: other:1@1700000000 wrote over it; 65536 bytes were not written")
@pytest.mark.expects_log("refused 'disk': the lock .* to use it again, restart the server")
@pytest.mark.expects_log("disk: its lock is lost; bytes not written back: 0-65535")
async def test_kept_bytes_are_not_written_over_those_of_who_broke_the_lock(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "KEPT_RETRY_SECONDS", 60)
    (export,) = exports_of(store)
    export = replace(export, pace=Pace(term_seconds=4))
    async with serving(export, stops_whole=False) as served:
        store.fail("put disk.part")
        async with await served.attached() as peer:
            await peer.write(0, b"late")
            await peer.disconnect()
        await served.idle()
        store.metadata["swiftnbd-client"] = "other:1@1700000000"
        await until(lambda: export.is_lost)
        store.heal()
        with pytest.raises(Refused, match="'disk' is not available now"):
            async with await served.greeted() as peer:
                await peer.go(b"disk")
    assert store.part(0) is None
    assert store.holder == "other:1@1700000000"


@pytest.mark.expects_log("the lock could not be renewed for 3 s: suspended")
@pytest.mark.expects_log("the lock is still ours, going on")
async def test_cached_read_is_not_answered_after_the_lease(store: GatedStore) -> None:
    """The server stood still: its timers are late, and the request is there before them."""
    (export,) = exports_of(store)
    export = replace(export, pace=Pace(term_seconds=3))
    async with serving(export) as served, await served.attached() as peer:
        await peer.write(0, b"cached")
        await peer.flush()
        renewing = store.gate("^info")
        assert export._holding.keeper is not None
        export._holding.keeper.lock.deadline = 0
        peer.request(nbd.READ, 0, 6, cookie=7)
        await until(lambda: export._holding.is_suspended)
        await renewing.reached()
        assert not peer.reader._buffer  # type: ignore[attr-defined]
        renewing.open()
        assert await peer.reply(6) == (7, 0, b"cached")
        await peer.disconnect()


async def test_hanging_store_request_delays_no_other_client_and_no_other_export() -> None:
    hanging, sound = await set_up("hanging", "sound")
    async with serving(*exports_of(hanging, sound)) as served:
        gate = hanging.gate("(get|put) disk.part/00000001")
        async with (
            await served.attached(b"hanging") as stuck,
            await served.attached(b"hanging") as same_export,
            await served.attached(b"sound") as other_export,
        ):
            slow = stuck.request(nbd.WRITE, OBJECT, 4, flags=nbd.FUA, data=b"slow", cookie=99)
            await gate.reached()
            for peer in (same_export, other_export, stuck):
                await peer.write(2 * OBJECT, b"quick")
                assert await peer.read(2 * OBJECT, 5) == b"quick"
            await other_export.flush()
            gate.open()
            assert await stuck.reply() == (slow, 0, b"")


async def test_hanging_attach_delays_no_other_export() -> None:
    hanging, sound = await set_up("hanging", "sound")
    async with serving(*exports_of(hanging, sound)) as served:
        gate = hanging.gate("^info")
        async with await served.greeted() as stuck:
            stuck.send(b"IHAVEOPT\0\0\0\7\0\0\0\x0d", query_bytes(b"hanging"))
            await gate.reached()
            async with await served.attached(b"sound") as peer:
                await peer.write(0, b"quick")
                await peer.disconnect()
            gate.open()
            assert [kind for kind, _ in await stuck.replies(nbd.GO)] == [nbd.REP_INFO, nbd.ACK]


async def test_client_that_left_while_the_lock_was_taken_holds_nothing(
    served: Serving, store: GatedStore
) -> None:
    gate = store.gate("put swiftnbd/epoch")
    peer = await served.greeted()
    peer.send(b"IHAVEOPT\0\0\0\7\0\0\0\6" + bytes(6))
    await gate.reached()
    await peer.reset()
    gate.open()
    await served.idle()
    assert store.holder == ""
    await served.check_full_service()


async def test_late_write_of_a_gone_connection_never_lands_after_a_newer_one(
    served: Serving, store: GatedStore
) -> None:
    async with await served.attached() as newer:
        older = await served.attached()
        gate = store.gate("put disk.part")
        older.request(nbd.WRITE, 0, 4, flags=nbd.FUA, data=b"old!")
        await gate.reached()
        # waits for the upload before it
        older.request(nbd.WRITE, 0, 4, flags=nbd.FUA, data=b"late")
        await older.reset()
        await until(lambda: len(served.server._connections) == 1)
        newer.request(nbd.WRITE, 0, 4, data=b"new!", cookie=1)
        gate.open()
        assert await newer.reply() == (1, 0, b"")
        await newer.flush()
        assert await newer.read(0, 4) == b"new!"
        await newer.disconnect()
    await served.idle()
    assert (store.part(0) or b"")[:4] == b"new!"


async def test_what_a_closed_connection_asked_for_never_lands_after_its_successor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client closes, with a FIN and nothing unread, in the middle of a long request."""
    monkeypatch.setattr(server_module, "LEAVING_SECONDS_MAX", 0.01)
    store = GatedStore("disk", objects=200, object_size=4096)
    await store.set_up()
    last = 199 * 4096
    async with serving(*exports_of(store)) as served:
        # so few may be changed that most of what is asked for waits for room
        served.exports["disk"].cache = CacheSettings(cache_bytes=16 * 4096, dirty_bytes=8 * 4096)
        older = await served.attached()
        gate = store.gate("delete disk.part")
        older.request(nbd.WRITE_ZEROES, 0, 200 * 4096)
        await gate.reached()
        (left,) = served.server._transmissions
        await older.close()
        await until(lambda: left._ending)  # alone: nothing was a reason to drop what it asked for
        opening = asyncio.create_task(served.attached())
        await until(lambda: not served.server._transmissions)  # what it asked for is dropped,
        gate.open()  # but what the store is at work on is waited for
        async with await soon(opening) as newer:
            await newer.write(last, b"N" * 4096)
            await newer.flush()
            assert await newer.read(last, 4096) == b"N" * 4096
            await newer.disconnect()
        await served.idle()
    assert store.part(199) == b"N" * 4096


async def with_all_it_may_change(served: Serving, store: GatedStore) -> tuple[Peer, Gate]:
    """A connection whose next change waits until object 1 is stored, which waits at a gate."""
    served.exports["disk"].cache = CacheSettings(cache_bytes=4 * OBJECT, dirty_bytes=OBJECT)
    gate = store.gate("put disk.part/00000001")
    peer = await served.attached()
    await peer.write(OBJECT, b"all")
    await gate.reached()
    return peer, gate


def waiting_writes(served: Serving) -> bool:
    """Whether a write waits for room in the cache."""
    device = served.exports["disk"].device
    return device is not None and bool(device._disk.writers)


async def test_write_that_waits_for_room_never_lands_after_its_successor(
    served: Serving, store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LEAVING_SECONDS_MAX", 0.01)
    older, gate = await with_all_it_may_change(served, store)
    older.request(nbd.WRITE, 0, 4, data=b"old!")
    await until(lambda: waiting_writes(served))
    await older.close()
    attaching = asyncio.create_task(served.attached())
    await until(lambda: not waiting_writes(served))
    gate.open()  # which lets the older one's changes be stored, and its export go
    async with await attaching as newer:
        await newer.write(0, b"N" * OBJECT)
        assert await newer.read(0, 4) == b"NNNN"
        await newer.disconnect()
    await served.idle()
    assert store.part(0) == b"N" * OBJECT


async def test_what_one_of_several_connections_gave_up_never_lands_after_another(
    served: Serving, store: GatedStore
) -> None:
    """A kernel client that gives a connection up sends again on the others what was at work."""
    newer, gate = await with_all_it_may_change(served, store)
    async with newer:
        older = await served.attached()
        older.request(nbd.WRITE, 0, 4, data=b"old!")
        await until(lambda: waiting_writes(served))
        await older.close()
        await until(lambda: len(served.server._connections) == 1)
        newer.request(nbd.WRITE, 0, OBJECT, data=b"N" * OBJECT)
        gate.open()
        await newer.reply()
        assert await newer.read(0, 4) == b"NNNN"
        await newer.disconnect()
    await served.idle()
    assert store.part(0) == b"N" * OBJECT


async def test_connection_that_we_do_not_read_from_is_seen_to_have_closed(
    served: Serving, store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many requests are at work that the server does not read: it gets no end of file."""
    monkeypatch.setattr(server_module, "LEAVING_SECONDS_MAX", 0.01)
    older, gate = await with_all_it_may_change(served, store)
    for _ in range(transmission_module.REQUESTS_AT_WORK_MAX + 1):
        older.request(nbd.WRITE, 0, 4, data=b"old!")
    await until(lambda: not next(iter(served.server._transmissions))._reading)
    await older.close()
    attaching = asyncio.create_task(served.attached())
    await until(lambda: not waiting_writes(served))
    gate.open()  # which lets the older one's changes be stored, and its export go
    async with await attaching as newer:
        await newer.write(0, b"N" * OBJECT)
        assert await newer.read(0, 4) == b"NNNN"
        await newer.disconnect()
    await served.idle()
    assert store.part(0) == b"N" * OBJECT


async def test_client_whose_machine_is_gone_will_be_noticed(served: Serving) -> None:
    async with await served.attached() as peer:
        (transmission,) = served.server._transmissions
        connection = transmission._transport.get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        await peer.disconnect()


async def test_large_cached_read_takes_from_the_budget_like_all_others() -> None:
    """Copies of what is cached are memory too, as long as their client does not read them."""
    store = GatedStore("disk", objects=64)
    await store.set_up()
    length = 64 * OBJECT
    async with serving(*exports_of(store)) as served, await served.attached() as peer:
        await peer.read(0, length)  # now it is cached
        budget = served.server._budget
        everything = budget.left
        assert budget.take(everything)
        peer.request(nbd.READ, 0, length, cookie=7)
        (transmission,) = served.server._transmissions
        await until(lambda: transmission._share.waits)
        budget.give(everything)
        assert await peer.reply(length) == (7, 0, bytes(length))
        await peer.disconnect()
