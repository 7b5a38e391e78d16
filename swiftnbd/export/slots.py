# SPDX-License-Identifier: MIT
"""A bounded number of requests at once, some of them kept for those somebody waits for."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple


class _Waiter(NamedTuple):
    turn: asyncio.Future[None]
    key: int | None


class Slots:
    """``total`` slots, of which the last ``reserved`` are for urgent requests only.

    Each kind is served in the order in which it came, the urgent ones first.
    """

    def __init__(self, total: int, reserved: int) -> None:
        assert 0 <= reserved < total
        self.total = total
        self.free = total
        self._reserved = reserved
        self._urgent: deque[_Waiter] = deque()
        self._others: deque[_Waiter] = deque()

    @asynccontextmanager
    async def one(self, *, urgent: bool, key: int | None = None) -> AsyncIterator[None]:
        """Hold a slot; wait for it first. ``key`` is for `hurry`."""
        await self._take(urgent, key)
        try:
            yield
        finally:
            self._give()

    def hurry(self, key: int) -> None:
        """Those of this key who wait are urgent now."""
        if any(waiter.key == key for waiter in self._others):
            self._urgent += [waiter for waiter in self._others if waiter.key == key]
            self._others = deque(waiter for waiter in self._others if waiter.key != key)
            self._serve()

    async def _take(self, urgent: bool, key: int | None) -> None:
        queue = self._urgent if urgent else self._others
        if not queue and self._may_go(urgent):
            self.free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        queue.append(_Waiter(turn, key))
        try:
            await turn  # whoever wakes us has taken the slot for us
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give()
            raise

    def _may_go(self, urgent: bool) -> bool:
        return self.free > (0 if urgent else self._reserved)

    def _give(self) -> None:
        self.free += 1
        self._serve()

    def _serve(self) -> None:
        for queue, urgent in ((self._urgent, True), (self._others, False)):
            while queue and self._may_go(urgent):
                turn = queue.popleft().turn
                if not turn.done():
                    self.free -= 1
                    turn.set_result(None)
