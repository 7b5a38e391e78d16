# SPDX-License-Identifier: MIT
"""Attacks on the process itself: its open files, its memory, its log; and a signal."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from swiftnbd.export.settings import CacheSettings
from swiftnbd.log import LINES_OF_A_KIND_MAX
from swiftnbd.server.config import ServerConfig
from swiftnbd.server.server import memory_bytes_max
from tests.support import nbd_client as nbd
from tests.support.loopback import request_bytes
from tests.support.nbd_client import NbdClient
from tests.support.server_process import ServerProcess, ctl

OBJECT = 65536
IDLE, SLOW, SILENT = 100, 20, 20
SENT_BYTES = 24 * 1024 * 1024  # of a payload of 32 MiB
WRITE_32_MIB = request_bytes(nbd.WRITE, 0, 32 * 1024 * 1024)
READ_4_MIB = request_bytes(nbd.READ, 0, 4 * 1024 * 1024)
REFUSED = "refused, there (is|are) [0-9]+ connections?"


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of a disk in a folder; the parameter is how many files it may open, or None.

    "as installed" is without Python's development mode, which takes memory and time.
    """
    url = f"file:{tmp_path}/store"
    ctl("-a", url, "setup", "disk", "1024")
    strict = request.param != "as installed"
    files_max = request.param if strict else None
    server = ServerProcess("-a", url, workdir=tmp_path, strict=strict, files_max=files_max)
    server.wait_ready("disk")
    yield server
    server.finish()


def connected(server: ServerProcess, source: str = "127.0.0.1") -> socket.socket:
    """A connection that never says a word."""
    return socket.create_connection(("127.0.0.1", server.port), 10, (source, 0))


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


@pytest.fixture
def ignored_hangup() -> Iterator[None]:
    """As nohup starts a program."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("ignored_hangup")
@pytest.mark.parametrize("server", [None], indirect=True)
def test_e34_hangup_that_is_ignored_ends_nothing(server: ServerProcess) -> None:
    server.process.send_signal(signal.SIGHUP)
    with NbdClient(server.port) as client:
        client.go(b"disk")
        assert client.read(0, 4) == bytes(4)
        client.disconnect()


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


def memory_bytes(server: ServerProcess, key: str) -> int:
    """A figure of the server's memory: VmRSS is what it has, VmHWM the most it ever had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    match = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
    assert match
    return int(match[1]) * 1024


def send_what_is_taken(client: NbdClient, data: bytes) -> None:
    """Send until the server does not read on."""
    client.socket.settimeout(0.1)
    with suppress(TimeoutError):
        client.socket.sendall(data)


@pytest.mark.parametrize("server", ["as installed"], indirect=True)
def test_e17_e18_hostile_connections_take_no_more_memory_than_is_stated(
    server: ServerProcess,
) -> None:
    """100 idle, 20 that send large payloads slowly, 20 that never read; all are one client.

    Those who hold the budget are cut off after a while, for the others wait for it.
    """
    server.allows("cut off: others wait for")
    server.allows(REFUSED)
    config = ServerConfig(connections_max=IDLE + SLOW + SILENT + 1)
    before = memory_bytes(server, "VmRSS")
    with ExitStack() as stack:
        honest = stack.enter_context(NbdClient(server.port))
        honest.go(b"disk")
        for number in range(64):
            honest.write(number * OBJECT, b"x" * OBJECT)
        # more connections than one address may have
        idle = [connected(server, f"127.0.0.{2 + number % 3}") for number in range(IDLE)]
        for each in idle:
            stack.callback(each.close)
        for _ in range(SLOW):
            slow = stack.enter_context(NbdClient(server.port))
            slow.go(b"disk")
            send_what_is_taken(slow, WRITE_32_MIB + bytes(SENT_BYTES))
        for _ in range(SILENT):
            silent = stack.enter_context(NbdClient(server.port))
            silent.go(b"disk")
            send_what_is_taken(silent, READ_4_MIB * 4000)
        for _ in range(5):
            for number in range(64):
                assert honest.read(number * OBJECT, OBJECT) == b"x" * OBJECT
                honest.write(number * OBJECT, b"x" * OBJECT)
        taken = memory_bytes(server, "VmHWM") - before
        honest.disconnect()
    most = memory_bytes_max(config, [CacheSettings().cache_bytes])
    print(f"{taken / 2**20:.0f} MiB of {most / 2**20:.0f}")
    assert taken < most
    with NbdClient(server.port) as client:
        client.go(b"disk")
        assert client.read(0, OBJECT) == b"x" * OBJECT
        client.disconnect()
