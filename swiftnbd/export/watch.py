# SPDX-License-Identifier: MIT
"""Finding out who is in the way of a lock, and that they are gone."""

import asyncio

from swiftnbd.errors import ContainerMissing
from swiftnbd.export.epoch import find_newest_known, is_hint_wrong, read_epoch
from swiftnbd.export.holders import Marks, Sighting, Tenure, tenure_of
from swiftnbd.export.layout import META_PREFIX
from swiftnbd.export.lock import Lock
from swiftnbd.export.pace import Pace, Timing
from swiftnbd.store.base import Store


async def sight(store: Store) -> Sighting:
    """Who holds the container now, or seems to."""
    info = await store.info()
    if info is None:
        raise ContainerMissing(f"{store.label}: the container does not exist")
    marks = Marks.of(info.metadata)
    epochs = []
    epoch = await find_newest_known(store, marks.epoch)
    while epoch is not None:
        if not epoch.is_released:
            epochs.append(epoch)
        epoch = await read_epoch(store, epoch.number + 1)
    return Sighting(marks.client, tuple(epochs))


async def last_tenure(store: Store) -> Tenure:
    """Whose time was the last; its binding is '' while somebody holds the container."""
    info = await store.info()
    if info is None:
        raise ContainerMissing(f"{store.label}: the container does not exist")
    marks = Marks.of(info.metadata)
    newest = epoch = await find_newest_known(store, marks.epoch)
    while epoch is not None:
        newest, epoch = epoch, await read_epoch(store, epoch.number + 1)
    return tenure_of(newest, marks)


async def forget_missing_epochs(store: Store) -> None:
    """If all lock epochs were removed behind our back, begin anew. Only by force."""
    info = await store.info()
    if info is not None and await is_hint_wrong(store, Marks.of(info.metadata).epoch):
        await store.set_metadata({META_PREFIX + "epoch": ""})


class Watch:
    """One contender's view of a holder, over as many looks as it takes.

    The holder has been silent from the first look at which it was as it is now, by our clock.
    """

    def __init__(self, store: Store, timing: Timing | None = None) -> None:
        self.seen = Sighting()
        self._store = store
        self._clock = (Timing() if timing is None else timing).clock
        self._since = self._clock()

    async def look(self) -> float:
        """For how many seconds the holder must still be silent to be taken for gone."""
        seen = await sight(self._store)
        now = self._clock()  # not before we asked: it may have renewed until the answer left
        if seen != self.seen:
            self.seen, self._since = seen, now
        return max(0.0, self._since + seen.quiet_seconds - now)


async def break_lock(
    store: Store, mark: str, over: Sighting, pace: Pace | None = None, timing: Timing | None = None
) -> None:
    """Take the lock away from those in ``over``, remembering their mark as the last holder's.

    ``mark`` is whose lock it is for the moment that this takes. Raises `Locked` if they are not
    as they were seen.
    """
    lock = Lock(store, mark, pace, timing=timing)
    info = await store.info()
    if info is None:
        raise ContainerMissing(f"{store.label}: the container does not exist")
    try:
        await lock.acquire_unread(Marks.of(info.metadata), over)
    finally:
        try:
            await lock.release(last=over.holder)
        except asyncio.CancelledError:  # Ctrl-C in the middle of it
            await lock.release(last=over.holder)
            raise
