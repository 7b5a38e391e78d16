# SPDX-License-Identifier: MIT
"""What every byte of a disk may be, given the requests so far and how they ended.

A byte's *candidates* are the changes whose value it may hold: one set for what a read may give,
one for what a crash may leave in the store (never smaller). The rules:

* A change is a candidate from the moment it begins. Failed, cancelled or cut off by a crash, it
  stays one: it may or may not have happened.
* An acknowledged write or zero rules out, in both sets, every change that had ended before it
  began. Those that overlapped it in time may have won.
* An acknowledged trim rules out nothing: old bytes or zeros.
* A read that nothing overlapped fixes what later reads give, but not what a crash leaves.
* An acknowledged flush rules out for a crash what a read could no longer give when it began.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

TAGS_MAX = 254  # values 1..255 of one byte; 0 is for zeros


@dataclass(eq=False)
class Change:
    """A write (``tag`` says which bytes) or, with tag None, zeros at ``[start, end)``."""

    start: int
    end: int
    tag: int | None
    began: float = 0
    ended: float = inf

    def value(self, position: int) -> int:
        """Differs between positions next to each other, and between changes of one position."""
        return 0 if self.tag is None else (self.tag + position) % 255 + 1

    @property
    def data(self) -> bytes:
        return bytes(self.value(position) for position in range(self.start, self.end))

    def overlaps(self, start: int, end: int) -> bool:
        return self.start < end and start < self.end


@dataclass(eq=False)
class Reading:
    """A read under way: what each byte may turn out to be."""

    start: int
    end: int
    legal: list[set[int]]
    undisturbed: bool


@dataclass(eq=False)
class Flushing:
    """A flush under way: what was readable when it began."""

    began: float
    readable: list[set[Change]]


@dataclass
class Oracle:
    """The candidates of ``size`` bytes, all zeros at first."""

    size: int
    time: int = 0
    running: set[Change] = field(default_factory=set)
    readings: set[Reading] = field(default_factory=set)

    def __post_init__(self) -> None:
        blank = Change(0, self.size, None, ended=0)
        self.readable = [{blank} for _ in range(self.size)]
        self.storable = [{blank} for _ in range(self.size)]

    def _tick(self) -> int:
        self.time += 1
        return self.time

    # Changes

    def begin_change(self, start: int, end: int, tag: int | None) -> Change:
        change = Change(start, end, tag, began=self._tick())
        self.running.add(change)
        for position in range(start, end):
            self.readable[position].add(change)
            self.storable[position].add(change)
        for reading in self.readings:
            if change.overlaps(reading.start, reading.end):
                reading.undisturbed = False
                for position in range(max(start, reading.start), min(end, reading.end)):
                    reading.legal[position - reading.start].add(change.value(position))
        return change

    def end_change(self, change: Change, *, rules_out: bool) -> None:
        change.ended = self._tick()
        self.running.discard(change)
        if rules_out:
            for position in range(change.start, change.end):
                for candidates in (self.readable[position], self.storable[position]):
                    candidates -= {each for each in candidates if each.ended < change.began}

    # Reads

    def begin_read(self, start: int, end: int) -> Reading:
        legal = [
            {each.value(position) for each in self.readable[position]}
            for position in range(start, end)
        ]
        calm = not any(change.overlaps(start, end) for change in self.running)
        reading = Reading(start, end, legal, calm)
        self.readings.add(reading)
        return reading

    def end_read(self, reading: Reading, data: bytes | None) -> None:
        """``data`` None: it failed, and says nothing."""
        self.readings.discard(reading)
        if data is None:
            return
        _check("read", reading.start, data, reading.legal)
        if reading.undisturbed:
            for position, seen in enumerate(data, reading.start):
                _narrow(self.readable[position], position, seen)

    # Durability

    def begin_flush(self) -> Flushing:
        return Flushing(self._tick(), [set(candidates) for candidates in self.readable])

    def end_flush(self, flushing: Flushing, *, done: bool) -> None:
        self._tick()
        if done:
            for candidates, readable in zip(self.storable, flushing.readable, strict=True):
                candidates -= {
                    each
                    for each in candidates
                    if each not in readable and each.began < flushing.began
                }

    def crash(self) -> None:
        """What was readable is gone; what was running is over."""
        now = self._tick()
        for change in self.running:
            change.ended = now
        self.running.clear()
        self.readings.clear()
        self.readable = [set(candidates) for candidates in self.storable]

    def see_both(self, image: bytes) -> None:
        """Nothing runs, this is stored, and reads must give the same: after a crash, or a flush.

        It must be legal, and from now on it is what every byte is.
        """
        assert not self.running
        for position, seen in enumerate(image):
            for what, candidates in (
                ("stored", self.storable[position]),
                ("stored, not read,", self.readable[position]),
            ):
                legal = {each.value(position) for each in candidates}
                assert seen in legal, _wrong(what, position, seen, legal)
                if len(legal) > 1:
                    _narrow(candidates, position, seen)


def _check(what: str, start: int, data: bytes, legal: Iterable[set[int]]) -> None:
    for position, (seen, may_be) in enumerate(zip(data, legal, strict=True), start):
        assert seen in may_be, _wrong(what, position, seen, may_be)


def _wrong(what: str, position: int, seen: int, legal: set[int]) -> str:
    return f"byte {position} is {what} as {seen}, legal: {sorted(legal)}"


def _narrow(candidates: set[Change], position: int, seen: int) -> None:
    candidates -= {each for each in candidates if each.value(position) != seen}
