# SPDX-License-Identifier: MIT
"""What a client can do to others with TLS itself: floods of new keys and of tiny records (E19)."""

import asyncio
import logging
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from swiftnbd.server.config import ServerConfig, TcpAddress, TlsConfig
from swiftnbd.server.tls_transport import (
    ANSWERS_UNSENT_MAX,
    BARREN_BYTES_MAX,
    RECORDS_PER_TURN_MAX,
)
from swiftnbd.server.transmission import Transmission
from tests.support import nbd_client as nbd
from tests.support.certificates import Certificates
from tests.support.gated_store import GatedStore
from tests.support.loopback import Serving, exports_of, request_bytes, serving, until
from tests.support.tls_records import RecordsPeer

KiB = 1024
OBJECT = 64 * KiB
ANSWER_BYTES = 27  # of new keys
TURN_RECORDS = 2 * RECORDS_PER_TURN_MAX  # what was left of the turn before, and what came


@pytest.fixture
async def store() -> GatedStore:
    store = GatedStore("disk", 1024)
    await store.set_up()
    return store


@pytest.fixture
async def served(store: GatedStore, certificates: Certificates) -> AsyncIterator[Serving]:
    tls = TlsConfig(certificates=certificates.server)
    async with serving(
        *exports_of(store), config=ServerConfig((TcpAddress(port=0),), tls=tls)
    ) as served:
        yield served
        await served.check_full_service()


async def attached(
    served: Serving, certificates: Certificates, *, receive_buffer: int = 0
) -> RecordsPeer:
    peer = await RecordsPeer.connect(served.port, receive_buffer=receive_buffer)
    await peer.greet()
    await peer.start_tls(certificates.client_context())
    await peer.go(b"disk")
    return peer


async def receiving(peer: RecordsPeer, served: Serving, length: int) -> Transmission:
    """The server's side, in the middle of a payload."""
    peer.send(request_bytes(nbd.WRITE, 0, length, cookie=9))
    (connection,) = served.server._transmissions
    await until(lambda: connection._incoming is not None)
    return connection


def moved(connection: Transmission) -> int:
    progress = connection.progress()
    assert progress is not None
    return progress.moved


@pytest.mark.parametrize("kind", ["new keys", "tiny records"])
async def test_flood_of_tls_records_leaves_others_their_turn(
    served: Serving, certificates: Certificates, kind: str
) -> None:
    """Row E19: what passes between two turns of the event loop is counted."""
    async with await attached(served, certificates) as peer:
        count = 40 if kind == "new keys" else 8000
        connection = await receiving(peer, served, count + 1)
        if kind == "new keys":
            flood = b"".join(peer.key_updates(100) + peer.encrypt(b"x") for _ in range(count))
            most = TURN_RECORDS // 101 + 1
        else:
            flood, most = peer.encrypt(b"x" * count, record=1), TURN_RECORDS
        peer.send_raw(flood)
        seen = [0]
        async with asyncio.timeout(10):
            while seen[-1] < count:
                await asyncio.sleep(0)
                seen.append(moved(connection))
        assert max(b - a for a, b in pairwise(seen)) <= most
        peer.send(b"x")
        assert await peer.reply() == (9, 0, b"")
        assert await peer.read(0, count) == b"x" * count
        await peer.disconnect()


async def test_client_that_sends_nothing_but_new_keys_is_cut_off(
    served: Serving, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "swiftnbd.server.tls_transport")
    async with await attached(served, certificates) as peer:
        peer.send_raw(peer.key_updates(BARREN_BYTES_MAX // ANSWER_BYTES + 1))
        (connection,) = served.server._transmissions
        await served.idle()
    client = str(connection).removesuffix(" disk")
    assert f" {client}: TLS failed: " in caplog.text


async def test_client_that_changes_its_keys_now_and_then_is_served(
    served: Serving, certificates: Certificates
) -> None:
    async with await attached(served, certificates) as peer:
        for number in range(5):
            peer.send_raw(peer.key_updates(500))
            await peer.write(number * OBJECT, b"served")
            peer.send_raw(peer.key_updates(1))
            assert await peer.read(number * OBJECT, 6) == b"served"
        await peer.disconnect()


async def test_answers_to_new_keys_are_not_piled_up_for_a_client_that_does_not_read(
    served: Serving, certificates: Certificates, store: GatedStore
) -> None:
    """Row E18, and when it reads after all, everything goes on."""
    async with await attached(served, certificates, receive_buffer=4096) as peer:
        gate = store.gate("get disk.part")
        peer.send(
            *(request_bytes(nbd.READ, i * OBJECT, OBJECT, cookie=100 + i) for i in range(128))
        )
        await gate.reached()
        connection = await receiving(peer, served, 31)
        gate.open()
        await until(lambda: not connection._outbox.writable and len(connection._at_work) == 0)
        transport = connection._transport
        held = transport.get_write_buffer_size()
        peer.send_raw(b"".join(peer.key_updates(1000) + peer.encrypt(b"x") for _ in range(30)))
        before, turns = -1, 0
        while turns < 200:  # until the server reads no more
            now = moved(connection)
            before, turns = now, turns + 1 if now == before else 0
            await asyncio.sleep(0.001)
        more = transport.get_write_buffer_size() - held
        assert more <= ANSWERS_UNSENT_MAX + RECORDS_PER_TURN_MAX * ANSWER_BYTES
        peer.send(b"x")
        cookies = set()
        for _ in range(129):
            cookie = int.from_bytes((await peer.receive(16))[8:])
            cookies.add(cookie)
            if cookie != 9:
                await peer.receive(OBJECT)
        assert cookies == {9, *range(100, 228)}
        await peer.disconnect()
