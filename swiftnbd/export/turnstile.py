# SPDX-License-Identifier: MIT
"""What takes long goes one by one, so that a crowd of it leaves the event loop to others.

A request that passes over a whole disk, or over all that is changed, does so for some milliseconds
at a time. Alone that is nothing; hundreds that one client sends at once would take their turns in
the same turn of the event loop, and everybody else would wait for seconds.
"""

import asyncio
from collections import deque


class Turnstile:
    """Lets one through in each turn of the event loop, in the order in which they came."""

    def __init__(self) -> None:
        self._is_used = False  # in this turn
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def passing(self) -> None:
        """Return at once if nobody else has passed in this turn."""
        loop = asyncio.get_running_loop()
        if self._is_used:
            mine = loop.create_future()
            self._waiting.append(mine)
            await mine
        else:
            self._is_used = True
            loop.call_soon(self._next)

    def _next(self) -> None:
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():  # who was cancelled does not pass
                first.set_result(None)
                first.get_loop().call_soon(self._next)
                return
        self._is_used = False
