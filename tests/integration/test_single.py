# SPDX-License-Identifier: MIT
"""swiftnbd-server --single: one client on standard input and output."""

import os
import pty
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.foreground import SECONDS_MAX, command, run_server
from tests.support.nbd_client import NbdClient
from tests.support.server_process import ctl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ctl("-a", f"file:{tmp_path}/store", "setup", "disk", "4")
    return tmp_path


@contextmanager
def on_socket(folder: Path, *arguments: str) -> Iterator["Single"]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            command(folder, "-s", *arguments),
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
        )
        theirs.close()
        with process:
            try:
                yield Single(process, NbdClient(ours))
            finally:
                process.kill()


class Single:
    def __init__(self, process: "subprocess.Popen[bytes]", client: NbdClient) -> None:
        self.process = process
        self.client = client

    def end(self) -> int:
        return self.process.wait(SECONDS_MAX)


def stored(folder: Path) -> bytes:
    ctl("-a", f"file:{folder}/store", "download", "-f", "disk", str(folder / "image"))
    return (folder / "image").read_bytes()


def test_client_on_a_socket_is_served_and_the_server_ends_with_it(folder: Path) -> None:
    with on_socket(folder) as single:
        single.client.go()
        single.client.write(4096, b"single")
        assert single.client.read(4096, 6) == b"single"
        single.client.disconnect()
        assert single.end() == 0
    assert stored(folder)[4096:4102] == b"single"


def test_nothing_else_can_write_among_the_clients_bytes(folder: Path) -> None:
    with on_socket(folder) as single:
        descriptors = Path(f"/proc/{single.process.pid}/fd")
        assert [os.readlink(descriptors / number) for number in "01"] == ["/dev/null"] * 2
        single.client.abort()
        assert single.end() == 0


def test_client_that_just_closes_ends_the_server_in_order(folder: Path) -> None:
    with on_socket(folder) as single:
        single.client.go()
        single.client.write(0, b"closed")
        single.client.close()
        assert single.end() == 0
    assert stored(folder)[:6] == b"closed"


def test_client_that_aborts_the_handshake_ends_the_server(folder: Path) -> None:
    with on_socket(folder) as single:
        single.client.abort()
        assert single.end() == 0


def test_sigterm_ends_it_while_a_client_is_attached(folder: Path) -> None:
    with on_socket(folder) as single:
        single.client.go()
        single.client.write(0, b"ended!")
        single.process.terminate()
        assert single.end() == 0
        assert single.client.closed_by_server()
    assert stored(folder)[:6] == b"ended!"


def test_several_run_beside_each_other_without_a_pid_file(folder: Path) -> None:
    with on_socket(folder, "-r") as one, on_socket(folder, "-r") as two:
        one.client.go()
        two.client.go()
        assert one.client.read(0, 4) == two.client.read(0, 4) == bytes(4)
        for single in (one, two):
            single.client.disconnect()
            assert single.end() == 0


def test_log_goes_to_standard_error_and_never_among_the_clients_bytes(folder: Path) -> None:
    """Not even if inetd has made standard error the client's socket, too."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = command(folder, "-v", "-s")
        del arguments[arguments.index("-l") : arguments.index("-l") + 2]
        with subprocess.Popen(
            arguments, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=theirs.fileno()
        ) as process:
            theirs.close()
            client = NbdClient(ours)
            client.go()
            client.write(0, b"x" * 512)
            assert client.read(0, 512) == b"x" * 512
            client.disconnect()
            assert process.wait(SECONDS_MAX) == 0


HANDSHAKE = b"\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\x0a\0\0\0\4disk\0\0"
WRITE = b"\x25\x60\x95\x13\0\0\0\1" + b"cookie 1" + bytes(8) + b"\0\0\2\0" + b"w" * 512
READ = b"\x25\x60\x95\x13\0\0\0\0" + b"cookie 2" + bytes(8) + b"\0\0\2\0"
DISC = b"\x25\x60\x95\x13\0\0\0\2" + b"cookie 3" + bytes(8) + bytes(4)
REPLIES = (
    b"NBDMAGICIHAVEOPT\0\3\0\3\xe8\x89\4\x55\x65\xa9\0\0\0\7\0\0\0\3\0\0\0\x0c\0\0\0\0\0\0\0\4\0\0"
)
WRITTEN = b"\x67\x44\x66\x98\0\0\0\0cookie 1"
WAS_READ = b"\x67\x44\x66\x98\0\0\0\0cookie 2" + b"w" * 512


@pytest.mark.parametrize("end", [DISC, b""])
def test_client_on_pipes_is_served(folder: Path, end: bytes) -> None:
    process = subprocess.Popen(command(folder, "-s"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(HANDSHAKE + WRITE)
        process.stdin.flush()
        answer = process.stdout.read(len(REPLIES))
        assert answer == REPLIES
        process.stdout.read(2 + 20)  # flags, ACK
        assert process.stdout.read(len(WRITTEN)) == WRITTEN
        process.stdin.write(READ + end)
        process.stdin.flush()
        assert process.stdout.read(len(WAS_READ)) == WAS_READ
        if not end:
            process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(SECONDS_MAX) == 0
    assert stored(folder)[:512] == b"w" * 512


def test_slow_reader_gets_all_of_what_it_asked_for(folder: Path) -> None:
    """The server waits for it, though its own work is done."""
    process = subprocess.Popen(command(folder, "-s"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        everything = READ[:24] + (4 * 65536).to_bytes(4)
        process.stdin.write(HANDSHAKE + everything + DISC)
        process.stdin.close()
        wait_for_log(folder, "shutting down")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)  # there is more than a pipe holds
        assert process.stdout.read().endswith(b"cookie 2" + bytes(4 * 65536))
        assert process.wait(SECONDS_MAX) == 0


def wait_for_log(folder: Path, text: str) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not (folder / "log").exists() or text not in (folder / "log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_requests_from_a_file_are_answered_into_a_file(folder: Path) -> None:
    (folder / "in").write_bytes(HANDSHAKE + WRITE + DISC)
    with (folder / "in").open("rb") as given, (folder / "out").open("wb") as out:
        done = subprocess.run(
            command(folder, "-s"), stdin=given, stdout=out, timeout=SECONDS_MAX, check=False
        )
    assert done.returncode == 0
    assert (folder / "out").read_bytes().startswith(REPLIES)
    assert (folder / "out").read_bytes().endswith(WRITTEN)


def test_reader_that_goes_away_ends_the_server(folder: Path) -> None:
    process = subprocess.Popen(command(folder, "-s"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(HANDSHAKE)
        process.stdin.flush()
        assert process.stdout.read(len(REPLIES)) == REPLIES
        process.stdout.close()
        process.stdin.write(READ * 100)
        process.stdin.flush()
        assert process.wait(SECONDS_MAX) == 0


def test_denied_client_ends_the_server(folder: Path) -> None:
    done = run_server(folder, "-s", "--deny", "all", input="")
    assert (done.returncode, done.stdout) == (0, "")
    assert "refused, its address is not allowed here" in (folder / "log").read_text()


def test_terminal_is_refused(folder: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        done = run_server(folder, "-s", stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (done.returncode, done.stderr) == (
        2,
        "swiftnbd-server: --single needs a client on standard input and output, not a terminal\n",
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_closed_standard_input_or_output_is_refused(folder: Path, closed: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *command(folder, "-s")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 2
    assert "--single needs standard input and output: one is closed" in done.stderr


def test_socket_for_datagrams_is_refused(folder: Path) -> None:
    ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)
    with ours, theirs:
        done = subprocess.run(
            command(folder, "-s"),
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
            timeout=SECONDS_MAX,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        2,
        b"swiftnbd-server: the socket on standard input is no stream of bytes\n",
    )
