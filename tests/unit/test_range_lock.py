# SPDX-License-Identifier: MIT
"""The lock of ranges: who waits for whom, whatever is given up meanwhile."""

import asyncio
import random

from swiftnbd.api.range_lock import RangeLock


async def test_nobody_has_a_range_that_a_writer_has() -> None:
    chance, lock = random.Random(5), RangeLock()
    inside: dict[int, list[bool]] = {at: [] for at in range(40)}
    done = []

    async def use(start: int, end: int, shared: bool) -> None:
        async with lock.shared(start, end) if shared else lock.exclusive(start, end):
            for at in range(start, end):
                assert all(inside[at]) if shared else not inside[at]
                inside[at].append(shared)
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
            for at in range(start, end):
                inside[at].remove(shared)
        done.append(start)

    tasks = []
    for _ in range(300):
        start = chance.randrange(36)
        work = use(start, start + chance.randrange(1, 5), chance.random() < 0.5)
        tasks.append(asyncio.create_task(work))
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
    given_up = chance.sample(tasks, 20)
    for task in given_up:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [each for each in results if isinstance(each, Exception)]
    assert lock.is_free(0, 40, shared=False)


async def test_writer_is_not_overtaken_by_readers_for_ever() -> None:
    lock, order = RangeLock(), []
    reader = lock.shared(0, 10)
    await reader.__aenter__()

    async def use(name: str, shared: bool) -> None:
        async with lock.shared(5, 6) if shared else lock.exclusive(5, 6):
            order.append(name)

    writer = asyncio.create_task(use("writer", False))
    await asyncio.sleep(0)
    assert not lock.is_free(5, 6, shared=True)
    late = asyncio.create_task(use("reader", True))
    await asyncio.sleep(0)
    assert order == []
    await reader.__aexit__(None, None, None)
    await asyncio.gather(writer, late)
    assert order == ["writer", "reader"]
