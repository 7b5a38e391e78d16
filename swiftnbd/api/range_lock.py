# SPDX-License-Identifier: MIT
"""For filters that read a block, change a part of it and write it back: nobody comes between."""

import asyncio
from types import TracebackType
from typing import Self


class Hold:
    """``async with`` it: the range is held inside."""

    __slots__ = ("_holds", "_over", "end", "shared", "start")

    def __init__(self, holds: dict["Hold", None], start: int, end: int, shared: bool) -> None:
        self._holds = holds
        self._over: asyncio.Event | None = None
        self.start, self.end, self.shared = start, end, shared

    async def __aenter__(self) -> Self:
        before = [each for each in self._holds if self._waits_for(each)]
        self._holds[self] = None  # from here on it is before others, who wait for it
        try:
            for each in before:
                await each.over()
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def _waits_for(self, other: "Hold") -> bool:
        apart = other.end <= self.start or self.end <= other.start
        return not apart and not (self.shared and other.shared)

    async def over(self) -> None:
        """Return when it is held no more."""
        if self in self._holds:
            if self._over is None:
                self._over = asyncio.Event()
            await self._over.wait()

    def _leave(self) -> None:
        del self._holds[self]
        if self._over is not None:
            self._over.set()


class RangeLock:
    """Ranges of bytes, which readers share and writers have for themselves.

    Who comes waits for those who came before and overlap with it, whether they have their range
    or wait, too: so nobody waits for ever. Requests of one device are few enough to look at all.
    """

    def __init__(self) -> None:
        self._holds: dict[Hold, None] = {}  # in the order in which they came

    def shared(self, start: int, end: int) -> Hold:
        """Nobody changes ``[start, end)`` meanwhile."""
        return Hold(self._holds, start, end, True)

    def exclusive(self, start: int, end: int) -> Hold:
        """Nobody else uses ``[start, end)`` meanwhile."""
        return Hold(self._holds, start, end, False)

    def is_free(self, start: int, end: int, *, shared: bool) -> bool:
        """Whether one would not have to wait: what is then done without an await needs no hold."""
        if not self._holds:
            return True
        mine = Hold(self._holds, start, end, shared)
        return not any(mine._waits_for(each) for each in self._holds)
