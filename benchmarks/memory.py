# SPDX-License-Identifier: MIT
"""The most memory a server with ``-c 64`` ever holds while a large image is copied in and out."""

from pathlib import Path

from benchmarks.options import KIB, MIB, Options
from benchmarks.processes import find, run
from benchmarks.results import Results
from benchmarks.swift import real_swift

PART = "memory"
CACHE_MIB = 64


def measure(options: Options, results: Results, workdir: Path) -> None:
    """Each object size once, in and out, each with a server of its own."""
    nbdcopy = find("nbdcopy")
    image = workdir / "memory.img"
    with image.open("wb") as file:
        for _ in range(options.memory_bytes // MIB):
            file.write(options.random_bytes(MIB))
    with real_swift(workdir) as swift:
        for object_size in options.object_sizes:
            size = f"{options.memory_bytes // MIB} MiB, {object_size // KIB} KiB objects"
            idle = results.figure(PART, f"resident, idle, {size}", "MiB")
            disk = swift.set_up(options.memory_bytes, object_size)
            for way in ("in", "out"):
                more = results.figure(PART, f"peak beyond idle, -c 64, copy {way}, {size}", "MiB")
                with swift.serve(disk, CACHE_MIB) as server:
                    idle.values.append(server.memory_bytes("VmRSS") / MIB)
                    ends = [str(image), server.uri] if way == "in" else [server.uri, "null:"]
                    run([nbdcopy, *ends])
                    more.values.append(server.memory_bytes("VmHWM") / MIB - idle.values[-1])
                options.say(f"{more.what}: {more.values[-1]:.1f} MiB")
