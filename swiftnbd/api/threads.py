# SPDX-License-Identifier: MIT
"""Threads for calls that may hang for ever, as those to a sick disk do.

An executor's threads are waited for at the end of the process, so one that hangs would keep it
from ending. Nobody waits for these.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class _Job(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    work: Callable[..., Any]
    arguments: tuple[Any, ...]


class Threads:
    """``count`` threads that carry out what `run` is given, in its order."""

    def __init__(self, count: int, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=name, daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """What ``work(*arguments)`` returns or raises, later. For the event loop's thread."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(loop, future, work, arguments))
        return future

    async def call(self, work: Callable[..., T], *arguments: Any) -> T:
        """`run` for what changes something: who is cancelled waits until it is done.

        So nothing happens any more when a request that was given up has ended.
        """
        future = self.run(work, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            future.exception()  # seen: nobody is left to be told
            raise
        finally:
            del future  # an error would keep this frame, and be kept by it

    def stop(self) -> None:
        """End them when all that was given to them is done."""
        for _ in self._threads:
            self._jobs.put(None)

    def join(self) -> None:
        """Wait for their end, after `stop`; not in one of them."""
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            result, error = None, None
            try:
                result = job.work(*job.arguments)
            except Exception as caught:
                error = caught
            with suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
                job.loop.call_soon_threadsafe(_settle, job.future, result, error)
            del job, result, error  # or they would live until there is more to do


def _settle(future: asyncio.Future[T], result: T, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
