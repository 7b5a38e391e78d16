# SPDX-License-Identifier: MIT
"""A bounded number of requests at once, some of them kept for those somebody waits for."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class _Waiter(NamedTuple):
    turn: asyncio.Future[bool]
    key: int | None


class Slots:
    """``total`` slots. Each kind has ``reserved`` of them that the other cannot take from it.

    (Those that are not urgent have less if that is all the others leave: never more than these.)
    The urgent ones find theirs free; the others get theirs as soon as they want them.

    Each kind is served in the order in which it came, the urgent ones first.
    """

    def __init__(self, total: int, reserved: int) -> None:
        assert 0 <= reserved < total
        self.total = total
        self.free = total
        self._reserved = reserved
        self._owed = min(reserved, total - reserved)  # to those that are not urgent
        self._other = 0  # that are not urgent, at work
        self._urgent: deque[_Waiter] = deque()
        self._others: deque[_Waiter] = deque()

    async def run(
        self, work: Callable[[], Awaitable[T]], *, urgent: bool, key: int | None = None
    ) -> T:
        """Do something while holding a slot; wait for one first. ``key`` is for `hurry`."""
        urgent = await self._take(urgent, key)
        try:
            return await work()
        finally:
            self._give(urgent)

    def hurry(self, key: int) -> None:
        """Those of this key who wait are urgent now."""
        if any(waiter.key == key for waiter in self._others):
            self._urgent += [waiter for waiter in self._others if waiter.key == key]
            self._others = deque(waiter for waiter in self._others if waiter.key != key)
            self._serve()

    async def _take(self, urgent: bool, key: int | None) -> bool:
        """Whether it was had as an urgent one."""
        queue = self._urgent if urgent else self._others
        if not queue and self._may_go(urgent):
            self._grant(urgent)
            return urgent
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        queue.append(_Waiter(turn, key))
        try:
            got: bool = await turn  # whoever wakes us has taken the slot for us
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(turn.result())
            else:
                self._serve()  # nothing is owed to us any more
            raise
        return got

    def _may_go(self, urgent: bool) -> bool:
        if not urgent:
            return self.free > (0 if self._other < self._owed else self._reserved)
        owed = max(0, self._owed - self._other) if self._others else 0
        return self.free > owed

    def _grant(self, urgent: bool) -> None:
        self.free -= 1
        self._other += not urgent

    def _give(self, urgent: bool) -> None:
        self.free += 1
        self._other -= not urgent
        self._serve()

    def _serve(self) -> None:
        for queue in (self._urgent, self._others):
            _forget_gone(queue)  # before it is seen whether anybody waits
        for queue, urgent in ((self._urgent, True), (self._others, False)):
            while queue and self._may_go(urgent):
                self._grant(urgent)
                queue.popleft().turn.set_result(urgent)
                _forget_gone(queue)


def _forget_gone(queue: deque[_Waiter]) -> None:
    """Let the first one be one that still waits."""
    while queue and queue[0].turn.done():
        queue.popleft()
