# SPDX-License-Identifier: MIT
"""Programs under measurement: found, started on free ports, watched, ended by their pid."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from benchmarks.results import Missing

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 120.0  # writing back may take long
PROGRAM_SECONDS_MAX = 1800.0
POLL_SECONDS = 0.01

PACKAGES = {
    "fio": "fio",
    "nbdkit": "nbdkit",
    "nbdcopy": "libnbd-bin",
    "s3backer": "s3backer",
    "fusermount": "fuse",
}

_URI = re.compile(r"^nbds?://\S+$", re.MULTILINE)
_TICKS = os.sysconf("SC_CLK_TCK")


def find(program: str) -> str:
    """The path of a program; `Missing` says how to get it."""
    path = shutil.which(program)
    if path is None:
        raise Missing(f"{program} is not installed: apt-get install {PACKAGES[program]}")
    return path


def version(program: str) -> str | None:
    """The first line a program says of its version, or None if it is not installed."""
    with suppress(Missing, subprocess.SubprocessError):
        said = run([find(program), "--version"])
        return said.splitlines()[0] if said else "installed"  # s3backer tells stderr
    return None


def script(name: str) -> str:
    """An installed entry point, beside the interpreter that runs us."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise Missing(f"{name} is not installed beside {sys.executable}: pip install -e .")
    return str(path)


def run(command: Sequence[str], seconds: float = PROGRAM_SECONDS_MAX) -> str:
    """Run a program to its end and return what it put out; RuntimeError if it failed."""
    done = subprocess.run(
        list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def timed(command: Sequence[str]) -> float:
    """Run a program to its end; the seconds it took."""
    begin = time.perf_counter()
    run(command)
    return time.perf_counter() - begin


class Process:
    """A server in a process of its own. Use it as a context; it must end well."""

    def __init__(self, command: Sequence[str], workdir: Path) -> None:
        self._said = workdir / f"{Path(command[0]).name}-{time.monotonic_ns()}.log"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                list(command), stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._process.terminate()
        try:
            code = self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code and kind is None:
            raise RuntimeError(f"a server ended with {code}\n{self.said()}")

    def said(self) -> str:
        """Its output so far."""
        return self._said.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition`` is true; RuntimeError if the process ends or takes long."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"a server did not come up\n{self.said()}")
            time.sleep(POLL_SECONDS)

    def wait_ended(self) -> None:
        """Return when it has ended by itself; what it used can still be asked."""
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def cpu_seconds(self) -> float:
        """User and system time it has used, all its threads."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()  # from field 3 on: the name may hold spaces
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory_bytes(self, key: str) -> int:
        """``VmRSS``: resident now; ``VmHWM``: the most it ever was."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        match = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
        assert match is not None
        return int(match[1]) * 1024


class Server(Process):
    """Something that prints one ``nbd://`` URI when it is ready."""

    def __init__(self, command: Sequence[str], workdir: Path) -> None:
        super().__init__(command, workdir)
        try:
            self.wait_for(lambda: _URI.search(self.said()) is not None)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        match = _URI.search(self.said())
        assert match is not None
        self.uri = match[0]


def swiftnbd_server(workdir: Path, cache_mib: int, *arguments: str) -> Server:
    """The real program, as a user runs it, on a free port."""
    pid_file = workdir / f"{time.monotonic_ns()}.pid"
    common = ["-f", "-p", "0", "--pid-file", str(pid_file), "-c", str(cache_mib)]
    return Server([script("swiftnbd-server"), *common, *arguments], workdir)


@contextmanager
def nbdkit_memory(workdir: Path, size: int, *flags: str) -> Iterator[str]:
    """nbdkit's memory plugin; its URI."""
    with nbdkit_process(workdir, size, *flags) as (uri, _):
        yield uri


@contextmanager
def nbdkit_process(
    workdir: Path, size: int, *flags: str, told: Sequence[str] = ()
) -> Iterator[tuple[str, Process]]:
    """The same, and its process. ``told`` is what its filters are told."""
    with nbdkit_serving(workdir, *flags, "memory", str(size), *told) as served:
        yield served


@contextmanager
def nbdkit_serving(workdir: Path, *words: str) -> Iterator[tuple[str, Process]]:
    """nbdkit, told these words; its URI, and its process."""
    port = _free_port()
    # its Python takes the standard library of the first python3 in PATH, which has to be Debian's
    path = f"PATH=/usr/bin:{os.environ.get('PATH', '')}"
    command = ["/usr/bin/env", path, find("nbdkit"), "-f", "-i", "127.0.0.1", "-p", str(port)]
    with Process([*command, *words], workdir) as nbdkit:
        nbdkit.wait_for(lambda: _answers(port))
        yield f"nbd://127.0.0.1:{port}", nbdkit


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), START_SECONDS_MAX).close()
    except ConnectionRefusedError:
        return False
    return True
