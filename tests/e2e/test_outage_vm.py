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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import KiB, launcher, new_name
from tests.support import vm
from tests.support.backends import SwiftBackend
from tests.support.clients import find
from tests.support.server_process import ServerProcess
from tests.support.swift_aio import KEY, USER, RealSwift

OBJECT_SIZE, OBJECTS = 256 * KiB, 256
PAUSE_SECONDS = 3.0  # of undisturbed work between outages
TOKEN_SECONDS = 20  # of life, in the long run
BEGAN = r"outage of .*; requests wait, and it is asked again"

pytestmark = pytest.mark.timeout(3 * vm.BOOT_SECONDS_MAX + 300)


class Outage(NamedTuple):
    """What is done to which server, for how long."""

    role: str
    begin: Callable[[RealSwift, str], None]
    end: Callable[[RealSwift, str], None]
    seconds: float


def stop(swift: RealSwift, role: str) -> None:
    swift.signal(role, signal.SIGSTOP)


def go_on(swift: RealSwift, role: str) -> None:
    swift.signal(role, signal.SIGCONT)


SHORT = (Outage("proxy", RealSwift.kill, RealSwift.restart, 5),)
LONG = (
    Outage("proxy", RealSwift.kill, RealSwift.restart, 30),
    Outage("object", stop, go_on, 20),
    Outage("container", RealSwift.kill, RealSwift.restart, 10),
    Outage("proxy", stop, go_on, 15),
)


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


def test_file_system_stays_mounted_and_correct_through_outages(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    outages = LONG if os.environ.get("OUTAGES") == "long" else SHORT
    tokens = {"filter:tempauth": {"token_life": TOKEN_SECONDS}} if outages is LONG else {}
    seconds = sum(outage.seconds + PAUSE_SECONDS for outage in outages) + PAUSE_SECONDS
    with RealSwift(fsync=False, extra={"proxy": tokens}) as swift:
        backend = SwiftBackend(swift.auth_url, USER, KEY, tmp_path / "secrets.conf")
        names = new_name(), new_name()
        for name in names:
            backend.setup(name, OBJECTS, OBJECT_SIZE)
        with launcher(backend, tmp_path) as launch:
            server = launch(*names)
            server.allows(BEGAN)
            machine = vm.Machine(
                "outage", port=server.port, export=names[0], seconds=int(seconds) + 5
            )
            machine.wait_for("working")
            with fio(server, names[1], seconds, tmp_path) as report:
                for outage in outages:
                    time.sleep(PAUSE_SECONDS)
                    outage.begin(swift, outage.role)
                    time.sleep(outage.seconds)
                    outage.end(swift, outage.role)
            machine.wait()
            assert machine.passed() == vm.steps("outage"), machine.console
            log = server.log()
    found = re.search(r"rounds=(\d+) longest=(\d+)", machine.console)
    assert found is not None
    stalls = {"kernel": int(found[2]), "fio": round(longest_of(report), 1)}
    record_property("stalls", stalls)
    print(f"longest stalls in seconds: {stalls}, {found[1]} rounds of the kernel")
    print(*re.findall(r".*outage of.*", log), sep="\n")
    assert int(found[1]) > 0
