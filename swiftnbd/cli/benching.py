# SPDX-License-Identifier: MIT
"""Measuring a store by what a disk does to it: PUTs and GETs of objects, several at once.

The time and the bytes are shared out among the steps; what a step leaves over goes to the next
ones. Within a step each connection begins its next request when the last one is answered.
"""

import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from swiftnbd.cli.parallel import for_each
from swiftnbd.export.layout import OWN_PREFIX
from swiftnbd.store.base import Store

PART_BYTES = 64 * 1024  # what the server reads of a large object for a small request
RING_BYTES = 64 << 20  # of objects written again and again: a scratch container stays small
RING_OBJECTS_MAX = 256
OBJECTS_PREFIX = OWN_PREFIX + "bench/"  # nobody's data, for who deletes what a killed one left

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to measure: ``operation`` put, get or part, of objects of ``size`` bytes."""

    operation: str
    size: int
    connections: int

    @property
    def length(self) -> int:
        """Bytes that one request carries."""
        return PART_BYTES if self.operation == "part" else self.size


@dataclass(frozen=True, slots=True)
class Limits:
    """What all steps together may take."""

    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a step; ``latencies`` are seconds, sorted."""

    step: Step
    seconds: float
    latencies: Sequence[float] = field(repr=False)

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    @property
    def throughput(self) -> float:
        """Bytes per second."""
        return self.rate * self.step.length

    def latency(self, share: float) -> float:
        """Seconds within which this share of the requests was answered."""
        return self.latencies[min(int(len(self.latencies) * share), len(self.latencies) - 1)]


def steps(sizes: Sequence[int], connections: Sequence[int]) -> list[Step]:
    """All there is to measure, each size's objects written before they are read."""
    found = []
    for size in sorted(sizes):
        found += [Step("put", size, count) for count in sorted(connections)]
        found += [Step("get", size, count) for count in sorted(connections)]
        if size > PART_BYTES:
            found.append(Step("part", size, max(connections)))
    return found


class Bench:
    """Measurements on ``store``, an empty container of our own."""

    def __init__(self, store: Store, limits: Limits, clock: Clock = time.monotonic) -> None:
        self._written: dict[int, list[str]] = {}  # names, by the size of the objects
        self._noise = b""
        self._store = store
        self._limits = limits
        self._clock = clock

    async def run(
        self, plan: Sequence[Step], begins: Callable[[Step], None]
    ) -> AsyncIterator[Measured]:
        """Measure one step after the other; ``begins`` is told of each."""
        end, left = self._clock() + self._limits.seconds, self._limits.bytes
        for number, step in enumerate(plan):
            steps_left = len(plan) - number
            seconds = max(0.0, end - self._clock()) / steps_left
            begins(step)
            measured = await self._measure(step, seconds, left // steps_left)
            left -= len(measured.latencies) * step.length
            yield measured

    async def _measure(self, step: Step, seconds: float, bytes_max: int) -> Measured:
        """At least one request, and no more bytes than that otherwise."""
        request = self._put if step.operation == "put" else self._get
        latencies: list[float] = []
        count = max(1, bytes_max // step.length)
        begin = self._clock()

        def numbers() -> Iterator[int]:
            for number in range(count):
                if number and self._clock() - begin >= seconds:
                    return
                yield number

        async def one(number: int) -> None:
            sent = self._clock()
            await request(step, number)
            latencies.append(self._clock() - sent)

        await for_each(numbers(), one, in_flight=min(step.connections, count))
        return Measured(step, max(self._clock() - begin, 1e-9), sorted(latencies))

    async def _put(self, step: Step, number: int) -> None:
        name = f"{OBJECTS_PREFIX}{step.size}/{number % _ring(step)}"
        if len(self._noise) != step.size:
            self._noise = os.urandom(step.size)  # a store may compress
        await self._store.put(name, number.to_bytes(8) + self._noise[8:])  # or deduplicate
        self._written.setdefault(step.size, []).append(name)

    async def _get(self, step: Step, number: int) -> None:
        name = random.choice(self._written[step.size])
        if step.operation == "part":
            start = random.randrange(step.size // PART_BYTES) * PART_BYTES
            await self._store.get(name, start=start, length=PART_BYTES)
        else:
            await self._store.get(name, size_max=step.size)


def _ring(step: Step) -> int:
    return max(step.connections, min(RING_OBJECTS_MAX, RING_BYTES // step.size))


@dataclass(frozen=True, slots=True)
class Choice:
    """An object size, and what it gives per second: requests for random work, else bytes."""

    object_size: int
    connections: int
    written: float
    read: float


def choose_sequential(found: Sequence[Measured]) -> Choice:
    """The smallest size that moves nearly as many bytes as the best."""
    return min(_good(_choices(found, "get", lambda each: each.throughput)), key=_by_size)


def choose_random(found: Sequence[Measured]) -> Choice:
    """The largest size that answers nearly as many requests as the best.

    A small write stores a whole object, a small read fetches no more than a part of it.
    """
    return max(_good(_choices(found, "part", lambda each: each.rate)), key=_by_size)


NEARLY = 0.9  # two measurements of the same differ by more


def _good(choices: Sequence[Choice]) -> list[Choice]:
    best = max(map(_score, choices))
    return [each for each in choices if _score(each) >= NEARLY * best]


def _score(choice: Choice) -> float:
    """As much is read as written."""
    return 2 / (1 / choice.written + 1 / choice.read)


def _by_size(choice: Choice) -> int:
    return choice.object_size


def _choices(
    found: Sequence[Measured], read: str, value: Callable[[Measured], float]
) -> list[Choice]:
    choices = []
    for size in sorted({each.step.size for each in found}):
        of_size = [each for each in found if each.step.size == size]
        put = max((each for each in of_size if each.step.operation == "put"), key=value)
        parts = [each for each in of_size if each.step.operation == read]
        get = max(parts or [each for each in of_size if each.step.operation == "get"], key=value)
        choices.append(Choice(size, put.step.connections, value(put), value(get)))
    return choices
