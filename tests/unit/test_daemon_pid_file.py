# SPDX-License-Identifier: MIT
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swiftnbd.errors import ConfigError
from swiftnbd.server.daemon import PidFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pid"


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Some live process."""
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_it_holds_our_pid_and_is_gone_afterwards(path: Path) -> None:
    with PidFile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.stat().st_mode & 0o777 == 0o644
    assert not path.exists()


def test_it_is_removed_from_where_it_was_after_chdir(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with PidFile("pid"):
        monkeypatch.chdir("/")
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "\n", "no pid", "-1", "0", "99999999999", "\0" * 40])
def test_file_without_a_pid_is_replaced(path: Path, content: str) -> None:
    path.write_text(content)
    with PidFile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_file_of_a_dead_process_is_replaced(path: Path) -> None:
    path.write_text(f"{dead_pid()}\nlonger than what replaces it\n")
    with PidFile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_file_of_a_process_that_nobody_waited_for_is_replaced(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b""
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        path.write_text(f"{process.pid}\n")
        with PidFile(str(path)):
            assert path.read_text() == f"{os.getpid()}\n"


def test_file_of_a_live_process_is_refused_and_kept(
    path: Path, other: subprocess.Popen[bytes]
) -> None:
    path.write_text(f"{other.pid}\n")
    with (
        pytest.raises(
            ConfigError, match=rf"process {other.pid} is already .* {path}; .* --pid-file$"
        ),
        PidFile(str(path)),
    ):
        pass
    assert path.read_text() == f"{other.pid}\n"


def test_pid_that_was_used_again_after_the_file_was_written_is_replaced(
    path: Path, other: subprocess.Popen[bytes]
) -> None:
    path.write_text(f"{other.pid}\n")
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))
    with PidFile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_locked_file_is_refused_whatever_is_in_it(path: Path) -> None:
    with PidFile(str(path)):
        path.write_text("")
        with (
            pytest.raises(ConfigError, match="another process is already running"),
            PidFile(str(path)),
        ):
            pass
        assert path.exists()


def test_file_that_is_no_longer_ours_is_left(path: Path) -> None:
    with PidFile(str(path)):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


def test_link_is_never_followed(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_text("precious")
    path.symlink_to(victim)
    with (
        pytest.raises(ConfigError, match="it is a symbolic link; choose another with --pid-file"),
        PidFile(str(path)),
    ):
        pass
    assert victim.read_text() == "precious"


def test_second_name_of_a_file_is_refused(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_text("precious")
    path.hardlink_to(victim)
    with pytest.raises(ConfigError, match="not an ordinary file"), PidFile(str(path)):
        pass
    assert victim.read_text() == "precious"


def test_pipe_is_refused_without_waiting_for_its_writer(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="not an ordinary file"), PidFile(str(path)):
        pass


@pytest.mark.parametrize(
    ("name", "reason"), [("", "Is a directory"), ("no/pid", "No such file or directory")]
)
def test_unusable_path_is_one_sentence(tmp_path: Path, name: str, reason: str) -> None:
    with (
        pytest.raises(ConfigError, match=rf"cannot use pid file {tmp_path}.*: {reason}; choose"),
        PidFile(str(tmp_path / name)),
    ):
        pass
