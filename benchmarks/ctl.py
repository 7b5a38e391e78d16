# SPDX-License-Identifier: MIT
"""swiftnbd-ctl upload, download and delete on a real Swift, against the raw rate of that Swift.

Each pair has a fresh container for each side. Twice the same run: by the wall clock, with starting
Python, logging in, locking (a second for the settle delay) and unlocking; and what it was once it
had the lock, which is what counts for large disks.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.options import KIB, MIB, Options
from benchmarks.processes import run, timed
from benchmarks.results import Comparison, Results, in_pairs
from benchmarks.swift import Swift, real_swift

PART = "ctl"
DELETE_OBJECT_SIZE = 4 * KIB  # the number of requests is what counts


@dataclass
class _Rows:
    """One command, by the wall clock and without the lock's second."""

    wall: Comparison
    transfer: Comparison

    @classmethod
    def of(cls, results: Results, what: str, unit: str, peer: str) -> "_Rows":
        return cls(
            results.comparison(PART, f"{what}, wall clock", unit, peer),
            results.comparison(PART, f"{what}, holding the lock", unit, peer),
        )


def measure(options: Options, results: Results, workdir: Path) -> None:
    """Copies of each object size, deletion, and how long it takes to say anything."""
    image = workdir / "ctl.img"
    data = options.random_bytes(options.copy_bytes)
    image.write_bytes(data)
    with real_swift(workdir) as swift:
        for object_size in options.object_sizes:
            _measure_copies(swift, image, data, object_size, options, results)
        _measure_delete(swift, options, results)
        _measure_start(swift, options, results)


def _measure_copies(
    swift: Swift, image: Path, data: bytes, object_size: int, options: Options, results: Results
) -> None:
    size = f"{object_size // KIB} KiB objects"
    into = _Rows.of(results, f"upload, {size}", "MB/s", "raw PUT")
    out = _Rows.of(results, f"download, {size}", "MB/s", "raw GET")
    back = image.with_name("ctl.back")
    for _ in range(options.copy_pairs):
        disk, raw_container = swift.set_up(len(data), object_size), swift.new_name()
        swift.raw.create(raw_container)
        _pair(
            into,
            len(data) / 1e6,
            swift.ctl(disk, "upload", "-q", "--json", str(image), disk),
            lambda: swift.raw.put_all(raw_container, data, object_size),  # noqa: B023
            options,
        )
        back.unlink(missing_ok=True)
        _pair(
            out,
            len(data) / 1e6,
            swift.ctl(disk, "download", "-q", "--json", disk, str(back)),
            lambda: swift.raw.get_all(raw_container, len(data) // object_size, object_size),  # noqa: B023
            options,
        )
        if back.read_bytes() != data:
            raise RuntimeError(f"{disk} does not hold what was uploaded")


def _measure_delete(swift: Swift, options: Options, results: Results) -> None:
    rows = _Rows.of(results, f"delete of {options.ctl_objects} objects", "1/s", "raw DELETE")
    data = options.random_bytes(options.ctl_objects * DELETE_OBJECT_SIZE)
    disk, raw_container = swift.set_up(len(data), DELETE_OBJECT_SIZE), swift.new_name()
    swift.raw.create(raw_container)
    for container in (disk, raw_container):
        swift.raw.put_all(container, data, DELETE_OBJECT_SIZE)
    command = swift.ctl(disk, "delete", "-q", "--yes", "--json", disk)
    _pair(
        rows,
        options.ctl_objects,
        command,
        lambda: swift.raw.delete_all(raw_container, options.ctl_objects),
        options,
    )


def _pair(
    rows: _Rows, amount: float, command: list[str], raw: Callable[[], float], options: Options
) -> None:
    """Ours and the peer's, once each; ``raw`` gives seconds."""
    transfer_seconds: list[float] = []

    def ours() -> float:
        begin = time.perf_counter()
        transfer_seconds.append(json.loads(run(command))["transfer_seconds"])
        return amount / (time.perf_counter() - begin)

    in_pairs(rows.wall, 1, ours, lambda: amount / raw(), options.say)
    rows.transfer.ours.append(amount / transfer_seconds[0])
    rows.transfer.peer.append(rows.wall.peer[-1])


def _measure_start(swift: Swift, options: Options, results: Results) -> None:
    """``--help``; and ``list`` of one container, of which Swift's part is some 10 ms."""
    disk = swift.set_up(MIB, 64 * KIB)
    for what, arguments in (("--help", ["--help"]), ("list, one container", ["list"])):
        figure = results.figure(PART, what, "s")
        for _ in range(options.cached_pairs):
            figure.values.append(timed(swift.ctl(disk, *arguments)))
