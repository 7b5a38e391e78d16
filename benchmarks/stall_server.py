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
from typing import Any

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


def watched(found: list[Watch]) -> Any:
    """A factory of loops that are watched from their beginning."""
    make = uvloop.new_event_loop

    def new_event_loop() -> uvloop.Loop:
        loop = make()
        found.append(Watch(loop))
        return loop

    return new_event_loop


if __name__ == "__main__":
    watches: list[Watch] = []
    uvloop.new_event_loop = watched(watches)
    path = Path(sys.argv.pop(1))
    try:
        main()
    finally:
        with path.open("wb") as file:
            for watch in watches:
                watch.seconds.tofile(file)
