# SPDX-License-Identifier: MIT
"""A real OpenStack Swift on loopback: proxy, account, container and object server.

They come from the `swift` package, on the interpreter that runs the tests, without system users,
memcached or /etc, with two storage policies (`DEFAULT_POLICY`, `SECOND_POLICY`). About a second to
start. As a program it runs until Ctrl-C: ``python -m tests.support.swift_aio``. In tests::

    with RealSwift() as swift:
        swift.auth_url  # http://127.0.0.1:PORT/auth/v1.0 for USER, KEY
        swift.kill("object")
        swift.restart("object")
        swift.signal("proxy", signal.SIGSTOP)
"""

import argparse
import atexit
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.keystone_env import keystone_python
from tests.support.swift_conf import DEFAULT_POLICY, ROLES, SECOND_POLICY, SwiftSpec
from tests.support.swift_helper import kill

__all__ = ["DEFAULT_POLICY", "KEY", "SECOND_POLICY", "USER", "RealSwift"]

USER = "test:tester"
KEY = "testing"
START_SECONDS_MAX = 30.0

_REPOSITORY = Path(__file__).parents[2]


class RealSwift:
    """The servers, their addresses, and ways to hurt them. See `SwiftSpec` for the options."""

    def __init__(self, **options: Any) -> None:
        self.spec = SwiftSpec(root=tempfile.mkdtemp(prefix="swift-aio-"), **options)
        self._python = keystone_python() if self.spec.keystone_url else sys.executable
        self.root = Path(self.spec.root)
        self.pids: dict[str, int] = {}
        self.ports: dict[str, int] = {}
        self._helper: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['proxy']}"

    @property
    def auth_url(self) -> str:
        return f"{self.base_url}/auth/v1.0"

    def start(self) -> "RealSwift":
        """Return when all four answer."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "OS_", "ST_"))}
        atexit.register(self.stop)
        with open(self.root / "helper.err", "ab") as errors:
            self._helper = subprocess.Popen(
                [self._python, "-W", "ignore", "-m", "tests.support.swift_helper"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=keep,
                cwd=_REPOSITORY,
            )
        try:
            answer = self._call(asdict(self.spec))
            self.pids, self.ports = answer["pids"], answer["ports"]
            for role in ROLES:
                self._wait_for(role)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything and remove the data. Idempotent."""
        atexit.unregister(self.stop)
        helper, self._helper = self._helper, None
        if helper is not None:
            assert helper.stdin is not None
            assert helper.stdout is not None
            helper.stdin.close()  # at the end of its input it ends the servers
            try:
                helper.wait(10)
            except subprocess.TimeoutExpired:
                helper.kill()
                helper.wait()
            helper.stdout.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> "RealSwift":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def signal(self, role: str, number: signal.Signals) -> None:
        """Send a signal to a server, such as SIGSTOP and SIGCONT."""
        kill(self.pids[role], number)

    def kill(self, role: str) -> None:
        """kill -9 a server; from now on connections to it are refused."""
        self._call({"do": "kill", "role": role, "signal": int(signal.SIGKILL)})

    def restart(self, role: str) -> None:
        """Start a killed server again, on its old port and data."""
        self.pids = self._call({"do": "start", "role": role})["pids"]
        self._wait_for(role)

    def logs(self) -> str:
        """The ends of all logs, for a failing test's message."""
        paths = sorted([*self.root.glob("*.log"), *self.root.glob("*.err")])
        return "\n".join(f"--- {x.name}\n{x.read_text(errors='replace')[-3000:]}" for x in paths)

    def _wait_for(self, role: str) -> None:
        # The socket already listens: a request waits in its backlog, so there is nothing to poll.
        url = f"http://127.0.0.1:{self.ports[role]}/healthcheck"
        try:
            with urllib.request.urlopen(url, timeout=START_SECONDS_MAX) as answer:
                assert answer.read() == b"OK"
        except Exception as error:
            raise RuntimeError(
                f"{role} server did not come up: {error!r}\n{self.logs()}"
            ) from error

    def _call(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._helper is not None
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        self._helper.stdin.write(json.dumps(message).encode() + b"\n")
        self._helper.stdin.flush()
        ready, _, _ = select.select([self._helper.stdout], [], [], START_SECONDS_MAX)
        line = self._helper.stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"the helper of Swift failed:\n{self.logs()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a real Swift on loopback until Ctrl-C.")
    parser.add_argument("--mode", default="split", choices=["split", "duo", "single"])
    parser.add_argument("--port", type=int, default=0, help="of the proxy")
    parser.add_argument("--no-fsync", action="store_true")
    parser.add_argument("--cache", default="dict", choices=["dict", "none"])
    parser.add_argument("--log-level", default="WARNING")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    begin = time.monotonic()
    with RealSwift(
        mode=options.mode,
        port=options.port,
        fsync=not options.no_fsync,
        cache=options.cache,
        log_level=options.log_level,
    ) as swift:
        facts = {
            "auth_url": swift.auth_url,
            "user": USER,
            "key": KEY,
            "root": swift.spec.root,
            "pids": swift.pids,
            "started_in_seconds": round(time.monotonic() - begin, 2),
        }
        print(json.dumps(facts, indent=1), flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
