# SPDX-License-Identifier: MIT
"""nbdkit's Python scripts: the same one in our server and in nbdkit, by fio, in turns."""

from pathlib import Path

from benchmarks.cached import DISK_MIB, Workload, fill, fio
from benchmarks.options import MIB, Options
from benchmarks.processes import find, nbdkit_serving, swiftnbd_server
from benchmarks.results import Results, in_pairs

PART = "python"
SCRIPT = Path(__file__).with_name("ram_disk.py")
THREAD_MODELS = ("SERIALIZE_ALL_REQUESTS", "PARALLEL")

WORKLOADS = (
    Workload("4 KiB random read, depth 32", "randread", "4k", 32),
    Workload("4 KiB random write, depth 32", "randwrite", "4k", 32),
)


def measure(options: Options, results: Results, workdir: Path) -> None:
    """Both thread models, reads and writes."""
    find("fio")
    image = workdir / "python.img"
    image.write_bytes(options.random_bytes(DISK_MIB * MIB))
    for model in THREAD_MODELS:
        words = ["python", str(SCRIPT), f"size={DISK_MIB * MIB}", f"model={model}"]
        with (
            swiftnbd_server(workdir, DISK_MIB, *words) as ours,
            nbdkit_serving(workdir, *words) as (peer_uri, _),
        ):
            for uri in (ours.uri, peer_uri):
                fill(image, uri)
            for workload in WORKLOADS:
                _compare(model, workload, ours.uri, peer_uri, options, results)


def _compare(
    model: str, workload: Workload, uri: str, peer_uri: str, options: Options, results: Results
) -> None:
    what = f"{model.lower()}, {workload.what}"
    in_pairs(
        results.comparison(PART, what, "IOPS", "nbdkit python"),
        options.cached_pairs,
        lambda: fio(workload, uri, options.seconds),
        lambda: fio(workload, peer_uri, options.seconds),
        options.say,
    )
