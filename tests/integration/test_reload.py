# SPDX-License-Identifier: MIT
"""SIGHUP to a server: the configuration is read again, and clients do not notice."""

import asyncio
import os
import pty
import select
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.store.directory import DirectoryStore
from tests.support.certificates import SERVER, Certificates
from tests.support.foreground import SECONDS_MAX, Foreground, command, server
from tests.support.nbd_client import STARTTLS, NbdClient, NbdError, Refused

DATA = b"\x5a" * 512
OTHER_DATA = b"\xa5" * 512
OTHER = "127.0.0.2"  # another client


class Configured:
    """A folder with a store, a secrets file and a log of a server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("one", "two", "three"):
            store = DirectoryStore(folder / "store", name)
            asyncio.run(store.create_container(setup_metadata(Geometry(16, 65536))))
        self.says("[one]", "[two]")
        self._read = 0

    def says(self, *lines: str) -> None:
        """Write the secrets file."""
        (self.folder / "secrets").write_text("".join(f"{line}\n" for line in lines))

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.log}"
            time.sleep(0.01)

    def wait_log(self, text: str) -> None:
        """Wait for a line that was not read yet."""
        self.wait(lambda: text in self.log[self._read :], f"no {text!r}")
        self._read = self.log.index(text, self._read) + len(text)

    @contextmanager
    def server(self, *flags: str, **how: Any) -> Iterator["Running"]:
        arguments = ("-p", "0", "--secrets", "secrets", *flags)
        with server(self.folder, *arguments, uris=2, **how) as running:
            yield Running(self, running)
            assert running.end() == 0


class Running:
    def __init__(self, configured: Configured, running: Foreground) -> None:
        self._configured = configured
        self.process = running.process
        self.port = int(running.uris[0].rpartition(":")[2].partition("/")[0])

    def reload(self, *lines: str, end: str = "configuration is read again") -> None:
        """SIGHUP with these lines in the secrets file."""
        self._configured.says(*lines)
        self.process.send_signal(signal.SIGHUP)
        self._configured.wait_log(end)

    def exports(self) -> list[bytes]:
        with NbdClient(self.port, source=OTHER) as client:
            return client.list_exports()


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


def test_exports_are_added_removed_and_changed(configured: Configured) -> None:
    with configured.server() as running:
        assert running.exports() == [b"one", b"two"]
        running.reload("[three]", "[two]", "read-only = yes")
        configured.wait(lambda: running.exports() == [b"three", b"two"], "other exports")
        for name, is_refused in ((b"two", True), (b"three", False)):
            with NbdClient(running.port) as client:
                client.go(name)
                with pytest.raises(NbdError) if is_refused else nullcontext():
                    client.write(0, DATA)
        with NbdClient(running.port) as client, pytest.raises(Refused):
            client.go(b"one")
        running.reload("[one]", "allow = 127.0.0.1", "deny = all", "[two]")
        configured.wait(lambda: running.exports() == [b"two"], "an export that is not for all")
        with NbdClient(running.port) as client:
            client.go(b"one")
    for line in ("two: changed", "one: removed", "three: added", "three: it is served now"):
        assert line in configured.log


def test_what_is_in_use_stays_until_its_client_has_left(configured: Configured) -> None:
    with configured.server() as running:
        with NbdClient(running.port) as one, NbdClient(running.port) as two:
            one.go(b"one")
            two.go(b"two")
            one.write(0, DATA)
            running.reload("[two]", "read-only = yes")
            assert "one: in use, so it is removed when its client has left" in configured.log
            assert "two: changed; in use, so for its next client" in configured.log
            assert running.exports() == [b"one", b"two"]
            for client in (one, two):
                assert client.read(0, 512) == (DATA if client is one else bytes(512))
                client.write(512, DATA)
                client.flush()
            with NbdClient(running.port) as another:  # of the same client
                another.go(b"one")
                assert another.read(512, 512) == DATA
            assert "one: removed" not in configured.log
            one.disconnect()
            two.disconnect()
        configured.wait_log("one: removed")
        assert running.exports() == [b"two"]
        with NbdClient(running.port) as client:
            client.go(b"two")
            assert client.read(512, 512) == DATA
            with pytest.raises(NbdError):
                client.write(0, DATA)
        running.reload("[one]", "[two]")
        configured.wait(lambda: running.exports() == [b"one", b"two"], "it is back")
        with NbdClient(running.port) as client:
            client.go(b"one")
            assert client.read(0, 1024) == DATA * 2


def test_removal_is_taken_back_while_its_client_is_there(configured: Configured) -> None:
    with configured.server() as running:
        with NbdClient(running.port) as client:
            client.go(b"one")
            running.reload("[two]")
            running.reload("[one]", "[two]")
            client.disconnect()
        configured.wait_log("one: unlocked")
        assert running.exports() == [b"one", b"two"]


def test_container_becomes_a_plugin_and_a_container_again(configured: Configured) -> None:
    plugin = ("[two]", "[one]", "plugin = memory", "size = 3M")
    with configured.server() as running:
        with NbdClient(running.port) as client:
            client.go(b"one")
            client.write(0, DATA)
            running.reload(*plugin)
            assert "one: changed; in use, so for its next client" in configured.log
            client.write(512, DATA)
            client.flush()
            client.disconnect()
        configured.wait_log("one: it is served now")
        assert running.exports() == [b"two", b"one"]
        with NbdClient(running.port) as client:
            assert client.go(b"one").size == 3 * 1024 * 1024
            assert client.read(0, 512) == bytes(512)
            client.write(0, OTHER_DATA)
            running.reload("[one]", "[two]")
            assert client.read(0, 512) == OTHER_DATA
            client.disconnect()
        configured.wait_log("one: it is served now")
        assert running.exports() == [b"one", b"two"]
        with NbdClient(running.port) as client:
            assert client.go(b"one").size == 16 * 65536
            assert client.read(0, 1024) == DATA * 2
        running.reload(*plugin)
        configured.wait_log("one: it is served now")  # nobody had it, so it was at once


UNUSABLE = {
    "section [one] is there already": ("[one]", "[one]"),
    "is neither yes nor no": ("[one]", "read-only = perhaps"),
    "but TLS is off": ("[three]", "tls = require"),
    "names no container": (),
}


def test_what_cannot_be_used_changes_nothing_and_is_told(configured: Configured) -> None:
    with configured.server() as running:
        for reason, lines in UNUSABLE.items():
            running.reload(*lines, end="cannot be used, so nothing is changed: ")
            configured.wait_log(reason)
        (configured.folder / "secrets").unlink()
        running.process.send_signal(signal.SIGHUP)
        configured.wait_log("does not exist")
        assert running.exports() == [b"one", b"two"]
        running.reload("[one]")
        assert running.exports() == [b"one"]


def test_certificates_are_read_again(configured: Configured, tmp_path: Path) -> None:
    tls = Certificates.make(tmp_path)
    flags = ("--tls", "on", "--tls-certificates", str(tls.server))
    with configured.server(*flags) as running:
        first = certificate(running.port, tls)
        tls.authority.issue("localhost", SERVER).write(tls.server, "server")
        running.reload("[one]")
        second = certificate(running.port, tls)
        assert first != second
        (tls.server / "server-key.pem").write_text("nothing")
        running.reload("[two]", end="so nothing is changed: ")
        assert certificate(running.port, tls) == second
        assert running.exports() == [b"one"]


def certificate(port: int, tls: Certificates) -> bytes:
    """The server's, as a client gets it."""
    with NbdClient(port) as client:
        client.option(STARTTLS)
        with tls.client_context().wrap_socket(client.socket) as wrapped:
            found = wrapped.getpeercert(binary_form=True)
    assert isinstance(wrapped, ssl.SSLSocket)
    assert found
    return found


def test_daemon_finds_files_where_it_was_started(configured: Configured) -> None:
    folder = configured.folder
    arguments = ("-p", "0", "--secrets", "secrets", "--pid-file", "pid")
    subprocess.run(command(folder, *arguments), cwd=folder, check=True, capture_output=True)
    pid = int((folder / "pid").read_text())
    try:
        configured.says("[three]")
        os.kill(pid, signal.SIGHUP)
        configured.wait_log("three: it is served now")
    finally:
        os.kill(pid, signal.SIGTERM)
        configured.wait(lambda: not (folder / "pid").exists(), "its end")


def test_losing_the_terminal_ends_it_and_a_signal_alone_does_not(configured: Configured) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(configured.folder)
        arguments = ("-f", "-p", "0", "--secrets", "secrets", "--pid-file", "pid")
        words = command(configured.folder, *arguments)
        os.execv(words[0], words)
    try:
        configured.wait(lambda: (configured.folder / "log").exists(), "a start")
        configured.wait_log("serving on")
        said = b""
        while b"two" not in said:  # it handles the signal from then on
            said += os.read(terminal, 1000)
        configured.says("[three]")
        os.kill(child, signal.SIGHUP)
        configured.wait_log("three: it is served now")
    finally:
        os.close(terminal)
    descriptor = os.pidfd_open(child)
    try:
        assert select.select([descriptor], [], [], SECONDS_MAX)[0]
    finally:
        os.close(descriptor)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "exiting" in configured.log
