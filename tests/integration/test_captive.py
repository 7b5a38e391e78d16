# SPDX-License-Identifier: MIT
"""swiftnbd-server --run: the command, what it is told, how it and the server end."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.foreground import SECONDS_MAX, command, run_server, wait_for_end
from tests.support.server_process import ctl

SHOW = 'printf "%s\\n" "$uri" "$nbd" "$unixsocket" "$port" "$exportname"'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ctl("-a", f"file:{tmp_path}/store", "setup", "a disk", "4")
    return tmp_path


def shown(folder: Path, *arguments: str) -> list[str]:
    done = run_server(folder, *arguments, "--run", SHOW)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_command_is_told_of_a_private_socket(folder: Path) -> None:
    uri, nbd, path, port, name = shown(folder)
    assert uri == nbd == f"nbd+unix:///a%20disk?socket={path}"
    assert (port, name) == ("", "a disk")
    assert not Path(path).parent.exists()


def test_command_is_told_of_the_address_asked_for(folder: Path) -> None:
    uri, _, path, port, name = shown(folder, "-p", "0")
    assert uri == f"nbd://127.0.0.1:{port}/a%20disk"
    assert (path, name) == ("", "a disk")


def test_command_is_told_of_a_port_and_a_socket_if_there_are_both(folder: Path) -> None:
    uri, _, path, port, _ = shown(folder, "-p", "0", "-U", "sock")
    assert uri == f"nbd://127.0.0.1:{port}/a%20disk"
    assert path == str(folder / "sock")


def test_command_is_told_of_the_default_export(folder: Path) -> None:
    ctl("-a", f"file:{folder}/store", "setup", "other", "4")
    assert shown(folder)[4] == ""
    assert shown(folder)[0].startswith("nbd+unix:///?socket=/")
    assert shown(folder, "-e", "other")[4] == "other"
    assert shown(folder, "-e", "other")[0].startswith("nbd+unix:///other?socket=/")


@pytest.mark.parametrize(
    ("shell", "code"),
    [("true", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("/none", 127)],
)
def test_exit_code_is_the_commands(folder: Path, shell: str, code: int) -> None:
    assert run_server(folder, "--run", shell).returncode == code


CLIENT = """
import os, socket, sys
sys.path.insert(0, {root!r})
from tests.support.nbd_client import NbdClient
sock = socket.socket(socket.AF_UNIX)
sock.connect(os.environ["unixsocket"])
client = NbdClient(sock)
client.go(os.environ["exportname"].encode())
client.write(0, b"of the command")
"""


def client(folder: Path, then: str = "") -> str:
    """A shell command that writes to the disk."""
    root = str(Path(__file__).parents[2])
    (folder / "client.py").write_text(CLIENT.format(root=root) + then)
    return f"exec {sys.executable} {folder}/client.py"


def test_what_the_command_wrote_is_stored_and_unlocked_when_it_has_ended(folder: Path) -> None:
    assert run_server(folder, "--run", client(folder)).returncode == 0
    assert b"of the command" in (folder / "store/a disk/disk.part/00000000").read_bytes()
    assert "(version=1, unlocked)" in ctl("-a", f"file:{folder}/store", "list", "-s").stdout


def test_what_cannot_be_stored_makes_the_exit_code(folder: Path) -> None:
    """The container goes away under the server, which then can neither store nor unlock."""
    gone = f"import shutil; shutil.rmtree({str(folder / 'store/a disk')!r}); client.close()"
    done = run_server(folder, "--run", client(folder, gone))
    assert done.returncode == 1
    assert "a disk: stays locked" in (folder / "log").read_text()


def test_standard_streams_are_the_commands(folder: Path) -> None:
    done = run_server(folder, "--run", "cat; echo err >&2", input="through\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "through\n", "err\n")


def test_several_run_beside_each_other_without_a_pid_file(folder: Path) -> None:
    ctl("-a", f"file:{folder}/inner", "setup", "inner", "4")
    inner = " ".join(part.replace(f"{folder}/store", f"{folder}/inner") for part in command(folder))
    assert run_server(folder, "--run", f"{inner} --run 'exit 5'").returncode == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_all_the_command_has_started(folder: Path, number: signal.Signals) -> None:
    told = """trap "echo told; exit" TERM; echo $$; while :; do sleep 0.01; done"""
    shell = f"sleep 600 & echo $!; sh -c '{told}'; echo not reached"
    with running(folder, shell) as process:
        assert process.stdout is not None
        children = [int(process.stdout.readline()) for _ in range(2)]
        process.send_signal(number)
        assert process.wait(SECONDS_MAX) == 143
        assert all(wait_for_end(child) for child in children)
        assert process.stdout.read() == "told\n"


def test_command_may_end_in_order_when_told_to_stop(folder: Path) -> None:
    """It still finds the server: that ends only after it."""
    then = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("ready", flush=True)
signal.sigwait({signal.SIGTERM})
client.write(0, b"last words")
client.flush()
client.disconnect()
"""
    with running(folder, client(folder, then)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(SECONDS_MAX) == 0
    assert b"last words" in (folder / "store/a disk/disk.part/00000000").read_bytes()


def running(folder: Path, shell: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, "--run", shell),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_command_reads_from_the_terminal_and_ctrl_c_is_its_alone(folder: Path) -> None:
    shell = 'trap "echo interrupted; exit 9" INT; read line; echo "got $line"; read more'
    pid, terminal = pty.fork()
    if not pid:
        arguments = command(folder, "--run", shell)
        os.execv(arguments[0], arguments)
    os.write(terminal, b"a line\n")
    said = read_until(terminal, b"got a line")
    os.write(terminal, b"\x03")
    said += read_until(terminal, b"interrupted")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    os.close(terminal)
    log = (folder / "log").read_text()
    assert "ending the command" not in log
    assert re.search(r"INFO: exiting\n$", log)


def read_until(descriptor: int, text: bytes) -> bytes:
    said = b""
    while text not in said:
        ready, _, _ = select.select([descriptor], [], [], SECONDS_MAX)
        assert ready, said
        said += os.read(descriptor, 4096)
    return said
