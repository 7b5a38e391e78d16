# SPDX-License-Identifier: MIT
"""The server's end: by SIGTERM under load, and by kill -9 in the middle of a copy."""

import random
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

from tests.e2e.conftest import Disk, Launch, MiB, Serve
from tests.support.clients import find, run
from tests.support.nbd_client import FUA, NbdClient, NbdError

S = 64 * 1024
OBJECTS = 224
FLUSHED_AT = 192 * S  # what is flushed before lies in the last 2 MiB, the copy before it
FED_BEFORE_KILL = 4 * MiB
GONE = (OSError, EOFError)


class Feeder(threading.Thread):
    """Feeds a copying program with bytes without end, until it is gone."""

    def __init__(self, pipe: IO[bytes], data: bytes) -> None:
        super().__init__(daemon=True)
        self.pipe, self.data = pipe, data
        self.reached = threading.Event()  # so much was taken that requests are in flight

    def run(self) -> None:
        with self.pipe, suppress(OSError):
            self.pipe.write(self.data[:FED_BEFORE_KILL])
            self.reached.set()
            self.pipe.write(self.data[FED_BEFORE_KILL:])


def _copy_until_killed(disk: Disk, data: bytes) -> None:
    """Start an nbdcopy, and kill -9 the server in the middle of it."""
    copying = subprocess.Popen(
        [find("nbdcopy"), "-", disk.uri],
        bufsize=0,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert copying.stdin is not None
    feeder = Feeder(copying.stdin, data)
    feeder.start()
    assert feeder.reached.wait(60)
    assert copying.poll() is None
    disk.server.kill()
    assert copying.wait(60) != 0
    feeder.join(60)


def _write_and_flush(disk: Disk) -> bytes:
    """Unaligned writes into the last part of the disk, flushed; that part as it must stay."""
    chance = random.Random("flushed")
    expected = bytearray(disk.size - FLUSHED_AT)
    with disk.connect() as client:
        for _ in range(30):
            data = chance.randbytes(chance.randrange(1, 3 * S))
            offset = chance.randrange(len(expected) - len(data))
            client.write(FLUSHED_AT + offset, data)
            expected[offset : offset + len(data)] = data
        client.flush()
        client.disconnect()
    return bytes(expected)


def test_what_was_flushed_survives_kill_in_the_middle_of_a_copy(
    serve: Serve, launch: Launch, tmp_path: Path
) -> None:
    disk = serve(objects=OBJECTS)
    flushed = _write_and_flush(disk)
    image = tmp_path / "image"
    image.write_bytes(random.Random("image").randbytes(FLUSHED_AT))
    _copy_until_killed(disk, image.read_bytes())
    dead = disk.holder
    assert dead

    disk.server = launch(disk.container)  # takes its own lock back, the process being dead
    with disk.connect() as client:
        disk.server.wait_log(f"taken back from {dead}, which is dead")
        assert client.read(FLUSHED_AT, len(flushed)) == flushed
        client.disconnect()
    disk.wait_unlocked()
    run("nbdcopy", "--flush", image, disk.uri)
    assert disk.image_at_rest() == image.read_bytes() + flushed


def test_acknowledged_fua_writes_survive_kill(serve: Serve, launch: Launch) -> None:
    disk = serve(objects=16)
    chance = random.Random("fua")
    expected = bytearray(disk.size)
    with disk.connect() as client:
        for _ in range(40):
            data = chance.randbytes(chance.randrange(1, 5000))
            offset = chance.randrange(disk.size - len(data))
            client.write(offset, data, FUA)
            expected[offset : offset + len(data)] = data
        disk.server.kill()
    disk.backend.ctl("unlock", disk.container)
    disk.server = launch(disk.container)
    with disk.connect() as client:
        assert client.read(0, disk.size) == expected
        client.disconnect()
    assert disk.image_at_rest() == expected


class Writer(threading.Thread):
    """Writes object after object until the server is gone; ``done`` counts the replies."""

    def __init__(self, client: NbdClient, first: int, count: int) -> None:
        super().__init__(daemon=True)
        self.client, self.first, self.count = client, first, count
        self.done = 0
        self.some_done = threading.Event()

    def run(self) -> None:
        try:
            while True:
                index = self.first + self.done % self.count
                self.client.write(index * S, self.content(self.done))
                self.done += 1
                if self.done == 20:
                    self.some_done.set()
        except (*GONE, NbdError):
            self.some_done.set()

    def content(self, number: int) -> bytes:
        return f"{self.first} {number} ".encode().ljust(S, b".")

    def check(self, image: bytes) -> None:
        """Each object holds its last acknowledged write, or the one after it."""
        assert self.done >= 20
        for number in range(max(0, self.done - self.count), self.done):
            index = self.first + number % self.count
            allowed = [self.content(number)]
            if number + self.count == self.done:
                allowed.append(self.content(self.done))
            assert image[index * S : (index + 1) * S] in allowed, (index, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint"])
def test_signal_under_load_ends_clean_with_nothing_lost(
    serve: Serve, number: signal.Signals
) -> None:
    """Acceptance row E34."""
    disk = serve(objects=64)
    clients = [disk.connect() for _ in range(4)]
    writers = [Writer(client, index * 16, 16) for index, client in enumerate(clients)]
    for writer in writers:
        writer.start()
    for writer in writers:
        assert writer.some_done.wait(60)
    disk.server.process.send_signal(number)
    assert disk.server.wait() == 0, disk.server.log()
    for writer in writers:
        writer.join(60)
    assert disk.holder == ""
    image = disk.backend.image(disk.container)
    for writer in writers:
        writer.check(image)
        writer.client.close()
    assert not disk.server.pid_file.exists()


def test_signal_with_idle_clients_and_half_done_handshakes_ends_clean(serve: Serve) -> None:
    disk = serve(strict=True)
    with (
        disk.connect() as idle,
        NbdClient(disk.server.port),
        NbdClient(disk.server.port, client_flags=None),
    ):
        idle.write(0, b"x" * 512)
        assert disk.server.terminate() == 0, disk.server.log()
    assert disk.backend.image(disk.container)[:512] == b"x" * 512
    assert disk.holder == ""
