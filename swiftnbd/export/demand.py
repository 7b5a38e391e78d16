# SPDX-License-Identifier: MIT
"""Requests that wait for changes to become durable: flushes, and writes with FUA.

Each is one `Demand`, whatever it waits for. Many may wait for the same objects at a time, each for
its own state of them, so what one of them costs for each object is kept small: a place in the
object's ``demands``, and a count. Flushes between which nothing changes share one: there may be
hundreds of them, of thousands of objects.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from errno import EIO, ENOSPC
from typing import TYPE_CHECKING

from swiftnbd.errors import SwiftnbdError

if TYPE_CHECKING:
    from swiftnbd.export.writeback import DirtyObject


class Demand:
    """Wants ``changes`` stored: objects, each with the generation that must be.

    ``ended`` is done once each of them was stored or could not be, and ``error`` says why not.
    ``since`` is the number of uploads that had begun before: if one of these fails, that says
    nothing of what the store does now, and the object is to be tried again. ``waiting``: how many
    wait for it; once nobody does any more it is to be dropped (`Demands.drop`).
    """

    def __init__(self, changes: "Iterable[tuple[DirtyObject, int]]", since: int) -> None:
        self.since = since
        self.waiting = 0
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

        Of two errors the worse one is kept, of equal ones the first.
        """
        del self._wanted[dirty]
        if error is not None and (self.error is None or _rank(error) > _rank(self.error)):
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


def _rank(error: SwiftnbdError) -> int:
    """How bad it is: who is told ENOSPC believes that room is all that is missing."""
    return 0 if error.errno == ENOSPC else 2 if error.errno == EIO else 1


class Demands:
    """All of one device. They take turns, so that a write with FUA need not wait for a flush.

    So do objects whose last upload left demands unmet: one that is changed and wanted all the time
    would otherwise be stored again and again while everybody else waits.
    """

    def __init__(self) -> None:
        self._turns: deque[Demand | DirtyObject] = deque()  # that may have uploads to begin
        self._of_all: Demand | None = None  # wants everything, and nothing has changed since

    def add(self, changes: "Iterable[tuple[DirtyObject, int]]", since: int) -> Demand:
        """One that somebody is about to wait for."""
        demand = Demand(changes, since)
        self._turns.append(demand)
        return demand

    def of_all(self, objects: "Iterable[DirtyObject]", since: int) -> Demand:
        """One for all that has changed so far: the last one, if that still says all of it."""
        demand = self._of_all
        if demand is None or demand.error is not None or demand.ended.done():
            demand = self.add(((dirty, dirty.generation) for dirty in objects), since)
            self._of_all = demand
        return demand

    def changed(self) -> None:
        """Something has changed: who wants everything from now on wants more."""
        self._of_all = None

    def drop(self, demand: Demand) -> None:
        """Nobody waits for it any more."""
        demand.withdraw()
        if demand in self._turns:
            self._turns.remove(demand)
        if self._of_all is demand:
            self._of_all = None

    def next(self) -> "DirtyObject | None":
        """The next object to store: each demand in turn begins one."""
        while self._turns:
            first = self._turns.popleft()
            if not isinstance(first, Demand):
                if first.demands and first.upload is None:
                    return first
            elif (found := first.next()) is not None:
                self._turns.append(first)
                return found
        return None

    def tell(self, dirty: "DirtyObject", error: SwiftnbdError | None) -> None:
        """An upload has ended: those whom it was about learn how."""
        for demand, generation in list(dirty.demands.items()):
            if generation <= dirty.attempted and (error is None or dirty.begun > demand.since):
                del dirty.demands[demand]
                demand.met(dirty, error)

    def begin_again(self, dirty: "DirtyObject") -> None:
        """An upload has ended, and some may want the next one."""
        if dirty.demands:
            self._turns.append(dirty)
