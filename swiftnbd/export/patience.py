# SPDX-License-Identifier: MIT
"""Waiting as long as something moves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf


class Patience:
    """`within` ends what goes on without anything moving. A sign of life costs next to nothing."""

    def __init__(self) -> None:
        self._moved_at = -inf  # time of the loop

    def moved(self) -> None:
        """There was a sign of life."""
        self._moved_at = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def within(self, seconds: float | None) -> AsyncIterator[None]:
        """Raise `TimeoutError` once nothing has moved for so long; None: wait for ever."""
        if seconds is None:
            yield
            return
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle
        async with asyncio.timeout(None) as timeout:

            def look() -> None:
                nonlocal timer
                left = self._moved_at + seconds - loop.time()
                if left > 0:
                    timer = loop.call_later(left, look)
                else:
                    timeout.reschedule(loop.time())

            timer = loop.call_later(seconds, look)
            try:
                yield
            finally:
                timer.cancel()
