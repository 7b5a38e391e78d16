# SPDX-License-Identifier: MIT
"""How a disk is cached and written back: typed defaults, each with its unit and reason."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from swiftnbd.errors import ExportUnusable
from swiftnbd.export.layout import OBJECT_SIZE_UNIT, Geometry

CACHE_OBJECTS_MIN = 4  # fewer could not hold one request's neighbours and a read-modify-write
WHOLE_BYTES_MAX = 256 * 1024  # a request for all of it costs hardly more than one for a part
BLOCK_BYTES = 64 * 1024  # of larger objects: what is fetched to read a little, and what is kept
_MIB = 1024 * 1024


class CacheMode(Enum):
    """When a write is acknowledged."""

    WRITEBACK = "writeback"  # when it is in the cache; durable after FLUSH or with FUA
    WRITETHROUGH = "writethrough"  # when it is durable


class OnOutage(Enum):
    """What becomes of a client's request that the store does not answer in time."""

    ERROR = "error"  # it fails, after a while
    WAIT = "wait"  # it waits until the store is back, and the client decides for how long


@dataclass(frozen=True, slots=True)
class OutageSettings:
    """How outages of a store are met.

    ``seconds``: how long a request is tried before it fails. Where clients' requests wait, that
    holds for all others: locking, unlocking, writing back when the last client has gone.
    """

    seconds: float = 60.0  # half of the 120 s after which a Linux task counts as hung
    policy: OnOutage = OnOutage.ERROR

    @property
    def request_seconds(self) -> float | None:
        """How long a client's request may take; None: as long as it takes."""
        return None if self.policy is OnOutage.WAIT else self.seconds


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Settings of one export's cache.

    ``cache_bytes``: everything it holds, dirty bytes included. 64 MB as in 0.11.
    ``block_bytes``: the unit, a divisor of the object size; None: see `block_size`.
    ``dirty_bytes``: of writes that are not stored yet; None: half the cache, so that a burst of
    writes leaves room for what is read.
    ``dirty_seconds``: the age at which a change is stored without being asked. Five seconds is
    what Linux takes for its own page cache's write-back, and ext4 for its journal.
    ``retry_seconds``: after a failure nothing is stored unasked for so long; the store has tried
    for a minute by then, or said no for good.
    ``read_ahead_bytes``: at most so much is fetched before it is asked for; 0 switches it off.
    ``requests``: to the store at once. Sixteen saturate a node of Swift.
    ``reads_reserved``: further ones that only reads somebody waits for may use.
    ``disk_directory``: where clean blocks are kept over restarts; None: nowhere.
    ``disk_bytes``: of that disk. The default is sixty times the cache in memory, and takes 15 MB
    of that for its index.
    """

    cache_bytes: int = 64 * _MIB
    mode: CacheMode = CacheMode.WRITEBACK
    block_bytes: int | None = None
    dirty_bytes: int | None = None
    dirty_seconds: float = 5.0
    retry_seconds: float = 5.0
    read_ahead_bytes: int = 8 * _MIB
    requests: int = 16
    reads_reserved: int = 4
    disk_directory: Path | None = None
    disk_bytes: int = 4096 * _MIB

    def check(self, geometry: Geometry) -> None:
        """Raise `ExportUnusable` if a disk of this geometry cannot be cached so."""
        least = CACHE_OBJECTS_MIN * geometry.object_size
        if self.cache_bytes < least:
            raise ExportUnusable(
                f"its objects of {geometry.object_size} bytes need a cache of at least {least} "
                f"bytes, and the limit is {self.cache_bytes}"
            )

    def block_size(self, geometry: Geometry) -> int:
        """Bytes of the unit in which a disk is cached: an object, or an even part of a large one.

        Reading 4 KiB of a large object should neither fetch nor keep all of it.
        """
        size = geometry.object_size
        if self.block_bytes is not None:
            assert size % self.block_bytes == 0
            return self.block_bytes
        if size <= WHOLE_BYTES_MAX:
            return size
        for block in range(BLOCK_BYTES, BLOCK_BYTES // 4, -OBJECT_SIZE_UNIT):
            if size % block == 0:
                return block
        return size  # an odd size that 0.11 may have set up

    def dirty_blocks(self, block_size: int) -> int:
        """How many blocks may be changed and not stored: never so many that reads find no room."""
        wanted = self.cache_bytes // 2 if self.dirty_bytes is None else self.dirty_bytes
        return max(1, min(wanted, self.cache_bytes * 3 // 4) // block_size)
