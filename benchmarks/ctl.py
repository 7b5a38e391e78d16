# SPDX-License-Identifier: MIT
"""swiftnbd-ctl upload, download and delete on a real Swift, against the raw rate of that Swift.

Each pair has a fresh container for each side. Three views of the same run: by the wall clock, with
starting Python, logging in, locking (a second for the settle delay) and unlocking; what it was once
it had the lock, which is what counts for large disks; and that against a plain client that computes
the MD5 of each object as well. The processor time is that of the whole command.
"""

import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.options import KIB, MIB, Options
from benchmarks.processes import run, timed
from benchmarks.results import Comparison, Figure, Results
from benchmarks.swift import Swift, real_swift

PART = "ctl"
DELETE_OBJECT_SIZE = 4 * KIB  # the number of requests is what counts


@dataclass
class _Rows:
    """One command, by the wall clock and without the lock's second."""

    wall: Comparison
    transfer: Comparison
    checked: Comparison
    cpu: Figure

    @classmethod
    def of(cls, results: Results, what: str, unit: str, peer: str) -> "_Rows":
        return cls(
            results.comparison(PART, f"{what}, wall clock", unit, peer),
            results.comparison(PART, f"{what}, holding the lock", unit, peer),
            results.comparison(PART, f"{what}, holding the lock", unit, f"{peer} and MD5"),
            results.figure(PART, f"{what}, processor time", "s"),
        )

    @property
    def last(self) -> str:
        """The latest ratios, by the wall clock and of the transfer alone."""
        return f"{self.wall.ratios[-1]:.2f}, holding the lock {self.transfer.ratios[-1]:.2f}"


@dataclass
class _Peer:
    """The plain client; it reads what it put first."""

    swift: Swift
    data: bytes
    object_size: int
    container: str = ""

    def put(self, *, checked: bool = False) -> float:
        name = self.swift.new_name()
        self.container = self.container or name
        self.swift.raw.create(name)
        return self.swift.raw.put_all(name, self.data, self.object_size, checked=checked)

    def put_checked(self) -> float:
        return self.put(checked=True)

    def get(self, *, checked: bool = False) -> float:
        count = len(self.data) // self.object_size
        return self.swift.raw.get_all(self.container, count, self.object_size, checked=checked)

    def get_checked(self) -> float:
        return self.get(checked=True)


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
        disk, peer = swift.set_up(len(data), object_size), _Peer(swift, data, object_size)
        upload = swift.ctl(disk, "upload", "-q", "--json", str(image), disk)
        _measure_pair(into, len(data) / 1e6, upload, peer.put, peer.put_checked)
        back.unlink(missing_ok=True)
        download = swift.ctl(disk, "download", "-q", "--json", disk, str(back))
        _measure_pair(out, len(data) / 1e6, download, peer.get, peer.get_checked)
        options.say(f"{size}: upload {into.last}, download {out.last}")
        if back.read_bytes() != data:
            raise RuntimeError(f"{disk} does not hold what was uploaded")


def _measure_delete(swift: Swift, options: Options, results: Results) -> None:
    rows = _Rows.of(results, f"delete of {options.ctl_objects} objects", "1/s", "raw DELETE")
    data = options.random_bytes(options.ctl_objects * DELETE_OBJECT_SIZE)
    disk, raw_container = swift.set_up(len(data), DELETE_OBJECT_SIZE), swift.new_name()
    swift.raw.create(raw_container)
    for container in (disk, raw_container):
        swift.raw.put_all(container, data, DELETE_OBJECT_SIZE)
    delete = swift.ctl(disk, "delete", "-q", "--yes", "--json", disk)
    _measure_pair(
        rows,
        options.ctl_objects,
        delete,
        lambda: swift.raw.delete_all(raw_container, options.ctl_objects),
    )
    options.say(f"delete {rows.last}")


def _measure_pair(
    rows: _Rows,
    amount: float,
    command: list[str],
    plain: Callable[[], float],
    checked: Callable[[], float] | None = None,
) -> None:
    """Ours and the peers', once each; theirs give seconds."""
    begin, cpu = time.perf_counter(), _cpu_seconds()
    found = json.loads(run(command))
    rows.wall.ours.append(amount / (time.perf_counter() - begin))
    rows.cpu.values.append(_cpu_seconds() - cpu)
    rows.transfer.ours.append(amount / found["transfer_seconds"])
    rows.transfer.peer.append(amount / plain())
    rows.wall.peer.append(rows.transfer.peer[-1])
    if checked is not None:
        rows.checked.ours.append(rows.transfer.ours[-1])
        rows.checked.peer.append(amount / checked())


def _cpu_seconds() -> float:
    """Of all programs that were run and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _measure_start(swift: Swift, options: Options, results: Results) -> None:
    """``--help``; and ``list`` of one container, of which Swift's part is some 10 ms."""
    disk = swift.set_up(MIB, 64 * KIB)
    for what, arguments in (("--help", ["--help"]), ("list, one container", ["list"])):
        figure = results.figure(PART, what, "s")
        for _ in range(options.cached_pairs):
            figure.values.append(timed(swift.ctl(disk, *arguments)))
