# SPDX-License-Identifier: MIT
"""A bounded amount of something: each takes what it needs, in the order in which they came."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from swiftnbd.export.waiters import Waiters


class Allowance:
    """``total`` of it. Who needs much is not overtaken by those who need little."""

    def __init__(self, total: int) -> None:
        assert total > 0
        self.total = total
        self.free = total
        self._waiters = Waiters(lambda: self._waiters.serve())

    @asynccontextmanager
    async def holding(self, amount: int) -> AsyncIterator[None]:
        """``amount`` is the caller's within; wait for it first."""
        assert 0 <= amount <= self.total
        if self._waiters or self._take(amount) is None:
            await self._waiters.wait(lambda: self._take(amount), self._give)
        try:
            yield
        finally:
            self._give(amount)

    def _take(self, amount: int) -> int | None:
        if amount > self.free:
            return None
        self.free -= amount
        return amount

    def _give(self, amount: int) -> None:
        self.free += amount
        self._waiters.serve()
