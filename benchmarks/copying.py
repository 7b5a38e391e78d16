# SPDX-License-Identifier: MIT
"""nbdcopy into and out of a real Swift, against the raw rate of that Swift in the same minute.

Each pair has a fresh container for each side. Copying out is from a fresh server process, so that
nothing is cached. An idle connection is there before, so that the settle delay of the lock, a fixed
second that `attach` measures, is not in the rate; after that, the wall clock counts. What was
copied in is read back by the plain client: every object is stored, and is right.

Beside it stands what the MD5 of each body takes from the plain client: we always compare it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.cached import held_open
from benchmarks.options import KIB, MIB, Options
from benchmarks.processes import Server, find, timed
from benchmarks.results import Comparison, Results, in_pairs
from benchmarks.swift import Swift, real_swift

PART = "copy"
CACHE_MIB = 64
GIB = 1024 * MIB


@dataclass
class _Rows:
    """Where the values of one object size go."""

    into: Comparison
    out: Comparison
    cpu_into: Comparison
    cpu_out: Comparison
    checked_put: Comparison
    checked_get: Comparison


def measure(options: Options, results: Results, workdir: Path) -> None:
    """All object sizes."""
    find("nbdcopy")
    image = workdir / "copy.img"
    data = options.random_bytes(options.copy_bytes)
    image.write_bytes(data)
    with real_swift(workdir) as swift:
        for object_size in options.object_sizes:
            _measure_size(swift, image, data, object_size, options, results)


def _measure_size(
    swift: Swift, image: Path, data: bytes, object_size: int, options: Options, results: Results
) -> None:
    size = f"{object_size // KIB} KiB objects"
    rows = _Rows(
        results.comparison(PART, f"nbdcopy in, {size}", "MB/s", "raw PUT"),
        results.comparison(PART, f"nbdcopy out, cold, {size}", "MB/s", "raw GET"),
        results.comparison(PART, f"CPU of the server, in, {size}", "s/GiB", "raw client"),
        results.comparison(PART, f"CPU of the server, out, {size}", "s/GiB", "raw client"),
        results.comparison(PART, f"raw PUT with MD5, {size}", "MB/s", "raw PUT"),
        results.comparison(PART, f"raw GET with MD5, {size}", "MB/s", "raw GET"),
    )
    for _ in range(options.copy_pairs):
        _pair(swift, image, data, object_size, rows, options)


def _pair(
    swift: Swift, image: Path, data: bytes, object_size: int, rows: _Rows, options: Options
) -> None:
    """In, raw PUT, out, raw GET."""
    megabytes, objects = len(data) / 1e6, len(data) // object_size
    disk = swift.set_up(len(data), object_size)
    raw_container = swift.new_name()
    swift.raw.create(raw_container)

    def copy_in() -> float:
        with swift.serve(disk, CACHE_MIB) as server, held_open(server.uri):
            cpu = rows.cpu_into.ours
            return megabytes / _copy(server, cpu, len(data), "--flush", str(image), "@")

    def copy_out() -> float:
        with swift.serve(disk, CACHE_MIB) as server, held_open(server.uri):
            return megabytes / _copy(server, rows.cpu_out.ours, len(data), "@", "null:")

    def raw_put() -> float:
        with _own_cpu(rows.cpu_into.peer, len(data)):
            return megabytes / swift.raw.put_all(raw_container, data, object_size)

    def raw_get() -> float:
        with _own_cpu(rows.cpu_out.peer, len(data)):
            return megabytes / swift.raw.get_all(raw_container, objects, object_size)

    in_pairs(rows.into, 1, copy_in, raw_put, options.say)
    in_pairs(rows.out, 1, copy_out, raw_get, options.say)
    _checked_pair(swift, data, object_size, rows, options)
    if swift.raw.image(disk, objects) != data:
        raise RuntimeError(f"{disk} does not hold what was copied into it")


def _checked_pair(
    swift: Swift, data: bytes, object_size: int, rows: _Rows, options: Options
) -> None:
    """What the MD5 of every body alone takes from the plain client's rate."""
    megabytes, objects = len(data) / 1e6, len(data) // object_size

    def put(checked: bool) -> float:
        container = swift.new_name()
        swift.raw.create(container)
        return megabytes / swift.raw.put_all(container, data, object_size, checked=checked)

    def get(checked: bool) -> float:
        container = swift.last_name
        return megabytes / swift.raw.get_all(container, objects, object_size, checked=checked)

    in_pairs(rows.checked_put, 1, partial(put, True), partial(put, False), options.say)
    in_pairs(rows.checked_get, 1, partial(get, True), partial(get, False), options.say)


def _copy(server: Server, cpu: list[float], length: int, *arguments: str) -> float:
    """Run nbdcopy, ``@`` standing for the server; the seconds it took."""
    command = [find("nbdcopy"), *(server.uri if x == "@" else x for x in arguments)]
    before = server.cpu_seconds()
    seconds = timed(command)
    cpu.append((server.cpu_seconds() - before) * GIB / length)
    return seconds


@contextmanager
def _own_cpu(cpu: list[float], length: int) -> Iterator[None]:
    """The CPU time of this process, for ``length`` bytes."""
    before = time.process_time()
    yield
    cpu.append((time.process_time() - before) * GIB / length)
