# SPDX-License-Identifier: MIT
"""kill -9 of real swiftnbd-ctl processes at random moments, on a folder and on a real Swift.

Each command once by default, most of them on the folder; ``SWIFTNBD_KILLS=200`` for as many kills
of each store, ``SWIFTNBD_SEED`` to see one run again.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.backends import Backend, DirectoryBackend, SwiftBackend
from tests.support.server_process import script
from tests.support.swift_aio import KEY, USER, RealSwift

KILLS = int(os.environ.get("SWIFTNBD_KILLS", "0"))
SEED = int(os.environ.get("SWIFTNBD_SEED", "1"))
OBJECT_SIZE = 4096
OBJECTS = 60
HALF = OBJECTS * OBJECT_SIZE // 2
SECONDS_MAX = 120.0
KILLS_PER_CHECK = 5  # each kill is followed by a write, so most of the trouble shows there already

COMMANDS = {
    "setup": ["setup", "-f", "@", str(OBJECTS), "--object-size", str(OBJECT_SIZE)],
    "lock": ["lock", "@"],
    "unlock": ["unlock", "@"],
    "upload": ["upload", "-q", "-f", "--setup", "--object-size", str(OBJECT_SIZE), "new", "@"],
    "download": ["download", "-q", "-f", "@", "out"],
    "check": ["check", "-q", "@"],
    "delete": ["delete", "--yes", "@"],
    "list": ["list"],
    "copy": ["copy", "-q", "-f", "--setup", "--object-size", str(OBJECT_SIZE), "source", "@"],
    "resize": ["resize", "-q", "--yes", "@", str(HALF)],
    "trim": ["trim", "-q", "@"],
    "bench": [
        "bench",
        "-q",
        "--seconds=1",
        "--bytes=1M",
        "--object-size=4K",
        "--connections=4",
        "@",
    ],
}


class Victim:
    """swiftnbd-ctl on one container, in a folder with the images ``old`` and ``new``."""

    def __init__(self, backend: Backend, name: str, folder: Path) -> None:
        self.backend = backend
        self.name = name
        self.source = f"{name}-source"
        self.start_up = 0.0
        self.folder = folder
        backend.announce(name)
        for image, byte in (("old", b"o"), ("new", b"n")):
            data = b"".join(b"%08d" % i + byte * (OBJECT_SIZE - 8) for i in range(OBJECTS))
            (folder / image).write_bytes(data)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        names = {"@": self.name, "source": self.source}
        program = [sys.executable, script("swiftnbd-ctl"), *self.backend.arguments]
        return subprocess.Popen(
            [*program, *(names.get(x, x) for x in arguments)],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """Its output; it must end with one of the codes."""
        with self.start(*arguments) as process:
            said, _ = process.communicate(timeout=SECONDS_MAX)
        assert process.returncode in codes, f"{arguments}: {process.returncode}: {said}"
        assert "Traceback" not in said, said
        return said

    def prepare(self) -> None:
        """What `kill` needs: a disk to copy, and how long a program takes to do anything."""
        self.backend.announce(self.source)
        self.run("upload", "-q", "--setup", "--object-size", str(OBJECT_SIZE), "old", self.source)
        begin = time.monotonic()
        self.run("list", "-s", self.source)
        self.start_up = time.monotonic() - begin

    def kill(self, command: str, rng: random.Random) -> str:
        """Start the command on a disk that holds ``old``, and kill it somewhere in the middle."""
        self.write("old")
        if command == "unlock":
            self.run(*COMMANDS["lock"])
        process = self.start(*COMMANDS[command])
        after = rng.uniform(0.3, 3.0) * self.start_up
        time.sleep(after)  # the moment to be tried, not a wait for something
        process.kill()
        process.communicate(timeout=SECONDS_MAX)
        if command == "resize":  # an upload takes no disk of another size for its own
            self.run("resize", "-q", "--yes", "@", str(2 * HALF))
        return f"{command} killed after {after:.3f} s"

    def write(self, image: str) -> None:
        """Whatever was killed, the disk can be written, or it says why not, and what to do."""
        upload = [image if word == "new" else word for word in COMMANDS["upload"]]
        said = self.run(*upload, codes=(0, 3, 4))
        if "is locked by" in said:
            assert f"swiftnbd-ctl unlock {self.name}" in said
            self.run(*COMMANDS["unlock"])
            self.run(*upload)
        elif "is deleted in part" in said:
            self.run(*COMMANDS["delete"])
            self.run(*upload)
        else:
            assert "Done, " in said

    def check_use(self, rng: random.Random, what: str) -> None:
        """List it, perhaps unlock it, write it, read it."""
        self.run("list", codes=(0, 4))
        if rng.random() < 0.5:
            self.run(*COMMANDS["unlock"], codes=(0, 1, 4))
        self.write("new")
        self.run(*COMMANDS["download"])
        assert (self.folder / "out").read_bytes() == (self.folder / "new").read_bytes(), what
        self.run(*COMMANDS["check"])


def rounds(victim: Victim, commands: list[str], seed: int) -> None:
    rng = random.Random(seed)
    victim.prepare()
    for first in range(0, len(commands), KILLS_PER_CHECK):
        some = commands[first : first + KILLS_PER_CHECK]
        what = f"seed {seed}: {', '.join(victim.kill(command, rng) for command in some)}"
        print(what)
        victim.check_use(rng, what)


pytestmark = pytest.mark.timeout(120 + 60 * KILLS)


def chosen(share: slice, seed: int) -> list[str]:
    """Which commands to kill: all of them in turn, or in CI some, the others in the other test."""
    order = random.Random(seed).sample(list(COMMANDS), len(COMMANDS))
    if KILLS:
        return [order[i % len(order)] for i in range(KILLS)]
    return order[share]


def test_killed_processes_leave_a_folder_of_use(tmp_path: Path) -> None:
    victim = Victim(DirectoryBackend(tmp_path / "store"), "disk", tmp_path)
    rounds(victim, chosen(slice(2, None), SEED), SEED)


def test_killed_processes_leave_a_swift_of_use(
    real_swift: RealSwift, container_name: str, tmp_path: Path
) -> None:
    backend = SwiftBackend(real_swift.auth_url, USER, KEY, tmp_path / "secrets.conf")
    rounds(Victim(backend, container_name, tmp_path), chosen(slice(2), SEED), SEED)
