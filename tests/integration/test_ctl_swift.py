# SPDX-License-Identifier: MIT
"""The commands of swiftnbd-ctl on a real Swift, run in this process."""

import json
import os
import re
import signal
import socket
import threading
from pathlib import Path

import pytest

from swiftnbd.cli import common
from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.run import run
from tests.support.backends import SwiftBackend
from tests.support.swift_aio import KEY, SECOND_POLICY, USER, RealSwift

OBJECT_SIZE = 4096


class Ctl:
    """swiftnbd-ctl with one container in its secrets file."""

    def __init__(
        self, swift: RealSwift, folder: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.backend = SwiftBackend(swift.auth_url, USER, KEY, folder / "secrets.conf")
        self.backend.announce(name)
        self.name = name
        self._capsys = capsys

    def __call__(self, *arguments: str, url: str | None = None) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        where = ["-a", url or self.backend.auth_url, "--secrets", str(self.backend.secrets)]
        code = run(ctl, "swiftnbd-ctl", [*where, *arguments])
        return code, *self._capsys.readouterr()

    def setup(self, objects: int) -> None:
        assert self("setup", self.name, str(objects), "--object-size", str(OBJECT_SIZE))[0] == 0


@pytest.fixture
def swift_ctl(
    real_swift: RealSwift,
    tmp_path: Path,
    container_name: str,
    capsys: pytest.CaptureFixture[str],
) -> Ctl:
    return Ctl(real_swift, tmp_path, container_name, capsys)


def test_life_of_a_container(swift_ctl: Ctl, tmp_path: Path) -> None:
    name, image = swift_ctl.name, tmp_path / "image"
    swift_ctl.setup(40)
    metadata = swift_ctl.backend.metadata(name)
    assert metadata.pop("last")
    assert metadata == {
        "version": "1",
        "objects": "40",
        "object-size": str(OBJECT_SIZE),
        "epoch": "1",
    }
    block = os.urandom(OBJECT_SIZE)
    swift_ctl.backend.put(name, "disk.part/00000007", block)

    assert swift_ctl("lock", name)[0] == 0
    code, out, _ = swift_ctl("list", "-s")
    mark = swift_ctl.backend.metadata(name)["client"]
    assert mark.startswith(f"{socket.gethostname()}:0@")
    assert (code, out) == (0, f"{name} objects=40 size=4096 (version=1, locked by {mark})\n")
    for command in (["lock", name], ["download", name, str(image)], ["delete", name]):
        assert swift_ctl(*command)[0] == 3
    assert swift_ctl("unlock", name)[0] == 0
    assert swift_ctl.backend.metadata(name)["last"] == mark

    assert swift_ctl("download", "-q", name, str(image))[0] == 0
    assert image.read_bytes() == bytes(7 * OBJECT_SIZE) + block + bytes(32 * OBJECT_SIZE)
    stored = [each for each in swift_ctl.backend.objects(name) if each.startswith("disk.part/")]
    assert stored == ["disk.part/00000007"]
    assert "client" not in swift_ctl.backend.metadata(name)

    assert swift_ctl("delete", name)[0] == 0
    assert swift_ctl("list", "-s") == (4, "", f"swiftnbd-ctl: {name} doesn't exist\n")


def test_policy_is_chosen_once(swift_ctl: Ctl) -> None:
    name = swift_ctl.name
    code, _, errors = swift_ctl("setup", name, "4", "--policy", "nonesuch")
    assert code == 1
    assert "there is no storage policy 'nonesuch'" in errors
    assert swift_ctl("setup", name, "4", "--policy", SECOND_POLICY)[0] == 0
    assert swift_ctl("setup", name, "4", "--policy", SECOND_POLICY.lower(), "-f")[0] == 0
    code, _, errors = swift_ctl("setup", name, "4", "--policy", "other", "-f")
    assert (code, errors.count("\n")) == (1, 1)
    assert f"exists with storage policy '{SECOND_POLICY}'" in errors


def test_many_objects_are_deleted(swift_ctl: Ctl) -> None:
    swift_ctl.setup(400)
    for index in range(100):
        swift_ctl.backend.put(swift_ctl.name, f"disk.part/{index:08d}", b"x")
    assert swift_ctl("delete", swift_ctl.name)[0] == 0
    assert swift_ctl("list")[0] == 4


def test_wrong_password_is_one_sentence(swift_ctl: Ctl) -> None:
    swift_ctl.setup(4)
    text = swift_ctl.backend.secrets.read_text()
    swift_ctl.backend.secrets.write_text(text.replace(KEY, "wr0ng"))
    for command in (["lock", swift_ctl.name], ["list"]):
        code, _, errors = swift_ctl(*command)
        assert (code, errors.count("\n")) == (5, 1)
        assert "was refused (401): wrong user or key" in errors
        assert "wr0ng" not in errors


def test_swift_that_is_down_is_one_sentence(
    swift_ctl: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "STORE_SECONDS_MAX", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/auth/v1.0"
    code, _, errors = swift_ctl("unlock", swift_ctl.name, url=url)
    assert (code, errors.count("\n")) == (6, 1)
    assert "gave up after" in errors


def test_interrupt_does_not_wait_for_a_login_that_hangs(swift_ctl: Ctl) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def interrupt_when_asked() -> None:
            connection, _ = silent.accept()
            connection.recv(1)
            os.kill(os.getpid(), signal.SIGINT)
            hung.append(connection)

        hung: list[socket.socket] = []
        thread = threading.Thread(target=interrupt_when_asked)
        thread.start()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/auth/v1.0"
        code, _, errors = swift_ctl("unlock", swift_ctl.name, url=url)
        thread.join()
        for connection in hung:
            connection.close()
    assert (code, errors) == (130, "swiftnbd-ctl: interrupted\n")


def fill(swift_ctl: Ctl, indexes: list[int], data: bytes | None = None) -> None:
    """As by somebody who keeps no map of what exists."""
    swift_ctl.backend.set_metadata(swift_ctl.name, last="192.0.2.7:4242@1700000000")
    for index in indexes:
        body = os.urandom(OBJECT_SIZE) if data is None else data
        swift_ctl.backend.put(swift_ctl.name, f"disk.part/{index:08d}", body)


def test_disk_is_resized_and_trimmed(swift_ctl: Ctl) -> None:
    name = swift_ctl.name
    swift_ctl.setup(40)
    fill(swift_ctl, [0, 5, 30, 39])
    fill(swift_ctl, [1, 2], bytes(OBJECT_SIZE))
    before = swift_ctl.backend.image(name)
    code, out, _ = swift_ctl("info", name, "--json")
    assert code == 0
    assert json.loads(out)["created"] > 1_700_000_000
    assert swift_ctl("trim", name, "-n")[0] == 0
    assert swift_ctl("trim", name, "-q")[2].endswith(
        "2 of 6 stored objects were zeros: 8 KiB freed\n"
    )
    assert swift_ctl("resize", name, "123000")[0] == 1
    assert swift_ctl("resize", name, "123000", "--yes", "-q")[0] == 0
    half = before[:123000] + bytes(-123000 % OBJECT_SIZE)
    assert swift_ctl.backend.image(name) == half
    assert swift_ctl("resize", name, str(len(before)))[0] == 0
    assert swift_ctl.backend.image(name) == half.ljust(len(before), b"\0")
    code, out, _ = swift_ctl("locate", name, "20480", "--json")
    assert json.loads(out)["stored"] is True


def test_disk_is_copied_by_swift_itself_and_to_other_sizes(swift_ctl: Ctl) -> None:
    name = swift_ctl.name
    second, third = f"{name}-2", f"{name}-3"
    for each in (second, third):
        swift_ctl.backend.announce(each)
    swift_ctl.setup(40)
    fill(swift_ctl, [0, 5, 6, 7, 30, 39])
    before = swift_ctl.backend.image(name)
    code, out, _ = swift_ctl(
        "copy", name, second, "--setup", "--policy", SECOND_POLICY, "--json", "-q"
    )
    assert code == 0
    found = json.loads(out)
    assert (found["objects_copied"], found["server_side"]) == (6, True)
    assert swift_ctl.backend.image(second) == before
    code, out, _ = swift_ctl("copy", second, third, "--setup", "--object-size", "6K", "--json")
    assert code == 0
    assert json.loads(out)["server_side"] is False
    assert swift_ctl.backend.image(third)[: len(before)] == before
    code, out, _ = swift_ctl("copy", name, second, "-f", "--json", "-q")
    assert json.loads(out)["objects_already_there"] == 6
    for each in (name, second, third):
        assert "client" not in swift_ctl.backend.metadata(each)


def test_bench_leaves_nothing_behind(swift_ctl: Ctl) -> None:
    flags = ["--seconds", "2", "--bytes", "2M", "--object-size", "64K", "--connections", "2"]
    code, out, errors = swift_ctl("bench", swift_ctl.name, *flags)
    scratch = r"swiftnbd-bench-[0-9a-f]{16}"
    note = (
        f"swiftnbd-ctl: measuring in ({scratch}); "
        r"should this be killed, a later bench removes it, after a day, or now: "
        rf"give it a section in {swift_ctl.backend.secrets} and "
        r"run, with the options of this one: swiftnbd-ctl delete \1\n"
    )
    assert code == 0
    assert re.fullmatch(note, errors)
    assert out.splitlines()[-1].startswith("For random work")
    listing, _ = swift_ctl.backend.request("GET", "", "?prefix=swiftnbd-bench-")
    assert listing == b""
