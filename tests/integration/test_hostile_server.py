# SPDX-License-Identifier: MIT
"""Attacks on the limits of the process itself: open files, and what it writes into its log."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from swiftnbd.log import LINES_OF_A_KIND_MAX
from tests.support.nbd_client import NbdClient
from tests.support.server_process import ServerProcess, ctl

OBJECT = 65536
REFUSED = "refused, there are [0-9]+ connections"


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of a disk in a folder; the parameter is how many files it may open, or None."""
    url = f"file:{tmp_path}/store"
    ctl("-a", url, "setup", "disk", "64")
    server = ServerProcess("-a", url, workdir=tmp_path, strict=True, files_max=request.param)
    server.wait_ready("disk")
    yield server
    server.finish()


def connected(server: ServerProcess) -> socket.socket:
    """A connection that never says a word."""
    return socket.create_connection(("127.0.0.1", server.port), 10)


def cpu_seconds(server: ServerProcess) -> float:
    """User and system time the server has used."""
    stat = Path(f"/proc/{server.process.pid}/stat").read_text()
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(server: ServerProcess) -> int:
    """How many files the server has open."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def wait_for_open_files(server: ServerProcess, count: int) -> None:
    """Wait until it has no more files open than so many."""
    for _ in range(200):
        if open_files(server) <= count:
            return
        server.wait_output(0.05)
    pytest.fail(f"{open_files(server)} files are open, {count} were before the attack")


@pytest.mark.parametrize("server", [64], indirect=True)
def test_e35_clients_go_on_while_peers_want_all_open_files(server: ServerProcess) -> None:
    """Every request needs the store, so a file of its own; and the accept loop does not spin."""
    server.expects("at most 4 connections instead of 200: the limit of open files is 64")
    server.expects(REFUSED)
    before = open_files(server)
    with ExitStack() as stack, NbdClient(server.port) as client:
        client.go(b"disk")
        for _ in range(200):
            stack.enter_context(connected(server))
        for number in range(64):
            client.write(number * OBJECT, b"x" * OBJECT)
        began = cpu_seconds(server)
        assert client.read(0, OBJECT) == b"x" * OBJECT
        server.wait_output(1.0)
        assert cpu_seconds(server) - began < 0.5
        client.disconnect()
    wait_for_open_files(server, before)
    with NbdClient(server.port) as client:
        client.go(b"disk")
        assert client.read(63 * OBJECT, 5) == b"xxxxx"
        client.disconnect()


@pytest.mark.parametrize("server", [None], indirect=True)
def test_e12_endless_attacks_fill_no_disk_with_their_log(server: ServerProcess) -> None:
    """Of lines of one kind only so many are written in a minute."""
    for _ in range(LINES_OF_A_KIND_MAX + 200):
        with connected(server) as peer:
            peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while peer.recv(100):
                pass
    with NbdClient(server.port) as client:
        client.go(b"disk")
        client.disconnect()
    lines = [line for line in server.stderr.lines if "closing the connection" in line]
    assert 0 < len(lines) <= LINES_OF_A_KIND_MAX
