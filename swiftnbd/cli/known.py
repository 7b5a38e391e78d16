# SPDX-License-Identifier: MIT
"""Which objects of a disk exist, as far as a command that holds its lock can tell.

It begins with what the last holder kept, adds what it learns itself, and keeps that for the next
client: also when it is interrupted, as what it did not finish is unknown.
"""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from swiftnbd.cli.common import IN_FLIGHT_MAX, Held
from swiftnbd.errors import SwiftnbdError
from swiftnbd.export.objects import DiskObjects
from swiftnbd.export.presence import Presence, State
from swiftnbd.export.slots import Slots
from swiftnbd.metrics import Counters

log = logging.getLogger(__name__)


@asynccontextmanager
async def known_objects(holding: Held) -> AsyncIterator[DiskObjects]:
    """The objects of the disk, with what the last holder knew of them."""
    slots = Slots(IN_FLIGHT_MAX, 0)
    objects = DiskObjects(holding.store, holding.disk.geometry, slots, Counters())
    if holding.lock.predecessor.binding:
        await objects.recall(holding.lock.predecessor.binding)
    try:
        yield objects
    except BaseException:
        await _keep(objects, holding)
        raise
    await _keep(objects, holding)


async def _keep(objects: DiskObjects, holding: Held) -> None:
    count = objects.presence.objects
    if next(objects.presence.runs(0, count)) == (count, State.UNKNOWN):
        return
    if not holding.lock.predecessor.binding:
        holding.changed = True  # nothing is trusted that could be lost by that
    # Of a disk that is what it was, more is known now, and what else is kept stays true.
    tenure = holding.lock.tenure if holding.changed else holding.lock.predecessor
    try:
        await objects.remember(tenure.binding)
    except SwiftnbdError as error:
        log.info("%s: which objects exist could not be kept: %s", objects.label, error)


def not_absent(presence: Presence, first: int, end: int) -> Iterator[int]:
    """Those of the objects ``[first, end)`` that may exist."""
    for length, state in presence.runs(first, end):
        if state is not State.ABSENT:
            yield from range(first, first + length)
        first += length


def resized(presence: Presence, objects: int) -> Presence:
    """The map of a disk that has so many objects now; nothing is known of new ones."""
    after, first = Presence(objects), 0
    for length, state in presence.runs(0, min(objects, presence.objects)):
        after.fill(first, first + length, state)
        first += length
    return after
