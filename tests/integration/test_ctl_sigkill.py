# SPDX-License-Identifier: MIT
"""kill -9 of real swiftnbd-ctl processes at random moments, on a folder and on a real Swift.

A few kills by default; ``SWIFTNBD_KILLS=200`` for as many of each, ``SWIFTNBD_SEED`` to see one
run again.
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
SECONDS_MAX = 120.0

COMMANDS = {
    "setup": ["setup", "-f", "@", str(OBJECTS), "--object-size", str(OBJECT_SIZE)],
    "lock": ["lock", "@"],
    "unlock": ["unlock", "@"],
    "upload": ["upload", "-q", "-f", "--setup", "--object-size", str(OBJECT_SIZE), "new", "@"],
    "download": ["download", "-q", "-f", "@", "out"],
    "check": ["check", "-q", "@"],
    "delete": ["delete", "--yes", "@"],
    "list": ["list"],
}


class Victim:
    """swiftnbd-ctl on one container, in a folder with the images ``old`` and ``new``."""

    def __init__(self, backend: Backend, name: str, folder: Path) -> None:
        self.backend = backend
        self.name = name
        self.folder = folder
        backend.announce(name)
        for image, byte in (("old", b"o"), ("new", b"n")):
            data = b"".join(b"%08d" % i + byte * (OBJECT_SIZE - 8) for i in range(OBJECTS))
            (folder / image).write_bytes(data)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        program = [sys.executable, script("swiftnbd-ctl"), *self.backend.arguments]
        return subprocess.Popen(
            [*program, *(self.name if x == "@" else x for x in arguments)],
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

    def kill(self, command: str, rng: random.Random) -> str:
        """Start the command on a disk that holds ``old``, and kill it somewhere in the middle."""
        upload = COMMANDS["upload"].copy()
        upload[upload.index("new")] = "old"
        self.run(*upload)
        if command == "unlock":
            self.run(*COMMANDS["lock"])
        begin = time.monotonic()
        self.run("list", "-s")
        start_up = time.monotonic() - begin
        process = self.start(*COMMANDS[command])
        after = rng.uniform(0.3, 3.0) * start_up
        time.sleep(after)  # the moment to be tried, not a wait for something
        process.kill()
        process.communicate(timeout=SECONDS_MAX)
        return f"{command} killed after {after:.3f} s"

    def check_use(self, rng: random.Random, what: str) -> None:
        """List it, perhaps unlock it, write it, read it."""
        self.run("list", codes=(0, 4))
        if rng.random() < 0.5:
            self.run(*COMMANDS["unlock"], codes=(0, 1, 4))
        said = self.run(*COMMANDS["upload"], codes=(0, 3))
        if "is locked by" in said:  # by hand
            assert f"swiftnbd-ctl unlock {self.name}" in said
            self.run(*COMMANDS["unlock"])
            self.run(*COMMANDS["upload"])
        self.run(*COMMANDS["download"])
        assert (self.folder / "out").read_bytes() == (self.folder / "new").read_bytes(), what
        self.run(*COMMANDS["check"])


def rounds(victim: Victim, commands: list[str], seed: int) -> None:
    rng = random.Random(seed)
    for command in commands:
        what = f"seed {seed}: {victim.kill(command, rng)}"
        print(what)
        victim.check_use(rng, what)


pytestmark = pytest.mark.timeout(120 + 60 * KILLS)


def chosen(few: int, seed: int) -> list[str]:
    """Which commands to kill: all of them in turn, or a few of them in CI."""
    order = random.Random(seed).sample(list(COMMANDS), len(COMMANDS))
    if KILLS:
        return [order[i % len(order)] for i in range(KILLS)]
    return order[:few]


def test_killed_processes_leave_a_folder_of_use(tmp_path: Path) -> None:
    victim = Victim(DirectoryBackend(tmp_path / "store"), "disk", tmp_path)
    rounds(victim, chosen(3, SEED), SEED)


def test_killed_processes_leave_a_swift_of_use(
    real_swift: RealSwift, container_name: str, tmp_path: Path
) -> None:
    backend = SwiftBackend(real_swift.auth_url, USER, KEY, tmp_path / "secrets.conf")
    rounds(Victim(backend, container_name, tmp_path), chosen(1, SEED + 1), SEED + 1)
