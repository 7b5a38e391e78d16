# SPDX-License-Identifier: MIT
"""What whoever started us, as systemd does it, hands over: sockets, and where to report.

sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3) say how.
"""

import os
import re
from collections.abc import MutableMapping

from swiftnbd.errors import ConfigError
from swiftnbd.server.notify import ServiceManager

SOCKETS_MAX = 1024  # more than any service lists; each takes a descriptor

_FIRST = 3  # after standard input, output and error
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def take_handed_over(environment: MutableMapping[str, str]) -> tuple[int, ...]:
    """The descriptors meant for this process; the variables go, they are not for our children."""
    pid, count, _ = (environment.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()):  # nothing at all, or left over from a parent of ours
        return ()
    if not (
        count.isascii() and count.isdigit() and len(count) <= 9 and 0 < int(count) <= SOCKETS_MAX
    ):
        raise ConfigError(f"LISTEN_FDS is {count!r}, not a number from 1 to {SOCKETS_MAX}")
    return tuple(range(_FIRST, _FIRST + int(count)))


def take_service_manager(environment: MutableMapping[str, str]) -> ServiceManager | None:
    """The service manager that waits for word of this process; the variables go, as above."""
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    address, microseconds, pid = (environment.pop(name, "") for name in names)
    if not address.startswith(("/", "@")):  # no Unix socket: nothing that we could speak to
        return None
    is_watched = pid in ("", str(os.getpid())) and re.fullmatch("0*[1-9][0-9]{0,17}", microseconds)
    return ServiceManager(address, int(microseconds) / 1e6 if is_watched else None)
