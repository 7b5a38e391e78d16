# SPDX-License-Identifier: MIT
"""The log lines that tell, now and then, what each export has moved and cached."""

import asyncio
import logging
from collections.abc import Iterable

from swiftnbd.export.base import BaseExport

STATS_SECONDS = 300  # as swiftnbd 0.11

log = logging.getLogger(__name__)


async def log_stats_forever(exports: Iterable[BaseExport]) -> None:
    """Log two INFO lines an export, one without a cache, as 0.11 did, every `STATS_SECONDS`."""
    while True:
        await asyncio.sleep(STATS_SECONDS)
        for export in exports:
            log_stats(export)


def log_stats(export: BaseExport) -> None:
    """``in`` and ``out`` are bytes from and to clients, in brackets to and from the store."""
    counters = export.counters
    log.info(
        "STATS: %s in=%d (%d), out=%d (%d)",
        export.name,
        counters.client_in,
        counters.store_out,
        counters.client_out,
        counters.store_in,
    )
    limit = export.cache_bytes_max
    if limit is None:
        return
    cached = export.device.cached_bytes if export.device else 0
    log.info(
        "CACHE: %s size=%d, limit=%d (%.2f%%)",
        export.name,
        cached,
        limit,
        cached * 100 / limit,
    )
