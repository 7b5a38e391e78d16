# SPDX-License-Identifier: MIT
"""swiftnbd-server and swiftnbd-ctl as a user runs them: processes with output and exit codes.

A server's log is watched like the tests' own (`tests.support.log_watch`): a WARNING, an ERROR,
a traceback or a lost exception that was not announced with `ServerProcess.expects` fails the
test. Nothing here sleeps: readers of the pipes wake those who wait, and every wait has an end.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clients import Output

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 60.0

STRICT = ("-X", "dev", "-W", "error")

_BAD_LINE = re.compile(
    r"\b(WARNING|ERROR|CRITICAL)\b|Traceback \(most recent|never (retrieved|awaited)"
    r"|Exception ignored|ResourceWarning"
)
_SLOW_CALLBACK = r"Executing .* took \d"  # asyncio's debug mode on a busy machine
_URI = re.compile(r"nbds?://(?P<address>.+):(?P<port>[0-9]+)/(?P<name>\S*)")


def script(name: str) -> str:
    """The path of an installed entry point, beside the interpreter that runs the tests."""
    return str(Path(sys.executable).with_name(name))


def ctl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run swiftnbd-ctl to its end."""
    done = subprocess.run(
        [sys.executable, script("swiftnbd-ctl"), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=STOP_SECONDS_MAX,
        check=False,
    )
    if check and done.returncode:
        pytest.fail(f"swiftnbd-ctl {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


class ServerProcess:
    """One swiftnbd-server in the foreground on a free port.

    ``arguments`` say where its containers are. ``strict`` runs it with Python's development
    mode and every Python warning as an error. It may open ``files_max`` files. ``program`` is
    what Python runs, if not the installed script.
    """

    def __init__(
        self,
        *arguments: str,
        workdir: Path,
        strict: bool = False,
        files_max: int | None = None,
        program: tuple[str, ...] = (),
    ) -> None:
        self.pid_file = workdir / f"server-{time.monotonic_ns()}.pid"
        program = program or (script("swiftnbd-server"),)
        command = [sys.executable, *(STRICT if strict else ()), *program]
        command += ["-f", "-p", "0", "--pid-file", str(self.pid_file), *arguments]
        if files_max is not None:
            command = ["prlimit", f"--nofile={files_max}:{files_max}", *command]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._changed = threading.Condition()
        self.stdout = Output(self.process.stdout, self._changed)
        self.stderr = Output(self.process.stderr, self._changed)
        self._expected: list[str] = []
        self._allowed: list[str] = [_SLOW_CALLBACK]
        self._ended_by_us = False

    # What it says

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait for output that makes ``condition`` true; fail if the server ends before."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or not self._reading(), seconds)
            if condition():
                return
        state = "still runs" if self.process.poll() is None else f"ended: {self.process.poll()}"
        pytest.fail(f"no {what} from the server in {seconds:.0f} s; it {state}\n{self.log()}")

    def wait_ready(self, *names: str) -> None:
        """Wait until the URI of each of these exports has been printed."""
        wanted = set(names)
        self.wait_until(lambda: wanted <= self.uris().keys(), f"URI of {wanted}", START_SECONDS_MAX)

    def wait_log(self, regex: str, seconds: float = START_SECONDS_MAX) -> None:
        """Wait for a line of its log."""
        self.wait_until(
            lambda: any(re.search(regex, line) for line in self.stderr.lines),
            f"line like {regex!r}",
            seconds,
        )

    def wait_output(self, seconds: float) -> None:
        """Wait until it says anything, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def uris(self) -> dict[str, str]:
        """The printed URIs by export name."""
        found = [_URI.search(line) for line in self.stdout.lines]
        return {match["name"]: match[0] for match in found if match}

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        match = _URI.search(next(iter(self.uris().values())))
        assert match is not None
        return int(match["port"])

    def log(self) -> str:
        """All it has said."""
        return "\n".join([*self.stdout.lines, *self.stderr.lines])

    def _reading(self) -> bool:
        return not (self.stdout.ended and self.stderr.ended)

    # What it is allowed to say

    def expects(self, regex: str) -> None:
        """Announce a WARNING or ERROR of its log that must come."""
        self._expected.append(regex)

    def allows(self, regex: str) -> None:
        """Announce a WARNING or ERROR of its log that may come."""
        self._allowed.append(regex)

    def check_log(self) -> None:
        """Fail on what was not announced and on what was announced and never came."""
        lines = self.stdout.lines + self.stderr.lines
        known = [re.compile(regex) for regex in self._expected + self._allowed]
        bad = [line for line in lines if _BAD_LINE.search(line)]
        odd = [line for line in bad if not any(regex.search(line) for regex in known)]
        if odd:
            pytest.fail(f"unexpected from the server: {odd}\nall of it:\n{self.log()}")
        for regex in self._expected:
            if not any(re.search(regex, line) for line in lines):
                pytest.fail(f"the server never said {regex!r}:\n{self.log()}")

    # Its end

    def terminate(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, seconds: float = STOP_SECONDS_MAX) -> int:
        """Wait for its end and the end of its output."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the server did not end in {seconds:.0f} s\n{self.log()}")
        self._ended_by_us = True
        self.stdout.thread.join(seconds)
        self.stderr.thread.join(seconds)
        return code

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        self.process.kill()
        self.process.wait(STOP_SECONDS_MAX)
        self._ended_by_us = True

    def finish(self) -> None:
        """End it if it still runs, which must go well, and check its log."""
        died = self.process.poll() is not None and not self._ended_by_us
        assert not died, f"the server ended by itself: {self.process.poll()}\n{self.log()}"
        if not self._ended_by_us:
            code = self.terminate()
            assert code == 0, f"the server ended with {code}\n{self.log()}"
        self.check_log()
