# SPDX-License-Identifier: MIT
"""The hot path inside TLS: cached reads, against nbdkit's memory plugin with TLS, by nbdcopy.

One connection, TLS 1.3; libnbd's TLS is GnuTLS. Both servers have the same certificate and hold
the same random bytes, all of them in memory. The rates are by the wall clock, so they contain the
start of nbdcopy and the handshake, some 30 ms.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from benchmarks.cached import fill, held_open
from benchmarks.options import KIB, MIB, Options
from benchmarks.processes import find, nbdkit_memory, run, script, swiftnbd_server
from benchmarks.results import Results, in_pairs
from tests.support.certificates import Certificates

PART = "tls"
PEER = "nbdkit memory"


@dataclass(frozen=True)
class Workload:
    """One way to call nbdcopy."""

    what: str
    unit: str
    block: int


WORKLOADS = (
    Workload("4 KiB sequential read, depth 32", "IOPS", 4 * KIB),
    Workload("256 KiB sequential read, depth 32", "MB/s", 256 * KIB),
)


def measure(options: Options, results: Results, workdir: Path) -> None:
    """All workloads, in pairs."""
    size = options.tls_bytes
    certificates = Certificates.make(workdir / "certificates")
    image = workdir / "tls.img"
    image.write_bytes(options.random_bytes(size))
    flags = ("--tls=on", f"--tls-certificates={certificates.server}")
    url = f"file:{workdir / 'tls-disks'}"
    run([script("swiftnbd-ctl"), "-a", url, "setup", "disk", "--size", f"{size // MIB}M"])

    def reading(uri: str, workload: Workload) -> Callable[[], float]:
        return lambda: read(encrypted(uri, certificates), size, workload)

    with ExitStack() as stack:
        server = stack.enter_context(swiftnbd_server(workdir, 2 * size // MIB, "-a", url, *flags))
        peer_uri = stack.enter_context(nbdkit_memory(workdir, size, *flags))
        stack.enter_context(held_open(server.uri))  # or it would forget its cache
        for uri in (server.uri, peer_uri):
            fill(image, uri)
        for workload in WORKLOADS:
            comparison = results.comparison(PART, workload.what, workload.unit, PEER)
            ours, peer = reading(server.uri, workload), reading(peer_uri, workload)
            in_pairs(comparison, options.cached_pairs, ours, peer, options.say)


def encrypted(uri: str, certificates: Certificates) -> str:
    """The same export, inside TLS."""
    return f"{uri.replace('nbd', 'nbds', 1)}?tls-certificates={quote(str(certificates.client))}"


def read(uri: str, size: int, workload: Workload) -> float:
    """Read everything once; requests or megabytes per second."""
    command = [find("nbdcopy"), "--connections=1", "--requests=32", "--no-extents"]
    began = time.perf_counter()
    run([*command, f"--request-size={workload.block}", uri, "null:"])
    seconds = time.perf_counter() - began
    return size / 1e6 / seconds if workload.unit == "MB/s" else size / workload.block / seconds
