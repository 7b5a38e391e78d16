# SPDX-License-Identifier: MIT
"""What to measure and how long, from the command line."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
PARTS = (
    "cached",
    "filters",
    "python",
    "tls",
    "copy",
    "engine",
    "attach",
    "memory",
    "stall",
    "requests",
    "eviction",
    "hostile",
    "sweep",
    "ctl",
    "peers",
)
RESULTS_DIRECTORY = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """One run. ``seconds`` is for each fio run; the sizes are of the disks that are copied.

    ``request_bytes`` is what each layer of the store sends or fetches in a round.
    """

    parts: tuple[str, ...]
    cached_pairs: int
    copy_pairs: int
    seconds: float
    tls_bytes: int
    copy_bytes: int
    memory_bytes: int
    engine_objects: int
    ctl_objects: int
    object_sizes: tuple[int, ...]
    request_rounds: int
    request_bytes: int
    json: Path | None

    def say(self, text: str) -> None:
        """Progress, apart from the results on stdout."""
        print(text, file=sys.stderr, flush=True)

    def random_bytes(self, length: int) -> bytes:
        """Incompressible, and no block of zeros in it."""
        return os.urandom(length)


def parse(argv: Sequence[str] | None = None) -> Options:
    """The command line as values."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure swiftnbd against peers, in interleaved pairs.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--pairs", type=int, help="of every comparison (9; copy 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each fio run (3)")
    parser.add_argument("--copy-mib", type=int, default=256, help="to copy each time (256)")
    parser.add_argument("--memory-mib", type=int, default=1024, help="to copy for memory (1024)")
    parser.add_argument(
        "--object-kib",
        type=int,
        nargs="+",
        default=[64, 1024],
        help="object sizes for copying (64 1024)",
    )
    parser.add_argument("--delete", type=int, default=5000, help="objects to delete (5000)")
    parser.add_argument("--quick", action="store_true", help="one short pair: does it run at all?")
    parser.add_argument("--json", type=Path, help="(benchmarks/results/TIME.json)")
    given = parser.parse_args(argv)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return _options(given)


def _options(given: argparse.Namespace) -> Options:
    quick: bool = given.quick
    return Options(
        parts=tuple(part for part in PARTS if part in (given.parts or PARTS)),
        cached_pairs=given.pairs or (1 if quick else 9),
        copy_pairs=given.pairs or (1 if quick else 5),
        seconds=1.0 if quick else given.seconds,
        tls_bytes=(16 if quick else 256) * MIB,
        copy_bytes=(16 if quick else given.copy_mib) * MIB,
        memory_bytes=(96 if quick else given.memory_mib) * MIB,
        engine_objects=200 if quick else 2000,
        ctl_objects=200 if quick else given.delete,
        object_sizes=tuple(size * KIB for size in given.object_kib),
        request_rounds=given.pairs or (1 if quick else 9),
        request_bytes=(4 if quick else 16) * MIB,
        json=given.json,
    )
