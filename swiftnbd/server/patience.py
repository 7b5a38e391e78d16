# SPDX-License-Identifier: MIT
"""How long a client may keep bytes of ours: until others need them, or until it seems dead.

A WRITE whose payload comes slowly, and replies that are taken slowly, hold bytes of the budget.
As long as nobody waits for these, a slow client harms nobody and is left in peace. When somebody
does, it must go on at a fair pace. One that does not move at all is cut off in the end.
"""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from swiftnbd.server.budget import Budget

CHECK_SECONDS = 2.0
# A request of the largest size takes two minutes at this pace, that of a link of 2 Mbit/s.
PACE_BYTES_MIN = 256 * 1024  # a second, while others wait
PACE_SECONDS = 10.0  # over which it is measured: longer than a lost segment stops a link
STALLED_SECONDS_MAX = 300.0  # without a byte: a stopped process, a machine asleep, no client

log = logging.getLogger(__name__)


class Progress(NamedTuple):
    """How many bytes a client has sent or taken so far while it was waited for (never less), and
    how many bytes of the budget are held meanwhile."""

    moved: int
    held: int


class Holder(Protocol):
    """A connection, as far as it may hold what others need. Its text names its client."""

    def progress(self) -> Progress | None:
        """None if it does not wait for its client."""

    def abort(self) -> None:
        """End it."""


@dataclass(slots=True)
class _Watched:
    """Since when it has not moved, and from when on its pace is measured, if it is."""

    moved: int
    stalled_since: float
    paced_since: float | None = None
    paced_from: int = 0


class Patience:
    """Looks after the connections that wait for their clients."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._watched: dict[Holder, _Watched] = {}

    async def watch_forever(self, holders: Collection[Holder]) -> None:
        """Look at all of these now and then. They may change meanwhile."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.check(holders, loop.time())

    def check(self, holders: Collection[Holder], now: float) -> None:
        """Look at each of them, ``now`` in seconds, and cut off who has used our patience up."""
        watched = {}
        for holder in holders:
            progress = holder.progress()
            if progress is None:
                continue
            watched[holder] = self._watched.get(holder) or _Watched(progress.moved, now)
            if reason := self._reason(progress, watched[holder], now):
                log.warning("%s: cut off: %s", holder, reason)
                holder.abort()
        self._watched = watched

    def _reason(self, progress: Progress, watched: _Watched, now: float) -> str:
        moved, held = progress
        if moved > watched.moved:
            watched.moved, watched.stalled_since = moved, now
        elif now - watched.stalled_since >= STALLED_SECONDS_MAX:
            return f"it has not moved for {STALLED_SECONDS_MAX:.0f} s"
        if not (held and self._budget.wanted):
            watched.paced_since = None
        elif watched.paced_since is None:
            watched.paced_since, watched.paced_from = now, moved
        elif (seconds := now - watched.paced_since) >= PACE_SECONDS:
            if moved - watched.paced_from < PACE_BYTES_MIN * seconds:
                return f"others wait for the {held} bytes it holds, and it is too slow"
            watched.paced_since, watched.paced_from = now, moved
        return ""
