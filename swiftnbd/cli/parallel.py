# SPDX-License-Identifier: MIT
"""Many small pieces of work at once, and blocking work beside the event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def for_each(
    items: Iterable[T], work: Callable[[T], Awaitable[None]], *, in_flight: int
) -> None:
    """Await ``work(item)`` for every item, ``in_flight`` at a time, taking items as needed.

    The first failure stops the others and is raised once they have ended.
    """
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:  # shared: no await between taking an item and owning it
            await work(item)

    await _workers(worker, in_flight)


async def for_each_of(
    items: AsyncIterator[T], work: Callable[[T], Awaitable[None]], *, in_flight: int
) -> None:
    """`for_each` of items that are waited for, one after the other."""
    turn = asyncio.Lock()

    async def worker() -> None:
        while True:
            async with turn:
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            await work(item)

    await _workers(worker, in_flight)


async def _workers(worker: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
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


async def abandonable(work: Callable[[], T]) -> T:
    """Run blocking ``work()`` in a thread that nobody waits for: not who is cancelled, nor exit.

    For pipes, whose other end may never read or write again.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return  # cancelled
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except BaseException as error:
            failed = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, result, failed)

    threading.Thread(target=run, daemon=True).start()
    return await future
