# SPDX-License-Identifier: MIT
"""Which objects exist, from one holder of a lock to the next. Nothing is lost without it."""

import asyncio
import logging

from swiftnbd.errors import SwiftnbdError
from swiftnbd.export.disk import ObjectDevice
from swiftnbd.export.lock import Lock

log = logging.getLogger(__name__)


async def recall(device: ObjectDevice, lock: Lock | None, name: str, seconds: float) -> None:
    """Learn from the last holder which objects exist, if nobody wrote since."""
    if lock is None or not lock.predecessor.binding:
        return
    try:
        async with asyncio.timeout(seconds):
            await device.recall(lock.predecessor.binding)
    except (SwiftnbdError, TimeoutError) as error:
        log.info("%s: which objects exist has to be found out again: %s", name, error)


async def remember(device: ObjectDevice, lock: Lock | None, name: str, seconds: float) -> None:
    """Tell the next holder which objects exist. It is written back: nothing can be lost."""
    if lock is None:
        return
    try:
        async with asyncio.timeout(seconds):
            await device.remember(lock.tenure.binding)
    except (SwiftnbdError, TimeoutError) as error:
        log.info("%s: which objects exist could not be kept: %s", name, error)
