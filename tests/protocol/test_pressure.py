# SPDX-License-Identifier: MIT
"""More than there is room for: connections stall and go on, and nothing grows (design: limits)."""

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest

from swiftnbd.server import patience, transmission
from swiftnbd.server import server as server_module
from swiftnbd.server.patience import PACE_SECONDS, STALLED_SECONDS_MAX
from swiftnbd.server.transmission import RECEIVE_BYTES, Transmission
from tests.support import nbd_client as nbd
from tests.support.gated_store import GatedStore
from tests.support.loopback import Peer, Serving, exports_of, request_bytes, serving, soon, until

KiB, MiB = 1024, 1024 * 1024
OBJECT = 64 * KiB


@pytest.fixture
async def store() -> GatedStore:
    store = GatedStore("disk", 1024)
    await store.set_up()
    return store


@pytest.fixture
async def served(store: GatedStore) -> AsyncIterator[Serving]:
    async with serving(*exports_of(store)) as served:
        yield served


def only_connection(served: Serving) -> Transmission:
    (found,) = served.server._transmissions
    return found


async def stalled(served: Serving) -> Transmission:
    """The only connection, once it has stopped reading."""
    connection = only_connection(served)
    await until(lambda: not connection._reading)
    return connection


async def read_replies(peer: Peer, count: int, length: int) -> set[int]:
    """The cookies of so many replies to reads of ``length`` bytes."""
    cookies = set()
    for _ in range(count):
        cookie, error, data = await peer.reply(length)
        assert (error, len(data)) == (0, length)
        cookies.add(cookie)
    return cookies


async def test_client_that_reads_no_replies_is_not_read_from(
    served: Serving, store: GatedStore
) -> None:
    greedy = await served.attached(receive_buffer=4096)
    greedy.send(*(request_bytes(nbd.READ, 0, MiB, cookie=i) for i in range(100_000)))
    connection = await stalled(served)
    await until(lambda: not connection._outbox.writable)
    sent = served.exports["disk"].counters.client_out
    held = connection._transport.get_write_buffer_size()
    assert held <= transmission.UNSENT_BYTES_MAX + transmission.BYTES_AT_WORK_MAX + 16 * 128
    assert sent < 200 * MiB
    async with await served.attached() as other:
        for number in range(20):
            await other.write(number * OBJECT, b"served")
            assert await other.read(number * OBJECT, 6) == b"served"
        await other.disconnect()
    assert served.exports["disk"].counters.client_out < sent + MiB
    await greedy.reset()
    await served.check_full_service()


async def test_client_that_reads_late_gets_everything(served: Serving) -> None:
    peer = await served.attached(receive_buffer=4096)
    count = 300
    peer.send(*(request_bytes(nbd.READ, i * 512, OBJECT, cookie=i) for i in range(count)))
    connection = await stalled(served)
    await until(lambda: not connection._outbox.writable)
    assert await read_replies(peer, count, OBJECT) == set(range(count))
    await peer.disconnect()


async def test_requests_over_the_limit_at_work_wait_their_turn(
    served: Serving, store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transmission, "REQUESTS_AT_WORK_MAX", 4)
    gate = store.gate("get disk.part")
    async with await served.attached() as peer:
        peer.send(*(request_bytes(nbd.READ, i * OBJECT, 1, cookie=i) for i in range(100)))
        connection = await stalled(served)
        await gate.reached(4)
        assert len(connection._at_work) == 4
        gate.open()
        assert await read_replies(peer, 100, 1) == set(range(100))
        await peer.disconnect()


@pytest.mark.parametrize("limit", ["connection", "server"])
async def test_bytes_over_a_limit_wait_their_turn(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    module = transmission if limit == "connection" else server_module
    monkeypatch.setattr(module, "BYTES_AT_WORK_MAX", 3 * MiB)
    async with serving(*exports_of(store)) as served, await served.attached() as peer:
        gate = store.gate("(get|put) disk.part")
        for index in range(20):
            peer.request(nbd.READ, index * MiB, MiB, cookie=index)
            peer.request(nbd.WRITE, (20 + index) * MiB, MiB, data=bytes(MiB), cookie=20 + index)
        connection = await stalled(served)
        own = 0 if limit == "connection" else transmission.OWN_BYTES  # in addition
        assert connection._share.held == 3 * MiB + own
        gate.open()
        cookies = set()
        for _ in range(40):
            magic, error, cookie = struct.unpack(">IIQ", await peer.receive(16))
            assert (magic, error) == (0x67446698, 0)
            await peer.receive(MiB if cookie < 20 else 0)
            cookies.add(cookie)
        assert cookies == set(range(40))
        await peer.disconnect()


async def test_connections_that_share_the_budget_all_finish(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "BYTES_AT_WORK_MAX", 2 * MiB)
    async with serving(*exports_of(store)) as served:
        peers = [await served.attached() for _ in range(6)]

        async def use(number: int, peer: Peer) -> None:
            for step in range(10):
                offset = (number * 10 + step) * MiB
                data = bytes([number + 1]) * MiB
                await peer.write(offset, data)
                assert await peer.read(offset, MiB) == data
            await peer.disconnect()

        await asyncio.gather(*(use(*each) for each in enumerate(peers)))
        await served.check_full_service()


async def test_connection_that_ends_while_it_waits_for_the_budget_is_forgotten(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "BYTES_AT_WORK_MAX", 2 * MiB)
    async with serving(*exports_of(store)) as served:
        gate = store.gate("get disk.part")
        holder = await served.attached()
        holder.request(nbd.READ, 0, 2 * MiB, cookie=1)
        await gate.reached()
        waiting = await served.attached()
        waiting.request(nbd.READ, 8 * MiB, 3 * MiB)
        waiting.request(nbd.DISC)
        await until(lambda: any(x._share.waits for x in served.server._transmissions))
        await waiting.reset()
        gate.open()
        await holder.reply(2 * MiB)
        await holder.disconnect()
        await served.check_full_service()


@pytest.mark.parametrize("way", ["end", "shut_down"])
async def test_connection_that_is_ended_waits_for_the_budget_no_more(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Those behind it would wait for what it will never use."""
    monkeypatch.setattr(server_module, "BYTES_AT_WORK_MAX", 2 * MiB)
    async with serving(*exports_of(store)) as served:
        gate = store.gate("get disk.part")
        holder, waiting = await served.attached(), await served.attached()
        holder.request(nbd.READ, 0, 2 * MiB, cookie=1)
        await gate.reached()
        waiting.request(nbd.READ, 8 * MiB, 3 * MiB)
        await until(lambda: any(x._share.waits for x in served.server._transmissions))
        (ended,) = (x for x in served.server._transmissions if x._share.waits)
        getattr(ended, way)()
        assert not served.server._budget.wanted
        gate.open()
        await holder.reply(2 * MiB)
        await holder.disconnect()
        await waiting.close()
        await served.check_full_service()


async def test_large_request_is_not_starved_by_those_who_ask_for_little(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others that go on taking what comes back wait behind it, beyond what is their own."""
    monkeypatch.setattr(server_module, "BYTES_AT_WORK_MAX", 4 * OBJECT)
    monkeypatch.setattr(transmission, "OWN_BYTES", OBJECT)
    monkeypatch.setattr(transmission, "FAST_READ_BYTES_MAX", 0)
    async with serving(*exports_of(store)) as served:
        others = [await served.attached() for _ in range(4)]
        patient = await served.attached()
        gate = store.gate("get disk.part")
        count = 200
        for peer in others:
            peer.send(*(request_bytes(nbd.READ, 0, 2 * OBJECT) for _ in range(count)))
        await until(lambda: served.server._budget.wanted)
        patient.request(nbd.READ, 0, 5 * OBJECT, cookie=7)
        gate.open()
        readers = [asyncio.create_task(peer.reader.readexactly(1 << 40)) for peer in others]
        assert await patient.reply(5 * OBJECT) == (7, 0, bytes(5 * OBJECT))
        assert served.exports["disk"].counters.client_out < count * OBJECT  # of eight times that
        for reader in readers:
            reader.cancel()
        for peer in (*others, patient):
            await peer.reset()
        await served.check_full_service()


TOO_SLOW = "cut off: others wait for the [0-9]+ bytes it holds, and it is too slow"
DEAD = "cut off: it has not moved for 300 s"


class Clock:
    """Lets the server look at its connections, as if so much time had passed.

    Now and then it looks by itself: by that clock it is earlier, and nothing happens.
    """

    def __init__(self, served: Serving) -> None:
        self._served = served
        self._now = asyncio.get_running_loop().time()

    def look(self, seconds: float = 0.0) -> None:
        self._now += seconds
        server = self._served.server
        server._patience.check(server._transmissions.keys(), self._now)


@pytest.mark.expects_log(TOO_SLOW)
async def test_slow_writers_that_hold_the_budget_are_cut_off_when_others_wait(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E17: until then a larger request than a connection's own bytes would wait for ever."""
    monkeypatch.setattr(server_module, "BYTES_AT_WORK_MAX", 8 * MiB)
    async with serving(*exports_of(store)) as served:
        clock = Clock(served)
        slow = [await served.attached() for _ in range(4)]
        for peer in slow:
            peer.request(nbd.WRITE, 0, 4 * MiB, data=b"x" * 100)
        await until(lambda: served.server._budget.left < 3 * MiB)
        clock.look()
        clock.look(100)  # nobody waits, nobody is cut off
        assert len(served.server._transmissions) == 4
        async with await served.attached() as honest:
            honest.request(nbd.READ, 0, 4 * MiB, cookie=7)
            await until(lambda: served.server._budget.wanted)
            clock.look()
            for peer in slow:
                peer.send(b"x" * 1000)
            clock.look(PACE_SECONDS)
            assert await honest.reply(4 * MiB) == (7, 0, bytes(4 * MiB))
            await honest.disconnect()
        for peer in slow:
            await peer.close()
        await served.check_full_service()


@pytest.mark.expects_log(TOO_SLOW)
async def test_client_that_never_reads_is_cut_off_when_others_wait(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E18."""
    monkeypatch.setattr(server_module, "BYTES_AT_WORK_MAX", 8 * MiB)
    async with serving(*exports_of(store)) as served:
        clock = Clock(served)
        greedy = await served.attached(receive_buffer=4096)
        for _ in range(10):
            greedy.request(nbd.READ, 0, 4 * MiB)
        connection = await stalled(served)
        await until(lambda: not connection._outbox.writable)
        async with await served.attached() as honest:
            honest.request(nbd.READ, 0, 8 * MiB, cookie=7)
            await until(lambda: served.server._budget.wanted)
            clock.look()
            clock.look(PACE_SECONDS)
            assert await honest.reply(8 * MiB) == (7, 0, bytes(8 * MiB))
            await honest.disconnect()
        await greedy.reset()
        await served.check_full_service()


async def test_slow_reader_at_a_fair_pace_is_not_cut_off_though_others_wait(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "BYTES_AT_WORK_MAX", 8 * MiB)
    count = 12
    async with serving(*exports_of(store)) as served:
        clock = Clock(served)
        slow = await served.attached(receive_buffer=4096)
        for _ in range(count):
            slow.request(nbd.READ, 0, 4 * MiB)
        connection = await stalled(served)
        await until(lambda: not connection._outbox.writable)
        honest = await served.attached()
        honest.request(nbd.READ, 0, 8 * MiB, cookie=7)
        await until(lambda: served.server._budget.wanted)
        answer = asyncio.create_task(honest.reply(8 * MiB))
        clock.look()
        for _ in range(count):
            await slow.reply(4 * MiB)
            clock.look(PACE_SECONDS)
        assert await answer == (7, 0, bytes(8 * MiB))
        for peer in (slow, honest):
            await peer.disconnect()
        await served.check_full_service()


@pytest.mark.expects_log(DEAD)
@pytest.mark.parametrize("what", ["payload", "replies"])
async def test_client_that_stops_in_the_middle_is_cut_off_in_the_end(
    served: Serving, what: str
) -> None:
    """E17, E18: even if nobody needs what it holds."""
    clock = Clock(served)
    async with await served.attached(receive_buffer=4096) as peer:
        if what == "payload":
            peer.request(nbd.WRITE, 0, MiB, data=b"x")
        else:
            peer.send(*(request_bytes(nbd.READ, 0, MiB) for _ in range(100)))
        connection = only_connection(served)
        await until(lambda: connection.progress() is not None)
        while served.server._transmissions:  # the kernel takes some for as long as it takes
            await asyncio.sleep(0.05)
            clock.look()
            clock.look(STALLED_SECONDS_MAX)
        await served.idle()
    await served.check_full_service()


@pytest.mark.expects_log("cut off: it has not moved for 0 s")
async def test_server_looks_after_its_connections_by_itself(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(patience, "STALLED_SECONDS_MAX", 0.05)
    async with serving(*exports_of(store)) as served, await served.attached() as peer:
        peer.request(nbd.WRITE, 0, MiB, data=b"x")
        await served.idle()


async def test_idle_client_is_never_cut_off(served: Serving) -> None:
    clock = Clock(served)
    async with await served.attached() as peer:
        await peer.read(0, 4)
        for _ in range(10):
            clock.look(STALLED_SECONDS_MAX)
        await peer.read(0, 4)
        await peer.disconnect()


async def test_export_whose_store_hangs_cannot_use_up_the_budget_of_another(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "BYTES_AT_WORK_MAX", 2 * MiB)
    sound = GatedStore("sound", 1024)
    await sound.set_up()
    async with serving(*exports_of(store, sound)) as served:
        gate = store.gate("get disk.part")
        async with await served.attached(b"disk") as stuck:
            stuck.request(nbd.READ, 0, 2 * MiB)
            await gate.reached()
            await served_fully(served, b"sound")
            gate.open()
            await stuck.reply(2 * MiB)


async def served_fully(served: Serving, name: bytes) -> None:
    """Requests of every usual size, one at a time, on an export of this server."""
    async with await served.attached(name) as peer:
        for size in (512, 4 * KiB, OBJECT, MiB):
            await peer.write(size, b"x" * size)
            await peer.flush()
            await peer.read(size * 2, size)
        await peer.disconnect()


async def test_flood_of_hits_leaves_time_for_others(served: Serving) -> None:
    flooding, other = await served.attached(), await served.attached()
    count = 50_000
    await other.read(0, 1)
    flooding.send(*(request_bytes(nbd.READ, 0, 1, cookie=i) for i in range(count)))
    for _ in range(10):
        await other.read(0, 1)
    answered = served.exports["disk"].counters.client_out
    assert answered < count  # the ten came in between
    await flooding.receive(17 * count)
    for peer in (flooding, other):
        await peer.disconnect()


async def test_payloads_that_straddle_the_buffer_are_received_whole(served: Serving) -> None:
    """Each size once behind others, so that headers and payloads are cut at every place."""
    async with await served.attached() as peer:
        sizes = [1, 511, 4 * KiB, RECEIVE_BYTES - 28, 100_000, RECEIVE_BYTES + 1, 3, MiB, 65_000]
        offset = 0
        written: list[tuple[int, bytes]] = []
        for round_ in range(3):
            for number, size in enumerate(sizes):
                data = bytes([round_ * 10 + number + 1]) * size
                peer.request(nbd.WRITE, offset, size, data=data, cookie=len(written))
                written.append((offset, data))
                offset += size
        assert {(await peer.reply())[:2] for _ in written} == {(i, 0) for i in range(len(written))}
        for at, data in written:
            assert await peer.read(at, len(data)) == data
        await peer.disconnect()


async def test_reset_while_many_replies_are_sent_makes_no_noise(served: Serving) -> None:
    """asyncio warns of each write to a dead socket; we must not go on writing."""
    for _ in range(5):
        peer = await served.attached(receive_buffer=4096)
        peer.send(*(request_bytes(nbd.READ, 0, 4 * MiB, cookie=i) for i in range(500)))
        connection = await stalled(served)
        await until(lambda connection=connection: not connection._outbox.writable)  # type: ignore[misc]
        await peer.reset()
        await served.idle()
    await served.check_full_service()


async def test_replies_at_the_transports_limit_are_resumed_again_and_again(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transmission, "UNSENT_BYTES_MAX", 16 * KiB)
    monkeypatch.setattr(transmission, "WRITE_BATCH_BYTES", 8 * KiB)
    monkeypatch.setattr(transmission, "REQUESTS_PER_TURN_MAX", 3)
    async with await served.attached(receive_buffer=4096) as peer:
        count = 500
        peer.send(*(request_bytes(nbd.READ, i * 4096, 4096, cookie=i) for i in range(count)))
        assert await soon(read_replies(peer, count, 4096)) == set(range(count))
        await peer.disconnect()
