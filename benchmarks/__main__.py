# SPDX-License-Identifier: MIT
"""``python -m benchmarks``: run the parts, print a table, write JSON."""

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import (
    attach,
    cached,
    copying,
    ctl,
    engine,
    eviction,
    filters,
    hostile,
    memory,
    peers,
    python_plugin,
    requests,
    stall,
    sweep,
    tls,
)
from benchmarks.options import RESULTS_DIRECTORY, Options, parse
from benchmarks.processes import PACKAGES, run, version
from benchmarks.results import Missing, Results

MEASURES = {
    cached.PART: cached.measure,
    filters.PART: filters.measure,
    python_plugin.PART: python_plugin.measure,
    tls.PART: tls.measure,
    copying.PART: copying.measure,
    engine.PART: engine.measure,
    attach.PART: attach.measure,
    memory.PART: memory.measure,
    stall.PART: stall.measure,
    requests.PART: requests.measure,
    eviction.PART: eviction.measure,
    hostile.PART: hostile.measure,
    sweep.PART: sweep.measure,
    ctl.PART: ctl.measure,
    peers.PART: peers.measure,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Everything that was asked for. What could not be measured is said, not skipped."""
    options = parse(argv)
    results = Results()
    begin = time.time()
    with tempfile.TemporaryDirectory(prefix="swiftnbd-benchmarks-") as workdir:
        for part in options.parts:
            options.say(f"== {part}")
            try:
                MEASURES[part](options, results, Path(workdir))
            except Missing as missing:
                results.missing.append(f"{part}: {missing}")
    print(results.table())
    path = options.json or RESULTS_DIRECTORY / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": _machine(begin), "options": _options(options)} | results.json()
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nwritten to {path}")
    return 0


def _options(options: Options) -> dict[str, Any]:
    return {key: value for key, value in vars(options).items() if key != "json"}


def _machine(begin: float) -> dict[str, Any]:
    packages = ("swiftnbd", "aiohttp", "uvloop", "swift")
    found = {"python": platform.python_version(), "kernel": platform.release()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    for program in PACKAGES:
        found[program] = version(program) or "not installed"
    return found | {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begin)),
        "seconds": round(time.time() - begin),
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "commit": _commit(),
    }


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return run(command).strip()
    except (RuntimeError, OSError):
        return "unknown"  # no git, or not a clone


if __name__ == "__main__":
    sys.exit(main())
