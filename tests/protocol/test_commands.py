# SPDX-License-Identifier: MIT
"""Requests on a real socket: what each is answered, and that the connection goes on (A6)."""

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest

from tests.support import nbd_client as nbd
from tests.support.gated_store import GatedStore
from tests.support.loopback import Peer, Serving, exports_of, request_bytes, serving
from tests.support.nbd_client import FUA, NO_HOLE, READ, TRIM, WRITE, WRITE_ZEROES, NbdError

KiB, MiB = 1024, 1024 * 1024
OBJECT = 64 * KiB
SIZE = 640 * OBJECT  # 40 MiB: more than one request may ask for


@pytest.fixture
async def store() -> GatedStore:
    store = GatedStore("disk", SIZE // OBJECT, OBJECT)
    await store.set_up()
    return store


@pytest.fixture
async def served(store: GatedStore) -> AsyncIterator[Serving]:
    async with serving(*exports_of(store)) as served:
        yield served


@pytest.fixture
async def peer(served: Serving) -> AsyncIterator[Peer]:
    async with await served.attached() as peer:
        yield peer
        await peer.disconnect()


@pytest.fixture
async def read_only_peer(store: GatedStore) -> AsyncIterator[Peer]:
    export = exports_of(store, read_only=True)
    async with serving(*export) as served, await served.attached() as peer:
        yield peer
        await peer.disconnect()


async def refused(peer: Peer, command: int, offset: int, length: int, flags: int = 0) -> int:
    """The error of a request; afterwards the connection must still be in sync."""
    data = b"\x25\x60\x95\x13" * (length // 4 + 1) if command == WRITE else b""
    with pytest.raises(NbdError) as caught:
        await peer.ask(command, offset, length, flags=flags, data=data[:length])
    assert await peer.read(512, 512) == bytes(512)
    return caught.value.number


async def test_every_refusal_leaves_the_connection_usable(peer: Peer, store: GatedStore) -> None:
    einval, enospc = nbd.EINVAL, nbd.ENOSPC
    for command, offset, length, flags, expected in [
        (7, 0, 512, 0, einval),  # A6.2 BLOCK_STATUS, RESIZE, unknown ones
        (8, 0, 512, 0, einval),
        (9, 0, 512, 0, einval),
        (0xFFFF, 2**64 - 1, 2**32 - 1, 0xFFFF, einval),
        (READ, 0, 512, 1 << 6, einval),  # A6.3
        (READ, 0, 512, nbd.DF, einval),  # A6.13
        (WRITE, 0, 4096, nbd.NO_HOLE, einval),
        (WRITE, 0, 1 * MiB, 1 << 15, einval),
        (WRITE, 0, 4096, 1 << 5, einval),  # PAYLOAD_LEN
        (WRITE, 0, 512, nbd.FAST_ZERO, einval),
        (WRITE_ZEROES, 0, 512, nbd.REQ_ONE, einval),
        (READ, SIZE, 1, 0, einval),  # A6.5
        (READ, SIZE - 1, 2, 0, einval),
        (READ, 2**64 - 1, 2, 0, einval),  # E16
        (READ, SIZE + 1, 0, 0, einval),
        (WRITE, SIZE, 1, 0, enospc),  # A6.6
        (WRITE, SIZE - 511, 512, 0, enospc),
        (WRITE, 2**64 - 512, 512, 0, enospc),
        (WRITE_ZEROES, SIZE - 1, 2, 0, enospc),
        (WRITE_ZEROES, 2**32 - 1, 2**32 - 1, 0, enospc),  # E15
        (TRIM, SIZE - 1, 2, 0, einval),  # A6.7
        (TRIM, 2**32 - 513, 2**32 - 1, 0, einval),
        (nbd.CACHE, SIZE - 1, 2, 0, einval),
        (nbd.CACHE, 1, 2**32 - 1, 0, einval),
        (READ, 0, 32 * MiB + 1, 0, einval),  # A6.15
        (READ, 0, 2**32 - 1, 0, einval),
    ]:
        assert await refused(peer, command, offset, length, flags) == expected
    assert all(store.part(index) is None for index in range(SIZE // OBJECT))


# around the receive buffer (256 KiB), the headers in it, and the limits of a payload
@pytest.mark.parametrize(
    "length",
    [0, 1, 27, 28, 29, 256 * KiB - 29, 256 * KiB - 28, 256 * KiB - 27, 256 * KiB, 300_001, 9 * MiB],
)
async def test_payload_of_a_refused_write_is_drained(peer: Peer, length: int) -> None:
    assert await refused(peer, WRITE, SIZE + 1, length) == nbd.ENOSPC


async def test_write_over_the_payload_limit_is_drained_and_invalid(peer: Peer) -> None:
    assert await refused(peer, WRITE, 0, 32 * MiB + 1) == nbd.EINVAL


async def test_refused_write_is_answered_behind_its_payload(peer: Peer) -> None:
    """libnbd calls a reply to what it is still sending "probably a bug in the server"."""
    peer.send(request_bytes(WRITE, SIZE, 9 * MiB, cookie=7), bytes(4 * MiB))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await peer.reader.read(1)
    peer.send(bytes(5 * MiB))
    assert await peer.reply() == (7, nbd.ENOSPC, b"")


@pytest.mark.allows_log("a WRITE of 67108865 bytes")
async def test_write_too_long_to_drain_is_answered_and_closed(served: Serving) -> None:
    async with await served.attached() as peer:
        peer.request(WRITE, 0, 64 * MiB + 1, cookie=5)
        assert await peer.reply() == (5, nbd.ENOSPC, b"")
        assert await peer.closed_by_server()
    await served.check_full_service()


@pytest.mark.expects_log("request magic 0x(47455420|21e41c71|67446698|00000000) is wrong")
@pytest.mark.parametrize("magic", [b"GET ", b"\x21\xe4\x1c\x71", b"\x67\x44\x66\x98", bytes(4)])
async def test_bad_request_magic_closes(served: Serving, magic: bytes) -> None:
    """Acceptance rows A6.1, A10: that of extended headers, which nobody agreed on, is as bad."""
    async with await served.attached() as peer:
        peer.send(magic + bytes(24))
        assert await peer.closed_by_server()
    await served.check_full_service()


async def test_fua_is_accepted_on_every_command(peer: Peer) -> None:
    await peer.write(0, b"x" * 512, FUA)
    assert await peer.ask(READ, 0, 512, flags=FUA) == b"x" * 512
    for command in (nbd.FLUSH, TRIM, nbd.CACHE, WRITE_ZEROES):
        await peer.ask(command, 0, 512, flags=FUA)
    await peer.ask(WRITE_ZEROES, 0, 512, flags=FUA | NO_HOLE)


async def test_length_0_does_nothing_successfully(peer: Peer, store: GatedStore) -> None:
    for offset in (0, 1000, SIZE):
        for command in (READ, WRITE, TRIM, nbd.CACHE, WRITE_ZEROES):
            assert await peer.ask(command, offset, 0) == b""
    await peer.write(1000, b"there")
    assert await peer.ask(READ, 1000, 0) == b""  # of a block in memory
    await peer.flush()
    assert [index for index in range(SIZE // OBJECT) if store.part(index)] == [0]


async def test_flush_with_offset_and_length_is_fine(peer: Peer) -> None:
    await peer.ask(nbd.FLUSH, 2**64 - 1, 2**32 - 1)


async def test_effect_of_the_whole_disk_is_fine(peer: Peer) -> None:
    await peer.write(5 * OBJECT, b"x" * OBJECT)
    for command in (nbd.CACHE, TRIM, WRITE_ZEROES):
        await peer.ask(command, 0, SIZE)
    assert await peer.read(5 * OBJECT, 512) == bytes(512)


async def test_read_only_export_refuses_changes_and_shows_it(read_only_peer: Peer) -> None:
    for command in (WRITE, TRIM, WRITE_ZEROES):
        for offset in (0, SIZE, 2**64 - 1):
            assert await refused(read_only_peer, command, offset, 4096) == nbd.EPERM
    await read_only_peer.flush()
    await read_only_peer.ask(nbd.CACHE, 0, SIZE)


@pytest.mark.parametrize("length", [1, 512, 4 * KiB, OBJECT, 256 * KiB, 256 * KiB + 1, 32 * MiB])
@pytest.mark.parametrize("offset", [0, 511])
async def test_write_and_read_of_any_size(
    peer: Peer, store: GatedStore, offset: int, length: int
) -> None:
    data = (bytes(range(251)) * (length // 251 + 1))[:length]
    await peer.write(offset, data)
    assert await peer.read(offset, length) == data
    await peer.flush()
    stored = b"".join(store.part(index) or bytes(OBJECT) for index in range(513))
    assert stored[offset : offset + length] == data


@pytest.mark.parametrize("cookie", [0, 1, 2**63, 2**64 - 1])
async def test_e22_cookie_is_echoed(peer: Peer, cookie: int) -> None:
    peer.request(READ, 0, 4, cookie=cookie)
    assert await peer.reply(4) == (cookie, 0, bytes(4))
    peer.request(99, cookie=cookie)
    assert await peer.reply() == (cookie, nbd.EINVAL, b"")


async def test_e22_identical_cookies_get_one_reply_each(peer: Peer, store: GatedStore) -> None:
    gate = store.gate("get disk.part")
    for index in range(20):
        peer.request(READ, index * OBJECT, 4, cookie=7)
    await gate.reached(16)
    gate.open()
    for _ in range(20):
        assert await peer.reply(4) == (7, 0, bytes(4))


async def test_slow_read_is_overtaken_by_a_hit(peer: Peer, store: GatedStore) -> None:
    await peer.write(0, b"quick")
    gate = store.gate("get disk.part/00000001")
    slow = peer.request(READ, OBJECT, 5)
    await gate.reached()
    quick = peer.request(READ, 0, 5)
    assert await peer.reply(5) == (quick, 0, b"quick")
    gate.open()
    assert await peer.reply(5) == (slow, 0, bytes(5))


@pytest.mark.expects_log("READ 65536.4 flags 0x0 failed: .*503 by script")
async def test_failing_store_is_eio_and_the_next_read_tries_again(
    peer: Peer, store: GatedStore
) -> None:
    store.fail("get disk.part/00000001")
    assert await refused(peer, READ, OBJECT, 4) == nbd.EIO
    store.heal()
    assert await peer.read(OBJECT, 4) == bytes(4)


@pytest.mark.expects_log("WRITE 0.512 flags 0x1 failed: .*503 by script")
@pytest.mark.expects_log("FLUSH 0.0 flags 0x0 failed: .*503 by script")
async def test_failed_write_fails_every_flush_until_it_is_stored(
    peer: Peer, store: GatedStore
) -> None:
    store.fail("put disk.part")
    for command, flags, length, data in [
        (WRITE, nbd.FUA, 512, b"x" * 512),
        (nbd.FLUSH, 0, 0, b""),
        (nbd.FLUSH, 0, 0, b""),
    ]:
        with pytest.raises(NbdError) as caught:
            await peer.ask(command, 0, length, flags=flags, data=data)
        assert caught.value.number == nbd.EIO
    store.heal()
    await peer.flush()
    assert store.part(0) == b"x" * 512 + bytes(OBJECT - 512)


async def test_requests_behind_go_in_the_same_segments_are_served(served: Serving) -> None:
    """More than any loop reads at once, before the reply to GO: our buffer must not overflow."""
    async with await served.connect() as peer:
        await peer.greet()
        count = 20_000
        go = b"IHAVEOPT\0\0\0\7\0\0\0\6" + bytes(6)
        peer.send(go, *(request_bytes(READ, 0, 1, cookie=i) for i in range(count)))
        await peer.replies(nbd.GO)
        answers = await peer.receive(17 * count)
        cookies = {struct.unpack_from(">Q", answers, 17 * i + 8)[0] for i in range(count)}
        assert cookies == set(range(count))
        await peer.disconnect()


async def test_10000_reads_in_one_send_are_all_answered(peer: Peer) -> None:
    count = 10_000
    peer.send(*(request_bytes(READ, i % 5000 * 8, 8, cookie=i) for i in range(count)))
    answers = await peer.receive(24 * count)
    assert {struct.unpack_from(">Q", answers, 24 * i + 8)[0] for i in range(count)} == set(
        range(count)
    )


async def test_one_byte_at_a_time_gives_the_same(served: Serving) -> None:
    async with await served.connect() as peer:
        await peer.greet()
        go = b"IHAVEOPT\0\0\0\7\0\0\0\6" + bytes(6)
        requests = (
            request_bytes(WRITE, 100, 5, cookie=1) + b"bytes"
            + request_bytes(WRITE, 2**63, 5, cookie=2) + b"bytes"
            + request_bytes(nbd.FLUSH, cookie=3)
        )  # fmt: skip
        for data in (go, requests, request_bytes(READ, 99, 7, cookie=4)):
            for byte in data:
                peer.send(bytes([byte]))
                await peer.writer.drain()
            if data is go:
                await peer.replies(nbd.GO)
            elif data is requests:
                replies = {(await peer.reply())[:2] for _ in range(3)}
                assert replies == {(1, 0), (2, nbd.ENOSPC), (3, 0)}
        assert await peer.reply(7) == (4, 0, b"\0bytes\0")
        await peer.disconnect()
