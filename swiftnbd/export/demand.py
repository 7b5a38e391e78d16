# SPDX-License-Identifier: MIT
"""Requests that wait for changes to become durable: flushes, and writes with FUA.

Each is one `Demand`, whatever it waits for. Many may wait for the same objects at a time, each for
its own state of them, so what one of them costs for each object is kept small: a place in the
object's ``demands``, and a count.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from errno import EIO
from typing import TYPE_CHECKING

from swiftnbd.errors import SwiftnbdError

if TYPE_CHECKING:
    from swiftnbd.export.writeback import DirtyObject


class Demand:
    """Wants ``changes`` stored: objects, each with the generation that must be.

    ``ended`` is done once each of them was stored or could not be, and ``error`` says why not.
    ``since`` is the number of uploads that had begun before: if one of these fails, that says
    nothing of what the store does now, and the object is to be tried again.
    """

    def __init__(self, changes: "Iterable[tuple[DirtyObject, int]]", since: int) -> None:
        self.since = since
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: SwiftnbdError | None = None
        self._wanted: dict[DirtyObject, None] = {}
        for dirty, generation in changes:
            if dirty.stored < generation:
                dirty.demands[self] = max(generation, dirty.demands.get(self, 0))
                self._wanted[dirty] = None
        self._todo = deque(self._wanted)
        self._end_if_met()

    def next(self) -> "DirtyObject | None":
        """The first object that is neither stored nor being stored; None: it need not begin any.

        One whose upload does not carry all that is wanted is begun again when that one ends, by
        whoever ends it.
        """
        while self._todo:
            dirty = self._todo.popleft()
            if dirty in self._wanted and dirty.upload is None:
                return dirty
        return None

    def met(self, dirty: "DirtyObject", error: SwiftnbdError | None) -> None:
        """One of them was stored, or could not be.

        EIO goes before what came first: who is told ENOSPC believes that room is all that is
        missing.
        """
        del self._wanted[dirty]
        if error is not None and (
            self.error is None or (error.errno == EIO and self.error.errno != EIO)
        ):
            self.error = error
        self._end_if_met()

    def withdraw(self) -> None:
        """Nobody waits any more."""
        for dirty in self._wanted:
            del dirty.demands[self]
        self._wanted.clear()
        self._todo.clear()

    def _end_if_met(self) -> None:
        if not self._wanted and not self.ended.done():
            self.ended.set_result(None)
