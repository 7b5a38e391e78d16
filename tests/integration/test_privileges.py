# SPDX-License-Identifier: MIT
"""A server that root starts, and that serves as somebody else; and one that root never saw."""

import asyncio
import os
import pwd
import re
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from swiftnbd.cli.accounts import account_of
from swiftnbd.errors import ConfigError
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.store.directory import DirectoryStore
from tests.support.foreground import SECONDS_MAX, run_server, server
from tests.support.nbd_client import NbdClient

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root")
NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """Somebody else's store, in a folder of ours that everybody can enter.

    It is none of pytest's: each pytest that starts takes those away from everybody else.
    """
    with tempfile.TemporaryDirectory() as name:
        fill(Path(name))
        yield Path(name)


def fill(folder: Path) -> None:
    store = DirectoryStore(folder / "store", "disk")
    asyncio.run(store.create_container(setup_metadata(Geometry(4, 65536))))
    folder.chmod(0o755)
    for path in (folder / "store", *(folder / "store").rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    (folder / "secrets").write_text("[disk]\n")
    (folder / "secrets").chmod(0o600)


def identities(pid: int) -> dict[str, list[str]]:
    """What proc(5) says of a process: its user, group, other groups and capabilities."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {name: found[name].split() for name in ("Uid", "Gid", "Groups", "CapEff", "CapPrm")}


def threads(pid: int) -> list[dict[str, list[str]]]:
    """The identities of each, at least that of the first."""
    found = [identities(pid)]
    for task in os.listdir(f"/proc/{pid}/task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found.append(identities(int(task)))
    return found


@needs_root
def test_root_is_given_up_by_every_thread_once_all_is_open(folder: Path) -> None:
    secrets = ("--secrets", str(folder / "secrets"))
    unix = folder / "socket"
    flags = ("-u", str(NOBODY), "-p", "0", "-U", str(unix), "-b", "127.0.0.1")
    with server(folder, *flags, *secrets, "--cache-dir", "store/cache", uris=2) as running:
        port = int(running.uris[0].rpartition(":")[2].partition("/")[0])
        with NbdClient(port) as client:
            client.go(b"disk")
            client.write(0, b"x" * 65536)
            client.flush()
            client.disconnect()
        pid = running.process.pid
        for found in threads(pid):
            assert set(found["Uid"]) == set(found["Gid"]) == {str(NOBODY)}
            assert str(os.getegid()) not in found["Groups"]
            assert {found["CapEff"][0], found["CapPrm"][0]} == {"0" * 16}
        assert (unix.stat().st_uid, stat.S_IMODE(unix.stat().st_mode)) == (NOBODY, 0o600)
        assert (folder / "log").stat().st_uid == NOBODY
        # what it may not read any more cannot be read again, and changes nothing
        running.process.send_signal(signal.SIGHUP)
        with NbdClient(port) as client:
            client.go(b"disk")
            assert client.read(0, 3) == b"xxx"
            client.disconnect()
        deadline = time.monotonic() + SECONDS_MAX
        while "nothing is changed" not in (folder / "log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert running.end() == 0
    stored = folder / "store/disk/disk.part/00000000"
    assert stored.stat().st_uid == NOBODY
    assert not (folder / "pid").exists() or (folder / "pid").read_text() == ""
    log = (folder / "log").read_text()
    assert f"running as user {NOBODY}, group {pwd.getpwuid(NOBODY).pw_gid}" in log
    assert re.search("nothing is changed: cannot read secrets file .*: Permission denied", log)


@needs_root
def test_store_that_the_user_cannot_read_is_one_sentence(folder: Path) -> None:
    (folder / "store").chmod(0o700)
    os.chown(folder / "store", 0, 0)
    done = run_server(folder, "-f", "-p", "0", "-u", str(NOBODY), "--pid-file", f"{folder}/pid")
    assert done.returncode == 2
    assert re.fullmatch(
        rf"swiftnbd-server: user {NOBODY}, group \d+ cannot read {folder}/store\n", done.stderr
    )


# The interpreter of a developer's machine may be where nobody else can read: all is imported first.
AS_NOBODY = f"""
import difflib, encodings.idna, os, uvloop
import swiftnbd.cli.loading, swiftnbd.cli.reloading, swiftnbd.cli.stores, swiftnbd.server.server
import swiftnbd.store.directory
from swiftnbd.cli.server import main
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
main()
"""


@needs_root
def test_whole_server_runs_as_somebody_who_is_not_root(folder: Path) -> None:
    os.chown(folder, NOBODY, NOBODY)
    program = ("-c", AS_NOBODY)
    who = ("-u", str(NOBODY), "-g", str(NOBODY))
    with server(folder, "-p", "0", *who, program=program) as running:
        assert set(identities(running.process.pid)["Uid"]) == {str(NOBODY)}
        with NbdClient(int(running.uris[0].rpartition(":")[2].partition("/")[0])) as client:
            client.go(b"disk")
            client.write(0, b"x")
            client.disconnect()
        assert running.end() == 0
    assert not (folder / "pid").exists()
    done = run_server(folder, "-f", "-u", "root", program=program)
    assert (done.returncode, done.stdout) == (2, "")
    assert "only root can run the server as user root" in done.stderr


@pytest.mark.parametrize(
    ("user", "group", "reason"),
    [
        ("no such user", None, "there is no user 'no such user'"),
        (None, "no such group", "there is no group 'no such group'"),
        ("4294967295", None, "is no number of a user or group"),
        ("4000000001", None, "user 4000000001 has no group of its own: give -g, too"),
    ],
)
def test_unknown_user_or_group_is_refused(user: str | None, group: str | None, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        account_of(user, group)


@needs_root
def test_account_has_all_groups_of_its_user() -> None:
    entry = pwd.getpwnam("root")
    account = account_of("root", None)
    assert account is not None
    assert (account.user, account.group) == (0, entry.pw_gid)
    assert account.groups == tuple(sorted(os.getgrouplist("root", entry.pw_gid)))
    assert account_of(None, None) is None
