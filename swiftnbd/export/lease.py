# SPDX-License-Identifier: MIT
"""As long as a lock holds: renewals, what happens when they fail, and nothing stored after that.

::

               renewed                     renewed, still ours
            .---------.                 .-------------------------.
            |         v                 v                         |
    start ->   LEASED  -- lease over ->  -----> SUSPENDED --------'
                  |                                 |
                  '------- not ours any more -------'-------> LOST

The lease ends by the lock's own clock. The timer that says so may be late (the process was
stopped, the machine slept), so whoever is about to store something asks the clock itself: `Leased`,
before a change and before each request that it takes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Protocol, TypeVar

from swiftnbd.errors import LeaseOver, LockLost, SwiftnbdError, afresh
from swiftnbd.export.lock import Lock
from swiftnbd.store.base import (
    LISTING_LIMIT_MAX,
    OBJECT_BYTES_MAX,
    Blob,
    Body,
    ContainerInfo,
    Listed,
    ObjectInfo,
    Place,
    Store,
)
from swiftnbd.store.leave import asking

RETRY_SECONDS = 1.0  # between renewals that fail at once: a Swift that is back is noticed that soon

T = TypeVar("T")
log = logging.getLogger(__name__)


class Suspendable(Protocol):
    """Who relies on the lock."""

    def suspend(self) -> None:
        """Answer nothing, store nothing; what is being stored is aborted."""

    def resume(self) -> None:
        """Go on where it stopped."""

    def fail(self, reason: str) -> None:
        """The lock is lost: refuse everything (ESHUTDOWN), for good."""


class Keeper:
    """Keeps the lease of an acquired ``lock`` up, and tells ``user`` when that did not work."""

    def __init__(self, lock: Lock, user: Suspendable) -> None:
        self.lock = lock
        self.lost: LockLost | None = None
        self.is_suspended = False
        self._user = user
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.changes: set[asyncio.Timeout] = set()  # under way: they end when the lease does

    def start(self) -> None:
        """Begin to renew, as a task."""
        self._task = asyncio.get_running_loop().create_task(self.keep())
        self._arm()

    async def stop(self) -> None:
        """No renewal begins or is under way any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([self._task])

    @property
    def seconds_left(self) -> float:
        """Of the lease, by the clock; suspends if that is nothing, whatever the timer does."""
        self.check()
        left = self.lock.deadline - self.lock.timing.clock()
        return max(0.0, left) if self.lost is None else 0.0

    @property
    def lease_seconds(self) -> float:
        """The same, and nothing happens."""
        return max(0.0, self.lock.deadline - self.lock.timing.clock()) if self.lost is None else 0.0

    def check(self) -> None:
        """Suspend if the lease is over by the clock."""
        if self.lock.deadline <= self.lock.timing.clock():
            self.suspend()

    async def keep(self) -> None:
        """Renew for as long as the lock is ours."""
        lock = self.lock
        while self.lost is None:
            due = lock.renewed_at + lock.pace.renewal_seconds
            await lock.timing.sleep(max(0.0, due - lock.timing.clock()))
            try:
                await lock.renew()
            except LockLost as error:
                self._lose(error)
            except SwiftnbdError as error:
                log.debug("%s: not renewed: %s", lock.store.label, error)
                await self._pause()
            except Exception:  # a mistake of ours: without renewals nothing would be said of it
                log.exception("%s: not renewed", lock.store.label)
                await self._pause()
            else:
                self._renewed()

    async def _pause(self) -> None:
        """Between a renewal that failed and the next."""
        pace = self.lock.pace
        await self.lock.timing.sleep(min(RETRY_SECONDS, pace.renewal_seconds))

    def _renewed(self) -> None:
        left = self.lease_seconds
        for change in self.changes:
            if not change.expired():
                change.reschedule(asyncio.get_running_loop().time() + left)
        if self.is_suspended and self.seconds_left:
            self.is_suspended = False
            log.warning("%s: the lock is still ours, going on", self.lock.store.label)
            self._user.resume()

    def suspend(self) -> None:
        """The lease is over, as the clock will say in a moment if it does not yet."""
        if self.lost is None and not self.is_suspended:
            self.is_suspended = True
            log.warning(
                "%s: the lock could not be renewed for %g s: suspended until the store answers",
                self.lock.store.label,
                self.lock.pace.term_seconds,
            )
            self._user.suspend()

    def _lose(self, error: LockLost) -> None:
        self.lost = error
        self._user.fail(str(error))

    def _arm(self) -> None:
        if self.lost is not None:
            return
        left = self.seconds_left
        wait = left if left else self.lock.pace.renewal_seconds
        self._timer = asyncio.get_running_loop().call_later(wait, self._arm)


class Leased(Store):
    """``store``, changed only under a lease: no change begins after it, or outlasts it."""

    def __init__(self, store: Store, keeper: Keeper) -> None:
        self.label = store.label
        self.place = store.place
        self._store = store
        self._keeper = keeper

    @property
    def admits_one_creator(self) -> bool:
        return self._store.admits_one_creator

    async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
        return await self._leased(lambda: self._store.put(name, data, if_absent=if_absent))

    async def copy(self, name: str, source: Place, etag: str) -> None:
        await self._leased(lambda: self._store.copy(name, source, etag))

    async def delete(self, name: str) -> bool:
        return await self._leased(lambda: self._store.delete(name))

    async def _leased(self, change: Callable[[], Awaitable[T]]) -> T:
        left = self._keeper.seconds_left
        if self._keeper.lost is not None:
            raise afresh(self._keeper.lost)
        timeout = asyncio.timeout(left)
        self._keeper.changes.add(timeout)
        try:
            async with timeout:
                with asking(self._check):
                    self._check()
                    return await change()
        except LeaseOver:
            self._keeper.check()
            raise
        except TimeoutError:
            if not timeout.expired():
                raise
            self._keeper.suspend()
        finally:
            self._keeper.changes.discard(timeout)
        raise self._over()

    def _check(self) -> None:
        if not self._keeper.lease_seconds:  # maybe in a thread, so nobody is suspended here
            raise self._over()

    def _over(self) -> LeaseOver:
        return LeaseOver(f"{self.label}: the lock's lease is over")

    async def get(
        self,
        name: str,
        *,
        start: int = 0,
        length: int | None = None,
        newest: bool = False,
        size_max: int = OBJECT_BYTES_MAX,
    ) -> Blob | None:
        return await self._store.get(
            name, start=start, length=length, newest=newest, size_max=size_max
        )

    async def head(self, name: str, *, newest: bool = False) -> ObjectInfo | None:
        return await self._store.head(name, newest=newest)

    async def renew(self, name: str, token: str) -> bool:
        return await self._store.renew(name, token)

    async def listing(
        self, *, prefix: str = "", after: str = "", before: str = "", limit: int = LISTING_LIMIT_MAX
    ) -> list[Listed]:
        return await self._store.listing(prefix=prefix, after=after, before=before, limit=limit)

    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        return await self._store.info(count=count)

    async def set_metadata(self, changes: Mapping[str, str]) -> None:
        await self._leased(lambda: self._store.set_metadata(changes))

    async def create_container(
        self, metadata: Mapping[str, str] | None = None, *, policy: str | None = None
    ) -> bool:
        return await self._store.create_container(metadata, policy=policy)

    async def delete_container(self) -> bool:
        return await self._store.delete_container()

    def set_canary(self, name: str | None) -> None:
        self._store.set_canary(name)
