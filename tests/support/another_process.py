# SPDX-License-Identifier: MIT
"""A process that connects to Unix sockets for a test, which is another client then."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS_MAX = 20.0
_SCRIPT = """
import socket, sys
passer = socket.socket(fileno=int(sys.argv[1]))
while path := passer.recv(200):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        socket.send_fds(passer, [b"."], [client.fileno()])
"""


class AnotherProcess:
    """Its process number is ``pid``."""

    def __init__(self, pid: int, passer: socket.socket) -> None:
        self.pid = pid
        self._passer = passer

    def connect(self, path: str) -> socket.socket:
        """A socket that it has connected."""
        self._passer.send(path.encode())
        _, (descriptor,), _, _ = socket.recv_fds(self._passer, 1, 1)
        return socket.socket(fileno=descriptor)


@contextmanager
def another_process() -> Iterator[AnotherProcess]:
    """Start one; it ends with the block."""
    ours, theirs = socket.socketpair()
    ours.settimeout(_SECONDS_MAX)
    with ours, theirs:
        number = theirs.fileno()
        command = [sys.executable, "-I", "-c", _SCRIPT, str(number)]
        with subprocess.Popen(command, pass_fds=[number]) as process:
            theirs.close()
            yield AnotherProcess(process.pid, ours)
            ours.close()
