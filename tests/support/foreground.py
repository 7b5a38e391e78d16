# SPDX-License-Identifier: MIT
"""swiftnbd-server as a process that only says where it serves: its log goes to a file."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.server_process import script

SECONDS_MAX = 30.0


def command(folder: Path, *arguments: str, program: Sequence[str] = ()) -> list[str]:
    """swiftnbd-server on the folder's ``store``, logging to its ``log``.

    ``program`` is what Python runs, if not the installed script.
    """
    program = program or (script("swiftnbd-server"),)
    server = [sys.executable, "-X", "dev", "-W", "error", *program]
    return [*server, "-a", f"file:{folder}/store", "-l", f"{folder}/log", *arguments]


def run_server(
    folder: Path, *arguments: str, program: Sequence[str] = (), **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    if "input" not in how:
        how.setdefault("stdin", subprocess.DEVNULL)
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command(folder, *arguments, program=program),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
        **how,
    )
    return done


@contextmanager
def server(
    folder: Path, *arguments: str, uris: int = 1, program: Sequence[str] = (), **how: Any
) -> Iterator["Foreground"]:
    """One in the foreground, until the end of the block at the latest."""
    with subprocess.Popen(
        command(folder, "-f", "--pid-file", f"{folder}/pid", *arguments, program=program),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        **how,
    ) as process:
        try:
            assert process.stdout is not None
            yield Foreground(process, [process.stdout.readline().strip() for _ in range(uris)])
        finally:
            process.kill()


class Foreground:
    """A server that is up, and the URIs it has printed."""

    def __init__(self, process: subprocess.Popen[str], uris: list[str]) -> None:
        self.process = process
        self.uris = uris

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code after this signal."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS_MAX)


def wait_for_end(pid: int) -> bool:
    """Wait until this process, not a child of ours, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], SECONDS_MAX)[0])
    finally:
        os.close(descriptor)
