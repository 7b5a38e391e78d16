# SPDX-License-Identifier: MIT
"""Giving up root's privileges for good, once they have been of use."""

import logging
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from swiftnbd.errors import ConfigError, SwiftnbdError
from swiftnbd.log import log_file_descriptors

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """Whom to run as: numbers, and a name for people. ``groups`` are the supplementary ones."""

    name: str
    user: int
    group: int
    groups: tuple[int, ...]

    def check(self) -> None:
        """Raise `ConfigError` if this process can never run as that."""
        if os.geteuid() and (self.user, self.group) != (os.geteuid(), os.getegid()):
            raise ConfigError(f"only root can run the server as {self.name} (-u, -g)")


def become(account: Account, sockets: Iterable[Path]) -> None:
    """Be ``account`` from now on, in all threads. Its are the Unix ``sockets``, and the log file.

    It is root who made them, and only their owner may connect, or write on after a logrotate.
    """
    if (os.getuid(), os.getgid()) == (account.user, account.group):
        return
    for path in sockets:
        os.chown(path, account.user, account.group, follow_symlinks=False)
    for descriptor in log_file_descriptors():
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fchown(descriptor, account.user, account.group)
    os.setgroups(account.groups)
    os.setresgid(account.group, account.group, account.group)
    os.setresuid(account.user, account.user, account.user)
    if account.user:
        with suppress(OSError):
            os.setuid(0)
            raise SwiftnbdError("root's privileges could not be given up")
    log.info("running as %s", account.name)
