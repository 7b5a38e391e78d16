# SPDX-License-Identifier: MIT
"""The hot path: requests answered from the cache, against nbdkit's memory plugin, by fio.

One connection each. Both servers hold the same random bytes, and all of them in memory. An export
forgets its cache when its last client leaves, so an idle connection stays for the whole time.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from benchmarks.options import MIB, Options
from benchmarks.processes import Server, find, nbdkit_memory, run, script, swiftnbd_server
from benchmarks.results import Missing, Results, in_pairs
from tests.support.nbd_client import NbdClient

PART = "cached"
PEER = "nbdkit memory"
DISK_MIB = 64
CACHE_MIB = 128


@dataclass(frozen=True)
class Workload:
    """One way to call fio. ``store`` is what our server keeps its bytes in."""

    what: str
    pattern: str
    block: str
    depth: int
    store: str = "directory"


WORKLOADS = (
    Workload("4 KiB random read, depth 32", "randread", "4k", 32),
    Workload("4 KiB random read, depth 1", "randread", "4k", 1),
    Workload("256 KiB sequential read, depth 8", "read", "256k", 8),
    Workload("4 KiB random write, depth 32, memory store", "randwrite", "4k", 32, "memory"),
)


def measure(options: Options, results: Results, workdir: Path) -> None:
    """All workloads, in pairs."""
    find("fio")
    image = workdir / "cached.img"
    image.write_bytes(options.random_bytes(DISK_MIB * MIB))
    with ExitStack() as stack:
        peer_uri = None
        try:
            peer_uri = stack.enter_context(nbdkit_memory(workdir, DISK_MIB * MIB))
            fill(image, peer_uri)
        except Missing as missing:
            results.missing.append(f"{PART}: the peer: {missing}")
        for workload in WORKLOADS:
            with our_server(workload.store, workdir, image) as uri:
                _compare(workload, uri, peer_uri, options, results)


def _compare(
    workload: Workload, uri: str, peer_uri: str | None, options: Options, results: Results
) -> None:
    unit = "MB/s" if workload.block == "256k" else "IOPS"
    comparison = results.comparison(PART, workload.what, unit, PEER)

    def fio_on(uri: str) -> Callable[[], float]:
        return lambda: fio(workload, uri, options.seconds)

    peer = fio_on(peer_uri) if peer_uri else None
    in_pairs(comparison, options.cached_pairs, fio_on(uri), peer, options.say)


@contextmanager
def our_server(store: str, workdir: Path, image: Path) -> Iterator[str]:
    """Our server with ``image`` in it and all of it cached; the URI."""
    start = _directory_server if store == "directory" else _memory_server
    with start(workdir) as server, held_open(server.uri):
        fill(image, server.uri)
        yield server.uri


def _directory_server(workdir: Path) -> Server:
    url = f"file:{workdir / 'disks'}"
    run([script("swiftnbd-ctl"), "-a", url, "setup", "-f", "disk", "--size", f"{DISK_MIB}M"])
    return swiftnbd_server(workdir, CACHE_MIB, "-a", url)


def _memory_server(workdir: Path) -> Server:
    return Server([sys.executable, "-m", "benchmarks.memory_server", str(DISK_MIB)], workdir)


def fill(image: Path, uri: str) -> None:
    """Write the image, and read it all once, so that nothing is left to fetch."""
    nbdcopy = find("nbdcopy")
    run([nbdcopy, str(image), uri])
    run([nbdcopy, uri, "null:"])


@contextmanager
def held_open(uri: str) -> Iterator[None]:
    """Keep one idle connection to an export."""
    parts = urlsplit(uri)
    assert parts.port is not None
    with NbdClient(parts.port) as client:
        client.go(unquote(parts.path[1:]).encode())
        yield


def fio(workload: Workload, uri: str, seconds: float) -> float:
    """One run of fio's nbd engine; requests or megabytes per second."""
    said = run(
        [
            find("fio"),
            "--name=benchmark",
            "--ioengine=nbd",
            f"--uri={uri}",
            f"--rw={workload.pattern}",
            f"--bs={workload.block}",
            f"--iodepth={workload.depth}",
            f"--size={DISK_MIB}M",
            "--time_based",
            f"--runtime={seconds}",
            "--output-format=json",
        ],
        seconds + 120,
    )
    job = json.loads(said[said.index("{") :])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio: error {job['error']} on {uri}")
    side = job["write" if "write" in workload.pattern else "read"]
    return float(side["bw_bytes"] / 1e6 if workload.block == "256k" else side["iops"])
