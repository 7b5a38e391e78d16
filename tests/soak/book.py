# SPDX-License-Identifier: MIT
"""The account of every byte: what it may be, who wrote that, and what became of the request.

The rules are the model's (`tests.model.oracle`); here every write has bytes that no other has,
so that a byte in the wrong place, or of the wrong time, can be told by name.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.model.oracle import Change, Flushing, Oracle, Reading

LENGTH_MAX = 1 << 20  # of one write
_POOL_BYTES = 1_048_583  # a prime: every serial number begins somewhere else
_STRIDE = 648_391
_POOL = random.Random("pool").randbytes(_POOL_BYTES)
_POOL += _POOL[:LENGTH_MAX]


@dataclass(eq=False)
class Written(Change):
    """A change with a serial number as its tag; zeros have one, too, and ``zeros`` set."""

    zeros: bool = False
    what: str = ""
    at: float = 0.0
    fate: str = "under way"

    def bytes_of(self, start: int, end: int) -> bytes:
        """Those of two changes differ at every place, but for chance (1 in 256 for one byte)."""
        if self.zeros:
            return bytes(end - start)
        assert self.tag is not None
        begin = (self.tag * _STRIDE + start) % _POOL_BYTES
        return _POOL[begin : begin + end - start]

    def __str__(self) -> str:
        return (
            f"#{self.tag} {self.what} {self.start}+{self.end - self.start}, "
            f"begun at {self.at:.3f} s, {self.fate}"
        )


@dataclass(eq=False)
class Found(Change):
    """All of a disk as it was found, and accepted, once."""

    image: bytes = b""

    def bytes_of(self, start: int, end: int) -> bytes:
        return self.image[start:end]

    def __str__(self) -> str:
        return "what was found when the disk was last compared"


@dataclass
class Book:
    """The account of one disk of ``size`` bytes that is changed ``block`` bytes at a time.

    ``seconds`` tells the time since the soak began. What is wrong raises AssertionError.
    """

    size: int
    block: int
    seconds: float = field(default_factory=time.monotonic)
    compared: int = 0
    _serial: int = 0
    _history: list[Written] = field(default_factory=list)
    _before: Found | None = None

    def __post_init__(self) -> None:
        self._oracle = Oracle(self.size, self.block)

    # Requests

    def begin_write(self, start: int, length: int, what: str) -> Written:
        """A write, whose bytes are ``data`` of what is returned."""
        return self._begin(start, length, what, zeros=False)

    def begin_zeros(self, start: int, length: int, what: str) -> Written:
        """Zeros, or a trim."""
        return self._begin(start, length, what, zeros=True)

    def _begin(self, start: int, length: int, what: str, *, zeros: bool) -> Written:
        self._serial += 1
        change = Written(start, start + length, self._serial, zeros=zeros, what=what)
        change.at = time.monotonic() - self.seconds
        self._history.append(change)
        self._oracle.begin(change)
        return change

    def end(self, change: Written, fate: str, *, rules_out: bool, durable: bool = False) -> None:
        """It was answered, well (``rules_out`` what was there before) or not, or cut off."""
        change.fate = f"{fate} at {time.monotonic() - self.seconds:.3f} s"
        self._oracle.end_change(change, rules_out=rules_out, durable=durable)

    def begin_read(self, start: int, length: int) -> Reading:
        return self._oracle.begin_read(start, start + length)

    def end_read(self, reading: Reading, data: bytes | None) -> None:
        """None: it failed."""
        with self._naming(reading.start, reading.end, data):
            self._oracle.end_read(reading, [] if data is None else [(reading.start, data)])

    def begin_flush(self) -> Flushing:
        return self._oracle.begin_flush()

    def end_flush(self, flushing: Flushing, *, done: bool) -> None:
        self._oracle.end_flush(flushing, done=done)

    # The whole disk, while nothing is under way

    def crash(self) -> None:
        """The server is gone, and with it all that was not durable, or any part of it."""
        self._oracle.crash()

    def compare(self, image: bytes) -> None:
        """All of the disk, with nothing in it that is not stored: after a crash, or written back.

        If it is legal, that is what it is from now on.
        """
        assert len(image) == self.size
        with self._naming(0, self.size, image):
            self._oracle.see_both(image)
        self.compared += len(image)
        self._before = Found(0, self.size, None, ended=0, image=image)
        self._oracle = Oracle(self.size, self.block, self._before)

    # Who was it?

    @contextmanager
    def _naming(self, start: int, end: int, data: bytes | None) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            if data is not None:
                for line in self._explain(start, end, data):
                    error.add_note(line)
            raise

    def _explain(self, start: int, end: int, data: bytes) -> Iterator[str]:
        """Of each run that is not legal: which changes' bytes it has, and those it may have."""
        for name, runs in (("read", self._oracle.readable), ("stored", self._oracle.storable)):
            wrong = 0
            for run in list(runs):
                if run.start < start or run.end > end:
                    continue
                seen = data[run.start - start : run.end - start]
                if any(each.bytes_of(run.start, run.end) == seen for each in run.changes):
                    continue
                wrong += 1
                if wrong <= 8:
                    yield f"bytes {run.start} to {run.end} ({name}):"
                    yield from (f"  found: {each}" for each in self._authors(run.start, seen))
                    yield from (f"  legal: {each}" for each in run.changes)
                    yield from (f"  later or before: {each}" for each in self._recent(run.start))
            yield f"{wrong} runs are not legal as {name}"

    def _authors(self, start: int, seen: bytes) -> list[str]:
        end = start + len(seen)
        zeros = ["zeros"] if not any(seen) else []
        if self._before is not None and self._before.bytes_of(start, end) == seen:
            zeros.append(str(self._before))
        authors = [
            str(each)
            for each in self._history
            if each.start <= start and end <= each.end and each.bytes_of(start, end) == seen
        ]
        return zeros + authors[-5:] or [f"nobody's: {seen[:32].hex()}"]

    def _recent(self, position: int) -> list[Written]:
        return [each for each in self._history if each.start <= position < each.end][-8:]
