# SPDX-License-Identifier: MIT
"""Other programs that make a block device of objects, on the same Swift: s3backer, nbdkit's S3.

They reach it through Swift's own S3 gateway, as they have to. Each side has the same object size
and, where it has a cache, as much of it; otherwise their defaults. Nothing is cached before.

A copy in is over when every byte is stored. nbdkit's plugin stores before it replies, ours when
nbdcopy flushes. s3backer 1.5 does not wait at fsync: for it, when it has been unmounted.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.cached import held_open
from benchmarks.engine import fio_rate
from benchmarks.options import KIB, MIB, Options
from benchmarks.processes import Process, find, nbdkit_serving, run, timed
from benchmarks.results import Results, in_pairs
from benchmarks.swift import Swift, real_swift

PART = "peers"
CACHE_MIB = 64
GIB = 1024 * MIB
SMALL_OBJECT = 64 * KIB  # for small requests
FLUSHES = 256
NBDKIT_OBJECT_MAX = 64 * KIB  # the plugin names its objects' size as the smallest request


@dataclass(frozen=True)
class Copied:
    """A copy: megabytes a second, and processor seconds of the program for a GiB."""

    rate: float
    cpu: float


# One copy of the image, or of as many bytes, by objects of this size into or out of this container
Copy = Callable[[str, int], Copied]


@dataclass(frozen=True)
class Peer:
    """How to copy an image in, and out again."""

    name: str
    copy_in: Copy
    copy_out: Copy


def measure(options: Options, results: Results, workdir: Path) -> None:
    """Copies against both; small requests against nbdkit alone, which flushes."""
    for program in ("nbdcopy", "nbdkit", "s3backer", "fusermount", "fio"):
        find(program)
    image = workdir / "peers.img"
    image.write_bytes(options.random_bytes(options.copy_bytes))
    with real_swift(workdir) as swift:
        ours = _Ours(swift, image)
        nbdkit = _Nbdkit(swift, image)
        s3backer = _S3backer(swift, image)
        for object_size in options.object_sizes:
            peers = [Peer("s3backer", s3backer.copy_in, s3backer.copy_out)]
            if object_size <= NBDKIT_OBJECT_MAX:
                peers.append(Peer("nbdkit S3", nbdkit.copy_in, nbdkit.copy_out))
            for peer in peers:
                _measure_copies(ours, peer, object_size, options, results)
        _measure_reads(ours, nbdkit, options, results)
        _measure_flushes(ours, nbdkit, options, results)


def _measure_copies(
    ours: "_Ours", peer: Peer, object_size: int, options: Options, results: Results
) -> None:
    size = f"{object_size // KIB} KiB objects"
    rows = [
        results.comparison(PART, f"copy in, all stored, {size}", "MB/s", peer.name),
        results.comparison(PART, f"copy out, cold, {size}", "MB/s", peer.name),
    ]
    cpu_rows = [
        results.comparison(PART, f"CPU, copy in, {size}", "s/GiB", peer.name),
        results.comparison(PART, f"CPU, copy out, {size}", "s/GiB", peer.name),
    ]
    for _ in range(options.copy_pairs):
        disk = ours.set_up(object_size)
        bucket = ours.swift.new_name()
        ours.swift.raw.create(bucket)
        sides = ((ours.copy_in, peer.copy_in), (ours.copy_out, peer.copy_out))
        for row, cpu, (our_copy, peer_copy) in zip(rows, cpu_rows, sides, strict=True):

            def noting(found: list[float], copy: Copy, container: str) -> Callable[[], float]:
                def rate() -> float:
                    copied = copy(container, object_size)
                    found.append(copied.cpu)
                    return copied.rate

                return rate

            in_pairs(
                row,
                1,
                noting(cpu.ours, our_copy, disk),
                noting(cpu.peer, peer_copy, bucket),
                options.say,
            )


def _measure_reads(ours: "_Ours", nbdkit: "_Nbdkit", options: Options, results: Results) -> None:
    """4 KiB of each object in random order, nothing cached."""
    count = min(options.engine_objects, options.copy_bytes // SMALL_OBJECT)
    row = results.comparison(PART, "4 KiB random read, cold, depth 32", "/s", "nbdkit S3")
    disk, bucket = ours.set_up(SMALL_OBJECT), ours.swift.new_name()
    ours.swift.raw.create(bucket)
    ours.copy_in(disk, SMALL_OBJECT)
    nbdkit.copy_in(bucket, SMALL_OBJECT)
    flags = ["--rw=randread", "--iodepth=32", f"--blockalign={SMALL_OBJECT}"]

    def our_rate() -> float:
        with ours.swift.serve(disk, CACHE_MIB) as server:
            return fio_rate(server.uri, *flags, f"--size={count * SMALL_OBJECT}", ios=count)

    def peer_rate() -> float:
        with nbdkit.serving(bucket, SMALL_OBJECT, small=True) as (uri, _):
            return fio_rate(uri, *flags, f"--size={count * SMALL_OBJECT}", ios=count)

    in_pairs(row, options.copy_pairs, our_rate, peer_rate, options.say)


def _measure_flushes(ours: "_Ours", nbdkit: "_Nbdkit", options: Options, results: Results) -> None:
    """One write of 4 KiB and its flush after the other, in a few objects that exist."""
    row = results.comparison(PART, "4 KiB write + FLUSH, depth 1", "ms", "nbdkit S3")
    disk, bucket = ours.set_up(SMALL_OBJECT), ours.swift.new_name()
    ours.swift.raw.create(bucket)
    flags = ["--rw=randwrite", "--iodepth=1", "--fsync=1", "--norandommap", f"--size={MIB}"]

    def our_latency() -> float:
        with ours.swift.serve(disk, CACHE_MIB) as server:
            return 1000 / fio_rate(server.uri, *flags, ios=FLUSHES)

    def peer_latency() -> float:
        with nbdkit.serving(bucket, SMALL_OBJECT, small=True) as (uri, _):
            return 1000 / fio_rate(uri, *flags, ios=FLUSHES)

    for first in (our_latency, peer_latency):
        first()  # the objects exist from then on
    in_pairs(row, options.copy_pairs, our_latency, peer_latency, options.say)


class _Side:
    """One of the programs, on ``swift``, and the ``image`` that is copied."""

    def __init__(self, swift: Swift, image: Path) -> None:
        self.swift = swift
        self.image = image
        self.size = image.stat().st_size

    def copied(self, seconds: float, cpu_seconds: float) -> Copied:
        return Copied(self.size / 1e6 / seconds, cpu_seconds * GIB / self.size)

    def nbdcopied(self, process: Process, *arguments: str) -> Copied:
        before = process.cpu_seconds()
        seconds = timed([find("nbdcopy"), *arguments])
        return self.copied(seconds, process.cpu_seconds() - before)


class _Ours(_Side):
    """swiftnbd, which speaks Swift itself. The settle delay of its lock is not in a copy."""

    def set_up(self, object_size: int) -> str:
        return self.swift.set_up(self.size, object_size)

    def copy_in(self, disk: str, object_size: int) -> Copied:
        with self.swift.serve(disk, CACHE_MIB) as server, held_open(server.uri):
            return self.nbdcopied(server, "--flush", str(self.image), server.uri)

    def copy_out(self, disk: str, object_size: int) -> Copied:
        with self.swift.serve(disk, CACHE_MIB) as server, held_open(server.uri):
            return self.nbdcopied(server, server.uri, "null:")


class _Nbdkit(_Side):
    """nbdkit's S3 plugin, with its sixteen threads. It has no cache.

    Of requests smaller than an object it makes whole ones with its ``blocksize`` filter.
    """

    @contextmanager
    def serving(
        self, bucket: str, object_size: int, *, small: bool = False
    ) -> Iterator[tuple[str, Process]]:
        words = [
            f"access-key={self.swift.user}",
            f"secret-key={self.swift.key}",
            f"endpoint-url={_endpoint(self.swift)}",
            f"bucket={bucket}",
            "key=disk",
            f"size={self.size}",
            f"object-size={object_size}",
        ]
        flags = ["--filter=blocksize"] if small else []
        words += [f"minblock={object_size}"] if small else []
        with nbdkit_serving(self.swift.workdir, *flags, "S3", *words) as served:
            yield served

    def copy_in(self, bucket: str, object_size: int) -> Copied:
        with self.serving(bucket, object_size) as (uri, nbdkit):
            return self.nbdcopied(nbdkit, "--flush", str(self.image), uri)

    def copy_out(self, bucket: str, object_size: int) -> Copied:
        with self.serving(bucket, object_size) as (uri, nbdkit):
            return self.nbdcopied(nbdkit, uri, "null:")


class _S3backer(_Side):
    """s3backer, a file in a mounted file system. Its cache writes back, and reads ahead."""

    @contextmanager
    def _mounted(self, bucket: str, object_size: int) -> Iterator[tuple[Path, Process]]:
        place = self.swift.workdir / f"s3backer-{time.monotonic_ns()}"
        place.mkdir()
        words = [
            "-f",
            f"--accessId={self.swift.user}",
            f"--accessKey={self.swift.key}",
            f"--baseURL={_endpoint(self.swift)}/",
            f"--blockSize={object_size}",
            f"--size={self.size}",
            f"--blockCacheSize={CACHE_MIB * MIB // object_size}",
            "--listBlocks",  # as ours knows by its map what is a hole
        ]
        with Process([find("s3backer"), *words, bucket, str(place)], self.swift.workdir) as program:
            program.wait_for(lambda: (place / "file").exists())
            yield place / "file", program

    def _unmount(self, file: Path, program: Process) -> None:
        """What is not stored yet is, before it ends."""
        run([find("fusermount"), "-u", str(file.parent)])
        program.wait_ended()

    def copy_in(self, bucket: str, object_size: int) -> Copied:
        with self._mounted(bucket, object_size) as (file, program):
            before, begin = program.cpu_seconds(), time.perf_counter()
            run(["dd", f"if={self.image}", f"of={file}", "bs=1M", "conv=notrunc"])
            self._unmount(file, program)
            return self.copied(time.perf_counter() - begin, program.cpu_seconds() - before)

    def copy_out(self, bucket: str, object_size: int) -> Copied:
        with self._mounted(bucket, object_size) as (file, program):
            before = program.cpu_seconds()
            seconds = timed(["dd", f"if={file}", "of=/dev/null", "bs=1M"])
            copied = self.copied(seconds, program.cpu_seconds() - before)
            self._unmount(file, program)
            return copied


def _endpoint(swift: Swift) -> str:
    parts = urlsplit(swift.auth_url)
    return f"{parts.scheme}://{parts.netloc}"
