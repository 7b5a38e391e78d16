# SPDX-License-Identifier: MIT
"""What Swift's answers mean: status codes as errors, headers as values.

The rule for a status nobody expected is to believe that it passes if it can at all: a block
device that fails for good because of one strange answer in an outage helps nobody.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from swiftnbd.errors import (
    AccessRefused,
    CorruptObject,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from swiftnbd.store.base import ContainerInfo

RETRY_AFTER_SECONDS_MAX = 30.0  # longer would leave nothing of a 60 s deadline
REASON_LENGTH_MAX = 120

METADATA_PREFIX = "x-container-meta-"
TOKEN_HEADER = "x-object-meta-swiftnbd-token"  # noqa: S105

# It says nothing about the requests for which it comes here: a PUT or POST gets it while the
# account server is away.
_LOST = frozenset({404})
# 409 is a replica with a newer timestamp; the others are limits of rate, or our own slowness.
_BUSY = frozenset({408, 409, 425, 429, 498, 499})
_FULL = frozenset({413, 507})

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,19})")
_ETAG = re.compile(r'"?([0-9a-f]{32})"?', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; ``headers`` finds names in any case."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def etag(self) -> str:
        """The ETag in lower case without quotes, or '' if there is none that is an MD5."""
        match = _ETAG.fullmatch(self.headers.get("etag", ""))
        return match[1].lower() if match else ""


def failure(what: str, answer: Answer) -> StoreError:
    """The error that an answer means, if it is not what was wanted."""
    status = answer.status
    message = f"{what}: {status} {_clean(answer.reason)}".rstrip()
    if status == 403:
        return AccessRefused(f"{message}: this login may not do that")
    if status == 422:
        return CorruptObject(f"{message}: the body arrived damaged")
    if status in _FULL:
        return StoreFull(message)
    if status >= 500 or status in _LOST:
        return StoreUnavailable(message, retry_after(answer.headers))
    if status in _BUSY:
        return StoreBusy(message, retry_after(answer.headers))
    if status == 400:
        return StoreError(f"{message}: {_clean(answer.body.decode(errors='replace'))}")
    return StoreError(f"{message} was not expected")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds, in either of its forms, clamped to what makes sense."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text) if re.fullmatch(r"[0-9]{1,9}", text) else _seconds_until(text)
    except ValueError:
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS_MAX)


def content_range(headers: Mapping[str, str]) -> tuple[int, int, int] | None:
    """First byte, end (exclusive) and total of a Content-Range, or None if it makes no sense."""
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if match is None:
        return None
    first, last, total = map(int, match.groups())
    return (first, last + 1, total) if first <= last < total else None


def unsatisfied_range(headers: Mapping[str, str]) -> int | None:
    """The total of a 416's Content-Range, or None if it makes no sense."""
    match = _UNSATISFIED.fullmatch(headers.get("content-range", "").strip())
    return int(match[1]) if match else None


def number(headers: Mapping[str, str], name: str) -> int | None:
    """A header that is a non-negative number, or None."""
    text = headers.get(name, "").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) else None


def container_info(headers: Mapping[str, str]) -> ContainerInfo:
    """A container's headers as values."""
    metadata = {
        key.lower().removeprefix(METADATA_PREFIX): _text(value)
        for key, value in headers.items()
        if key.lower().startswith(METADATA_PREFIX) and value
    }
    versioned = bool(
        headers.get("x-versions-location")
        or headers.get("x-history-location")
        or headers.get("x-versions-enabled", "").lower() == "true"
    )
    return ContainerInfo(
        metadata=metadata,
        objects=number(headers, "x-container-object-count"),
        bytes_used=number(headers, "x-container-bytes-used"),
        policy=headers.get("x-storage-policy", ""),
        versioned=versioned,
        created=_unix_time(headers.get("x-timestamp", "")),
    )


def _unix_time(text: str) -> float | None:
    """Swift's time stamps, such as 1700000000.12345; None for what is no time."""
    return float(text) if re.fullmatch(r"[0-9]{1,11}(\.[0-9]{1,10})?", text.strip()) else None


def _text(value: str) -> str:
    """A header's value: UTF-8, or latin-1 from a client that did not know better."""
    raw = value.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _clean(text: str) -> str:
    """The first line of what a server said, fit for a message."""
    line = re.sub(r"<[^>]*>", " ", text).strip().partition("\n")[0]
    return "".join(char for char in line if char.isprintable())[:REASON_LENGTH_MAX]


def _seconds_until(date: str) -> float:
    when = parsedate_to_datetime(date)
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return (when - datetime.now(UTC)).total_seconds()
