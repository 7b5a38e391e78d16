# SPDX-License-Identifier: MIT
"""What every byte of a disk may be, given the requests so far and how they ended.

A byte's *candidates* are the changes whose value it may hold: one set for what a read may give,
one for what a crash may leave in the store (never smaller). The rules:

* A change is a candidate from the moment it begins. Failed, cancelled or cut off by a crash, it
  stays one: it may or may not have happened.
* An acknowledged write or zero rules out, for reads and if it had FUA for a crash too, every
  change that had ended before it began. Those that overlapped it in time may have won.
* An acknowledged trim rules out nothing: old bytes or zeros.
* A read that nothing overlapped fixes what later reads give, but not what a crash leaves.
* An acknowledged flush rules out for a crash what a read could no longer give when it began.

Bytes with the same candidates are kept as one run. Since a block is changed and read at once,
a run within a block holds the bytes of one candidate, not some of one and some of another.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf

TAGS_MAX = 254  # values 1..255 of one byte; 0 is for zeros
_PATTERN = bytes(at % 255 + 1 for at in range(TAGS_MAX + 64 * 1024))


@dataclass(eq=False)
class Change:
    """A write (``tag`` says which bytes) or, with tag None, zeros at ``[start, end)``."""

    start: int
    end: int
    tag: int | None
    began: float = 0
    ended: float = inf

    def bytes_of(self, start: int, end: int) -> bytes:
        """Differ between positions next to each other, and between changes of one position."""
        if self.tag is None:
            return bytes(end - start)
        return _PATTERN[self.tag + start : self.tag + end]

    @property
    def data(self) -> bytes:
        return self.bytes_of(self.start, self.end)

    def overlaps(self, start: int, end: int) -> bool:
        return self.start < end and start < self.end


@dataclass
class Run:
    """Bytes ``[start, end)`` and the changes they may be of."""

    start: int
    end: int
    changes: set[Change]

    def check(self, what: str, seen: bytes) -> None:
        legal = {change.bytes_of(self.start, self.end) for change in self.changes}
        assert seen in legal, (
            f"bytes {self.start} to {self.end} are {what} as {seen[:20].hex()}, "
            f"legal: {sorted(each[:20].hex() for each in legal)}"
        )

    def narrow(self, seen: bytes) -> None:
        if len(self.changes) > 1:
            self.changes = {x for x in self.changes if x.bytes_of(self.start, self.end) == seen}


class Runs:
    """Neighbouring runs, in order."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = [Run(run.start, run.end, set(run.changes)) for run in runs]

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def within(self, start: int, end: int) -> list[Run]:
        """The runs that are `[start, end)`, cut there if they reach further."""
        return self._runs[self._cut(start) : self._cut(end)]

    def _cut(self, position: int) -> int:
        """The number of the first run that does not begin before ``position``."""
        at = bisect_right(self._runs, position, key=lambda run: run.start)
        run = self._runs[at - 1]
        if run.start == position:
            return at - 1
        if position < run.end:
            self._runs.insert(at, Run(position, run.end, set(run.changes)))
            run.end = position
        return at


@dataclass(eq=False)
class Reading:
    """A read under way: what it may turn out to give."""

    start: int
    end: int
    legal: Runs
    undisturbed: bool


@dataclass(eq=False)
class Flushing:
    """A flush under way: what was readable when it began."""

    began: float
    readable: Runs


@dataclass
class Oracle:
    """The candidates of ``size`` bytes in blocks of ``block``, all ``blank`` (zeros) at first."""

    size: int
    block: int
    blank: Change | None = None
    time: int = 0
    running: set[Change] = field(default_factory=set)
    readings: set[Reading] = field(default_factory=set)

    def __post_init__(self) -> None:
        blank = self.blank or Change(0, self.size, None, ended=0)
        starts = range(0, self.size, self.block)
        self.readable = Runs(Run(start, start + self.block, {blank}) for start in starts)
        self.storable = Runs(self.readable)

    def _tick(self) -> int:
        self.time += 1
        return self.time

    # Changes

    def begin_change(self, start: int, end: int, tag: int | None) -> Change:
        change = Change(start, end, tag)
        self.begin(change)
        return change

    def begin(self, change: Change) -> None:
        """`begin_change`, with a change whose bytes are not a matter of a tag perhaps."""
        start, end = change.start, change.end
        change.began = self._tick()
        self.running.add(change)
        for runs in (self.readable, self.storable):
            for run in runs.within(start, end):
                run.changes.add(change)
        for reading in self.readings:
            if change.overlaps(reading.start, reading.end):
                reading.undisturbed = False
                for run in reading.legal.within(max(start, reading.start), min(end, reading.end)):
                    run.changes.add(change)

    def end_change(self, change: Change, *, rules_out: bool, durable: bool) -> None:
        change.ended = self._tick()
        self.running.discard(change)
        if rules_out:
            for runs in [self.readable, self.storable] if durable else [self.readable]:
                for run in runs.within(change.start, change.end):
                    run.changes -= {each for each in run.changes if each.ended < change.began}

    # Reads

    def begin_read(self, start: int, end: int) -> Reading:
        calm = not any(change.overlaps(start, end) for change in self.running)
        reading = Reading(start, end, Runs(self.readable.within(start, end)), calm)
        self.readings.add(reading)
        return reading

    def end_read(self, reading: Reading, pieces: Iterable[tuple[int, bytes]]) -> None:
        """``pieces``: what it gave, and where; nothing if it failed."""
        self.readings.discard(reading)
        for start, data in pieces:
            for run in reading.legal.within(start, start + len(data)):
                run.check("read", data[run.start - start : run.end - start])
            if reading.undisturbed:
                for run in self.readable.within(start, start + len(data)):
                    run.narrow(data[run.start - start : run.end - start])

    # Durability

    def begin_flush(self) -> Flushing:
        return Flushing(self._tick(), Runs(self.readable))

    def end_flush(self, flushing: Flushing, *, done: bool) -> None:
        self._tick()
        if done:
            for readable in flushing.readable:
                for run in self.storable.within(readable.start, readable.end):
                    run.changes -= {
                        each
                        for each in run.changes - readable.changes
                        if each.began < flushing.began
                    }

    def crash(self) -> None:
        """What was readable is gone; what was running is over."""
        now = self._tick()
        for change in self.running:
            change.ended = now
        self.running.clear()
        self.readings.clear()
        self.readable = Runs(self.storable)

    def see_both(self, image: bytes) -> None:
        """Nothing runs, this is stored, and reads must give the same: after a crash, or a flush.

        It must be legal, and from now on it is what every byte is.
        """
        assert not self.running
        for what, runs in (("stored", self.storable), ("stored, not read,", self.readable)):
            for run in runs:
                run.check(what, image[run.start : run.end])
                run.narrow(image[run.start : run.end])
