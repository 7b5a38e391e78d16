# SPDX-License-Identifier: MIT
"""The last minutes of each export, a sample a second, for plots that need not begin empty."""

import asyncio
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isnan, nan
from time import perf_counter

from swiftnbd.export.base import BaseExport
from swiftnbd.export.status import CacheStatus
from swiftnbd.metrics import Counters, Durations, quantile

SAMPLE_SECONDS = 1.0
SAMPLES_MAX = 240  # four minutes, 25 KiB an export
EXPORTS_PER_TURN = 10  # in a sample 20 us each, in the status 60 us, in a scrape 200 us
LAG_SECONDS = 0.1  # how often the event loop is asked how late it is

FIELDS = (
    "read_bytes",  # this and the next six are rates per second
    "written_bytes",
    "reads",
    "writes",
    "others",
    "store_read_bytes",
    "store_written_bytes",
    "typical_seconds",  # what half of the requests did not exceed; NaN if there was none
    "slow_seconds",  # what 99 % did not
    "cached_bytes",
    "dirty_bytes",
    "at_work",  # requests that are not answered yet
    "oldest_seconds",  # for how long the oldest of them has been; NaN if there is none
)


@dataclass(slots=True)
class RequestsAtWork:
    """Those of one export, on all connections."""

    count: int = 0
    oldest_seconds: float = 0.0

    def add(self, count: int, oldest_seconds: float) -> None:
        """Those of one more connection."""
        self.count += count
        self.oldest_seconds = max(self.oldest_seconds, oldest_seconds)


class History:
    """The samples of one export. ``count`` is how many there ever were."""

    def __init__(self, export: BaseExport) -> None:
        self.count = 0
        self.export = export
        export.counters.timed = True
        self._columns = [array("d") for _ in FIELDS]
        self._totals = _totals(export.counters)
        self._durations = _durations(export.counters)

    def sample(self, seconds: float, at_work: RequestsAtWork | None) -> None:
        """Take one; ``seconds`` since the last. ``at_work`` None: no request is."""
        counters = self.export.counters
        cache = self.export.status.cache or CacheStatus()
        totals = _totals(counters)
        rates = [(now - before) / seconds for now, before in zip(totals, self._totals, strict=True)]
        typical = slow = nan
        if any(rates[2:5]):
            durations = _durations(counters)
            new = [now - old for now, old in zip(durations, self._durations, strict=True)]
            found = quantile(new, 0.5), quantile(new, 0.99)
            typical, slow = (nan if each is None else each for each in found)
            self._durations = durations
        self._totals = totals
        count, oldest = (0, nan) if at_work is None else (at_work.count, at_work.oldest_seconds)
        cached, dirty = float(cache.cached_bytes), float(cache.dirty_bytes)
        row = (*rates, typical, slow, cached, dirty, float(count), oldest)
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
            del column[:-SAMPLES_MAX]
        self.count += 1

    def since(self, number: int) -> dict[str, list[float | None]]:
        """The samples after the first ``number`` that are still there, by field."""
        wanted = max(0, min(self.count - number, len(self._columns[0])))
        return {
            field: [_or_none(value) for value in column[len(column) - wanted :]]
            for field, column in zip(FIELDS, self._columns, strict=True)
        }

    @property
    def last(self) -> dict[str, float | None]:
        """The newest sample; nothing moved if there is none yet."""
        newest = self.since(self.count - 1)
        return {field: values[0] if values else 0.0 for field, values in newest.items()}


class Recorder:
    """Keeps the histories of ``exports``, which may come and go, and how late the loop is.

    ``at_work`` tells of the exports that have requests at work, by name.
    """

    def __init__(
        self,
        exports: Mapping[str, BaseExport],
        at_work: Callable[[], Mapping[str, RequestsAtWork]],
    ) -> None:
        self._exports = exports
        self._at_work = at_work
        self._histories: dict[str, History] = {}
        self._follow()
        self.lag = Durations()
        self.lag_seconds = 0.0  # the longest of the last sample
        self._longest = 0.0

    def history(self, name: str) -> History:
        """That of an export. KeyError if there is none such."""
        export = self._exports[name]
        history = self._histories.get(name)
        if history is None or history.export is not export:
            history = self._histories[name] = History(export)
        return history

    def _follow(self) -> list[History]:
        """The histories of those that there are now."""
        for name in self._histories.keys() - self._exports.keys():
            del self._histories[name]
        return [self.history(name) for name in self._exports]

    async def record_forever(self) -> None:
        """Take samples until cancelled."""
        await asyncio.gather(self._sample_forever(), self._watch_loop())

    async def _sample_forever(self) -> None:
        taken = perf_counter()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            now, at_work = perf_counter(), self._at_work()
            for number, history in enumerate(self._follow()):
                if number % EXPORTS_PER_TURN == EXPORTS_PER_TURN - 1:
                    await asyncio.sleep(0)
                history.sample(now - taken, at_work.get(history.export.name))
            self.lag_seconds, self._longest = self._longest, 0.0
            taken = now

    async def _watch_loop(self) -> None:
        while True:
            begin = perf_counter()
            await asyncio.sleep(LAG_SECONDS)
            late = max(0.0, perf_counter() - begin - LAG_SECONDS)
            self.lag.add(late)
            self._longest = max(self._longest, late)


def _totals(counters: Counters) -> tuple[int, ...]:
    reads, writes = counters.requests_of("READ"), counters.requests_of("WRITE")
    others = counters.requests.total() - counters.requests["READ"] - counters.requests["WRITE"]
    return (
        counters.client_out,
        counters.client_in,
        reads,
        writes,
        others,
        counters.store_in,
        counters.store_out,
    )


def _durations(counters: Counters) -> list[int]:
    """Those of all commands together."""
    every = [durations.counts for durations in counters.durations.values()]
    return [sum(column) for column in zip(Durations().counts, *every, strict=True)]


def _or_none(value: float) -> float | None:
    return None if isnan(value) else value
