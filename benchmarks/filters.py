# SPDX-License-Identifier: MIT
"""What a filter costs: a memory disk with it against the same server without, by fio, in turns.

The same is measured of nbdkit with its own filters, so that the two costs can be compared: one
that passes everything on, and one that moves every request.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from benchmarks.cached import DISK_MIB, Workload, fill, fio
from benchmarks.options import MIB, Options
from benchmarks.processes import find, nbdkit_memory, swiftnbd_server
from benchmarks.results import Missing, Results, in_pairs

PART = "filters"
OFFSET_MIB = 1

Start = Callable[[Path, Sequence[str]], AbstractContextManager[str]]

WORKLOADS = (
    Workload("4 KiB random read, depth 32", "randread", "4k", 32),
    Workload("4 KiB random write, depth 32", "randwrite", "4k", 32),
)
# the filter of ours, nbdkit's, and what both are told
FILTERS = (
    ("through", "nofilter", ()),
    ("offset", "offset", (f"offset={OFFSET_MIB}M",)),
)


@contextmanager
def _ours(workdir: Path, words: Sequence[str]) -> Iterator[str]:
    flags = [word for word in words if word.startswith("--")]
    told = [word for word in words if not word.startswith("--")]
    size = f"{DISK_MIB + OFFSET_MIB}M"
    with swiftnbd_server(workdir, DISK_MIB, *flags, "memory", size, *told) as server:
        yield server.uri


@contextmanager
def _nbdkit(workdir: Path, words: Sequence[str]) -> Iterator[str]:
    size = (DISK_MIB + OFFSET_MIB) * MIB
    flags = [word for word in words if word.startswith("--")]
    told = [word for word in words if not word.startswith("--")]
    with nbdkit_memory(workdir, size, *flags, told=told) as uri:
        yield uri


def measure(options: Options, results: Results, workdir: Path) -> None:
    """Both servers, both filters, all workloads."""
    find("fio")
    image = workdir / "filters.img"
    image.write_bytes(options.random_bytes(DISK_MIB * MIB))
    for ours, theirs, told in FILTERS:
        _compare("swiftnbd", ours, _ours, told, image, options, results, workdir)
        try:
            _compare("nbdkit", theirs, _nbdkit, told, image, options, results, workdir)
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
    workdir: Path,
) -> None:
    with ExitStack() as stack:
        filtered = stack.enter_context(start(workdir, [f"--filter={filter_name}", *told]))
        plain = stack.enter_context(start(workdir, []))
        for uri in (filtered, plain):
            fill(image, uri)
        for workload in WORKLOADS:
            what = f"{name}, filter {filter_name}, {workload.what}"
            comparison = results.comparison(PART, what, "IOPS", "without it")

            def with_it(workload: Workload = workload) -> float:
                return fio(workload, filtered, options.seconds)

            def without(workload: Workload = workload) -> float:
                return fio(workload, plain, options.seconds)

            in_pairs(comparison, options.cached_pairs, with_it, without, options.say)
