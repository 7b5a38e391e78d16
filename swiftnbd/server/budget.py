# SPDX-License-Identifier: MIT
"""A number of bytes that many connections share."""

import asyncio
from collections import deque
from collections.abc import Callable


class Budget:
    """``limit`` bytes for everybody. Who gets none may ask to be called when some come back."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = limit
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, amount: int, allowance: int = 0) -> bool:
        """Take ``amount`` bytes, if so many are left; up to ``allowance`` even if they are not."""
        assert amount <= self.limit, "this could never be granted"
        if amount > max(self.left, allowance):
            return False
        self.left -= amount
        return True

    def give(self, amount: int) -> None:
        """Give bytes back, and let those who wait try again, in the order in which they came."""
        self.left += amount
        assert self.left <= self.limit
        loop = asyncio.get_running_loop()
        waiting, self._waiting = self._waiting, deque()
        for callback in waiting:
            loop.call_soon(callback)

    def when_given(self, callback: Callable[[], None]) -> None:
        """Call back once, when bytes have been given back."""
        self._waiting.append(callback)
