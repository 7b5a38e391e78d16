# SPDX-License-Identifier: MIT
"""Whether a device may serve at the moment, and whether it ever will again."""

import asyncio

from swiftnbd.errors import SwiftnbdError, afresh


class Gate:
    """Open, closed for the time being, or closed for good::

    open <--close, open--> closed --fail--> failed
    """

    def __init__(self) -> None:
        self.is_open = True
        self.error: SwiftnbdError | None = None
        self._changed = asyncio.Event()

    async def passing(self) -> None:
        """Return when it is open; raise if it never will be."""
        while not self.is_open:
            self.check()
            await self._changed.wait()

    def check(self) -> None:
        """Raise if nothing will ever pass again."""
        if self.error is not None:
            raise afresh(self.error)

    def close(self) -> None:
        """Nothing passes for now."""
        self.is_open = False
        self._changed.clear()

    def open(self) -> None:
        """All may pass again."""
        assert self.error is None
        self.is_open = True
        self._changed.set()

    def fail(self, error: SwiftnbdError) -> None:
        """Nothing will ever pass: whoever waits, now or later, gets ``error``."""
        self.is_open = False
        self.error = error
        self._changed.set()
