# SPDX-License-Identifier: MIT
"""The end of the server, for plugins and filters that bring it about or have to know of it."""

import asyncio
from collections.abc import Callable


class Ending:
    """``servers`` are called to end each server of this process, and may be from any thread;
    ``waiting`` are called in the event loop's thread when one begins to end.

    ``has_begun``: requests that only wait for time to pass should not any more, as nothing ends
    before them. `sleep` does not. ``steps`` are those of `moved`.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self.steps = 0
        self.servers: list[Callable[[], object]] = []
        self.waiting: list[Callable[[], object]] = []
        self._sleeping: set[asyncio.Future[None]] = set()

    async def sleep(self, seconds: float) -> None:
        """Return after so long, or at once when the server ends."""
        if self.has_begun or seconds <= 0:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        timer = loop.call_later(seconds, _wake, over)
        self._sleeping.add(over)
        try:
            await over
        finally:
            timer.cancel()
            self._sleeping.discard(over)

    def moved(self) -> None:
        """Called by what takes long to be closed, whenever it is a step further: the server does
        not give up what does not stand still."""
        self.steps += 1

    def ask(self) -> bool:
        """Have the server end in order, as a first SIGTERM has; asking again changes nothing.

        False: there is none, or not yet.
        """
        servers = tuple(self.servers)
        for each in servers:
            each()
        return bool(servers)

    def serve(self, end: Callable[[], object]) -> None:
        """Called by a server that has started; ``end`` ends it."""
        self.servers.append(end)

    def begin(self, end: Callable[[], object]) -> None:
        """Called by that server when it begins to end."""
        if end in self.servers:
            self.servers.remove(end)
        self.has_begun = not self.servers
        for each in tuple(self.waiting):
            each()
        if self.has_begun:
            for over in self._sleeping:
                _wake(over)

    def is_over(self) -> None:
        """Called by that server when it has ended."""
        self.has_begun = False


def _wake(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)


ENDING = Ending()
