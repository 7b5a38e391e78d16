# SPDX-License-Identifier: MIT
"""The device gets requests on the same bytes as they came; late ones are told of the end (A11)."""

import asyncio

import pytest

from swiftnbd.metrics import Counters
from swiftnbd.protocol.replies import SimpleReplies
from swiftnbd.protocol.requests import Request
from swiftnbd.server import transmission as transmission_module
from swiftnbd.server.budget import Budget, Share
from swiftnbd.server.outbox import Outbox
from swiftnbd.server.perform import AtWork
from tests.support import nbd_client as nbd
from tests.support.byte_device import BLOCK, PLAIN, ByteDevice, Direct, transmitting
from tests.support.loopback import request_bytes, until
from tests.support.nbd_client import FUA, READ, TRIM, WRITE, WRITE_ZEROES, Chunk

FAR = 40 * BLOCK  # no other request touches these bytes


def write(offset: int, data: bytes, flags: int = 0, cookie: int = 0) -> bytes:
    return request_bytes(WRITE, offset, len(data), flags=flags, cookie=cookie) + data


async def replies(direct: Direct, count: int) -> dict[int, list[Chunk]]:
    """So many replies, by cookie."""
    found = [await direct.peer.chunks() for _ in range(count)]
    return {chunks[0].cookie: chunks for chunks in found}


def refused_with(chunks: list[Chunk], number: int) -> bool:
    return len(chunks) == 1 and chunks[0].error is not None and chunks[0].error.number == number


# Order


@pytest.mark.parametrize("first", [WRITE, WRITE_ZEROES, TRIM, READ])
async def test_nothing_overtakes_an_earlier_request_on_the_same_bytes(first: int) -> None:
    """Acceptance row A11: what could be done at once waits its turn behind a task."""
    device = ByteDevice()
    earlier = write(1000, b"1" * 200, FUA) if first == WRITE else request_bytes(
        first, 1000, 200, flags=FUA
    )  # fmt: skip
    async with transmitting(device) as direct:
        direct.peer.send(
            earlier,
            write(1199, b"2"),
            request_bytes(READ, 1199, 1),
            write(900, b"3" * 100),
            write(1200, b"4"),
            request_bytes(READ, FAR, 1),
        )
        for _ in range(6):
            await direct.peer.chunks()
    at_once = [("write_now", 900, 100), ("write_now", 1200, 1), ("read_now", FAR, 1)]
    assert device.calls[:3] == at_once
    begun = [(length, offset) for _, offset, length in device.calls[3:]]
    assert begun == [(200, 1000), (1, 1199), (1, 1199)]
    assert [method.split()[0] for method, _, _ in device.calls[4:]] == ["write", "read"]


async def test_writes_of_one_connection_reach_the_device_in_their_order() -> None:
    """Acceptance row A11: those with FUA are tasks, the others might be done at once."""
    device = ByteDevice()
    count = 200
    async with transmitting(device) as direct:
        direct.peer.send(*(write(0, b"%03d" % i, FUA * (i % 3 == 0)) for i in range(count)))
        for _ in range(count):
            await direct.peer.chunks()
    assert device.image()[:3] == b"199"


async def test_once_a_task_has_begun_later_requests_are_done_at_once_again() -> None:
    """What overlapping requests at work together come to is the device's affair."""
    device = ByteDevice()
    async with transmitting(device) as direct:
        device.gate.clear()
        direct.peer.request(WRITE, 0, 4, flags=FUA, data=b"slow")
        await until(lambda: bool(device.calls))
        direct.peer.request(WRITE, 0, 4, data=b"fast")
        await direct.peer.chunks()
        assert device.calls == [("write fua", 0, 4), ("write_now", 0, 4)]
        device.gate.set()
        await direct.peer.chunks()


async def test_large_payload_does_not_overtake_either() -> None:
    device = ByteDevice(256)
    length = 600 * 1024
    async with transmitting(device) as direct:
        direct.peer.send(
            write(0, b"1" * length), write(0, b"2", FUA), write(0, b"3" * length),
            write(5, b"4", FUA),
        )  # fmt: skip
        for _ in range(4):
            await direct.peer.chunks()
    assert device.image()[:7] == b"3333343"


async def test_request_that_is_cancelled_before_it_began_gives_its_bytes_back() -> None:
    budget = Budget(10 * BLOCK)
    share = Share(budget, 10 * BLOCK, BLOCK, lambda: None)
    device = ByteDevice()
    worked: list[int] = []
    at_work = AtWork(
        device, SimpleReplies(), Outbox(share), share, Counters(), "", lambda: worked.append(1)
    )
    assert share.take(2 * BLOCK)
    at_work.begin(Request(READ, 0, 1, 0, 2 * BLOCK), b"")
    await at_work.cancel()
    assert (share.held, budget.left) == (0, budget.limit)
    assert (device.calls, len(at_work), worked) == ([], 0, [1])


# The end


@pytest.fixture
def device() -> ByteDevice:
    return ByteDevice(256)


async def at_work(direct: Direct, device: ByteDevice) -> None:
    """One request at work, with the cookie 1, until the gate opens."""
    device.gate.clear()
    direct.peer.send(write(0, b"early", FUA, cookie=1))
    await until(lambda: bool(device.calls))


async def test_request_after_the_end_began_gets_eshutdown(device: ByteDevice) -> None:
    """Acceptance row A6.25: those at work are finished, then the connection closes."""
    async with transmitting(device) as direct:
        await at_work(direct, device)
        direct.transmission.shut_down()
        late = [
            request_bytes(READ, 0, 4, cookie=2),
            request_bytes(READ, 0, 4, flags=FUA, cookie=3),
            request_bytes(READ, 0, 0, cookie=4),
            write(0, b"late", cookie=5),
            write(0, b"late" * 100_000, cookie=6),
            request_bytes(nbd.FLUSH, cookie=7),
            request_bytes(TRIM, 0, BLOCK, cookie=8),
            request_bytes(nbd.BLOCK_STATUS, 0, BLOCK, cookie=9),
            request_bytes(99, 0, BLOCK, cookie=10),
        ]
        direct.peer.send(*late)
        for cookie, chunks in (await replies(direct, len(late))).items():
            assert refused_with(chunks, nbd.ESHUTDOWN), cookie
            assert chunks[0].error is not None
            assert chunks[0].error.text == "the server is shutting down"
        device.gate.set()
        assert await replies(direct, 1) == {1: [Chunk(-1, 1, bytes(4))]}
        assert await direct.peer.closed_by_server()
    assert device.image()[:5] == b"early"
    assert device.calls == [("write fua", 0, 5)]


async def test_late_request_gets_eshutdown_in_a_simple_reply_too(device: ByteDevice) -> None:
    async with transmitting(device, PLAIN, frozenset()) as direct:
        await at_work(direct, device)
        direct.transmission.shut_down()
        direct.peer.send(request_bytes(READ, 0, 4, cookie=2))
        assert await direct.peer.reply(4) == (2, nbd.ESHUTDOWN, b"")
        device.gate.set()
        assert await direct.peer.reply() == (1, 0, b"")
        assert await direct.peer.closed_by_server()


async def test_requests_that_waited_for_room_get_eshutdown(
    device: ByteDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transmission_module, "REQUESTS_AT_WORK_MAX", 1)
    async with transmitting(device) as direct:
        await at_work(direct, device)
        direct.peer.send(write(BLOCK, b"wait", FUA, 2), write(BLOCK, b"wait", FUA, 3))
        await until(lambda: not direct.transmission._reading)
        direct.transmission.shut_down()
        found = await replies(direct, 2)
        assert refused_with(found[2], nbd.ESHUTDOWN)
        assert refused_with(found[3], nbd.ESHUTDOWN)
        device.gate.set()
        assert await replies(direct, 1) == {1: [Chunk(-1, 1, bytes(4))]}
        assert await direct.peer.closed_by_server()


async def test_payload_that_is_complete_too_late_gets_eshutdown(device: ByteDevice) -> None:
    async with transmitting(device) as direct:
        await at_work(direct, device)
        late = write(0, b"late" * 100_000, cookie=2)
        direct.peer.send(late[:-1])
        await until(lambda: (direct.transmission.progress() or (0,))[0] == 399_999)
        direct.transmission.shut_down()
        direct.peer.send(late[-1:])
        assert refused_with((await replies(direct, 1))[2], nbd.ESHUTDOWN)
        device.gate.set()
        await direct.peer.chunks()
        assert await direct.peer.closed_by_server()
    assert device.image()[:8] == b"early\0\0\0"


async def test_disc_after_the_end_began_closes_when_all_is_answered(device: ByteDevice) -> None:
    """Acceptance rows A6.18, E23."""
    async with transmitting(device) as direct:
        await at_work(direct, device)
        direct.transmission.shut_down()
        direct.peer.send(request_bytes(nbd.DISC), request_bytes(READ, 0, 4, cookie=2))
        await until(lambda: direct.transmission._ending)
        device.gate.set()
        assert await replies(direct, 1) == {1: [Chunk(-1, 1, bytes(4))]}
        assert await direct.peer.closed_by_server()


@pytest.mark.parametrize("start", [b"", write(0, b"half")[:-1], write(0, bytes(500_000))[:-1]])
async def test_connection_with_nothing_at_work_closes_at_once(
    device: ByteDevice, start: bytes
) -> None:
    async with transmitting(device) as direct:
        direct.peer.send(start)
        await direct.peer.writer.drain()
        await asyncio.sleep(0)
        direct.transmission.shut_down()
        await direct.peer.ended()
    assert device.calls == []
