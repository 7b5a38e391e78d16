# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter stats PLUGIN statsfile=stats.txt``"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter
from typing import Final, TypeVar

from swiftnbd.api import BOOLEAN, PATH, Buffer, Device, FilterPlugin, Opening, integer, parameter
from swiftnbd.api.around import Around, Call
from swiftnbd.units import format_size

T = TypeVar("T")

_NAMES: Final = {"prefetch": "cache"}  # as nbdkit calls it


@dataclass(slots=True)
class Tally:
    """Requests of one kind; ``sizes`` counts them by the bits of their length, and for each of
    these by how many low bits of the offset are zeros: a few thousand numbers at most."""

    count: int = 0
    failures: int = 0
    seconds: float = 0.0
    bytes: int = 0
    sizes: dict[int, Counter[int]] = field(default_factory=dict)
    size_bytes: Counter[int] = field(default_factory=Counter)

    def add(self, offset: int, length: int, seconds: float, *, failed: bool = False) -> None:
        self.count += 1
        self.failures += failed
        self.seconds += seconds
        self.bytes += length
        if length:
            bits = length.bit_length() - 1
            aligned = (offset & -offset).bit_length() - 1 if offset else 63
            self.sizes.setdefault(bits, Counter())[aligned] += 1
            self.size_bytes[bits] += length


@dataclass(slots=True)
class _State:
    begin: float = 0.0
    tallies: dict[str, Tally] = field(default_factory=dict)


@dataclass(frozen=True)
class Stats(FilterPlugin):
    """Counts requests, their bytes and how long they took, for a summary at the end."""

    statsfile: Path = parameter(PATH, "The file of the summary.")
    statsappend: bool = parameter(BOOLEAN, "Keep what is in it.", default=False)
    statsthreshold: int = parameter(
        integer(0, 100), "How many percent of the requests are told by size; 0: none.", default=95
    )

    _state: _State = field(init=False, compare=False, repr=False, default_factory=_State)

    async def start(self) -> None:
        self._state.begin = monotonic()
        self.statsfile.open("a" if self.statsappend else "w").close()  # a wrong path is known now

    async def wrap(self, device: Device, opening: Opening) -> Device:
        return StatsFilter(device, self._state.tallies)

    async def stop(self) -> None:
        seconds = monotonic() - self._state.begin
        lines = summary(self._state.tallies, seconds, self.statsthreshold)
        with self.statsfile.open("a" if self.statsappend else "w") as file:
            file.writelines(f"{line}\n" for line in lines)


class StatsFilter(Around):
    """Adds to ``tallies``, by the name of the request."""

    def __init__(self, device: Device, tallies: dict[str, Tally]) -> None:
        super().__init__(device)
        self._tallies = tallies

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        begin = perf_counter()
        pieces = self.device.read_now(offset, length)
        if pieces is not None:
            self._of("read").add(offset, length, perf_counter() - begin)
        return pieces

    def write_now(self, offset: int, data: Buffer) -> bool:
        begin, length = perf_counter(), len(data)
        is_done = self.device.write_now(offset, data)
        if is_done:
            self._of("write").add(offset, length, perf_counter() - begin)
        return is_done

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        begin, failed = perf_counter(), True
        try:
            result = await work()
            failed = False
        finally:
            seconds = perf_counter() - begin
            self._of(call.name).add(call.offset, call.length, seconds, failed=failed)
        return result

    def _of(self, name: str) -> Tally:
        name = _NAMES.get(name, name)
        tally = self._tallies.get(name)
        if tally is None:
            tally = self._tallies[name] = Tally()
        return tally


def summary(tallies: dict[str, Tally], seconds: float, percent: int) -> Iterator[str]:
    """Lines as nbdkit's filter has them, and failed requests."""
    count = sum(each.count for each in tallies.values())
    total = sum(each.bytes for each in tallies.values())
    yield f"total: {count} ops, {seconds:.6f} s, {format_size(total)}, {_rate(total, seconds)}"
    for name, tally in tallies.items():
        failed = f", {tally.failures} failed" if tally.failures else ""
        yield (
            f"{name}: {tally.count} ops, {tally.seconds:.6f} s, {format_size(tally.bytes)}, "
            f"{_rate(tally.bytes, tally.seconds)} op, {_rate(tally.bytes, seconds)} total{failed}"
        )
        if percent and tally.sizes:
            yield "  Request size and alignment breakdown:"
            yield from _sizes(tally, percent)
        yield ""


def _sizes(tally: Tally, percent: int) -> Iterator[str]:
    counts = {bits: by_aligned.total() for bits, by_aligned in tally.sizes.items()}
    left = total = sum(counts.values())
    for bits, count in sorted(counts.items(), key=lambda item: -item[1]):
        if (total - left) * 100 >= percent * total:
            break
        left -= count
        size = format_size(tally.size_bytes[bits])
        yield f"    {bits} bits: {count / total:5.1%} ({count} reqs, {size} total)"
        yield from _alignments(tally.sizes[bits], count, percent)
    if left:
        yield f"    other sizes: {left / total:5.1%} ({left} reqs)"


def _alignments(by_aligned: Counter[int], count: int, percent: int) -> Iterator[str]:
    """How many are aligned to at least so many bits, as long as that are enough to be told."""
    left = count
    for bits, here in sorted(by_aligned.items()):
        if left * 100 < (100 - percent) * count:
            break
        yield f"        {bits:2} bit aligned: {left / count:6.1%} ({left})"
        left -= here


def _rate(count: int, seconds: float) -> str:
    return f"{format_size(int(count / seconds) if seconds else 0)}/s"
