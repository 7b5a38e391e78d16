# SPDX-License-Identifier: MIT
"""Requests that a device takes on without a task: their answers, their order, and their end."""

from collections.abc import Callable, Sequence
from errno import ENOSPC

import pytest

from swiftnbd.api import Buffer, ExportError, Pending
from tests.protocol.test_order import refused_with, replies, write
from tests.support.byte_device import BLOCK, ByteDevice, transmitting
from tests.support.log_watch import Announce
from tests.support.loopback import request_bytes, until
from tests.support.nbd_client import FUA, READ


class LaterDevice(ByteDevice):
    """Does what it has taken on when it is told to. ``begun``: how, by offset."""

    def __init__(self) -> None:
        super().__init__(quick=False)
        self.begun: dict[int, Callable[[], None]] = {}
        self.pending: list[Pending] = []
        self.takes = True

    def read_now(self, offset: int, length: int) -> None:
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        return False

    def read_soon(self, offset: int, length: int, pending: Pending) -> bool:
        return self._take(
            "read_soon", offset, length, pending, lambda: self._pieces(offset, length)
        )

    def write_soon(self, offset: int, data: Buffer, pending: Pending) -> bool:
        return self._take(
            "write_soon", offset, len(data), pending, lambda: self.fill(offset, bytes(data))
        )

    def _take(
        self,
        method: str,
        offset: int,
        length: int,
        pending: Pending,
        work: Callable[[], Sequence[Buffer] | None],
    ) -> bool:
        if self.takes:
            self.calls.append((method, offset, length))
            self.pending.append(pending)
            self.begun[offset] = lambda: pending.done(work() if pending.is_wanted else None)
        return self.takes


async def test_answers_come_in_the_order_in_which_the_device_is_done() -> None:
    device = LaterDevice()
    async with transmitting(device) as direct:
        direct.peer.send(
            write(0, b"data", cookie=1), request_bytes(READ, BLOCK, 4, cookie=2),
            request_bytes(READ, 8, 4, cookie=3),
        )  # fmt: skip
        await until(lambda: len(device.calls) == 3)
        for offset, cookie in (BLOCK, 2), (8, 3), (0, 1):
            device.begun[offset]()
            assert list(await replies(direct, 1)) == [cookie]
        assert not direct.transmission.at_work
    assert device.image()[:4] == b"data"
    assert (direct.counters.client_in, direct.counters.client_out) == (4, 8)
    assert direct.counters.requests == {"READ": 2, "WRITE": 1}


async def test_what_would_overtake_a_task_becomes_one() -> None:
    """And what touches no byte of it is taken on at once."""
    device = LaterDevice()
    async with transmitting(device) as direct:
        device.gate.clear()
        direct.peer.send(
            write(0, b"first", FUA, cookie=1), write(2, b"second", cookie=2),
            write(BLOCK, b"other", cookie=3),
        )  # fmt: skip
        await until(lambda: len(device.calls) == 3)
        assert device.calls == [
            ("write_soon", BLOCK, 5), ("write fua", 0, 5), ("write", 2, 6)
        ]  # fmt: skip
        device.begun[BLOCK]()
        device.gate.set()
        await replies(direct, 3)
        assert device.image()[:8] == b"fisecond"


async def test_flags_and_what_is_declined_are_tasks() -> None:
    device = LaterDevice()
    async with transmitting(device) as direct:
        direct.peer.send(write(0, b"data", FUA))
        await replies(direct, 1)
        device.takes = False
        direct.peer.send(write(0, b"Data", cookie=1), request_bytes(READ, 0, 4, cookie=2))
        await replies(direct, 2)
        assert [call for call, _, _ in device.calls] == ["write fua", "write", "read"]


@pytest.mark.parametrize(
    ("error", "told", "said"),
    [
        (ExportError(ENOSPC, "it is full"), ENOSPC, "failed: it is full$"),
        (ZeroDivisionError(), 5, "failed\nZeroDivisionError$"),
        (None, 5, r"failed\n(.*\n)*AssertionError: the device gave other bytes"),
    ],
)
async def test_failure_is_told_to_the_client_and_the_log(
    error: Exception | None, told: int, said: str, expects_log: Announce
) -> None:
    expects_log(r"client disk: READ 0\+4 flags 0x0 " + said)
    device = LaterDevice()
    async with transmitting(device) as direct:
        direct.peer.send(request_bytes(READ, 0, 4))
        await until(lambda: bool(device.pending))
        device.pending[0].done([b"longer"], error)
        (chunks,) = (await replies(direct, 1)).values()
        assert refused_with(chunks, told)
    assert direct.counters.errors == {"READ": 1}


async def test_connection_that_is_gone_waits_for_what_the_device_has_taken_on() -> None:
    """And tells it that nobody wants that any more; its bytes come back only then."""
    device = LaterDevice()
    async with transmitting(device) as direct:
        direct.peer.send(write(0, b"data"), request_bytes(READ, BLOCK, 4))
        await until(lambda: len(device.pending) == 2)
        direct.transmission.abort()
        await until(lambda: not any(pending.is_wanted for pending in device.pending))
        device.begun[0]()
        assert not direct.transmission.ended.is_set()
        device.begun[BLOCK]()
        await until(direct.transmission.ended.is_set)
    assert device.image()[:4] == bytes(4)


async def test_end_waits_for_what_the_device_has_taken_on() -> None:
    device = LaterDevice()
    async with transmitting(device) as direct:
        direct.peer.send(write(0, b"data", cookie=7))
        await until(lambda: bool(device.pending))
        direct.transmission.shut_down()
        assert not direct.transmission.is_leaving
        device.begun[0]()
        assert list(await replies(direct, 1)) == [7]
        assert await direct.peer.closed_by_server()
    assert device.image()[:4] == b"data"


async def test_no_more_is_taken_on_than_may_be_at_work() -> None:
    device = LaterDevice()
    async with transmitting(device) as direct:
        direct.peer.send(*(request_bytes(READ, 0, 1, cookie=n) for n in range(300)))
        await until(lambda: len(device.pending) == 256)
        device.pending[9].done([b"x"])
        assert list(await replies(direct, 1)) == [9]
        await until(lambda: len(device.pending) == 257)
        assert len(direct.transmission.at_work) == 256
        for pending in device.pending[:9] + device.pending[10:]:
            pending.done([b"x"])
        await until(lambda: len(device.pending) == 300)
        for pending in device.pending[257:]:
            pending.done([b"x"])
        await replies(direct, 299)
