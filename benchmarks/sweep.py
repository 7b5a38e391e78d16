# SPDX-License-Identifier: MIT
"""What each setting does to the rates: object size, requests at once, cache. For the plots.

Each point is one run on a fresh disk and a fresh server, so read the curves, not single points.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cached import held_open
from benchmarks.options import KIB, MIB, Options
from benchmarks.processes import Server, find, run, timed
from benchmarks.results import Results
from benchmarks.swift import Swift, real_swift

PART = "sweep"
OBJECT_KIB = (4, 16, 64, 256, 1024, 4096)
REQUESTS = (1, 2, 4, 8, 16, 32)
CACHE_MIB = (4, 8, 16, 32, 64, 128)
DISK_MIB = 64  # of the cache's sweep; read by a Zipf law, as file systems are
OBJECTS_MAX = 1500  # of one run: small objects take their time
RANDOM_IOS = 600


@dataclass(frozen=True)
class _Sweep:
    swift: Swift
    options: Options
    results: Results
    workdir: Path

    def image(self, object_size: int) -> Path:
        """What is copied: as much as is reasonable in objects of that size."""
        size = min(self.options.copy_bytes, OBJECTS_MAX * object_size)
        path = self.workdir / "sweep.img"
        path.write_bytes(self.options.random_bytes(size))
        return path

    def note(self, what: str, unit: str, x_name: str, x: float, value: float) -> None:
        """One point of a curve."""
        self.results.curve(PART, what, unit, x_name).points.append((x, value))
        self.options.say(f"{what}, {x_name} {x:g}: {value:.3g} {unit}")


def measure(options: Options, results: Results, workdir: Path) -> None:
    """All curves, on one Swift."""
    find("nbdcopy")
    find("fio")
    with real_swift(workdir) as swift:
        sweep = _Sweep(swift, options, results, workdir)
        _sweep_object_size(sweep)
        _sweep_requests(sweep)
        _sweep_cache(sweep)


def _sweep_object_size(sweep: _Sweep) -> None:
    name = "object size, KiB"
    for kib in OBJECT_KIB:
        size = kib * KIB
        image = sweep.image(size)
        megabytes = image.stat().st_size / 1e6
        disk = sweep.swift.set_up(image.stat().st_size, size)

        def note(what: str, unit: str, value: float, kib: int = kib) -> None:
            sweep.note(what, unit, name, kib, value)

        note("copy in", "MB/s", megabytes / _copy(sweep, disk, "--flush", str(image), "@"))
        note("copy out, cold", "MB/s", megabytes / _copy(sweep, disk, "@", "null:"))
        io_size = f"--size={image.stat().st_size}"
        flags = ("--iodepth=32", io_size, f"--io_size={RANDOM_IOS * 4 * KIB}")
        note("random 4 KiB reads, cold", "/s", _fio(sweep, disk, "--rw=randread", *flags))
        note(
            "random 4 KiB writes, FLUSH every 64",
            "/s",
            _fio(sweep, disk, "--rw=randwrite", "--fsync=64", "--end_fsync=1", *flags),
        )


def _sweep_requests(sweep: _Sweep) -> None:
    image = sweep.image(64 * KIB)
    megabytes = image.stat().st_size / 1e6
    for requests in REQUESTS:
        disk = sweep.swift.set_up(image.stat().st_size, 64 * KIB)
        for what, ends in (
            ("copy in, 64 KiB objects", ("--flush", str(image), "@")),
            ("copy out, cold, 64 KiB objects", ("@", "null:")),
        ):
            took = _copy(sweep, disk, *ends, server=("--requests", str(requests)))
            sweep.note(what, "MB/s", "requests at once", requests, megabytes / took)


def _sweep_cache(sweep: _Sweep) -> None:
    data = sweep.options.random_bytes(DISK_MIB * MIB)
    disk = sweep.swift.set_up(len(data), 64 * KIB)
    sweep.swift.raw.fill(disk, data, 64 * KIB)
    for cache in CACHE_MIB:
        flags = ("--rw=randread", "--iodepth=8", f"--size={len(data)}", "--norandommap")
        law = ("--random_distribution=zipf:1.1", "--time_based", "--runtime=8")
        rate = _fio(sweep, disk, *flags, *law, cache_mib=cache)
        sweep.note("random 4 KiB reads, Zipf", "/s", "cache, % of the disk", 100 * cache / 64, rate)


def _with_server(
    sweep: _Sweep, disk: str, cache_mib: int, flags: tuple[str, ...], work: Callable[[str], float]
) -> float:
    server: Server
    with sweep.swift.serve(disk, cache_mib, *flags) as server, held_open(server.uri):
        return work(server.uri)


def _copy(sweep: _Sweep, disk: str, *ends: str, server: tuple[str, ...] = ()) -> float:
    def work(uri: str) -> float:
        return timed([find("nbdcopy"), *(uri if end == "@" else end for end in ends)])

    return _with_server(sweep, disk, 64, server, work)


def _fio(sweep: _Sweep, disk: str, *flags: str, cache_mib: int = 64) -> float:
    """Requests of 4 KiB per second."""

    def work(uri: str) -> float:
        engine = ["--name=sweep", "--ioengine=nbd", f"--uri={uri}", "--bs=4k"]
        said = run([find("fio"), *engine, *flags, "--output-format=json"])
        job = json.loads(said[said.index("{") :])["jobs"][0]
        side = job["write" if "--rw=randwrite" in flags else "read"]
        return float(side["total_ios"] / (job["job_runtime"] / 1000))

    return _with_server(sweep, disk, cache_mib, (), work)
