# SPDX-License-Identifier: MIT
"""The cache on a local disk: real servers on a real Swift, their requests counted on the way."""

import os
import random
import re
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Disk, KiB, Launch, launcher, set_up_disk
from tests.support.backends import PART, SwiftBackend
from tests.support.swift_aio import KEY, USER, RealSwift

OBJECTS, S = 32, 64 * KiB
_REQUEST = re.compile(rb"(GET|HEAD) \S*/disk\.part/[0-9]{8}(?:\?\S*)? HTTP/1\.1\r\n")


class Forwarder:
    """Passes connections on to a Swift, and counts the requests for parts of disks."""

    def __init__(self, port: int) -> None:
        self.counts: Counter[str] = Counter()
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                for ends in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                if counts:
                    self.counts.update(x.decode() for x in _REQUEST.findall(data))
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


@pytest.fixture
def forwarder(real_swift: RealSwift) -> Iterator[Forwarder]:
    forwarder = Forwarder(real_swift.ports["proxy"])
    yield forwarder
    forwarder.close()


@pytest.fixture
def backend(forwarder: Forwarder, tmp_path: Path) -> SwiftBackend:
    url = f"http://127.0.0.1:{forwarder.port}/auth/v1.0"
    return SwiftBackend(url, USER, KEY, tmp_path / "secrets.conf")


@pytest.fixture
def launch(backend: SwiftBackend, tmp_path: Path) -> Iterator[Launch]:
    with launcher(backend, tmp_path) as launch:
        yield launch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def disk(backend: SwiftBackend, launch: Launch, folder: Path) -> Disk:
    return set_up_disk(backend, launch, OBJECTS, S, False, extra=("--cache-dir", str(folder)))


def image(word: str) -> bytes:
    return random.Random(word).randbytes(OBJECTS * S)


def fill(disk: Disk, data: bytes) -> None:
    with disk.connect() as client:
        client.write(0, data)
        client.flush()
        client.disconnect()


def counted_read(disk: Disk, forwarder: Forwarder) -> tuple[bytes, dict[str, int]]:
    """All of the disk, and which requests that took."""
    with disk.connect() as client:
        forwarder.counts.clear()
        data = client.read(0, disk.size)
        counts = dict(forwarder.counts)
        client.disconnect()
    return data, counts


def test_server_that_is_started_again_asks_for_nothing(
    disk: Disk, forwarder: Forwarder, launch: Launch, folder: Path
) -> None:
    data = image("warm")
    fill(disk, data)
    for _ in range(2):
        assert disk.server.terminate() == 0
        disk.server = launch(disk.container, extra=("--cache-dir", str(folder)))
        assert counted_read(disk, forwarder) == (data, {})
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]


def test_killed_server_asks_for_etags_and_fetches_what_differs(
    disk: Disk, forwarder: Forwarder, launch: Launch, folder: Path
) -> None:
    data = image("killed")
    fill(disk, data)
    assert disk.server.terminate() == 0  # so that all of it is on the local disk
    disk.server = launch(disk.container, extra=("--cache-dir", str(folder)))
    with disk.connect() as client:
        assert client.read(3 * S, S) == data[3 * S : 4 * S]
        disk.server.kill()
    changed = image("changed")[:S]
    disk.backend.put(disk.container, f"{PART}{5:08d}", changed)
    disk.server = launch(disk.container, extra=("--cache-dir", str(folder)))
    read, counts = counted_read(disk, forwarder)
    assert read == data[: 5 * S] + changed + data[6 * S :]
    assert counts["HEAD"] == OBJECTS
    assert counts["GET"] == 1


def test_server_without_the_cache_in_between_is_noticed(
    disk: Disk, forwarder: Forwarder, launch: Launch, folder: Path
) -> None:
    data = bytearray(image("another"))
    fill(disk, bytes(data))
    assert disk.server.terminate() == 0
    disk.server = launch(disk.container)
    with disk.connect() as client:
        client.write(7 * S + 100, b"of another server")
        client.disconnect()
    data[7 * S + 100 : 7 * S + 117] = b"of another server"
    assert disk.server.terminate() == 0
    disk.server = launch(disk.container, extra=("--cache-dir", str(folder)))
    assert counted_read(disk, forwarder) == (bytes(data), {"HEAD": OBJECTS, "GET": 1})


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system with room for a few blocks."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", path], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"only root may mount: {done.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_full_disk_is_one_warning_and_no_byte_less(
    backend: SwiftBackend, launch: Launch, tmp_path: Path
) -> None:
    data = image("full")
    with small_disk(tmp_path / "small") as folder:
        extra = ("--cache-dir", str(folder))
        disk = set_up_disk(backend, launch, OBJECTS, S, False, extra=extra)
        disk.server.expects("going on without the disk cache .*: .*No space left on device")
        fill(disk, data)
        for _ in range(2):
            with disk.connect() as client:
                assert client.read(0, disk.size) == data
                client.disconnect()
        assert disk.image_at_rest() == data
        warnings = [line for line in disk.server.stderr.lines if "disk cache" in line]
        assert len(warnings) == 1
