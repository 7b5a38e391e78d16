# SPDX-License-Identifier: MIT
"""What the first connection waits for on a real Swift: the lock, its settle delay included."""

import time
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.options import KIB, MIB, Options
from benchmarks.processes import Server
from benchmarks.results import Results
from benchmarks.swift import real_swift
from tests.support.nbd_client import NbdClient

PART = "attach"
RUNS = 10


def measure(options: Options, results: Results, workdir: Path) -> None:
    """Attach and detach, with a read in between, again and again."""
    attach = results.figure(PART, "connect until GO is answered", "s")
    second = results.figure(PART, "the same, a second connection", "s")
    detach = results.figure(PART, "disconnect until unlocked", "s")
    with real_swift(workdir) as swift:
        name = swift.set_up(16 * MIB, 64 * KIB)
        with swift.serve(name, 64) as server:
            for run in range(1, RUNS + 1):
                begin = time.perf_counter()
                with _connected(server, name):
                    attach.values.append(time.perf_counter() - begin)
                    begin = time.perf_counter()
                    with _connected(server, name):
                        second.values.append(time.perf_counter() - begin)
                    begin = time.perf_counter()
                _wait_unlocked(server, name, run)
                detach.values.append(time.perf_counter() - begin)


def _connected(server: Server, name: str) -> NbdClient:
    port = urlsplit(server.uri).port
    assert port is not None
    client = NbdClient(port)
    client.go(name.encode())
    return client


def _wait_unlocked(server: Server, name: str, times: int) -> None:
    server.wait_for(lambda: server.said().count(f"{name}: unlocked") >= times)
