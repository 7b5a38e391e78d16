# SPDX-License-Identifier: MIT
"""Requests that wait while the lock's lease is over, and are refused once the lock is lost."""

import asyncio
from collections.abc import Callable, Coroutine
from errno import ESHUTDOWN
from typing import Any, TypeVar

from swiftnbd.errors import ExportError, SwiftnbdError

T = TypeVar("T")


class Suspension:
    """``lasts`` from `begin` to `end`, or for good if that gives a reason."""

    def __init__(self) -> None:
        self.lasts = False
        self._reason = ""
        self._over = asyncio.Event()
        self._over.set()
        self._count = 0

    def begin(self) -> None:
        """From now on nothing is answered."""
        self.lasts = True
        self._count += 1
        self._over.clear()

    def end(self, reason: str = "") -> None:
        """What waits goes on; with a ``reason`` it is refused, as is all that comes after it."""
        self.lasts = bool(reason)
        self._reason = reason
        self._over.set()

    async def answered(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do a request, once more if it failed during a suspension, and return when it may end."""
        while True:
            await self._wait()
            count = self._count
            try:
                result = await work()
            except SwiftnbdError:
                if count == self._count:
                    raise
            else:
                await self._wait()
                return result

    async def _wait(self) -> None:
        await self._over.wait()
        if self._reason:
            raise ExportError(ESHUTDOWN, self._reason)
