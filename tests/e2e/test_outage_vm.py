# SPDX-License-Identifier: MIT
"""A file system in a kernel, and fio with verify, at work while parts of a real Swift are away.

``OUTAGES=long`` (``tox -e outages``) makes it several outages of up to 30 s, with tokens that
expire meanwhile, instead of one of 5 s; the longest stalls are printed.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from tests.support import vm
from tests.support.backends import SwiftBackend
from tests.support.clients import find
from tests.support.keystone_aio import SERVICE_PASSWORD, RealKeystone
from tests.support.server_process import ServerProcess, ctl
from tests.support.swift_aio import KEY, USER, RealSwift

NAMES = ("kernel", "fio")  # of the disks, on a Swift of the test's own
OBJECT_SIZE, OBJECTS = 256 * 1024, 256
IS_LONG = os.environ.get("OUTAGES") == "long"
PAUSE_SECONDS = 3.0 if IS_LONG else 1.0  # of undisturbed work between outages
TOKEN_SECONDS = 20  # of life, in the long run
BEGAN = r"outage of .*; requests wait, and it is asked again"

pytestmark = pytest.mark.timeout(3 * vm.BOOT_SECONDS_MAX + 300)


class Server(Protocol):
    """What can be hurt: a real Swift's server, or a real Keystone."""

    def begin(self) -> None: ...

    def end(self) -> None: ...


class Killed:
    """kill -9, and started again."""

    def __init__(self, swift: RealSwift, role: str) -> None:
        self.swift, self.role = swift, role

    def begin(self) -> None:
        self.swift.kill(self.role)

    def end(self) -> None:
        self.swift.restart(self.role)


class Stopped(Killed):
    """Hanging."""

    def begin(self) -> None:
        self.swift.signal(self.role, signal.SIGSTOP)

    def end(self) -> None:
        self.swift.signal(self.role, signal.SIGCONT)


class KeystoneKilled:
    """Nobody can log in, and Swift cannot ask who somebody is."""

    def __init__(self, keystone: RealKeystone) -> None:
        self.keystone = keystone

    def begin(self) -> None:
        self.keystone.kill()

    def end(self) -> None:
        self.keystone.restart()


class Outage(NamedTuple):
    """What is done, for how long."""

    what: Server
    seconds: float


@contextmanager
def fio(server: ServerProcess, name: str, seconds: float, folder: Path) -> Iterator[Path]:
    """It writes and verifies meanwhile, and must find nothing wrong; what it reports."""
    report = folder / "fio.json"
    process = subprocess.Popen(
        [
            *(str(find("fio")), "--name=verify", "--ioengine=nbd"),
            *(f"--uri={server.uris()[name]}", "--rw=randrw", "--bsrange=512-64k"),
            *("--size=16M", "--iodepth=8", "--fsync=32", "--verify=crc32c"),
            *("--verify_fatal=1", "--verify_backlog=64", "--time_based", "--randseed=5"),
            *(f"--runtime={seconds:.0f}", "--output-format=json", f"--output={report}"),
        ],
        cwd=folder,
    )
    connected = f"negotiated export: {name}"  # once to look, once to work
    try:
        server.wait_until(
            lambda: sum(connected in line for line in server.stderr.lines) > 1, connected, 60
        )
        yield report
        assert process.wait(vm.BOOT_SECONDS_MAX) == 0, report.read_text()
    finally:
        process.kill()
        process.wait()


def longest_of(report: Path) -> float:
    """Seconds that fio's slowest request took."""
    text = report.read_text()
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    kinds = [job[kind]["clat_ns"]["max"] for kind in ("read", "write")]
    return float(max(*kinds, job["sync"]["lat_ns"]["max"])) / 1e9


def work_through(outages: Sequence[Outage], arguments: Sequence[str], folder: Path) -> None:
    """A kernel's file system on one disk and fio on another, while all this happens."""
    seconds = sum(outage.seconds + PAUSE_SECONDS for outage in outages) + PAUSE_SECONDS
    server = ServerProcess(*arguments, workdir=folder)
    try:
        server.wait_ready(*NAMES)
        server.allows(BEGAN)
        lasts = int(seconds) + 5
        machine = vm.Machine("outage", port=server.port, export=NAMES[0], seconds=lasts)
        machine.wait_for("working")
        with fio(server, NAMES[1], seconds, folder) as report:
            for outage in outages:
                time.sleep(PAUSE_SECONDS)
                outage.what.begin()
                time.sleep(outage.seconds)
                outage.what.end()
        machine.wait()
        assert machine.passed() == vm.steps("outage"), machine.console + server.log()
        server.finish()
    finally:
        server.kill()
    tell(machine.console, report, server.log())


def tell(console: str, report: Path, log: str) -> None:
    found = re.search(r"rounds=(\d+) longest=(\d+)", console)
    assert found is not None
    assert int(found[1]) > 0
    stalls = f"{found[2]} s in the kernel, {longest_of(report):.1f} s in fio"
    print(f"longest stalls: {stalls}; {found[1]} rounds of the kernel")
    print(*re.findall(r".*outage of.*", log), sep="\n")


def set_up(arguments: Sequence[str]) -> None:
    for name in NAMES:
        ctl(*arguments, "setup", name, str(OBJECTS), "--object-size", str(OBJECT_SIZE))


def test_file_system_stays_mounted_and_correct_through_outages(tmp_path: Path) -> None:
    tokens = {"filter:tempauth": {"token_life": TOKEN_SECONDS}} if IS_LONG else {}
    with RealSwift(fsync=False, extra={"proxy": tokens}) as swift:
        backend = SwiftBackend(swift.auth_url, USER, KEY, tmp_path / "secrets.conf")
        for name in NAMES:
            backend.announce(name)
        set_up(backend.arguments)
        outages = [Outage(Killed(swift, "proxy"), 5)]
        if IS_LONG:
            outages = [
                Outage(Killed(swift, "proxy"), 30),
                Outage(Stopped(swift, "object"), 20),
                Outage(Killed(swift, "container"), 10),
                Outage(Stopped(swift, "proxy"), 15),
            ]
        work_through(outages, backend.arguments, tmp_path)


@pytest.mark.skipif(not IS_LONG, reason="OUTAGES=long is not set")
def test_file_system_stays_mounted_while_keystone_is_down(tmp_path: Path) -> None:
    with RealKeystone() as keystone:
        options = {"keystone_url": keystone.url, "keystone_password": SERVICE_PASSWORD}
        with RealSwift(fsync=False, **options) as swift:
            keystone.add_swift(swift.ports["proxy"])
            found = keystone.application_credential("vm")
            secrets = tmp_path / "secrets.conf"
            secrets.touch(mode=0o600)
            login = f"auth-url = {keystone.url}\n"
            login += f"application-credential-id = {found['id']}\n"
            login += f"application-credential-secret = {found['secret']}\n"
            secrets.write_text("".join(f"[{name}]\n{login}" for name in NAMES))
            arguments = ("--secrets", str(secrets))
            set_up(arguments)
            outages = [Outage(KeystoneKilled(keystone), 60)]
            work_through(outages, (*arguments, "--on-outage", "wait"), tmp_path)
