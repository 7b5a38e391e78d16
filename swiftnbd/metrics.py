# SPDX-License-Identifier: MIT
"""What is counted while serving: plain integers that only ever grow, and cost next to nothing.

Whoever shows them (log lines, Prometheus, a page) reads them when asked to. Nothing here knows
of names of metrics, nor takes a lock: all of it belongs to the event loop's thread.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Self

# From a hit in the cache, some 50 us, to the minute for which a store is tried.
SECONDS_BOUNDS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip

TROUBLE_SECONDS = 10.0  # without a failure, until a store that answered again is well again


class Durations:
    """How long things took: ``counts`` by bound of `SECONDS_BOUNDS`, the last one without any."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS_BOUNDS) + 1)
        self.seconds = 0.0  # of all together

    def add(self, seconds: float, times: int = 1) -> None:
        """So many of them took so long each."""
        self.counts[bisect_left(SECONDS_BOUNDS, seconds)] += times
        self.seconds += seconds * times

    @property
    def total(self) -> int:
        """How many there were."""
        return sum(self.counts)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Seconds that this share of what `Durations.counts` tells of did not exceed, or None.

    Found between two bounds as if all were spread evenly there, as Prometheus does.
    """
    rank = share * sum(counts)
    if not rank:
        return None
    lower = passed = 0.0
    for bound, count in zip(SECONDS_BOUNDS, counts, strict=False):
        if count and passed + count >= rank:
            return lower + (bound - lower) * (rank - passed) / count
        passed += count
        lower = bound
    return lower


@dataclass(slots=True)
class Counters:
    """Of one export. Bytes from and to clients, and from and to the store; requests of clients.

    ``reads_now`` and ``writes_now`` were answered at once, in the receive loop; ``requests`` were
    not, by name of the command. One that took ``slow_seconds`` or longer is told of in the log.
    ``timed``: measure the former too, wake-up by wake-up: for each
    of them the time from when the wake-up began to when all its replies were handed over.
    """

    client_in: int = 0
    client_out: int = 0
    store_in: int = 0
    store_out: int = 0
    reads_now: int = 0
    writes_now: int = 0
    missed_reads: int = 0  # that had to wait for the store
    evictions: int = 0  # of blocks from the cache
    requests: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    durations: dict[str, Durations] = field(default_factory=dict)
    timed: bool = False
    slow_seconds: float = inf
    _timed_reads: int = 0  # of those answered at once
    _timed_writes: int = 0

    def now(self) -> float:
        """When a wake-up began, for `answered_now`."""
        return time.perf_counter() if self.timed else 0.0

    def answered_now(self, begin: float) -> None:
        """The wake-up that began then has ended."""
        if not begin:
            return
        seconds = time.perf_counter() - begin
        if times := self.reads_now - self._timed_reads:
            self._timed_reads = self.reads_now
            self.took("READ", seconds, times)
        if times := self.writes_now - self._timed_writes:
            self._timed_writes = self.writes_now
            self.took("WRITE", seconds, times)

    def took(self, command: str, seconds: float, times: int = 1) -> None:
        """Requests were answered."""
        durations = self.durations.get(command)
        if durations is None:
            durations = self.durations[command] = Durations()
        durations.add(seconds, times)

    def requests_of(self, command: str) -> int:
        """All requests of one command that were answered."""
        now = {"READ": self.reads_now, "WRITE": self.writes_now}
        return self.requests[command] + now.get(command, 0)


@dataclass(slots=True)
class Seen:
    """A request under way, while it is a context: its ``status`` becomes known, or never.

    One that is cancelled has ended because nobody wanted it any more: it tells nothing.
    """

    traffic: "StoreTraffic"
    method: str
    status: int | None = None
    _begin: float = 0.0

    def __enter__(self) -> Self:
        self._begin = self.traffic.clock()
        self.traffic.under_way += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.traffic.under_way -= 1
        if kind is None:
            self.traffic.ended(self.method, self.status, self._begin)
        elif issubclass(kind, Exception):  # a body that ended early is no answer, too
            self.traffic.ended(self.method, None, self._begin)


@dataclass(slots=True)
class StoreTraffic:
    """Requests to a Swift, of all containers together: by method and status, '' for no answer.

    One that took ``slow_seconds`` or longer is told of in the log.
    """

    clock: Callable[[], float] = time.monotonic
    slow_seconds: float = inf
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    durations: dict[str, Durations] = field(default_factory=dict)  # by method
    retries: int = 0
    under_way: int = 0
    good_at: float | None = None  # when it answered last
    bad_at: float | None = None  # when it did not, or with an error of its own
    _since: float = 0.0

    def request(self, method: str) -> Seen:
        """A request that is about to be sent."""
        return Seen(self, method)

    def ended(self, method: str, status: int | None, begin: float) -> None:
        """A request that began then was answered; ``status`` None: it was not."""
        now = self.clock()
        self.requests[method, "" if status is None else str(status)] += 1
        durations = self.durations.get(method)
        if durations is None:
            durations = self.durations[method] = Durations()
        durations.add(now - begin)
        if status is not None and status < 500 and status != 429:
            self.good_at = now
            return
        if self.trouble_seconds is None:
            self._since = now
        self.bad_at = now

    @property
    def trouble_seconds(self) -> float | None:
        """For how long it has been failing, at least now and then; None if it is well.

        What asks nothing learns nothing: after a failure it is in trouble until it has answered.
        """
        if self.bad_at is None:
            return None
        now = self.clock()
        answered = self.good_at is not None and self.good_at > self.bad_at
        return None if answered and now - self.bad_at > TROUBLE_SECONDS else now - self._since
