# SPDX-License-Identifier: MIT
"""Unix sockets as files: their mode, what is replaced, and what is never touched."""

import fcntl
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from swiftnbd.errors import ConfigError
from swiftnbd.server import unix_socket
from swiftnbd.server.unix_socket import UnixListener, listen_at, listen_privately


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nbd.sock"


@pytest.fixture
def open_umask() -> Iterator[None]:
    """The umask of somebody who does not care."""
    before = os.umask(0)
    yield
    assert os.umask(before) == 0


def reachable(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def leftover(path: Path) -> None:
    """The socket of a server that was killed."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


def end(listener: UnixListener) -> None:
    listener.remove()
    listener.sock.close()


@pytest.mark.usefixtures("open_umask")
def test_e28_only_our_user_may_connect_from_the_first_moment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acceptance row E28: looked at as soon as the file is there, before it is listened on."""
    modes = []
    listen = socket.socket.listen

    def look(sock: socket.socket, backlog: int = 0) -> None:
        modes.append(stat.S_IMODE(path.lstat().st_mode))
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", look)
    listener = listen_at(path, 5)
    assert modes == [0o600]
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert reachable(path)
    end(listener)
    assert not path.exists()


def test_leftover_socket_is_replaced(path: Path) -> None:
    leftover(path)
    listener = listen_at(path, 5)
    assert reachable(path)
    end(listener)


def test_live_socket_is_refused_and_stays(path: Path) -> None:
    listener = listen_at(path, 5)
    with pytest.raises(ConfigError, match=r"nbd\.sock: a server is listening there already"):
        listen_at(path, 5)
    assert reachable(path)
    end(listener)


def test_live_socket_whose_queue_is_full_is_refused(path: Path) -> None:
    listener = listen_at(path, 0)
    with ExitStack() as clients:
        for _ in range(3):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(ConfigError, match="a server is listening there already"):
            listen_at(path, 5)
    end(listener)


def make_file(path: Path) -> None:
    path.write_text("precious")


def make_link_to_file(path: Path) -> None:
    path.with_name("target").write_text("precious")
    path.symlink_to("target")


def make_link_to_leftover(path: Path) -> None:
    leftover(path.with_name("target"))
    path.symlink_to("target")


@pytest.mark.parametrize(
    "make", [make_file, make_link_to_file, make_link_to_leftover, os.mkfifo, os.mkdir]
)
def test_what_is_no_socket_is_refused_and_stays(path: Path, make: object) -> None:
    assert callable(make)
    make(path)
    before = path.lstat()
    with pytest.raises(ConfigError, match=r"nbd\.sock: something that is no socket is there"):
        listen_at(path, 5)
    assert os.path.samestat(before, path.lstat())


def test_socket_of_another_kind_is_refused_and_stays(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(ConfigError, match=r"nbd\.sock: Protocol wrong type for socket"):
            listen_at(path, 5)
        assert path.exists()


def test_socket_that_replaced_ours_stays_at_the_end(path: Path) -> None:
    ours = listen_at(path, 5)
    path.unlink()
    theirs = listen_at(path, 5)
    end(ours)
    assert reachable(path)
    end(theirs)
    assert not path.exists()


def test_file_that_was_removed_is_not_missed_at_the_end(path: Path) -> None:
    listener = listen_at(path, 5)
    path.unlink()
    end(listener)


def test_of_many_servers_that_start_at_once_one_has_the_socket(path: Path) -> None:
    """Each finds a leftover; none may take another's new socket for one."""
    for _ in range(20):
        leftover(path)
        won: list[UnixListener] = []
        refused: list[ConfigError] = []
        start = threading.Barrier(8)

        def race(
            won: list[UnixListener] = won,
            refused: list[ConfigError] = refused,
            start: threading.Barrier = start,
        ) -> None:
            start.wait()
            try:
                won.append(listen_at(path, 20))
            except ConfigError as error:
                refused.append(error)

        racers = [threading.Thread(target=race) for _ in range(8)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert (len(won), len(refused)) == (1, 7)
        assert reachable(path)
        end(won[0])


def test_folder_locked_by_another_is_waited_for_but_not_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_socket, "FOLDER_LOCK_SECONDS_MAX", 0.1)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=f"another process has locked {path.parent}"):
            listen_at(path, 5)
    finally:
        os.close(folder)
    end(listen_at(path, 5))


def test_path_longer_than_a_sockets_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 100)
    length = len(str(path))
    with pytest.raises(ConfigError, match=f"its path has {length} bytes, a socket's at most 107"):
        listen_at(path, 5)


def test_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none/nbd\.sock: No such file or directory"):
        listen_at(tmp_path / "none" / "nbd.sock", 5)


@pytest.mark.usefixtures("open_umask")
def test_private_socket_is_in_a_folder_that_nobody_else_can_enter() -> None:
    listener = listen_privately(5)
    folder = listener.path.parent
    assert stat.S_IMODE(folder.lstat().st_mode) == 0o700
    assert stat.S_IMODE(listener.path.lstat().st_mode) == 0o600
    assert reachable(listener.path)
    end(listener)
    assert not folder.exists()


def test_private_folder_that_cannot_be_used_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(ConfigError, match="its path has"):
        listen_privately(5)
    assert not list(folder.iterdir())
