# SPDX-License-Identifier: MIT
"""What says that a disk is half an image: an upload or a copy into it that was cut short."""

import asyncio
import logging

from swiftnbd.errors import SwiftnbdError
from swiftnbd.export.layout import OWN_PREFIX
from swiftnbd.store.base import Store

COPY = OWN_PREFIX + "copy"
UPLOAD = OWN_PREFIX + "upload"
_OWN_OBJECTS_MAX = 1000  # under our prefix there are some 35

log = logging.getLogger(__name__)


async def warn_if_unfinished(store: Store, name: str, seconds: float) -> None:
    """Say so in the log, at the price of one request; that nothing can be known is no error.

    A listing has both marks at once. It may lag behind: one a moment old can be missed.
    """
    try:
        async with asyncio.timeout(seconds):
            rows = await store.listing(prefix=OWN_PREFIX, limit=_OWN_OBJECTS_MAX)
    except (SwiftnbdError, TimeoutError) as error:
        log.debug("%s: whether an upload into it was cut short is not known: %s", name, error)
        return
    found = {row.name for row in rows}
    for mark, command in ((UPLOAD, "upload"), (COPY, "copy")):
        if mark in found:
            log.warning(
                "%s: a swiftnbd-ctl %s into it has not come to its end: "
                "a part of it is missing; run that again to the end",
                name,
                command,
            )
