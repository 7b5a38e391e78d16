# SPDX-License-Identifier: MIT
"""swiftnbd-server without -f: what the terminal, the pid file and the log see of it."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.support.nbd_client import NbdClient
from tests.support.server_process import ctl, script

SECONDS_MAX = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ctl("-a", f"file:{tmp_path}/store", "setup", "a disk", "4")
    return tmp_path


def start(
    folder: Path, *arguments: str, stdout: IO[str] | int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, which is not the server's."""
    command = [sys.executable, script("swiftnbd-server"), "-a", "file:store", "-p", "0"]
    return subprocess.run(
        [*command, "--pid-file", "pid", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


@pytest.fixture
def daemon(folder: Path) -> Iterator[tuple[int, str]]:
    """A detached server: its pid, and what it said."""
    done = start(folder, "-l", "log")
    assert (done.returncode, done.stderr) == (0, "")
    pid = int((folder / "pid").read_text())
    yield pid, done.stdout
    if (folder / "pid").exists():
        os.kill(pid, signal.SIGKILL)


def end(pid: int) -> None:
    """SIGTERM, and wait until it is gone."""
    descriptor = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)
    ready, _, _ = select.select([descriptor], [], [], SECONDS_MAX)
    os.close(descriptor)
    assert ready


def test_it_serves_when_the_command_has_ended(daemon: tuple[int, str]) -> None:
    pid, said = daemon
    match = re.fullmatch(r"nbd://127\.0\.0\.1:(\d+)/a%20disk\n", said)
    assert match
    assert os.getsid(pid) == pid
    with NbdClient(int(match[1])) as client:
        assert client.list_exports() == [b"a disk"]


def test_sigterm_ends_it_in_order(folder: Path, daemon: tuple[int, str]) -> None:
    end(daemon[0])
    assert not (folder / "pid").exists()
    log = (folder / "log").read_text()
    assert re.search(r"^\d{4}-[-\d]+ [:\d]+,\d+: swiftnbd: INFO: serving on 127", log, re.MULTILINE)
    assert log.endswith(": swiftnbd: INFO: exiting\n")


def test_server_whose_uris_cannot_be_printed_says_so_and_ends(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        done = start(folder, "-l", "log", stdout=full)
    assert done.returncode == 1
    reason = "cannot print where it serves (No space left on device), so nobody would know: "
    assert done.stderr == f"swiftnbd-server: {reason}giving up\n"
    assert not (folder / "pid").exists()


def test_second_one_is_refused_with_pid_and_file(folder: Path, daemon: tuple[int, str]) -> None:
    done = start(folder)
    assert done.returncode == 2
    assert f"process {daemon[0]} is already running" in done.stderr
    assert f"pid file {folder}/pid; stop it, or choose another file with --pid-file" in done.stderr
    assert (folder / "pid").read_text() == f"{daemon[0]}\n"


def test_killed_one_leaves_a_pid_file_that_is_replaced(
    folder: Path, daemon: tuple[int, str]
) -> None:
    descriptor = os.pidfd_open(daemon[0])
    os.kill(daemon[0], signal.SIGKILL)
    assert select.select([descriptor], [], [], SECONDS_MAX)[0]
    os.close(descriptor)
    assert start(folder).returncode == 0
    pid = int((folder / "pid").read_text())
    assert pid != daemon[0]
    end(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_it_starts_ends_it_in_order(folder: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (folder / "secrets").write_text("[c]\nusername = u\npassword = p\n")
        (folder / "secrets").chmod(0o600)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/auth/v1.0"
        command = [script("swiftnbd-server"), "-f", "-a", url, "--secrets", "secrets"]
        with subprocess.Popen(
            [sys.executable, *command, "--pid-file", "pid"],
            cwd=folder,
            env=os.environ | {"PYTHONASYNCIODEBUG": ""},  # it remarks on slow imports
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            connection, _ = silent.accept()  # it logs in, and gets no answer
            assert (folder / "pid").exists()
            process.send_signal(number)
            _, errors = process.communicate(timeout=SECONDS_MAX)
            connection.close()
    assert (process.returncode, errors) == (130, "swiftnbd-server: interrupted\n")
    assert not (folder / "pid").exists()


@pytest.mark.parametrize("flags", [["-f"], []])
def test_closed_standard_streams_do_not_become_a_clients_connection(
    folder: Path, flags: list[str]
) -> None:
    """A cron job or an init may start it so; sockets would get the numbers 0 to 2."""
    command = [sys.executable, script("swiftnbd-server"), *flags, "-a", "file:store", "-U", "sock"]
    command += ["--pid-file", "pid", "-l", "log"]
    with subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=folder
    ) as process:
        if not flags:
            assert process.wait(SECONDS_MAX) == 0
        client = NbdClient(connected(folder / "sock"))
        assert client.list_exports() == [b"a disk"]
        pid = int((folder / "pid").read_text())
        descriptors = [os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)]
        client.close()
        end(pid)
    assert descriptors == ["/dev/null"] * 3
    assert (folder / "log").read_text().endswith(": swiftnbd: INFO: exiting\n")


def connected(path: Path) -> socket.socket:
    """Connect as soon as somebody listens there."""
    connection = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + SECONDS_MAX
    while connection.connect_ex(str(path)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return connection
