# SPDX-License-Identifier: MIT
"""Whose turn it is to change who uses an export, and what waits until nobody does."""

import asyncio
from collections.abc import Callable
from types import TracebackType

_Action = Callable[[], None]


class Turns:
    """``async with`` this, one at a time. After each turn it is seen whether the export is idle."""

    def __init__(self, is_idle: Callable[[], bool]) -> None:
        self._is_idle = is_idle
        self._lock = asyncio.Lock()
        self._when_idle: _Action | None = None

    def when_idle(self, action: _Action) -> bool:
        """Do this as soon as nobody uses it and nothing of it is held; whether that was at once.

        It takes the place of what was to be done then before.
        """
        self._when_idle = action
        if not self._lock.locked():
            self._look()
        return self._when_idle is None

    def _look(self) -> None:
        action = self._when_idle
        if action is not None and self._is_idle():
            self._when_idle = None
            action()

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._look()
        finally:
            self._lock.release()
