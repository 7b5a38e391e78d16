# SPDX-License-Identifier: MIT
"""What a service manager hears of a server: the test listens where systemd would."""

import asyncio
import os
import queue
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.server import supervision
from swiftnbd.server.notify import ServiceManager
from swiftnbd.server.supervision import Supervision
from swiftnbd.store.directory import DirectoryStore
from tests.support.foreground import SECONDS_MAX, Foreground, server
from tests.support.nbd_client import NbdClient

OBJECT = 65536
OBJECTS = 64  # four times as many as are stored at once
# A store that takes half a second for each object.
SLOW = """
import asyncio
from swiftnbd.cli.server import main
from swiftnbd.store.directory import DirectoryStore
put = DirectoryStore.put
async def slow(self, name, *rest, **named):
    await asyncio.sleep(0.5 if name.startswith("disk.part/") else 0)
    return await put(self, name, *rest, **named)
DirectoryStore.put = slow
main()
"""


class Manager:
    """Listens for messages at an address as systemd gives one; ``deaf``: and takes none."""

    def __init__(self, address: str, *, deaf: bool = False) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._name = "\0" + address[1:] if address.startswith("@") else address
        self.socket.bind(self._name)
        self._messages: queue.Queue[dict[str, str]] = queue.Queue()
        self._thread = threading.Thread(target=self._listen)
        if not deaf:
            self._thread.start()

    def _listen(self) -> None:
        while data := self.socket.recv(4096):
            lines = data.decode().split("\n")
            self._messages.put(dict(line.split("=", 1) for line in lines))

    def close(self) -> None:
        if self._thread.is_alive():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"", self._name)
            self._thread.join(SECONDS_MAX)
        self.socket.close()

    def next(self) -> dict[str, str]:
        """The next message."""
        return self._messages.get(timeout=SECONDS_MAX)

    def wait(self, name: str, text: str = "") -> dict[str, str]:
        """The next message that has this, perhaps with such a value."""
        while text not in (message := self.next()).get(name, "") or name not in message:
            pass
        return message

    def waiting(self) -> list[dict[str, str]]:
        """All that have come and were not taken."""
        return [self._messages.get() for _ in range(self._messages.qsize())]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    is_path = request.param == "path"
    manager = Manager(f"{tmp_path}/notify" if is_path else f"@swiftnbd-test-{os.getpid()}")
    yield manager
    manager.close()


@contextmanager
def supervised(
    folder: Path, manager: Manager, *flags: str, slow: bool = False, watchdog: str = ""
) -> Iterator[Foreground]:
    store = DirectoryStore(folder / "store", "disk")
    asyncio.run(store.create_container(setup_metadata(Geometry(OBJECTS, OBJECT))))
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": watchdog}
    program = ("-c", SLOW) if slow else ()
    with server(
        folder, "-p", "0", *flags, program=program, env=os.environ | environment
    ) as running:
        yield running


def port_of(running: Foreground) -> int:
    return int(running.uris[0].rpartition(":")[2].partition("/")[0])


def test_ready_status_reload_watchdog_and_end_are_told(tmp_path: Path, manager: Manager) -> None:
    with supervised(tmp_path, manager, watchdog="600000") as running:
        ready = manager.next()
        assert ready == {
            "READY": "1",
            "STATUS": "1 export, 0 connections, 0.0 MiB not stored yet",
        }
        for _ in range(3):
            manager.wait("WATCHDOG")
        with NbdClient(port_of(running)) as client:
            client.go(b"disk")
            manager.wait("STATUS", "1 connection,")
            client.disconnect()
        before = time.monotonic()
        running.process.send_signal(signal.SIGHUP)
        reloading = manager.wait("RELOADING")
        assert before <= int(reloading["MONOTONIC_USEC"]) / 1e6 <= time.monotonic()
        assert manager.wait("READY")["READY"] == "1"
        assert running.end() == 0
        assert manager.wait("STOPPING")["STATUS"].startswith("ending; ")


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_time_to_end_is_extended_while_writing_back_goes_on(
    tmp_path: Path, manager: Manager
) -> None:
    flags = ("--dirty-seconds", "3600", "--timeout", "1")
    with supervised(tmp_path, manager, *flags, slow=True) as running:
        manager.wait("READY")
        with NbdClient(port_of(running)) as client:
            client.go(b"disk")
            for number in range(OBJECTS):
                client.write(number * OBJECT, b"x" * OBJECT)
            assert running.end() == 0
    messages = manager.waiting()
    begin = next(number for number, each in enumerate(messages) if "STOPPING" in each)
    assert "4.0 MiB not stored yet" in messages[begin]["STATUS"]
    extended = [each for each in messages[begin:] if "EXTEND_TIMEOUT_USEC" in each]
    assert len(extended) >= 3
    patience = supervision.MARGIN_SECONDS + 2 * (1 + 15)
    assert {int(each["EXTEND_TIMEOUT_USEC"]) for each in extended} == {int(patience * 1e6)}
    for number in range(OBJECTS):
        stored = asyncio.run(
            DirectoryStore(tmp_path / "store", "disk").get(f"disk.part/{number:08}")
        )
        assert stored is not None
        assert bytes(stored.data) == b"x" * OBJECT


def test_manager_that_takes_no_messages_or_is_gone_harms_nobody(tmp_path: Path) -> None:
    manager = Manager(f"{tmp_path}/notify", deaf=True)
    with supervised(tmp_path, manager, "-v", watchdog="30000") as running:
        log = tmp_path / "log"
        for reason in ("timed out|unavailable", "refused"):
            deadline = time.monotonic() + SECONDS_MAX
            while not re.search(f"cannot tell the service manager: .*({reason})", log.read_text()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with NbdClient(port_of(running)) as client:
                client.go(b"disk")
                client.disconnect()
            manager.close()
        assert running.end() == 0


@pytest.mark.parametrize("manager", ["path"], indirect=True)
async def test_loop_that_is_stuck_gives_no_sign_of_life(manager: Manager) -> None:
    watched = Supervision(ServiceManager(manager.address, 0.06), {}, {}, lambda: 0)
    watched.ready()
    await asyncio.sleep(0.1)
    assert {"WATCHDOG": "1"} in manager.waiting()
    time.sleep(0.3)  # noqa: ASYNC251 - this is what it is about
    assert len(manager.waiting()) <= 1
    await asyncio.sleep(0.1)
    assert {"WATCHDOG": "1"} in manager.waiting()
    watched.ended()
