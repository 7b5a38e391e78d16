# SPDX-License-Identifier: MIT
"""swiftnbd-server on Unix sockets: what the file system and other servers see of it."""

import os
import re
import signal
import socket
import stat
from pathlib import Path

import pytest

from tests.support.foreground import run_server, server, wait_for_end
from tests.support.nbd_client import NbdClient
from tests.support.server_process import ctl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ctl("-a", f"file:{tmp_path}/store", "setup", "a disk", "4")
    return tmp_path


def connect(path: Path) -> NbdClient:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return NbdClient(sock)


def check_service(path: Path) -> None:
    with connect(path) as client:
        client.go(b"a disk")
        client.write(0, b"through a file")
        assert client.read(8, 6) == b"a file"
        client.disconnect()


def test_socket_is_there_for_our_user_alone_and_goes_with_the_server(folder: Path) -> None:
    path = folder / "nbd.sock"
    with server(folder, "-U", "nbd.sock", umask=0) as running:
        assert running.uris == [f"nbd+unix:///a%20disk?socket={path}"]
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        check_service(path)
        assert running.end() == 0
    assert not path.exists()


def test_private_socket_goes_with_its_folder(folder: Path) -> None:
    with server(folder, "-U", "-") as running:
        match = re.fullmatch(r"nbd\+unix:///a%20disk\?socket=(/\S+)", running.uris[0])
        assert match
        path = Path(match[1])
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        check_service(path)
        assert running.end(signal.SIGINT) == 0
    assert not path.parent.exists()


def test_detached_server_removes_its_socket_of_a_relative_path(folder: Path) -> None:
    done = run_server(folder, "-U", "nbd.sock", "--pid-file", "pid")
    assert (done.returncode, done.stderr) == (0, "")
    check_service(folder / "nbd.sock")
    pid = int((folder / "pid").read_text())
    os.kill(pid, signal.SIGTERM)
    assert wait_for_end(pid)
    assert not (folder / "nbd.sock").exists()


def test_socket_of_a_killed_server_is_replaced(folder: Path) -> None:
    path = folder / "nbd.sock"
    with server(folder, "-U", "nbd.sock") as killed:
        killed.process.kill()
    assert path.exists()
    with server(folder, "-U", "nbd.sock") as running:
        check_service(path)
        assert running.end() == 0


def test_socket_of_a_running_server_is_refused(folder: Path) -> None:
    path = folder / "nbd.sock"
    with server(folder, "-U", "nbd.sock") as running:
        done = run_server(folder, "-f", "-U", "nbd.sock", "--pid-file", "other")
        assert (done.returncode, done.stdout, done.stderr) == (
            2,
            "",
            f"swiftnbd-server: cannot listen on Unix socket {path}: "
            "a server is listening there already\n",
        )
        check_service(path)
        assert running.end() == 0


def test_file_in_the_way_is_refused_and_stays(folder: Path) -> None:
    (folder / "nbd.sock").write_text("precious")
    done = run_server(folder, "-f", "--pid-file", "pid", "-U", "nbd.sock")
    assert done.returncode == 2
    assert "nbd.sock: something that is no socket is there" in done.stderr
    assert (folder / "nbd.sock").read_text() == "precious"


def test_socket_is_removed_if_another_address_cannot_be_had(folder: Path) -> None:
    files = ("-f", "--pid-file", "pid", "-U", "a", "-U", "/none/b")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_server(folder, *files, "-b", "::1,127.0.0.1", "-p", port)
    assert done.returncode == 2
    assert re.search(r"cannot listen on (127\.0\.0\.1|::1) port", done.stderr)
    done = run_server(folder, *files)
    assert done.returncode == 2
    assert "/none/b: No such file or directory" in done.stderr
    assert not (folder / "a").exists()


def test_every_address_has_its_uri(folder: Path) -> None:
    with server(folder, "-U", "x", "-b", "127.0.0.1,127.0.0.2", "-p", "0", uris=3) as running:
        hosts = [re.sub(r":\d+/", ":P/", uri) for uri in running.uris]
        assert hosts == [
            "nbd://127.0.0.1:P/a%20disk",
            "nbd://127.0.0.2:P/a%20disk",
            f"nbd+unix:///a%20disk?socket={folder}/x",
        ]
        assert running.end() == 0
