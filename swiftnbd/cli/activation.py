# SPDX-License-Identifier: MIT
"""Sockets handed over by whoever started us, as systemd does it: sd_listen_fds(3)."""

import os
from collections.abc import MutableMapping

from swiftnbd.errors import ConfigError

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
