# SPDX-License-Identifier: MIT
"""How long the event loop is kept from new work while a disk is copied in and out of a Swift.

The Swift and nbdcopy keep the processors busy as well, and what the system takes from our process
counts against it here: this is what a client would see.
"""

import sys
from array import array
from pathlib import Path

from benchmarks.options import KIB, Options
from benchmarks.processes import Server, find, run
from benchmarks.results import Results
from benchmarks.swift import Swift, real_swift

PART = "stall"
CACHE_MIB = 64


def measure(options: Options, results: Results, workdir: Path) -> None:
    """Each object size, some copies in and out each."""
    image = workdir / "stall.img"
    image.write_bytes(options.random_bytes(options.copy_bytes))
    with real_swift(workdir) as swift:
        for object_size in options.object_sizes:
            what = f"{object_size // KIB} KiB objects"
            usual = results.figure(PART, f"event loop late, 99.9 %, {what}", "ms")
            worst = results.figure(PART, f"event loop late, at most, {what}", "ms")
            for _ in range(options.copy_pairs):
                late = _lateness(swift, image, object_size)
                usual.values.append(1000 * late[len(late) * 999 // 1000])
                worst.values.append(1000 * late[-1])
                options.say(f"{usual.what}: {usual.values[-1]:.1f} of {worst.values[-1]:.1f} ms")


def _lateness(swift: Swift, image: Path, object_size: int) -> list[float]:
    """How late a timer came, in seconds, ascending, while ``image`` was copied in and out."""
    disk = swift.set_up(image.stat().st_size, object_size)
    found = swift.workdir / "lateness"
    common = ["-f", "-p", "0", "--pid-file", str(swift.workdir / "stall.pid"), "-c", str(CACHE_MIB)]
    command = [sys.executable, "-m", "benchmarks.stall_server", str(found), *common]
    with Server([*command, *swift.arguments(disk)], swift.workdir) as server:
        run([find("nbdcopy"), "--flush", str(image), server.uri])
        run([find("nbdcopy"), server.uri, "null:"])
    late = array("d")
    late.frombytes(found.read_bytes())
    return sorted(late)
