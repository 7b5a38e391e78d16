# SPDX-License-Identifier: MIT
"""What the block engine makes of a Swift's rate: small writes, flushes, cold reads, discards.

Each pair has a fresh container for each side, and the raw rate of that Swift beside it.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.options import KIB, MIB, Options
from benchmarks.processes import Server, find, run
from benchmarks.results import Results, in_pairs
from benchmarks.swift import Swift, real_swift
from swiftnbd.export.pace import SETTLE_SECONDS_DEFAULT
from tests.support.nbd_client import NbdClient

PART = "engine"
CACHE_MIB = 128
OBJECT = 64 * KIB
TIB = 1024 * 1024 * MIB
TRIM_BYTES = 4 * 1024 * MIB - OBJECT  # the most that one request can name, in whole objects


def measure(options: Options, results: Results, workdir: Path) -> None:
    """All of them, on one Swift."""
    find("fio")
    with real_swift(workdir) as swift:
        _measure_writes(swift, options, results)
        _measure_flushes(swift, options, results)
        _measure_cold_reads(swift, options, results)
        _measure_stream(swift, options, results)
        _measure_huge(swift, results)


def _measure_writes(swift: Swift, options: Options, results: Results) -> None:
    """Random writes of 4 KiB into an empty disk, flushed now and then: a PUT each is the floor."""
    count = options.engine_objects
    row = results.comparison(PART, "4 KiB random write, depth 32, FLUSH every 64", "/s", "raw PUT")
    for _ in range(options.copy_pairs):
        disk = swift.set_up(16 * count * OBJECT, OBJECT)

        def ours(disk: str = disk) -> float:
            with swift.serve(disk, CACHE_MIB) as server:
                flags = ["--rw=randwrite", "--iodepth=32", "--fsync=64"]
                return fio_rate(server.uri, *flags, f"--size={16 * count * OBJECT}", ios=count)

        in_pairs(row, 1, ours, lambda: _raw_puts(swift, count, options), options.say)


def _measure_flushes(swift: Swift, options: Options, results: Results) -> None:
    """One write and its flush after the other, in a few cached blocks.

    The floor is a PUT over an object that is there: Swift takes longer for that than for a new one.
    """
    blocks = MIB // OBJECT
    rounds = max(1, options.engine_objects // 4 // blocks)
    count = rounds * blocks
    row = results.comparison(PART, "4 KiB write + FLUSH, depth 1, cached", "ms", "raw PUT")
    for _ in range(options.copy_pairs):
        disk = swift.set_up(MIB, OBJECT)

        def ours(disk: str = disk) -> float:
            with swift.serve(disk, CACHE_MIB) as server:
                flags = ["--rw=randwrite", "--iodepth=1", "--fsync=1", f"--size={MIB}"]
                return 1000 / fio_rate(server.uri, *flags, "--norandommap", ios=count)

        def raw() -> float:
            container, data = swift.new_name(), options.random_bytes(MIB)
            swift.raw.create(container)
            swift.raw.put_all(container, data, OBJECT)
            seconds = swift.raw.put_all(container, data, OBJECT, in_flight=1, rounds=rounds)
            return 1000 * seconds / count

        in_pairs(row, 1, ours, raw, options.say)


def _measure_cold_reads(swift: Swift, options: Options, results: Results) -> None:
    """4 KiB of each object, in random order, by a server that has seen none of them."""
    count = options.engine_objects
    row = results.comparison(PART, "4 KiB random read, cold, depth 32", "/s", "raw GET")
    data = options.random_bytes(count * OBJECT)
    disk = swift.set_up(len(data), OBJECT)
    swift.raw.fill(disk, data, OBJECT)

    def ours() -> float:
        with swift.serve(disk, CACHE_MIB) as server:
            flags = ["--rw=randread", "--iodepth=32", f"--blockalign={OBJECT}"]
            return fio_rate(server.uri, *flags, f"--size={len(data)}", ios=count)

    def raw() -> float:
        return count / swift.raw.get_all(disk, count, OBJECT)

    in_pairs(row, options.copy_pairs, ours, raw, options.say)


def _measure_stream(swift: Swift, options: Options, results: Results) -> None:
    """4 KiB after 4 KiB, never a FLUSH until the end: how often is each object stored?"""
    row = results.figure(PART, "sequential 4 KiB writes: PUTs per object", "")
    for _ in range(options.copy_pairs):
        size = options.engine_objects * OBJECT // 2
        disk = swift.set_up(size, OBJECT)
        with swift.serve(disk, 64, "-v") as server:
            fio_rate(
                server.uri, "--rw=write", "--iodepth=32", f"--size={size}", ios=size // 4 // KIB
            )
            puts = server.said().count("PUT disk.part/")
        row.values.append(puts * OBJECT / size)
        options.say(f"{row.what}: {row.values[-1]:.3f}")


def _measure_huge(swift: Swift, results: Results) -> None:
    """An empty disk of 1 TiB: opening it, and discarding all of it."""
    opening = results.figure(PART, "open 16 million objects, settle delay aside", "s")
    asked = results.figure(PART, "requests to Swift until it is open", "")
    discard = results.figure(PART, "discard an empty TiB", "s")
    disk = swift.set_up(TIB, OBJECT)
    with swift.serve(disk, CACHE_MIB, "-v") as server:
        before = _requests(server)
        begin = time.perf_counter()
        with _client(server, disk) as client:
            took = time.perf_counter() - begin
            opening.values.append(took - SETTLE_SECONDS_DEFAULT)
            asked.values.append(_requests(server) - before)
            begin = time.perf_counter()
            for offset in range(0, TIB, TRIM_BYTES):
                client.trim(offset, min(TRIM_BYTES, TIB - offset))
            discard.values.append(time.perf_counter() - begin)


def _requests(server: Server) -> int:
    """How many of them the server has logged so far."""
    return len(re.findall(r": (?:GET|HEAD|PUT|POST|DELETE)\b.*: \d+ in \d+ ms", server.said()))


@contextmanager
def _client(server: Server, name: str) -> Iterator[NbdClient]:
    port = urlsplit(server.uri).port
    assert port is not None
    with NbdClient(port) as client:
        client.go(name.encode())
        yield client


def _raw_puts(swift: Swift, count: int, options: Options) -> float:
    """Objects per second that this Swift takes."""
    container = swift.new_name()
    swift.raw.create(container)
    data = options.random_bytes(count * OBJECT)
    return count / swift.raw.put_all(container, data, OBJECT)


def fio_rate(uri: str, *flags: str, ios: int) -> float:
    """Requests per second of so many of 4 KiB each, the last flush included."""
    command = [find("fio"), "--name=engine", "--ioengine=nbd", f"--uri={uri}", "--bs=4k", *flags]
    said = run([*command, f"--io_size={ios * 4 * KIB}", "--end_fsync=1", "--output-format=json"])
    job = json.loads(said[said.index("{") :])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio: error {job['error']} on {uri}")
    return float(ios / (job["job_runtime"] / 1000))
