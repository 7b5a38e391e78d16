# SPDX-License-Identifier: MIT
"""Stacks of filters by chance, several connections to each, and every byte where it belongs.

A failure prints the stack, what was done last and the command that repeats it. More than what runs
by default, from seeds that nobody has tried: ``tox -e model``, or ``MODEL_SECONDS=600``.
"""

import asyncio
import os
import random
import shutil
import time
from collections import Counter, deque
from dataclasses import dataclass
from errno import ENOTSUP
from pathlib import Path

import pytest

from swiftnbd.api import Client, Device, SwiftnbdError
from swiftnbd.cli.finding import FILTERS, own_names
from swiftnbd.export.device_export import DeviceExport
from tests.model.layers import downwards
from tests.model.stacks import KINDS, Stack, by_chance, luks_start
from tests.support.loopback import soon

SECONDS = float(os.environ.get("MODEL_SECONDS", "0"))
SEED = int(os.environ.get("MODEL_SEED", "1"))
STACKS = int(os.environ.get("MODEL_STACKS", "60"))
STEPS = 25  # of one stack
CONNECTIONS_MAX = 3
LENGTHS = (1, 100, 511, 512, 513, 4095, 4096, 4096, 5000, 12_288, 70_000)
HISTORY = 40  # requests that a failure shows

CLIENT = Client("one", "host", 1)


@dataclass
class Asked:
    """A request that is under way on ``[offset, offset + len(data))``, and what became of it."""

    what: str
    offset: int
    data: bytes  # what is there when it is done
    is_fast: bool = False
    is_cancelled: bool = False
    error: int | None = None

    @property
    def length(self) -> int:
        return len(self.data)

    def __str__(self) -> str:
        flags = " fast" * self.is_fast + " cancelled" * self.is_cancelled
        told = "" if self.error is None else f" failed: {self.error}"
        return f"{self.what}{flags} {self.offset}+{self.length}{told}"


class World:
    """A stack that is served, its connections, and what they must see."""

    def __init__(self, stack: Stack, chance: random.Random) -> None:
        self.stack, self.chance = stack, chance
        self.devices: list[Device] = []
        self.done: deque[object] = deque(maxlen=HISTORY)
        self.is_read_only = chance.random() < 0.1 and "cow-commit=1" not in str(stack)
        self.reached: Counter[str] = Counter()

    async def run(self) -> None:
        await self._start()
        await self._attach()
        for _ in range(STEPS):
            step = self.chance.choices(
                (self._requests, self._alone, self._attach, self._detach, self._look, self._all,
                 self._restart), (14, 4, 2, 2, 1, 1, 1),
            )[0]  # fmt: skip
            await step()
        await self._all()
        await self._stop()

    @property
    def view(self) -> bytearray:
        return self.stack.top.view

    # Its life

    async def _start(self) -> None:
        plugin = await self.stack.start()
        filters = self.stack.filters()
        self.export = DeviceExport("disk", plugin, filters, read_only=self.is_read_only)
        await self.export.load()
        self.done.append("start")

    async def _stop(self) -> None:
        while self.devices:
            await self._detach()
        await self.export.shut_down()
        self.done.append("stop")
        self._emptied(is_whole=True)
        stored = self.stack.stored()
        same(stored if stored is not None else b"", self.stack.model.view if stored else b"", 0)

    async def _restart(self) -> None:
        await self._stop()
        if self.stack.bottom == "data":
            self.stack.model.view[:] = self.stack.model.first
            self._refresh()
        await self._start()

    async def _attach(self) -> None:
        if len(self.devices) < CONNECTIONS_MAX:
            self.devices.append(await self.export.attach(CLIENT))
            self.done.append(f"attach: {len(self.devices)}")
            assert self.devices[-1].size == len(self.view)

    async def _detach(self) -> None:
        if self.devices:
            await self.export.detach(self.devices.pop(self.chance.randrange(len(self.devices))))
            self.done.append(f"detach: {len(self.devices)}")
            if not self.devices:
                self._emptied(is_whole=False)

    async def _look(self) -> None:
        assert (await self.export.look("disk")).size == len(self.view)

    def _emptied(self, *, is_whole: bool) -> None:
        """The last connection has gone, or (``is_whole``) the server."""
        *_, bottom = found = list(downwards(self.stack.top))
        is_own = self.stack.bottom == "own"
        own = {id(bottom)} if is_own else set()
        for layer in reversed(found):
            is_own = is_own or layer.is_own
            own |= {id(layer)} if is_own else set()
        for layer in found:
            if is_whole or id(layer) in own:
                layer.emptied()
        self._refresh()

    def _refresh(self) -> None:
        for layer in reversed(list(downwards(self.stack.top))):
            layer.refresh()

    # Requests

    async def _device(self) -> Device:
        if not self.devices:
            await self._attach()
        return self.chance.choice(self.devices)

    async def _requests(self) -> None:
        """Several at once that have nothing in common, but perhaps blocks."""
        device = await self._device()
        unit, size, chance = device.block_size_min, len(self.view), self.chance
        at = chance.choice((0, chance.randrange(size), max(size - 5000, 0))) // unit * unit
        asked, tasks = list[Asked](), list[asyncio.Task[None]]()
        for _ in range(chance.randrange(1, 7)):
            length = -(-chance.choice(LENGTHS) // unit) * unit
            length = min(length, size - at, device.block_size_max // unit * unit)
            if length <= 0:
                break
            device = await self._device()
            one = self._one(device, at, length)
            self.done.append(one)
            asked.append(one)
            tasks.append(asyncio.create_task(self._ask(device, one)))
            at += length + chance.choice((0, 0, unit, 3000 // unit * unit))
        if chance.random() < 0.3:
            tasks.append(asyncio.create_task(self._distracted(device)))
        if tasks and chance.random() < 0.2:
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            chance.choice(tasks).cancel()
        for failure in await soon(asyncio.gather(*tasks, return_exceptions=True)):
            if failure is not None and not isinstance(failure, asyncio.CancelledError):
                raise failure
        for one, task in zip(asked, tasks, strict=False):
            one.is_cancelled = task.cancelled()
            await self._settle(one)

    async def _alone(self) -> None:
        """One that is to be durable when it is answered."""
        device = await self._device()
        if not device.can_flush:
            return
        await soon(device.flush())
        self.done.append("flush")
        self._check_synced()
        unit, size = device.block_size_min, len(self.view)
        at = self.chance.randrange(size) // unit * unit
        length = min(-(-self.chance.choice(LENGTHS) // unit) * unit, size - at, 32 * 1024)
        one = self._one(device, at, length)
        self.done.append(f"fua {one}")
        if device.can_fua is None:
            return
        await soon(self._ask(device, one, fua=True))
        if one.error is None:
            self._check_synced()
        await self._settle(one)

    def _check_synced(self) -> None:
        disk = self.stack.disk
        if disk is not None and "fuamode=discard" not in str(self.stack):
            assert disk.is_synced, "what was flushed is not durable"

    def _one(self, device: Device, offset: int, length: int) -> Asked:
        what = "read"
        if not device.read_only:
            what = self.chance.choice(
                ("write", "write", "write", "zero", "trim", "same", "read", "extents", "prefetch")
            )
        elif self.chance.random() < 0.4:
            what = self.chance.choice(("extents", "prefetch"))
        if (what == "trim" and not device.can_trim) or (
            what == "prefetch" and not device.can_prefetch
        ):
            what = "read"
        self.reached[what] += 1
        now = bytes(self.view[offset : offset + length])
        data = {"write": self.chance.randbytes(length), "zero": bytes(length)}.get(what, now)
        if what == "same":  # also where that is all that may be written
            what, data = "write", now
        return Asked(what, offset, data, is_fast=what == "zero" and self.chance.random() < 0.2)

    async def _ask(self, device: Device, one: Asked, *, fua: bool = False) -> None:
        """As the server does it."""
        options = {"fua": True} if fua and device.can_fua else {}
        try:
            await self._perform(device, one, options)
            if fua and not options and one.what in ("write", "zero", "trim"):
                await device.flush()
        except (SwiftnbdError, OSError) as error:
            one.error = error.errno

    async def _perform(self, device: Device, one: Asked, options: dict[str, bool]) -> None:
        offset, length = one.offset, one.length
        match one.what:
            case "write":
                if options or not device.write_now(offset, one.data):
                    await device.write(offset, one.data, **options)
            case "zero":
                no_hole = self.chance.random() < 0.3
                one.is_fast = one.is_fast and device.can_fast_zero
                await device.zero(offset, length, no_hole=no_hole, fast=one.is_fast, **options)
            case "trim":
                await device.trim(offset, length, **options)
            case "read":
                pieces = device.read_now(offset, length)
                if pieces is None:
                    pieces = await device.read(offset, length)
                same(b"".join(pieces), one.data, offset)
            case "extents":
                await self._check_extents(device, offset, length)
            case "prefetch":
                await device.prefetch(offset, length)

    async def _check_extents(self, device: Device, offset: int, length: int) -> None:
        """What is a hole, or said to be zeros, is zeros."""
        end = offset + length
        while offset < end:
            count = self.chance.choice((1, 2, 9, 999))
            found = await device.extents(offset, end - offset, count=count)
            assert 0 < len(found) <= count
            for here, is_hole, is_zero in found:
                assert 0 < here <= end - offset
                if is_hole or is_zero:
                    same(bytes(here), self.view[offset : offset + here], offset)
                offset += here

    async def _distracted(self, device: Device) -> None:
        """Block status of all of it, while some of it changes."""
        unit = device.block_size_min
        size = len(self.view) // unit * unit
        for each in await device.extents(0, size, count=self.chance.choice((1, 5, 99))):
            assert each.length > 0
            size -= each.length
        assert size >= 0

    async def _settle(self, one: Asked) -> None:
        """What it did is what it had to do, and is known from now on."""
        if one.what not in ("write", "zero", "trim"):
            assert one.error is None, one
            return
        top = self.stack.top
        refusals = top.refusals(one.offset, one.data, one.what)
        before = top.old(one.offset, one.length)
        if one.error is not None:
            self.reached[f"refused: {one.error}"] += 1
            may_fail = refusals | ({ENOTSUP} if one.is_fast else set())
            assert one.error in may_fail, f"{one}, and not {may_fail or 'done'}"
        elif not one.is_cancelled and one.what != "trim":
            assert not refusals, f"{one} was done, and not refused: {refusals}"
            top.put(one.offset, one.data)
            return
        after = await self._seen(one)
        if one.what == "trim":
            assert top.can_be_trimmed(one.offset, after), f"{one}: made of it what it cannot be"
        elif one.is_cancelled or "luks" in self.stack.names:  # which does it in pieces
            of_two = zip(before, one.data, after, strict=True)
            assert all(new in (old, wanted) for old, wanted, new in of_two), f"{one}: other bytes"
        else:
            same(after, before, one.offset)
        top.put(one.offset, after)

    async def _seen(self, one: Asked) -> bytes:
        device = await self._device()
        return b"".join(await soon(device.read(one.offset, one.length)))

    async def _all(self) -> None:
        """All of the disk, and its block status."""
        device = await self._device()
        unit = device.block_size_min
        size, most = len(self.view) // unit * unit, device.block_size_max // unit * unit
        for at in range(0, size, most):
            here = min(most, size - at)
            data = b"".join(await soon(device.read(at, here)))
            same(data, self.view[at : at + here], at)
        await soon(self._check_extents(device, 0, size))


def same(found: bytes, expected: bytes | bytearray, offset: int) -> None:
    """Without pages of bytes in the message."""
    if found == expected:
        return
    assert len(found) == len(expected), f"{len(found)} bytes at {offset}, not {len(expected)}"
    wrong = [at for at, pair in enumerate(zip(found, expected, strict=True)) if len({*pair}) > 1]
    raise AssertionError(
        f"{len(wrong)} of {len(found)} bytes are wrong from {offset + wrong[0]} to "
        f"{offset + wrong[-1]}: {found[wrong[0] :][:16].hex()}, not "
        f"{bytes(expected[wrong[0] :][:16]).hex()}"
    )


@pytest.fixture(scope="module")
def start() -> tuple[bytes, bytes]:
    return luks_start()


async def explore(number: int, folder: Path, start: tuple[bytes, bytes]) -> Counter[str]:
    """One stack. Raises if any byte is wrong."""
    chance = random.Random(number)
    folder.mkdir()  # noqa: ASYNC240
    world: World | None = None
    stack = by_chance(chance, folder, start)
    try:
        world = World(stack, chance)
        await world.run()
    except BaseException:
        print(f"\n{stack}\n" + "\n".join(map(str, world.done if world else ())))
        print(f"To repeat it: MODEL_SEED={number} MODEL_STACKS=1 python -m pytest {__file__}")
        raise
    finally:
        await stack.site.close()
        shutil.rmtree(folder)
    return world.reached + Counter(stack.names)


@pytest.mark.allows_log("fuamode=discard")
@pytest.mark.allows_log("partition table .* is damaged")
@pytest.mark.timeout(0 if SECONDS else 120)
async def test_every_byte_is_right_through_any_stack(
    tmp_path: Path, start: tuple[bytes, bytes]
) -> None:
    end = time.monotonic() + SECONDS
    number, count = SEED, 0
    reached: Counter[str] = Counter()
    while count < STACKS or time.monotonic() < end:
        reached += await explore(number, tmp_path / str(number), start)
        count += 1
        number = random.randrange(1 << 32) if SECONDS else number + 1
    print(f"\n{count} stacks: {dict(reached)}")


def test_all_filters_are_among_them() -> None:
    assert {*own_names(FILTERS)} <= {*KINDS} | {"error"}
