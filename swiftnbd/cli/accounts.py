# SPDX-License-Identifier: MIT
"""``-u`` and ``-g``: names or numbers, and what the system knows of them."""

import grp
import os
import pwd

from swiftnbd.errors import ConfigError
from swiftnbd.server.privileges import Account

_ID_MAX = 2**32 - 2  # the next one means "unchanged" to the kernel


def account_of(user: str | None, group: str | None) -> Account | None:
    """Whom to run as, if anybody was named. ConfigError if there is no such user or group."""
    if user is None and group is None:
        return None
    entry = None if user is None else _user(user)
    if entry is None and user is not None and group is None:
        raise ConfigError(f"user {user} has no group of its own: give -g, too")
    uid = os.geteuid() if user is None else int(user) if entry is None else entry.pw_uid
    gid = _group(group) if group is not None else entry.pw_gid if entry else os.getegid()
    groups = [gid] if entry is None else os.getgrouplist(entry.pw_name, gid)
    name = f"user {user or uid}, group {group or gid}"
    account = Account(name, uid, gid, tuple(sorted(groups)))
    account.check()
    return account


def _user(text: str) -> pwd.struct_passwd | None:
    """None for a number that has no name."""
    try:
        return pwd.getpwuid(_number(text)) if _is_number(text) else pwd.getpwnam(text)
    except KeyError:
        if _is_number(text):
            return None
        raise ConfigError(f"there is no user {text!r}") from None


def _group(text: str) -> int:
    if _is_number(text):
        return _number(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group {text!r}") from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str) -> int:
    number = int(text[:11])
    if number > _ID_MAX:
        raise ConfigError(f"{text} is no number of a user or group")
    return number
