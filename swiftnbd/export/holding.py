# SPDX-License-Identifier: MIT
"""One container's lock for those who use it: taken, kept up, found lost, and released."""

import logging
from collections.abc import Callable

from swiftnbd.api.client import Client
from swiftnbd.errors import ContainerMissing, ExportUnusable, Locked, LockLost, SwiftnbdError
from swiftnbd.export.base import no_lock
from swiftnbd.export.holders import NOBODY, Sighting
from swiftnbd.export.layout import DiskInfo
from swiftnbd.export.lease import Keeper, Suspendable
from swiftnbd.export.lock import Lock
from swiftnbd.export.marks import describe_holder, holder_host, mark_for
from swiftnbd.export.pace import Pace
from swiftnbd.export.watch import Watch
from swiftnbd.store.base import Store

log = logging.getLogger(__name__)


class Holding:
    """The lock of the container in ``store``, or none so far.

    ``takeover``: also from a holder that gives no sign of life. ``adopt`` is told what the
    container says of its disk as soon as nobody else can change it, and may refuse. ``user`` is
    told when the lease is over.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        pace: Pace,
        *,
        takeover: bool,
        adopt: Callable[[DiskInfo], None],
        user: Suspendable,
    ) -> None:
        self.lock: Lock | None = None  # ours, or perhaps: a claim of which nobody knows the end
        self.keeper: Keeper | None = None
        self._name = name
        self._store = store
        self._pace = pace
        self._takeover = takeover
        self._adopt = adopt
        self._user = user
        self._watch = Watch(store)

    @property
    def mark(self) -> str:
        """Who holds it, in the container's own words; '' if we do not."""
        return "" if self.lock is None else self.lock.mark

    @property
    def lost(self) -> LockLost | None:
        """Why it is not ours any more, once that is so."""
        return None if self.keeper is None else self.keeper.lost

    @property
    def is_suspended(self) -> bool:
        """Whether the lease is over, and perhaps the lock is ours still."""
        return self.keeper is not None and self.keeper.is_suspended

    @property
    def lease_seconds(self) -> float | None:
        """What is left of the lease, if there is one."""
        return None if self.keeper is None else self.keeper.lease_seconds

    @property
    def check(self) -> Callable[[], None]:
        """Suspends the user if the lease is over and the timer that says so has not come yet."""
        return no_lock if self.keeper is None else self.keeper.check

    async def look(self) -> None:
        """Begin to watch whoever holds it now, to know sooner that they are gone."""
        await self._watch.look()

    async def take(self, client: Client) -> Keeper:
        """Have it, and keep it up. Raises `Locked` if somebody else has it."""
        try:
            await self._acquire(client, NOBODY)
        except Locked as locked:
            over = await self._find_gone(locked)
            await self._acquire(client, over)
            if over.holder:  # else it let go while we looked
                log.warning("%s: taken over from %s", self._name, describe_holder(over.holder))
        assert self.lock is not None
        log.info("%s: locked by %s", self._name, self.lock.mark)
        self.keeper = Keeper(self.lock, self._user)
        self.keeper.start()
        return self.keeper

    async def release(self) -> None:
        """Let go of it, if we have it. If that fails we still do."""
        if self.lock is None:
            return
        if self.keeper is not None:
            await self.keeper.stop()  # or it would undo the release
            self.keeper = None
        await self.lock.release()
        log.info("%s: unlocked", self._name)
        self.lock = None

    async def abandon(self) -> None:
        """Keep it up no longer, and leave it."""
        if self.keeper is not None:
            await self.keeper.stop()

    async def _acquire(self, client: Client, over: Sighting) -> None:
        """Have the lock, with the container's metadata adopted. ``over`` may be superseded."""
        lock = Lock(self._store, mark_for(holder_host(client.host), client.port), self._pace)
        try:
            info = await lock.acquire(over)
        except (Locked, ExportUnusable, ContainerMissing):
            raise
        except BaseException:
            if lock.marking:
                self.lock = lock  # who knows
            raise
        self.lock = lock
        try:
            self._adopt(info)
        except SwiftnbdError:
            await self.release()
            raise

    async def _find_gone(self, locked: Locked) -> Sighting:
        """Who may be superseded, being silent for long enough; ``locked`` if nobody may."""
        left = await self._watch.look()
        seen = self._watch.seen
        if seen.client and not (self._takeover and seen.renews):
            raise locked
        if left > 0:
            raise Locked(
                f"{locked}; it is taken over if that is not heard of for {left:.0f} s more",
                locked.holder,
            )
        return seen
