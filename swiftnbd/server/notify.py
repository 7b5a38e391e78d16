# SPDX-License-Identifier: MIT
"""Messages to the service manager that started us, as sd_notify(3) sends them.

Lines ``NAME=value`` in one datagram to a Unix socket, whose name may begin with @ for an abstract
one. Nobody has to listen: what cannot be sent is not said.
"""

import logging
import socket
import time
from dataclasses import dataclass

STATUS_CHARS_MAX = 200  # systemctl shows one line
# What it waits for is worth waiting for: its queue, of ten messages, may be full of others'.
WANTED_SECONDS_MAX = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """Where it listens, and within how many seconds it wants a sign of life, if it does."""

    address: str
    watchdog_seconds: float | None = None


class Notifier:
    """Says things to a service manager, or to nobody."""

    def __init__(self, manager: ServiceManager | None) -> None:
        self._address = "" if manager is None else manager.address
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]

    def ready(self, status: str) -> None:
        """The server serves, or serves as its changed configuration says."""
        self._send("READY=1", _status(status), seconds=WANTED_SECONDS_MAX)

    def reloading(self) -> None:
        """The configuration is being read again; `ready` will follow."""
        now = f"MONOTONIC_USEC={_microseconds(time.monotonic())}"
        self._send("RELOADING=1", now, seconds=WANTED_SECONDS_MAX)

    def stopping(self, status: str) -> None:
        """The server has begun to end."""
        self._send("STOPPING=1", _status(status), seconds=WANTED_SECONDS_MAX)

    def extend(self, seconds: float) -> None:
        """From now on starting or ending may take so long."""
        self._send(f"EXTEND_TIMEOUT_USEC={_microseconds(seconds)}")

    def alive(self) -> None:
        """A sign of life, for the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, status: str) -> None:
        """One line for people."""
        self._send(_status(status))

    def _send(self, *lines: str, seconds: float = 0.0) -> None:
        if not self._address:
            return
        # a socket each time, as libsystemd does: nothing is kept that could go wrong in between
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(seconds)  # clients wait meanwhile
            try:
                sock.sendto("\n".join(lines).encode(), self._address)
            except OSError as error:
                log.debug("cannot tell the service manager: %s", error)


def _status(text: str) -> str:
    return f"STATUS={text[:STATUS_CHARS_MAX]}"


def _microseconds(seconds: float) -> int:
    return int(seconds * 1_000_000)
