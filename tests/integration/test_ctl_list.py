# SPDX-License-Identifier: MIT
import json
import os
import socket
import sys
from pathlib import Path

import pytest

from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.ctl_list import describe, simple_line
from swiftnbd.cli.run import run
from swiftnbd.errors import ContainerMissing, ExportUnusable
from swiftnbd.export.lock import Lock
from swiftnbd.store.base import Store
from tests.integration.conftest import HOLDER, NAME


async def test_line_is_that_of_the_old_version(disk: Store) -> None:
    row = await describe(disk, NAME)
    assert simple_line(NAME, row.disk) == "disk objects=8 size=4096 (version=1, unlocked)"
    await disk.set_metadata({"swiftnbd-client": "host:7@1700000000"})
    row = await describe(disk, NAME)
    assert simple_line(NAME, row.disk) == (
        "disk objects=8 size=4096 (version=1, locked by host:7@1700000000)"
    )


async def test_what_is_no_disk_is_an_error_that_names_it(store: Store) -> None:
    with pytest.raises(ContainerMissing, match="disk doesn't exist"):
        await describe(store, NAME)
    await store.create_container()
    with pytest.raises(ExportUnusable, match="disk: it is not set up"):
        await describe(store, NAME)


@pytest.fixture
def url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """A folder with the containers ``a``, ``[b]`` (locked)."""
    url = f"file:{tmp_path}/store"
    for arguments in (["setup", "a", "2"], ["setup", "[b]", "3"], ["lock", "[b]"]):
        assert run(ctl, "swiftnbd-ctl", ["-a", url, *arguments]) == 0
    capsys.readouterr()
    return url


@pytest.mark.parametrize("flags", [["-s"], ["--simple-output"], []])
def test_without_a_terminal_lines_are_plain(
    url: str, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    assert run(ctl, "swiftnbd-ctl", ["-a", url, "list", *flags]) == 0
    printed = capsys.readouterr()
    first, second = printed.out.splitlines()
    assert first.startswith("[b] objects=3 size=65536 (version=1, locked by ")
    assert second == "a objects=2 size=65536 (version=1, unlocked)"
    assert printed.err == ""


def test_programs_get_json_of_those_that_can_be_read(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ctl, "swiftnbd-ctl", ["-a", url, "list", "--json", "[b]", "nope", "a"]) == 4
    printed = capsys.readouterr()
    held, free = json.loads(printed.out)
    assert held["lock"].keys() == {"mark", "client", "since"}
    assert free == {
        "container": "a",
        "size": 131072,
        "objects": 2,
        "object_size": 65536,
        "stored_objects": free["stored_objects"],
        "stored_bytes": free["stored_bytes"],
        "lock": None,
    }
    assert printed.err == "swiftnbd-ctl: nope doesn't exist\n"
    assert run(ctl, "swiftnbd-ctl", ["-a", url, "list", "--json", "-s"]) == 2


def test_terminal_gets_a_table(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    assert run(ctl, "swiftnbd-ctl", ["-a", url, "list"]) == 0
    printed = capsys.readouterr().out
    assert "Container" in printed
    assert "[b]" in printed  # a name is no markup
    assert "192 KiB" in printed


def test_containers_that_cannot_be_listed_are_told_and_the_others_listed(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secrets = tmp_path / "secrets.conf"
    secrets.write_text("[nope]\n[a]\n[neither]\n")
    flags = ["-a", url, "--secrets", str(secrets), "list", "-s"]
    assert run(ctl, "swiftnbd-ctl", flags) == 4
    printed = capsys.readouterr()
    assert printed.out == "a objects=2 size=65536 (version=1, unlocked)\n"
    assert printed.err == (
        "swiftnbd-ctl: nope doesn't exist\nswiftnbd-ctl: neither doesn't exist\n"
    )


@pytest.mark.parametrize(("exists", "missing"), [(True, ""), (False, ", which does not exist")])
@pytest.mark.parametrize("flags", [[], ["-s"]])
def test_folder_without_containers_is_told_and_not_an_empty_list(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    exists: bool,
    missing: str,
) -> None:
    folder = tmp_path / "typo"
    if exists:
        (folder / "no-container").mkdir(parents=True)
    assert run(ctl, "swiftnbd-ctl", ["-a", f"file:{folder}", "list", *flags]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"swiftnbd-ctl: no container is set up under {folder}{missing}; "
        f"run: swiftnbd-ctl -a file:{folder} setup NAME --size 1G\n"
    )


async def test_table_says_who_holds_it_where_and_when_it_was_renewed(disk: Store) -> None:
    lock = Lock(disk, HOLDER)
    await lock.acquire()
    assert (await describe(disk, NAME, count=True)).lock == (
        f"host:7 since 2023-11-14 22:13:20 UTC, process {os.getpid()} on {socket.gethostname()}"
    )
    await lock.renew()
    assert ", last renewed 20" in (await describe(disk, NAME, count=True)).lock
    await lock.release()
    assert (await describe(disk, NAME, count=True)).lock == ""
