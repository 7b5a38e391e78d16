# SPDX-License-Identifier: MIT
"""Those who wait for room: each with an attempt that is made again when there may be some."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from swiftnbd.errors import afresh

T = TypeVar("T")


class _Waiter(NamedTuple):
    attempt: Callable[[], Any]
    result: asyncio.Future[Any]


class Waiters:
    """Served in the order in which they came; false when there are none."""

    def __init__(self, on_leave: Callable[[], None]) -> None:
        """``on_leave`` is called when one gives up: there may be room for those behind it."""
        self._on_leave = on_leave
        self._queue: deque[_Waiter] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    async def wait(self, attempt: Callable[[], T | None], undo: Callable[[T], None]) -> T:
        """What ``attempt`` returns, once that is not None.

        It is made inside of `serve`, so nothing can come between the room and its use. Should
        the caller be cancelled just then, ``undo`` gets what it would have got.
        """
        waiter = _Waiter(attempt, asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        try:
            result: T = await waiter.result
        except asyncio.CancelledError:
            if _has_result(waiter.result):
                undo(waiter.result.result())
            self._on_leave()
            raise
        finally:
            del waiter  # an error would keep this frame, and be kept by it
        return result

    def serve(self) -> None:
        """Something has changed: let them try, until one finds no room."""
        while self._queue:
            waiter = self._queue[0]
            if not waiter.result.done():
                try:
                    result = waiter.attempt()
                except Exception as error:  # a bug; those behind it need not suffer
                    waiter.result.set_exception(error)
                else:
                    if result is None:
                        return
                    waiter.result.set_result(result)
            self._queue.popleft()

    def fail(self, error: Exception) -> None:
        """Those who wait now wait in vain."""
        queue, self._queue = self._queue, deque()
        for waiter in queue:
            if not waiter.result.done():
                waiter.result.set_exception(afresh(error))


def _has_result(future: asyncio.Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
