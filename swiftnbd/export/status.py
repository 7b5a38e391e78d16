# SPDX-License-Identifier: MIT
"""What an export tells of itself at a moment, for whoever watches it."""

from dataclasses import dataclass
from enum import StrEnum


class ExportState(StrEnum):
    """Whose the container is, as far as this server is concerned."""

    IDLE = "idle"  # no client, no lock
    CHANGING = "changing"  # being locked, or let go of
    ATTACHED = "attached"
    KEPT = "kept"  # no client, but what it wrote could not be stored or unlocked yet
    SUSPENDED = "suspended"  # the lock could not be renewed: nothing is answered
    LOST = "lost"  # somebody else took it: nothing can be stored any more


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """How full a device's cache is. Changes that need no block of it are not among the bytes."""

    cached_bytes: int = 0
    dirty_bytes: int = 0  # of the cached ones: not stored yet
    dirty_limit_bytes: int = 0
    dirty_objects: int = 0
    uploading_objects: int = 0


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """An export at a moment. ``holder`` is the mark of our own lock, or ''.

    ``cache`` is None where there is none.
    """

    state: ExportState
    connections: int
    holder: str
    lease_seconds: float | None
    cache: CacheStatus | None


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """What was known of an export when it was last looked at.

    ``object_bytes`` is None if it is not made of objects; ``holder`` is the mark of whoever had it
    locked then, or ''.
    """

    size: int
    object_bytes: int | None = None
    holder: str = ""
