# SPDX-License-Identifier: MIT
"""What an honest client keeps of its throughput while 140 hostile connections do their worst.

The same server and the same fio, undisturbed and disturbed in turns (`benchmarks.hostile_peers`).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from benchmarks.cached import DISK_MIB, Workload, fio, our_server
from benchmarks.options import MIB, Options
from benchmarks.processes import Process, find
from benchmarks.results import Results, in_pairs

PART = "hostile"

WORKLOADS = (
    Workload("4 KiB random read, depth 32", "randread", "4k", 32),
    Workload("256 KiB sequential read, depth 32", "read", "256k", 32),
    Workload("4 KiB random write, depth 32, memory store", "randwrite", "4k", 32, "memory"),
    Workload("256 KiB write, depth 32, memory store", "write", "256k", 32, "memory"),
)


def measure(options: Options, results: Results, workdir: Path) -> None:
    """All workloads, disturbed and undisturbed in turns."""
    find("fio")
    image = workdir / "hostile.img"
    image.write_bytes(options.random_bytes(DISK_MIB * MIB))
    for workload in WORKLOADS:
        unit = "MB/s" if workload.block == "256k" else "IOPS"
        comparison = results.comparison(PART, workload.what, unit, "undisturbed")
        with our_server(workload.store, workdir, image) as uri:

            def disturbed(uri: str = uri, workload: Workload = workload) -> float:
                with hostile_peers(uri, workdir):
                    return fio(workload, uri, options.seconds)

            def undisturbed(uri: str = uri, workload: Workload = workload) -> float:
                return fio(workload, uri, options.seconds)

            in_pairs(comparison, options.cached_pairs, disturbed, undisturbed, options.say)


@contextmanager
def hostile_peers(uri: str, workdir: Path) -> Iterator[None]:
    """Peers at their work, in a process of their own."""
    parts = urlsplit(uri)
    arguments = [str(parts.port), unquote(parts.path[1:])]
    command = [sys.executable, "-m", "benchmarks.hostile_peers", *arguments]
    with Process(command, workdir) as peers:
        peers.wait_for(lambda: "ready" in peers.said())
        yield
