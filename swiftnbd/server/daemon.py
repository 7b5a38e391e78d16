# SPDX-License-Identifier: MIT
"""The process around the server: running detached, its standard streams, the pid file."""

import errno
import fcntl
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from swiftnbd.errors import ConfigError, SwiftnbdError
from swiftnbd.server.config import Connection
from swiftnbd.server.processes import has_ended, start_ticks

_READY = b"R"
_PID_BYTES_MAX = 32
_CLOCK_SLACK_SECONDS = 2.0  # file times and the kernel's ticks disagree by less


def run_detached(work: Callable[[Callable[[], None]], int]) -> int:
    """Run ``work(ready)`` in a child; it detaches from the terminal when it calls ``ready()``.

    Both processes return from here: the parent once the child is ready (0) or has ended
    (the child's exit code), the child with what ``work`` returns. Until ``ready()`` the child
    has the terminal, so its errors are seen and Ctrl-C reaches it. Call this before any
    thread or event loop exists: a fork copies neither.
    """
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.close(write_end)
        return _wait_for(child, read_end)
    os.close(read_end)
    return work(partial(_detach, write_end))


def _wait_for(child: int, read_end: int) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child has it too, and will end or not
    with os.fdopen(read_end, "rb") as pipe:
        if pipe.read(1) == _READY:
            return 0
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code  # as a shell names a death by signal


def _detach(write_end: int) -> None:
    try:
        os.write(write_end, _READY)
    except BrokenPipeError:
        # nobody would know of this server, nor expect it
        raise SwiftnbdError("the process that started this one is gone: giving up") from None
    finally:
        os.close(write_end)
    sys.stdout.flush()
    sys.stderr.flush()
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


def fill_standard_streams() -> None:
    """Open the null device where standard input, output or error are closed.

    A socket would get the free number, and what is printed would get among a client's bytes.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def take_standard_streams() -> Connection:
    """Take standard input and output away from this process, for a client.

    What else reads or writes there from now on finds the null device: not one stray word may
    get among the client's bytes. The same goes for standard error if that is the client's, too.
    """
    if sys.__stdin__ is None or sys.__stdout__ is None:
        raise ConfigError("--single needs standard input and output: one is closed")
    receive, send = os.dup(0), os.dup(1)
    if os.isatty(receive) or os.isatty(send):
        raise ConfigError("--single needs a client on standard input and output, not a terminal")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    with suppress(OSError):  # it may be closed
        if is_same_socket(send, 2):
            os.dup2(null, 2)
    os.close(null)
    return Connection(receive, send)


def is_same_socket(one: int, other: int) -> bool:
    """Whether two descriptors are of one socket."""
    status = os.fstat(one)
    return stat.S_ISSOCK(status.st_mode) and os.path.samestat(status, os.fstat(other))


class PidFile:
    """A file that holds the pid of the one process that has it locked.

    The lock is what counts, and it dies with its process. A pid in an unlocked file is
    respected too, unless that process is gone or younger than the file (pids are reused).
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).absolute()  # a daemon changes its directory
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            self._descriptor = self._acquire()
        except OSError as error:
            reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise ConfigError(
                f"cannot use pid file {self.path}: {reason}; choose another with --pid-file"
            ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Unlink while it is still locked, so that nobody's new file is hit.
        with suppress(OSError):
            if self._is_still_at_path(self._descriptor):
                os.ftruncate(self._descriptor, 0)  # who gave up root may not unlink it
                self.path.unlink()
        os.close(self._descriptor)

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(
                self.path,
                os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                0o644,
            )
            try:
                self._claim(descriptor)
                if self._is_still_at_path(descriptor):
                    _write_pid(descriptor)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its owner removed it between our open and our lock

    def _claim(self, descriptor: int) -> None:
        """Lock the file, or raise because a live process holds it."""
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise ConfigError(
                f"pid file {self.path} is not an ordinary file; choose another with --pid-file"
            )
        pid = _read_pid(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refusal(pid) from None
        if pid is not None and _is_alive(pid) and not _is_younger(pid, status.st_mtime):
            raise self._refusal(pid)

    def _refusal(self, pid: int | None) -> ConfigError:
        holder = f"process {pid}" if pid else "another process"
        return ConfigError(
            f"{holder} is already running and holds pid file {self.path}; "
            f"stop it, or choose another file with --pid-file"
        )

    def _is_still_at_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.lstat())
        except FileNotFoundError:
            return False


def _write_pid(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, _PID_BYTES_MAX, 0).strip()
    return int(text) if text.isdigit() and 0 < int(text) < 1 << 31 else None


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # a number left from before a reboot: it is ours now
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not has_ended(pid)


def _is_younger(pid: int, written: float) -> bool:
    """Whether the process ``pid`` began after the file was written, so is not its writer."""
    started = start_ticks(pid)
    if started is None:
        return False
    process_age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    return process_age + _CLOCK_SLACK_SECONDS < time.time() - written
