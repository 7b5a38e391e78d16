# SPDX-License-Identifier: MIT
import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from swiftnbd.export.turnstile import Turnstile
from tests.support.disks import SIZE, Disk, a_disk

CROWD = 20
ROUNDS_MAX = 100_000


async def passed_per_turn(tasks: list[asyncio.Task[None]]) -> list[int]:
    """How many ended in each turn of the event loop, until all have."""
    counts: list[int] = []
    before = 0
    while before < len(tasks):
        assert len(counts) < ROUNDS_MAX
        await asyncio.sleep(0)
        done = sum(task.done() for task in tasks)
        counts.append(done - before)
        before = done
    return counts


async def test_one_goes_through_in_each_turn_in_order() -> None:
    turnstile = Turnstile()
    order: list[int] = []

    async def work(number: int) -> None:
        await turnstile.passing()
        order.append(number)

    counts = await passed_per_turn([asyncio.create_task(work(each)) for each in range(CROWD)])
    assert max(counts) == 1
    assert order == [*range(CROWD)]


async def test_nobody_waits_who_comes_alone() -> None:
    turnstile = Turnstile()
    with pytest.raises(StopIteration):
        turnstile.passing().send(None)
    await asyncio.sleep(0)
    with pytest.raises(StopIteration):
        turnstile.passing().send(None)


async def test_who_is_cancelled_holds_nobody_up() -> None:
    turnstile = Turnstile()
    tasks = [asyncio.create_task(turnstile.passing()) for _ in range(CROWD)]
    await asyncio.sleep(0)
    for task in tasks[1::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [task.cancelled() for task in tasks] == [False, True] * (CROWD // 2)
    await asyncio.sleep(0)
    with pytest.raises(StopIteration):
        turnstile.passing().send(None)


CROWDS: dict[str, Callable[[Disk], Coroutine[Any, Any, None]]] = {
    "flush": lambda disk: disk.device.flush(),
    "trim": lambda disk: disk.device.trim(0, 8 * SIZE),
    "cache": lambda disk: disk.device.prefetch(0, 8 * SIZE),
    "zero": lambda disk: disk.device.zero(0, 8 * SIZE),
    "fast zero": lambda disk: disk.device.zero(0, 8 * SIZE, fast=True),
}


@pytest.mark.parametrize("kind", CROWDS)
async def test_crowd_of_long_requests_leaves_the_loop_to_others(kind: str) -> None:
    """64 FLUSHes, or CACHEs of 4 GiB, in one segment kept everybody waiting for 2.5 s."""
    async with a_disk() as disk:
        await disk.device.trim(0, 8 * SIZE)  # all of it is known to be holes
        await disk.device.flush()
        tasks = [asyncio.create_task(CROWDS[kind](disk)) for _ in range(CROWD)]
        assert max(await passed_per_turn(tasks)) == 1
