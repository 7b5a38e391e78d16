# SPDX-License-Identifier: MIT
"""Each bad input gets one sentence and its exit code, from the programs as they are installed."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PLACE = ("-a", "file:store")
SWIFT = ("-a", "http://127.0.0.1:9/auth/v1.0", "--secrets")
SECTION = "[disk]\nusername = u\npassword = hunter2\n"
BIN = Path(sys.executable).parent


def run(
    folder: Path, program: str, *arguments: str, file_bytes_max: int | None = None
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if file_bytes_max is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))

    return subprocess.run(
        [sys.executable, str(BIN / program), *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        preexec_fn=limit,
    )


def ctl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "swiftnbd-ctl", *PLACE, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory store with ``disk``, ``locked``, ``odd`` (no sense), and some files."""
    folder = tmp_path_factory.mktemp("bad")
    for name in ("disk", "locked", "odd"):
        assert ctl(folder, "setup", name, "4").returncode == 0
    assert ctl(folder, "lock", "locked").returncode == 0
    for path in (folder / "store" / "odd").rglob("*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content).replace('"65536"', '"3"'))
    (folder / "taken").write_text("precious")
    files = {
        "good": SECTION,
        "twice": SECTION * 2,
        "broken": SECTION + "hunter2\n",
        "nobody": "[disk]\npassword = hunter2\n",
        "empty": "",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    return folder


HELD = "locked is locked by .* since .* UTC; if .* is gone, run: swiftnbd-ctl unlock locked"

CASES = [
    # wrong usage
    (2, "no such command|No such command", ["swiftnbd-ctl", *PLACE, "frobnicate"]),
    (2, "Missing command|a command is missing", ["swiftnbd-ctl", *PLACE]),
    (2, "(?i)no such option", ["swiftnbd-ctl", *PLACE, "list", "--nope"]),
    (2, "Missing argument 'CONTAINER'", ["swiftnbd-ctl", *PLACE, "setup"]),
    (2, "give either OBJECTS or --size", ["swiftnbd-ctl", *PLACE, "setup", "new"]),
    (
        2,
        "give either OBJECTS or --size",
        ["swiftnbd-ctl", *PLACE, "setup", "new", "1", "--size=1G"],
    ),
    (2, "'many' is not a valid integer", ["swiftnbd-ctl", *PLACE, "setup", "new", "many"]),
    (2, "0 is not in the range", ["swiftnbd-ctl", *PLACE, "setup", "new", "0"]),
    (2, "'ten' is not a size", ["swiftnbd-ctl", *PLACE, "setup", "new", "--size", "ten"]),
    (2, "'1GB' is not a size", ["swiftnbd-ctl", *PLACE, "setup", "new", "--size", "1GB"]),
    (
        2,
        "not a multiple of 512",
        ["swiftnbd-ctl", *PLACE, "setup", "new", "1", "--object-size=5000"],
    ),
    (
        2,
        "512 is less than 4096",
        ["swiftnbd-ctl", *PLACE, "setup", "new", "1", "--object-size=512"],
    ),
    (2, "at least 131072", ["swiftnbd-ctl", *PLACE, "setup", "new", "100000000"]),
    (2, "has a slash in it", ["swiftnbd-ctl", *PLACE, "setup", "a/b", "1"]),
    (2, "Cache limit|--cache-limit", ["swiftnbd-server", *PLACE, "-c", "0"]),
    (2, "--bind-port", ["swiftnbd-server", *PLACE, "-p", "65536"]),
    (
        2,
        "a lock term of 72 s is too short for requests that may take 60 s: .* more than 72 s",
        ["swiftnbd-server", *SWIFT, "good", "--lock-term", "72"],
    ),
    # configuration
    (2, "no authentication URL: give -a", ["swiftnbd-ctl", "list"]),
    (2, "no authentication URL: give -a", ["swiftnbd-server", "-f"]),
    (2, "begins with none of", ["swiftnbd-ctl", "-a", "store", "list"]),
    (2, "username is not TENANT.USERNAME", ["swiftnbd-ctl", "-k", *SWIFT, "good", "list"]),
    (2, "username is not TENANT.USERNAME", ["swiftnbd-server", "-k", *SWIFT, "good", "-f"]),
    (2, "absent does not exist", ["swiftnbd-ctl", *SWIFT, "absent", "list"]),
    (2, "absent does not exist", ["swiftnbd-server", *SWIFT, "absent"]),
    (2, r"line 4: section \[disk\] is there already", ["swiftnbd-ctl", *SWIFT, "twice", "list"]),
    (2, "line 4 is neither", ["swiftnbd-ctl", *SWIFT, "broken", "list"]),
    (2, "has no username", ["swiftnbd-server", *SWIFT, "nobody"]),
    (2, "names no container", ["swiftnbd-server", *SWIFT, "empty"]),
    (2, "cannot write log file no/log: No such", ["swiftnbd-server", *PLACE, "-f", "-l", "no/log"]),
    (2, "cannot use pid file", ["swiftnbd-server", *PLACE, "-f", "--pid-file", "no/pid"]),
    # containers
    (4, "other not found in good", ["swiftnbd-ctl", *SWIFT, "good", "unlock", "other"]),
    (4, "none doesn't exist", ["swiftnbd-ctl", *PLACE, "unlock", "none"]),
    (4, "none doesn't exist", ["swiftnbd-ctl", *PLACE, "delete", "none"]),
    (4, "none doesn't exist", ["swiftnbd-ctl", *PLACE, "download", "none", "image"]),
    (4, "odd: object-size 3 is not", ["swiftnbd-ctl", *PLACE, "lock", "odd"]),
    (4, "odd: object-size 3 is not", ["swiftnbd-ctl", *PLACE, "download", "odd", "image"]),
    (4, "odd: object-size 3 is not", ["swiftnbd-ctl", *PLACE, "list", "-s"]),
    (4, "no container is set up under", ["swiftnbd-server", "-a", "file:none"]),
    (4, "no container is set up under", ["swiftnbd-ctl", "-a", "file:none", "list"]),
    (1, "already been setup", ["swiftnbd-ctl", *PLACE, "setup", "disk", "4"]),
    (1, "disk is not locked, nothing to do", ["swiftnbd-ctl", *PLACE, "unlock", "disk"]),
    (3, HELD, ["swiftnbd-ctl", *PLACE, "lock", "locked"]),
    (3, HELD, ["swiftnbd-ctl", *PLACE, "download", "locked", "image"]),
    (3, HELD, ["swiftnbd-ctl", *PLACE, "delete", "locked"]),
    (3, HELD, ["swiftnbd-ctl", *PLACE, "setup", "-f", "locked", "4"]),
    # files
    (1, "taken exists; to replace it", ["swiftnbd-ctl", *PLACE, "download", "disk", "taken"]),
    (1, "cannot create .*no/image.part", ["swiftnbd-ctl", *PLACE, "download", "disk", "no/image"]),
    (
        1,
        "neither a regular file nor a block device",
        ["swiftnbd-ctl", *PLACE, "download", "-f", "disk", "/dev/null"],
    ),
    (2, "is a directory", ["swiftnbd-ctl", *PLACE, "download", "disk", "store"]),
]


@pytest.mark.parametrize(("code", "sentence", "command"), CASES)
def test_bad_input_is_one_sentence_and_an_exit_code(
    folder: Path, code: int, sentence: str, command: list[str]
) -> None:
    before = tree(folder)
    done = run(folder, *command)
    assert re.search(sentence, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"{command[0]}: ")
    assert "hunter2" not in done.stderr
    assert done.returncode == code
    assert tree(folder) == before


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if "epoch" not in str(path))


def test_world_readable_secrets_are_warned_of_and_used(folder: Path) -> None:
    (folder / "open").write_text(SECTION)
    (folder / "open").chmod(0o644)
    done = run(folder, "swiftnbd-ctl", *PLACE, "--secrets", "open", "list", "-s")
    assert done.returncode == 0
    assert done.stdout == "disk objects=4 size=65536 (version=1, unlocked)\n"
    assert done.stderr == (
        "swiftnbd-ctl: WARNING: open holds passwords and everybody can read it: chmod 600 open\n"
    )


@pytest.mark.parametrize("foreground", [True, False])
def test_port_in_use_reaches_terminal_and_exit_code(folder: Path, foreground: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        flags = [*PLACE, "--secrets", "good", "-p", port, "--pid-file", "pid"]
        done = run(folder, "swiftnbd-server", *flags, *["-f"] * foreground)
    assert done.returncode == 2
    assert f"swiftnbd-server: cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert done.stdout == ""
    assert not (folder / "pid").exists()


def test_server_whose_containers_all_fail_says_why_and_exits(folder: Path) -> None:
    (folder / "wrong").write_text("[odd]\n[none]\n")
    flags = [*PLACE, "--secrets", "wrong", "--pid-file", "pid"]
    done = run(folder, "swiftnbd-server", *flags)
    assert done.returncode == 4
    assert done.stderr.count("WARNING: odd: object-size 3 is not a multiple") == 1
    assert done.stderr.count("WARNING: none: the container does not exist; skipping") == 1
    assert done.stderr.endswith("swiftnbd-server: nothing is left to export\n")
    assert done.stderr.count("\n") == 3


def test_error_of_a_detached_start_is_in_its_log_too(folder: Path) -> None:
    (folder / "wrong").write_text("[none]\n")
    flags = [*PLACE, "--secrets", "wrong", "--pid-file", "pid", "-l", "server.log"]
    done = run(folder, "swiftnbd-server", *flags)
    assert done.returncode == 4
    assert done.stderr == "swiftnbd-server: nothing is left to export\n"
    log = (folder / "server.log").read_text()
    assert "WARNING: none: the container does not exist; skipping" in log
    assert "ERROR: nothing is left to export" in log


def test_disk_full_leaves_nothing_and_unlocks(folder: Path) -> None:
    flags = [*PLACE, "download", "-q", "disk", "image"]
    done = run(folder, "swiftnbd-ctl", *flags, file_bytes_max=65536)
    assert done.returncode == 1
    assert done.stderr.endswith("/image.part: File too large\n")
    assert done.stderr.count("\n") == 1
    assert not [*folder.glob("image*")]
    assert "disk objects=4 size=65536 (version=1, unlocked)" in ctl(folder, "list", "-s").stdout


@pytest.fixture
def long_download(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A download that has taken the lock and is far from its end."""
    ctl(folder, "setup", "large", "1000000", "--object-size", "4K", "--exist-ok")
    # so that it has to look for each object
    (folder / "store" / "large" / "swiftnbd" / "presence").unlink(missing_ok=True)
    with subprocess.Popen(
        [sys.executable, str(BIN / "swiftnbd-ctl"), "-v", *PLACE, "download", "large", "image"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        while "downloading large" not in process.stderr.readline():
            assert process.poll() is None
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_download_leaves_nothing_and_unlocks(
    folder: Path, long_download: "subprocess.Popen[str]", number: signal.Signals
) -> None:
    locked = ctl(folder, "list", "-s").stdout
    assert (
        f"large objects=1000000 size=4096 (version=1, locked by {socket.gethostname()}:" in locked
    )
    long_download.send_signal(number)
    _, errors = long_download.communicate(timeout=30)
    assert long_download.returncode == 130
    assert errors.splitlines()[-1] == "swiftnbd-ctl: interrupted"
    assert "Traceback" not in errors
    assert not [*folder.glob("image*")]
    unlocked = "large objects=1000000 size=4096 (version=1, unlocked)"
    assert unlocked in ctl(folder, "list", "-s").stdout


def test_killed_download_can_be_unlocked_and_replaced(
    folder: Path, long_download: "subprocess.Popen[str]"
) -> None:
    long_download.kill()
    long_download.communicate(timeout=30)
    done = ctl(folder, "unlock", "large")
    assert done.returncode == 0
    assert f"large lock is: {socket.gethostname()}:" in done.stderr
    done = ctl(folder, "download", "disk", "image")
    assert "not from a download of this container; to replace it, use --force" in done.stderr
    assert ctl(folder, "download", "-f", "disk", "image").returncode == 0
    assert (folder / "image").stat().st_size == 4 * 65536
    os.unlink(folder / "image")


def test_reader_that_goes_away_is_no_traceback(folder: Path) -> None:
    command = f"{sys.executable} {BIN}/swiftnbd-ctl -a file:store list -s | true"
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode in (1, 4)  # 4: it was faster, and then "odd" is what is wrong
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
