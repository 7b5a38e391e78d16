# SPDX-License-Identifier: MIT
"""Many small pieces of work at once, and blocking work beside the event loop."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def for_each(
    items: Iterable[T], work: Callable[[T], Awaitable[None]], *, in_flight: int
) -> None:
    """Await ``work(item)`` for every item, ``in_flight`` at a time, taking items as needed.

    The first failure stops the others and is raised once they have ended.
    """
    # Not that of `swiftnbd.export.parallel`: it finishes what has begun, this one cancels it.
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:  # shared: no await between taking an item and owning it
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking ``work()`` in a thread. When cancelled, wait for it to end first.

    So whoever cleans up afterwards closes no file that a thread still writes to.
    """
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # seen: nobody is left to be told
        raise
