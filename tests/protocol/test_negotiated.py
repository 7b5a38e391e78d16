# SPDX-License-Identifier: MIT
"""What a client agrees on with a whole server, and what its requests are answered then."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from swiftnbd.server.config import ServerConfig, TcpAddress
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
    soon,
)
from tests.support.nbd_client import (
    EINVAL,
    NbdClient,
    NbdError,
    Refused,
    content_of,
    context_query,
)

OBJECT = 65536
SIZE = 16 * OBJECT
ALLOCATION = b"base:allocation"
FLAGS, DF_FLAG = 0x0D6D, 0x80


async def set_up(*names: str) -> list[GatedStore]:
    stores = [GatedStore(name) for name in names]
    for store in stores:
        await store.set_up()
    return stores


def config(**options: Any) -> ServerConfig:
    return ServerConfig((TcpAddress(port=0),), **options)


@pytest.fixture
async def served() -> AsyncIterator[Serving]:
    async with serving(*exports_of(*await set_up("disk"))) as served:
        yield served


async def structured(served: Serving, flags: int = 3) -> Peer:
    """A client that has structured replies."""
    peer = await served.greeted(flags=flags)
    assert await peer.option(nbd.STRUCTURED_REPLY) == [(nbd.ACK, b"")]
    return peer


async def select(peer: Peer, name: bytes, *queries: bytes) -> list[tuple[int, bytes]]:
    return await peer.option(nbd.SET_META_CONTEXT, context_query(name, *queries))


SELECTED = [(nbd.META_CONTEXT, b"\0\0\0\1" + ALLOCATION), (nbd.ACK, b"")]


# Flags


@pytest.mark.parametrize("wanted", [(), (nbd.INFO_BLOCK_SIZE, nbd.INFO_NAME)])
async def test_df_is_announced_with_structured_replies_only(
    served: Serving, wanted: tuple[int, ...]
) -> None:
    """Acceptance rows A2.15, A5: INFO and GO say the same, before and after."""
    async with await served.greeted() as peer:
        plain = await peer.go(b"disk", *wanted, option=nbd.INFO)
        assert plain[nbd.INFO_EXPORT] == struct.pack(">QH", SIZE, FLAGS)
        await peer.option(nbd.STRUCTURED_REPLY)
        more = await peer.go(b"disk", *wanted, option=nbd.INFO)
        assert more == plain | {nbd.INFO_EXPORT: struct.pack(">QH", SIZE, FLAGS | DF_FLAG)}
        assert await peer.go(b"disk", *wanted) == more
        await peer.disconnect()


async def test_df_is_announced_for_a_read_only_export_too() -> None:
    export = exports_of(*await set_up("disk"), read_only=True)
    async with serving(*export) as served, await structured(served) as peer:
        assert (await peer.go())[nbd.INFO_EXPORT] == struct.pack(">QH", SIZE, 0x0507 | DF_FLAG)
        (chunk,) = await peer.ask_chunks(nbd.WRITE, 0, 4, data=b"data")
        assert chunk.error is not None
        assert chunk.error.number == nbd.EPERM
        await peer.disconnect()


async def test_export_name_after_structured_replies_and_contexts(served: Serving) -> None:
    """Acceptance rows A2.1, A2.21: old clients never do it, but they may."""
    async with await structured(served) as peer:
        assert await select(peer, b"disk", ALLOCATION) == SELECTED
        peer.send(option_bytes(nbd.EXPORT_NAME, b"disk"))
        assert await peer.receive(10) == struct.pack(">QH", SIZE, FLAGS | DF_FLAG)
        chunks = await peer.ask_chunks(nbd.READ, 0, 512)
        assert content_of(chunks, 0, 512) == bytes(512)
        (chunk,) = await peer.ask_chunks(nbd.BLOCK_STATUS, 0, SIZE)
        assert sum(length for length, _ in chunk.extents) == SIZE
        await peer.disconnect()


async def test_replies_do_not_wait_for_more(served: Serving) -> None:
    """Acceptance row A1.11."""
    async with await structured(served) as peer:
        await peer.go()
        (connection,) = served.server._transmissions
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await peer.disconnect()


# Contexts


async def test_contexts_of_another_export_are_not_taken_along() -> None:
    """Acceptance rows A2.23, E7."""
    async with serving(*exports_of(*await set_up("one", "two"))) as served:
        async with await structured(served) as peer:
            assert await select(peer, b"one", ALLOCATION) == SELECTED
            await peer.go(b"one", option=nbd.INFO)
            await peer.go(b"two")
            (chunk,) = await peer.ask_chunks(nbd.BLOCK_STATUS, 0, 512)
            assert chunk.error is not None
            assert chunk.error.number == EINVAL
            await peer.disconnect()
        await served.check_full_service(b"one")
        await served.check_full_service(b"two")


@pytest.mark.expects_log("refused 'other': export 'other' does not exist")
@pytest.mark.parametrize("option", [nbd.LIST_META_CONTEXT, nbd.SET_META_CONTEXT])
async def test_contexts_of_an_unknown_export_are_unknown(served: Serving, option: int) -> None:
    async with await structured(served) as peer:
        ((kind, text),) = await peer.option(option, context_query(b"other", ALLOCATION))
        assert (kind, text) == (nbd.ERR_UNKNOWN, b"export 'other' does not exist")
        await peer.abort()


@pytest.mark.expects_log("does not exist")
@pytest.mark.parametrize("option", [nbd.LIST_META_CONTEXT, nbd.SET_META_CONTEXT])
async def test_e3_name_of_4096_bytes_is_refused_with_a_short_text(
    served: Serving, option: int
) -> None:
    async with await structured(served) as peer:
        ((kind, text),) = await peer.option(option, context_query(b"n" * 4096, ALLOCATION))
        assert kind == nbd.ERR_UNKNOWN
        assert len(text) < 300
        await peer.abort()
    await served.check_full_service()


# What a server may leave out


async def test_listing_can_be_switched_off() -> None:
    """Acceptance row A2.7: whoever knows the name is served."""
    exports = exports_of(*await set_up("disk"))
    async with serving(*exports, config=config(list_exports=False)) as served:
        async with await served.greeted() as peer:
            ((kind, _),) = await peer.option(nbd.LIST)
            assert kind == nbd.ERR_POLICY
            await peer.abort()
        await served.check_full_service(b"disk")


async def test_structured_replies_can_be_switched_off() -> None:
    exports = exports_of(*await set_up("disk"))
    async with serving(*exports, config=config(structured_replies=False)) as served:
        async with await served.greeted() as peer:
            for option, data in [
                (nbd.STRUCTURED_REPLY, b""),
                (nbd.SET_META_CONTEXT, context_query(b"disk", ALLOCATION)),
            ]:
                ((kind, _),) = await peer.option(option, data)
                assert kind == nbd.ERR_UNSUP
            assert (await peer.go())[nbd.INFO_EXPORT] == struct.pack(">QH", SIZE, FLAGS)
            assert await peer.read(0, 512) == bytes(512)
            await peer.disconnect()
        await served.check_full_service()


@pytest.mark.parametrize(
    ("mask", "offered"), [(0xFFFF, 3), (3, 3), (0xFFFE, 2), (1, 1), (0, 0), (0xFF00, 0)]
)
async def test_handshake_flags_can_be_masked(mask: int, offered: int) -> None:
    """Acceptance rows A1.1, A1.3, A1.4: a client falls back to what is offered."""
    exports = exports_of(*await set_up("disk"))
    async with serving(*exports, config=config(mask_handshake=mask)) as served:
        async with await served.connect() as peer:
            assert await peer.receive(18) == b"NBDMAGICIHAVEOPT" + offered.to_bytes(2)
            peer.send(offered.to_bytes(4), option_bytes(nbd.EXPORT_NAME, b"disk"))
            answer = await peer.receive(10 if offered & 2 else 134)
            assert answer == struct.pack(">QH", SIZE, FLAGS) + bytes(len(answer) - 10)
            await peer.disconnect()
        if offered != 3:
            async with await served.connect() as peer:
                await peer.receive(18)
                peer.send(b"\0\0\0\3")
                assert await peer.closed_by_server()
        await served.idle()


# Names


@pytest.mark.parametrize("option", [nbd.INFO, nbd.GO])
async def test_empty_name_is_the_configured_default(option: int) -> None:
    """Acceptance row A2.3."""
    exports = exports_of(*await set_up("one", "two"))
    async with serving(*exports, config=config(default_export="two")) as served:
        async with await structured(served) as peer:
            assert await select(peer, b"", ALLOCATION) == SELECTED
            info = await peer.go(b"", nbd.INFO_NAME, option=option)
            assert info[nbd.INFO_NAME] == b"two"
        await served.check_full_service(b"")


@pytest.mark.expects_log("refused '': export '' does not exist")
async def test_default_export_that_is_not_there_is_unknown() -> None:
    exports = exports_of(*await set_up("disk"))
    async with serving(*exports, config=config(default_export="other")) as served:
        async with await served.greeted() as peer:
            with pytest.raises(Refused) as caught:
                await peer.go(b"")
            assert caught.value.kind == nbd.ERR_UNKNOWN
            await peer.abort()
        await served.check_full_service(b"disk")


@pytest.mark.allows_log("does not exist")
@pytest.mark.parametrize(
    "name", [b"Disk", b"disk ", b" disk", b"disk/", b"./disk", b"%64isk", b"disk\n", b"dis", b"*"]
)
async def test_e24_name_must_match_to_the_letter(served: Serving, name: bytes) -> None:
    async with await served.greeted() as peer:
        for option in (nbd.INFO, nbd.GO):
            with pytest.raises(Refused) as caught:
                await peer.go(name, option=option)
            assert caught.value.kind == nbd.ERR_UNKNOWN
        await peer.abort()


# However the bytes are cut


async def test_one_byte_at_a_time_gives_the_same(served: Serving) -> None:
    conversation = [
        (b"\0\0\0\3", 0),
        (option_bytes(nbd.STRUCTURED_REPLY), 20),
        (option_bytes(nbd.SET_META_CONTEXT, context_query(b"disk", ALLOCATION)), 59),
        (option_bytes(nbd.GO, query_bytes(b"disk")), 52),
        (request_bytes(nbd.WRITE, OBJECT - 2, 4, cookie=1) + b"data", 16),
        (request_bytes(nbd.READ, OBJECT - 2, 4, cookie=2), 32),
        (request_bytes(nbd.READ, SIZE, 1, cookie=3), None),
        (request_bytes(nbd.BLOCK_STATUS, 0, SIZE, flags=nbd.REQ_ONE, cookie=4), 32),
        (request_bytes(nbd.DISC), None),
    ]
    streams = []
    for piece in (1, 1 << 16):
        async with await served.connect() as peer:
            stream = await peer.receive(18)
            for data, length in conversation:
                for start in range(0, len(data), piece):
                    peer.send(data[start : start + piece])
                    await peer.writer.drain()
                if length is not None:  # else the answer comes with the next one's
                    stream += await peer.receive(length)
            streams.append(stream + await peer.ended())
        await served.idle()
    assert streams[0] == streams[1]
    assert b"beyond the end" in streams[0]


async def test_blocking_client_understands_structured_replies(served: Serving) -> None:
    """The client for tests of whole programs, against a server it can look into."""

    def talk() -> None:
        with NbdClient(served.port) as client:
            client.structured_replies()
            assert client.contexts(b"disk", option=nbd.LIST_META_CONTEXT) == [ALLOCATION]
            assert client.contexts(b"disk", ALLOCATION, b"x:y") == [ALLOCATION]
            client.go(b"disk")
            client.write(100, b"data")
            client.flush()
            assert client.read(99, 6) == b"\0data\0"
            assert client.read(0, SIZE, nbd.DF)[100:104] == b"data"
            assert sum(length for length, _ in client.status(0, SIZE)) == SIZE
            with pytest.raises(NbdError, match="beyond the end") as caught:
                client.read(SIZE - 1, 2)
            assert (caught.value.number, caught.value.offset) == (EINVAL, SIZE)
            client.disconnect()

    await soon(asyncio.to_thread(talk))
