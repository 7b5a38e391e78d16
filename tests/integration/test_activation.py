# SPDX-License-Identifier: MIT
"""swiftnbd-server with sockets handed over as systemd does it (LISTEN_PID, LISTEN_FDS)."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.clients import find
from tests.support.foreground import SECONDS_MAX, command
from tests.support.nbd_client import NbdClient
from tests.support.server_process import ctl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ctl("-a", f"file:{tmp_path}/store", "setup", "disk", "4")
    return tmp_path


LAUNCHER = """
import fcntl, os, sys
pid, given, *command = sys.argv[1:]
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in given.split()]
for number, descriptor in enumerate(high, start=3):
    os.dup2(descriptor, number)
os.environ |= {"LISTEN_PID": pid or str(os.getpid()), "LISTEN_FDS": str(len(high) or 1)}
os.execv(command[0], command)
"""


@contextmanager
def activated(
    folder: Path, *descriptors: int, pid: str = "", flags: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """A server that gets these as its descriptors 3, 4, ..."""
    given = " ".join(map(str, descriptors))
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, pid, given, *command(folder, *flags)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=descriptors,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


def refusal(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=SECONDS_MAX)
    assert (process.returncode, out) == (2, "")
    return err


def test_tcp_and_unix_sockets_are_served_and_left_where_they_are(folder: Path) -> None:
    path = folder / "handed over"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        port = tcp.getsockname()[1]
        # connected before anybody serves: that is what activation is for
        with connected(path) as early, activated(folder, tcp.fileno(), unix.fileno()) as process:
            with NbdClient(early) as client:
                client.go(b"disk")
                client.write(0, b"early")
                client.disconnect()
            with NbdClient(port) as client:
                client.go(b"disk")
                assert client.read(0, 5) == b"early"
                client.disconnect()
            process.terminate()
            out, err = process.communicate(timeout=SECONDS_MAX)
            assert (process.returncode, out, err) == (0, "", "")  # clients start servers so
        assert path.is_socket()


def test_sockets_meant_for_another_process_are_ignored(folder: Path) -> None:
    own = ("-f", "-U", "-", "--pid-file", str(folder / "pid"))  # or another test's server has it
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        activated(folder, tcp.fileno(), pid="1", flags=own) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline().startswith("nbd+unix:///disk?socket=/")
        process.terminate()
        assert process.wait(SECONDS_MAX) == 0


@pytest.mark.parametrize(
    "flags", [("-p", "0"), ("-b", "::1"), ("-U", "-"), ("--run", "true"), ("-s",)]
)
def test_address_of_our_own_is_refused_besides(folder: Path, flags: tuple[str, ...]) -> None:
    shown = "--single" if flags == ("-s",) else flags[0]
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        activated(folder, tcp.fileno(), flags=flags) as process,
    ):
        assert refusal(process) == (
            "swiftnbd-server: sockets to listen on were handed over (LISTEN_FDS), "
            f"so {shown} cannot be given\n"
        )


def test_connection_handed_over_instead_is_refused_with_advice(folder: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, activated(folder, theirs.fileno()) as process:
        assert "descriptor 3 does not listen: with systemd, set Accept=no" in refusal(process)


def test_socket_of_another_kind_is_refused(folder: Path) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        activated(folder, udp.fileno()) as process,
    ):
        assert "socket with descriptor 3 is neither TCP nor Unix" in refusal(process)


def test_file_that_is_no_socket_is_refused(folder: Path) -> None:
    with (
        (folder / "file").open("w") as file,
        activated(folder, file.fileno()) as process,
    ):
        assert "descriptor 3 is no socket: Socket operation on non-socket" in refusal(process)


def test_missing_descriptor_is_refused(folder: Path) -> None:
    with activated(folder) as process:
        assert "descriptor 3 is no socket" in refusal(process)


def test_systemd_socket_activate_hands_over_its_socket(folder: Path) -> None:
    path = folder / "systemd.sock"
    with subprocess.Popen(
        [find("systemd-socket-activate"), "-l", str(path), *command(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert "Listening on" in process.stderr.readline()
            with NbdClient(connected(path)) as client:
                client.go(b"disk")
                client.write(0, b"activated")
                assert client.read(0, 9) == b"activated"
                client.disconnect()
            process.terminate()
            assert process.wait(SECONDS_MAX) == 0
        finally:
            process.kill()
