# SPDX-License-Identifier: MIT
"""Objects of every size there may be on a real Swift, and disks that are mostly nothing."""

import re
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.conftest import KiB, MiB, launcher, make_backend
from tests.support.backends import SwiftBackend
from tests.support.clients import run
from tests.support.server_process import ServerProcess

OLD_SIZES = {1536: 64}  # that 0.11 made and `setup` does not any more: how many objects
NEW_SIZES = {4 * KiB: 64, 66048: 32, 64 * MiB: 2}
SIZES = OLD_SIZES | NEW_SIZES
TIB = 1 << 40


def name_of(object_size: int) -> str:
    return f"objects-of-{object_size}"


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SwiftBackend, ServerProcess]]:
    """All of them on one server, and a disk of 1 TiB."""
    directory = tmp_path_factory.mktemp("sizes")
    backend = make_backend("swift", request, directory)
    assert isinstance(backend, SwiftBackend)
    for size, objects in OLD_SIZES.items():
        backend.announce(name_of(size))
        backend.set_metadata(
            name_of(size), version="1", objects=str(objects), object_size=str(size)
        )
    for size, objects in NEW_SIZES.items():
        backend.setup(name_of(size), objects, size)
    backend.setup("vast", TIB // (64 * KiB), 64 * KiB)
    with launcher(backend, directory) as launch:
        names = [*map(name_of, SIZES), "vast"]
        yield backend, launch(*names, extra=("-c", "256", "--http", "0"))


@pytest.mark.parametrize("object_size", SIZES)
def test_disk_of_any_object_size_is_read_as_it_was_written(
    served: tuple[SwiftBackend, ServerProcess], object_size: int
) -> None:
    backend, server = served
    uri = server.uris()[name_of(object_size)]
    disk = bytearray(SIZES[object_size] * object_size)
    last = len(disk) - 512
    length = min(object_size, 100_000)
    writes = [
        (0x11, object_size - 300, 700),  # over a boundary
        (0x22, length // 2, length),
        (0, length // 2 + 70, length // 2),
        (0x33, last, 512),
    ]
    commands, cuts = [], {0, last, len(disk)}
    for pattern, start, size in writes:
        disk[start : start + size] = bytes([pattern]) * size
        cuts |= {start, start + size}
        how = "-z" if pattern == 0 else f"-P {pattern}"
        commands.append(f"write {how} {start} {size}")
    reads = [
        f"read -P {disk[start]} {start} {min(end - start, MiB)}"
        for start, end in pairwise(sorted(cuts))
    ]
    for lines in ([*commands, *reads, "flush"], reads):  # and on a new connection
        options = [word for line in lines for word in ("-c", line)]
        said = run("qemu-io", "-f", "raw", *options, uri).stdout
        assert "failed" not in said.lower(), said
    server.wait_log(f"{name_of(object_size)}: unlocked")
    assert backend.image(name_of(object_size)) == disk


def requests_to_swift(server: ServerProcess) -> int:
    (url,) = (line for line in server.stdout.lines if line.startswith("http://"))
    with urllib.request.urlopen(f"{url.rstrip('/')}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    counts = re.findall(r"^swiftnbd_swift_requests_total\{.*\} (\S+)$", text, re.MULTILINE)
    return sum(int(float(count)) for count in counts)


@pytest.mark.parametrize("options", [(), ("--destination-is-zero",)], ids=["", "zero"])
def test_copy_of_a_vast_empty_disk_asks_for_what_is_stored_and_no_more(
    served: tuple[SwiftBackend, ServerProcess], tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Which objects exist is known from `setup` on, over attachments."""
    _, server = served
    uri = server.uris()["vast"]
    objects = 16
    places = [n * TIB // objects + 64 * KiB * n for n in range(objects)]
    words = [word for place in places for word in ("-c", f"write -P 0x55 {place} 64k")]
    run("qemu-io", "-f", "raw", *words, "-c", "flush", uri)
    server.wait_log("vast: unlocked")
    before = requests_to_swift(server)
    run("nbdcopy", *options, uri, tmp_path / "copy.img", seconds=240)
    asked = requests_to_swift(server) - before
    assert objects <= asked < 100  # the rest is for the lock and for the map
    with (tmp_path / "copy.img").open("rb") as copy:
        for place in places:
            copy.seek(place)
            assert copy.read(128 * KiB) == b"\x55" * (64 * KiB) + bytes(64 * KiB)
    assert (tmp_path / "copy.img").stat().st_blocks * 512 < 64 * MiB
