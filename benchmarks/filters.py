# SPDX-License-Identifier: MIT
"""What a filter costs: a memory disk with it against the same server without, by fio, in turns.

The same is measured of nbdkit with its own filters, so that the two costs can be compared: one
that passes everything on, and one that moves every request. Requests a second are what a user
sees; on a small machine fio takes most of the processors, so the server's own time is shown, too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.cached import DISK_MIB, Workload, fill, fio
from benchmarks.options import MIB, Options
from benchmarks.processes import Process, find, nbdkit_process, swiftnbd_server
from benchmarks.results import Comparison, Missing, Results

PART = "filters"
OFFSET_MIB = 1

WORKLOADS = (
    Workload("4 KiB random read, depth 32", "randread", "4k", 32),
    Workload("4 KiB random write, depth 32", "randwrite", "4k", 32),
)
# the filter of ours, nbdkit's, and what both are told
FILTERS = (
    ("through", "nofilter", ()),
    ("offset", "offset", (f"offset={OFFSET_MIB}M",)),
)

Start = Callable[[Path, Sequence[str], Sequence[str]], AbstractContextManager["Disk"]]


class Disk(NamedTuple):
    """A disk that is served, and by whom."""

    uri: str
    server: Process

    def run(self, workload: Workload, seconds: float) -> tuple[float, float]:
        """Requests a second, and microseconds of the server's processor time for each."""
        before = self.server.cpu_seconds()
        rate = fio(workload, self.uri, seconds)
        return rate, (self.server.cpu_seconds() - before) / (rate * seconds) * 1e6


@contextmanager
def _swiftnbd(workdir: Path, flags: Sequence[str], told: Sequence[str]) -> Iterator[Disk]:
    size = f"{DISK_MIB + OFFSET_MIB}M"
    with swiftnbd_server(workdir, DISK_MIB, *flags, "memory", size, *told) as server:
        yield Disk(server.uri, server)


@contextmanager
def _nbdkit(workdir: Path, flags: Sequence[str], told: Sequence[str]) -> Iterator[Disk]:
    size = (DISK_MIB + OFFSET_MIB) * MIB
    with nbdkit_process(workdir, size, *flags, told=told) as (uri, process):
        yield Disk(uri, process)


def measure(options: Options, results: Results, workdir: Path) -> None:
    """Both servers, both filters, all workloads."""
    find("fio")
    image = workdir / "filters.img"
    image.write_bytes(options.random_bytes(DISK_MIB * MIB))
    for ours, theirs, told in FILTERS:
        _compare("swiftnbd", ours, _swiftnbd, told, image, options, results)
        try:
            _compare("nbdkit", theirs, _nbdkit, told, image, options, results)
        except Missing as missing:
            results.missing.append(f"{PART}: nbdkit: {missing}")


def _compare(
    name: str,
    filter_name: str,
    start: Start,
    told: Sequence[str],
    image: Path,
    options: Options,
    results: Results,
) -> None:
    flags = [f"--filter={filter_name}"]
    with start(image.parent, flags, told) as filtered, start(image.parent, [], []) as plain:
        for disk in (filtered, plain):
            fill(image, disk.uri)
        for workload in WORKLOADS:
            what = f"{name}, {filter_name}, {workload.what}"
            rates = results.comparison(PART, what, "IOPS", "without it")
            costs = results.comparison(PART, what, "us CPU a request", "without it")
            for _ in range(options.cached_pairs):
                _measure_pair(filtered, plain, workload, options, rates, costs)


def _measure_pair(
    filtered: Disk,
    plain: Disk,
    workload: Workload,
    options: Options,
    rates: Comparison,
    costs: Comparison,
) -> None:
    with_it = filtered.run(workload, options.seconds)
    without = plain.run(workload, options.seconds)
    for comparison, ours, theirs in zip((rates, costs), with_it, without, strict=True):
        comparison.ours.append(ours)
        comparison.peer.append(theirs)
    options.say(f"{rates.what}, {len(rates.ours)}: {rates.ratios[-1]:.2f} as many requests, "
                f"{costs.ratios[-1]:.2f} of the processor time for each")  # fmt: skip
