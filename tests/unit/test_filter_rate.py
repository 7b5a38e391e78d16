# SPDX-License-Identifier: MIT
"""The rate filter, on a clock that only sleeping moves."""

import asyncio
import os
from pathlib import Path

import pytest

from swiftnbd.api import Client, Opening
from swiftnbd.api.ending import ENDING
from swiftnbd.filters import rate
from swiftnbd.filters.rate import Bucket, Rate, RateFilter, Source
from tests.support.byte_device import ByteDevice
from tests.support.log_watch import Announce

_sleep = asyncio.sleep


class Clock:
    """Shows the time that has been slept; those who sleep wake in order."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sleeping = 0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        self.sleeping += 1
        try:
            while self.now < end - 1e-9:
                await _sleep(0)
        finally:
            self.sleeping -= 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rate, "monotonic", clock)
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    return clock


async def after(clock: Clock, seconds: float) -> None:
    """Move the clock in small steps, and let everybody do what is due."""
    end = clock.now + seconds
    while clock.now < end - 1e-9:
        await turns()
        clock.now += min(0.05, end - clock.now)
    await turns()


async def turns() -> None:
    for _ in range(5):
        await _sleep(0)


def bucket(bits: int, clock: Clock, burst: float = 1.0, file: Path | None = None) -> Bucket:
    return Bucket(Source(bits, file), burst, clock)


async def test_bytes_pass_at_the_rate_after_a_burst(clock: Clock) -> None:
    tested, passed = bucket(8000, clock), list[float]()  # 1000 bytes a second

    async def one() -> None:
        await tested.take(500)
        passed.append(clock.now)

    tasks = [asyncio.create_task(one()) for _ in range(6)]
    await after(clock, 4)
    await asyncio.gather(*tasks)
    assert passed == pytest.approx([100, 100, 100.5, 101, 101.5, 102], abs=0.05)


async def test_rest_is_worth_no_more_than_the_burst(clock: Clock) -> None:
    tested = bucket(8000, clock)
    clock.now += 3600
    assert tested.has(1000)
    assert not tested.has(1001)
    tested.pay(1000)
    assert not tested.has(1)
    clock.now += 0.1
    assert tested.has(99)


async def test_request_larger_than_the_burst_takes_its_time(clock: Clock) -> None:
    tested = bucket(8000, clock)
    task = asyncio.create_task(tested.take(3000))
    await after(clock, 1.9)
    assert not task.done()
    assert not tested.has(1)  # nor does a small one go before it
    await after(clock, 0.2)
    assert task.done()


async def test_request_that_is_given_up_is_not_paid_for(clock: Clock) -> None:
    tested = bucket(8000, clock)
    tested.pay(1000)
    first = asyncio.create_task(tested.take(100_000))
    second = asyncio.create_task(tested.take(1000))
    await after(clock, 0.1)
    first.cancel()
    await after(clock, 1)
    assert first.cancelled()
    assert second.done()


async def test_file_changes_the_rate_of_those_that_wait(
    clock: Clock, tmp_path: Path, expects_log: Announce
) -> None:
    file = tmp_path / "rate"
    tested = bucket(8, clock, file=file)  # a byte a second
    task = asyncio.create_task(tested.take(1000))
    await after(clock, 3)
    assert not task.done()
    file.write_text("1M\n")
    await after(clock, 2.5)
    assert task.done()
    expects_log("the rate stays 1048576 bit/s: .*rate: 'fast' is not a size")
    file.write_text("fast")
    await after(clock, 3)
    assert not tested.has(1 << 20)
    file.unlink()
    await after(clock, 3)
    assert not tested.has(1 << 20)
    file.write_text("0")
    await after(clock, 2)
    assert tested.has(1 << 40)
    file.write_text("8")
    tested.has(1)
    await after(clock, 2)
    assert not tested.has(1000)


async def test_pipe_instead_of_a_file_stops_nobody(
    clock: Clock, tmp_path: Path, expects_log: Announce
) -> None:

    os.mkfifo(tmp_path / "pipe")
    expects_log("the rate stays 8 bit/s")
    assert bucket(8, clock, file=tmp_path / "pipe").has(1)


def opening(identity: str) -> Opening:
    return Opening("disk", client=Client(identity, "host", 1))


async def test_limits_are_for_all_for_a_client_and_for_a_connection(clock: Clock) -> None:
    made = Rate(rate=8 * 4000, client_rate=8 * 2000, connection_rate=8 * 1000, burstiness=1)
    one, two, other = [
        await made.wrap(ByteDevice(), opening(identity)) for identity in ("one", "one", "other")
    ]
    assert one.read_now(0, 1000)
    assert one.read_now(0, 1) is None  # the connection's
    assert two.read_now(0, 900)
    assert two.read_now(0, 101) is None  # not the client's, but its own
    assert other.write_now(0, bytes(1000))  # the other direction is a limit of its own
    assert other.read_now(0, 1000)
    clock.now += 0.5
    tasks = [asyncio.create_task(one.read(0, 500)), asyncio.create_task(other.write(0, b"x"))]
    await after(clock, 0.01)
    assert all(task.done() for task in tasks)
    for each in (one, two, other):
        await each.close()
    assert not made._state.clients  # what clients were does not pile up


async def test_device_that_declines_is_not_paid_for(clock: Clock) -> None:
    device = ByteDevice(quick=False)
    made = await Rate(rate=8 * 1000, burstiness=1).wrap(device, opening("one"))
    for _ in range(5):
        assert made.read_now(0, 1000) is None
        assert not made.write_now(0, bytes(1000))
    assert device.calls
    device.quick = True
    assert made.read_now(0, 1000)


async def test_rate_that_limits_nothing_costs_nothing() -> None:
    device = ByteDevice()
    assert await Rate().wrap(device, opening("one")) is device


async def test_waiting_request_of_a_gone_client_reaches_no_device(clock: Clock) -> None:
    device = ByteDevice()
    made = await Rate(rate=8, burstiness=1).wrap(device, opening("one"))
    assert isinstance(made, RateFilter)
    task = asyncio.create_task(made.write(0, bytes(1000)))
    await turns()
    assert clock.sleeping
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert device.calls == []


async def test_what_waits_passes_when_the_server_ends(clock: Clock) -> None:
    tested = bucket(8, clock)
    task = asyncio.create_task(tested.take(100_000))
    await after(clock, 1)
    assert not task.done()
    ENDING.begin(print)
    try:
        await after(clock, 1.5)
        assert task.done()
    finally:
        ENDING.is_over()
