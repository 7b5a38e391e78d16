# SPDX-License-Identifier: MIT
"""Who holds a container, in words that swiftnbd 0.11 understands: ``HOST:PORT@UNIXTIME``."""

import re
import socket
import time
from datetime import UTC, datetime

_MARK = re.compile(r"(?P<who>.+)@(?P<since>[0-9]{1,11})")  # 12 digits reach beyond the year 9999


def mark_for(host: str, port: int) -> str:
    """The mark of a holder from now on: ``HOST:PORT@UNIXTIME``."""
    return f"{host}:{port}@{int(time.time())}"


def split_mark(mark: str) -> tuple[str, int | None]:
    """Who it is, and since which Unix time, if that is how it was written."""
    match = _MARK.fullmatch(mark)
    return (mark, None) if match is None else (match["who"], int(match["since"]))


def describe_holder(mark: str) -> str:
    """A mark for people: ``192.0.2.7:4242 since 2026-01-02 03:04:05 UTC``."""
    who, since = split_mark(mark)
    return who if since is None else f"{who} since {describe_time(since)}"


def describe_time(seconds: int) -> str:
    """Unix time for people."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def holder_host(host: str) -> str:
    """A client's host as it stands in a mark: a loopback address would mean nothing to others."""
    if host == "localhost" or host.startswith("127.") or host == "::1":
        return socket.gethostname()
    return host
