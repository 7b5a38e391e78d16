# SPDX-License-Identifier: MIT
"""Who holds a container, in words that swiftnbd 0.11 understands: ``HOST:PORT@UNIXTIME``."""

import re
import time
from datetime import UTC, datetime

_MARK = re.compile(r"(?P<who>.+)@(?P<since>[0-9]{1,11})")  # 12 digits reach beyond the year 9999


def mark_for(host: str, port: int) -> str:
    """The mark of a holder from now on: ``HOST:PORT@UNIXTIME``."""
    return f"{host}:{port}@{int(time.time())}"


def describe_holder(mark: str) -> str:
    """A mark for people: ``192.0.2.7:4242 since 2026-01-02 03:04:05 UTC``."""
    match = _MARK.fullmatch(mark)
    if match is None:
        return mark
    return f"{match['who']} since {describe_time(int(match['since']))}"


def describe_time(seconds: int) -> str:
    """Unix time for people."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
