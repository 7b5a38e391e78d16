# SPDX-License-Identifier: MIT
"""Every request ends, however small the cache is and whoever else keeps it busy.

Time is counted in operations of the store: what a request waits for has a bound that depends on
those who are there with it, not on how long they go on.
"""

import asyncio
import random
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from swiftnbd.errors import StoreFull, SwiftnbdError
from tests.support.disks import SIZE, Disk, a_disk, begin, caching, name
from tests.support.faulty import Call, Fault, Gate

LITTLE = 64  # bytes of a small request
OPERATIONS_MAX = 20_000  # of a test: whoever has not been served by then never will be
SECONDS_MAX = 60.0
SHARES = {"large read": 2, "large write": 2, "zero": 2, "trim": 2, "prefetch": 4}  # of the disk
KINDS = ("read", "write", "durable write", "flush", *SHARES)


class Delay(Gate):
    """So many turns of the event loop."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns = turns

    async def pass_through(self) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)


@dataclass
class Crowd:
    """Clients of a full ``disk`` who ask again as soon as they are answered; drawn from a seed.

    ``longest``: how many operations of the store began during the longest request of each kind.
    ``asked``: how many at all. Object ``sick`` cannot be stored.
    """

    disk: Disk
    random: random.Random
    sick: int | None = None
    longest: dict[str, int] = field(default_factory=dict)
    asked: int = 0

    def __post_init__(self) -> None:
        for index in range(self.disk.objects):
            self.disk.put(index, bytes([index % 255 + 1]) * self.disk.object_size)
        self.disk.store.plan = self._plan

    def _plan(self, call: Call) -> Fault:
        """Each operation of the store takes a while."""
        self.asked += 1
        assert self.asked < OPERATIONS_MAX, f"somebody waits for ever: {self.longest}"
        is_sick = call.op in ("put", "delete") and self.sick is not None
        error = StoreFull("no") if is_sick and call.name == name(self.sick or 0) else None
        return Fault(before=Delay(self.random.randrange(12)), error=error)

    async def _ask(self, kind: str) -> None:
        before = self.asked
        try:
            await self._request(kind)
        except SwiftnbdError:
            assert self.sick is not None
        self.longest[kind] = max(self.longest.get(kind, 0), self.asked - before)
        await asyncio.sleep(0)  # the next one comes through a socket

    def _request(self, kind: str) -> Awaitable[object]:
        device = self.disk.device
        length = device.size // SHARES[kind] if kind in SHARES else LITTLE
        offset = self.random.randrange((device.size - length) // LITTLE + 1) * LITTLE
        match kind:
            case "read" | "large read":
                return device.read(offset, length)
            case "write" | "large write" | "durable write":
                data = self.random.randbytes(1) * length
                return device.write(offset, data, fua=kind == "durable write")
            case "zero":
                return device.zero(offset, length)
            case "trim":
                return device.trim(offset, length)
            case "prefetch":
                return device.prefetch(offset, length)
        return device.flush()

    async def run(self, kinds: Sequence[str], *, others: Sequence[str], times: int) -> None:
        """So many requests of each of ``kinds``, beside ``others`` who go on until they ended."""

        async def finite(kind: str) -> None:
            for _ in range(times):
                await self._ask(kind)

        async def endless(kind: str) -> None:
            while not all(task.done() for task in tasks):
                await self._ask(kind)

        tasks = [begin(finite(kind)) for kind in kinds]
        async with asyncio.timeout(SECONDS_MAX):
            await asyncio.gather(*tasks, *map(endless, others))
            self.sick = None
            with suppress(SwiftnbdError):  # what was under way
                await self.disk.device.flush()
            await self.disk.device.flush()


@pytest.mark.parametrize(("kind", "others"), [("write", "read"), ("read", "write")])
async def test_request_is_served_while_others_want_more_than_the_cache_holds(
    kind: str, others: str
) -> None:
    """Whoever reads next must not get each block that becomes free, nor whoever writes next."""
    async with a_disk(2000) as disk:
        crowd = Crowd(disk, random.Random(1))
        await crowd.run([kind], others=[others] * 16, times=5)
        assert crowd.longest[kind] < 100


@pytest.mark.parametrize("kind", ["zero", "trim"])
async def test_zeros_all_over_many_objects_do_not_wait_for_all_writers_at_each(kind: str) -> None:
    async with a_disk(64) as disk:
        crowd = Crowd(disk, random.Random(1))
        await crowd.run([kind], others=["large write"] * 8, times=2)
        assert crowd.longest[kind] < 64 * 8 * 3  # the edges of the range wait, too


@pytest.mark.parametrize("seed", range(16))
async def test_every_request_ends_in_a_bounded_time(seed: int) -> None:
    """In any company. A request may wait for each of the others twice, and has parts that do."""
    draw = random.Random(seed)
    cached, per_object = draw.choice([4, 5, 8, 16]), draw.choice([1, 1, 4])
    settings = caching(
        cached,
        block_bytes=SIZE // per_object,
        dirty_bytes=draw.choice([None, 0, 4 * SIZE]),
        requests=draw.choice([1, 4, 16]),
    )
    async with a_disk(24, settings=settings) as disk:
        crowd = Crowd(disk, draw, sick=draw.choice([None, None, 3]))
        kinds = draw.choices(KINDS, k=draw.randrange(2, 16))
        others = draw.choices(KINDS, k=draw.randrange(8))
        await crowd.run(kinds, others=others, times=2)
        clients = len(kinds) + len(others)
        assert max(crowd.longest.values()) < 24 * per_object * 3 * (clients + 1) * 2
