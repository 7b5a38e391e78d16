# SPDX-License-Identifier: MIT
"""Our server with a watch on its event loop: ``python -m benchmarks.stall_server FILE FLAGS...``.

A timer that is due every few milliseconds notes how late it came, which is what a request that
arrived just then would have waited for the loop (and for the processor: it is the wall clock's).
At the end all of it is written to FILE, as seconds in doubles.
"""

import asyncio
import sys
import time
from array import array
from pathlib import Path
from typing import Any, ClassVar

import uvloop

from swiftnbd.cli.server import main

TICK_SECONDS = 0.002  # a tick costs some 2 us


class Watch:
    """Notes the lateness of a timer in ``seconds``, for as long as ``loop`` runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.seconds = array("d")
        self._loop = loop
        self._arm()

    def _arm(self) -> None:
        # not the loop's clock: uvloop's stands still while callbacks run
        self._due = time.monotonic() + TICK_SECONDS
        self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self.seconds.append(max(0.0, time.monotonic() - self._due))
        self._arm()


class WatchedLoop(uvloop.Loop):
    """A loop that is watched from the time on when it listens: what comes before keeps nobody."""

    watches: ClassVar[list[Watch]] = []

    async def create_server(self, *arguments: Any, **named: Any) -> Any:
        server = await super().create_server(*arguments, **named)
        self.watches.append(Watch(self))
        return server


if __name__ == "__main__":
    uvloop.new_event_loop = WatchedLoop
    path = Path(sys.argv.pop(1))
    try:
        main()
    finally:
        with path.open("wb") as file:
            for watch in WatchedLoop.watches:
                watch.seconds.tofile(file)
