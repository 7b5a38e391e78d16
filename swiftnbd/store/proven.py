# SPDX-License-Identifier: MIT
"""Takes a 404 for an absence only with proof.

A block whose object is absent reads as zeros, so a wrong 404 is corruption. And Swift has wrong
ones: while the account server is away and a proxy's cache is cold, the proxy cannot tell which
storage policy a container has, looks an object up in the wrong one and answers 404; a moment later
it is 200 again. That failure has a mark: it hits every object of the container alike, and the
container itself. So a 404 is believed only if something that is known to exist was found both
shortly before the request and after its answer::

    probe found it      completes
                           GET sent ... 404
                                           probe begins      found it     -> absent

Both sides are needed. Only after: the outage may have been over by then. Only before: it may have
begun since. What remains is an outage that begins and ends between the two probes, which is why
the one before may be only `EVIDENCE_SECONDS_MAX` old; and, behind a load balancer, a single sick
proxy that the GET meets and both probes miss. Both are named in the documentation.

What is probed, called a canary:

* the object named by `set_canary`, with a HEAD: it goes the very way of the GET, through account,
  container and policy to an object server. An object cannot vouch for itself, so for the
  canary's own 404, and while none is set, there is
* the account and then the container, each with a HEAD;
* for a 404 of the container itself, the account. Proven so, it is `ContainerMissing`, for requests
  for objects too: never an absence.

A canary that is not found, or a probe that fails, proves nothing: `StoreUnavailable`, and whoever
retries tries again. (If the canary object was deleted, nothing reads as zeros any more. That is
meant: somebody else is at work in this container.)

Cost: a first 404 costs a probe, the GET again, and a probe. A stream of 404s costs a probe now and
then, since the probe after one is the probe before the next, and all 404s of a moment share one.
A probe under way when a 404 arrives is of no use to it as "after": it may have been answered
before the outage began. So everybody who waits is served by the *next* probe, which starts when
the present one has ended; at most one runs at a time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from swiftnbd.errors import ContainerMissing, StoreUnavailable
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
    Unproven,
)

# Bounds the outage that can hide between two probes. An account server that is restarted, the
# shortest outage there is, is away for about this long.
EVIDENCE_SECONDS_MAX = 1.0
# Each round is a request and a probe. The second one has fresh evidence unless the answers take
# longer than that lasts; then further rounds will not help either.
ROUNDS_MAX = 4

T = TypeVar("T")


class Prober:
    """Runs a probe for everybody who needs one to *begin* after the moment they ask.

    ::

        idle ----> running <-----------.       one task runs; whoever asks meanwhile
                      |                |       waits for the next one, together
                      |  somebody waits for the next
                      '----------------'
    """

    def __init__(
        self, probe: Callable[[], Awaitable[None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._probe = probe
        self._clock = clock
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._proved_at: float | None = None  # when the last successful probe completed

    def has_evidence(self) -> bool:
        """Whether a probe has succeeded a short while ago."""
        proved_at = self._proved_at
        return proved_at is not None and self._clock() - proved_at <= EVIDENCE_SECONDS_MAX

    async def probe(self) -> None:
        """Return when a probe that began after this call has succeeded; raise if it failed."""
        if self._next is None:
            self._next = asyncio.create_task(self._run_after(self._running))
            self._next.add_done_callback(_mark_seen)
        probe = self._next
        # Not awaited itself: that one who waits is cancelled must not fail the others.
        await asyncio.wait([probe])
        if probe.cancelled():
            raise StoreUnavailable("the store is closed")
        probe.result()

    async def close(self) -> None:
        """End what is running."""
        tasks = [task for task in (self._running, self._next) if task is not None]
        self._next = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run_after(self, running: asyncio.Task[None] | None) -> None:
        if running is not None:
            await asyncio.wait([running])
        # From here on a newcomer is too late for this probe. No await until it has begun.
        self._running, self._next = self._next, None
        try:
            await self._probe()
            self._proved_at = self._clock()
        except BaseException:
            self._proved_at = None
            raise
        finally:
            self._running = None


class Proven(Store):
    """``store``, but None, False and `ContainerMissing` are proof."""

    def __init__(self, store: Unproven, clock: Callable[[], float] = time.monotonic) -> None:
        self.label = store.label
        self.place = store.place
        self._store = store
        self._canary: str | None = None
        self._account_prober = Prober(store.head_account, clock)
        self._container_prober = Prober(self._probe_container, clock)
        self._canary_prober = Prober(self._probe_canary, clock)

    @property
    def admits_one_creator(self) -> bool:
        return self._store.admits_one_creator

    async def get(
        self,
        name: str,
        *,
        start: int = 0,
        length: int | None = None,
        newest: bool = False,
        size_max: int = OBJECT_BYTES_MAX,
    ) -> Blob | None:
        async def attempt() -> Blob | None:
            return await self._store.get(
                name, start=start, length=length, newest=newest, size_max=size_max
            )

        return await self._prove(f"GET {name}", self._prober_for(name), attempt)

    async def head(self, name: str, *, newest: bool = False) -> ObjectInfo | None:
        async def attempt() -> ObjectInfo | None:
            return await self._store.head(name, newest=newest)

        return await self._prove(f"HEAD {name}", self._prober_for(name), attempt)

    async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
        return await self._store.put(name, data, if_absent=if_absent)

    async def copy(self, name: str, source: Place, etag: str) -> None:
        await self._store.copy(name, source, etag)

    async def delete(self, name: str) -> bool:
        async def attempt() -> bool | None:
            return await self._store.delete(name) or None

        found = await self._prove(f"DELETE {name}", self._prober_for(name), attempt)
        if found and self._store.deletes_blindly:
            await self._prober_for(name).probe()
        return found is not None

    async def renew(self, name: str, token: str) -> bool:
        async def attempt() -> bool | None:
            return await self._store.renew(name, token) or None

        found = await self._prove(f"POST {name}", self._prober_for(name), attempt)
        return found is not None

    async def listing(
        self, *, prefix: str = "", after: str = "", before: str = "", limit: int = LISTING_LIMIT_MAX
    ) -> list[Listed]:
        async def attempt() -> list[Listed] | None:
            try:
                return await self._store.listing(
                    prefix=prefix, after=after, before=before, limit=limit
                )
            except ContainerMissing:
                return None

        rows = await self._prove("listing", self._account_prober, attempt)
        if rows is None:
            raise self._container_missing()
        return rows

    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        return await self._prove(
            "HEAD", self._account_prober, lambda: self._store.info(count=count)
        )

    async def set_metadata(self, changes: Mapping[str, str]) -> None:
        async def attempt() -> bool | None:
            try:
                await self._store.set_metadata(changes)
            except ContainerMissing:
                return None
            return True

        if await self._prove("POST", self._account_prober, attempt) is None:
            raise self._container_missing()

    async def create_container(
        self, metadata: Mapping[str, str] | None = None, *, policy: str | None = None
    ) -> bool:
        return await self._store.create_container(metadata, policy=policy)

    async def delete_container(self) -> bool:
        async def attempt() -> bool | None:
            return await self._store.delete_container() or None

        return await self._prove("DELETE", self._account_prober, attempt) is not None

    def set_canary(self, name: str | None) -> None:
        self._canary = name
        # Evidence for one canary stays evidence for the container, and a probe under way too.

    async def close(self) -> None:
        for prober in (self._account_prober, self._container_prober, self._canary_prober):
            await prober.close()
        await self._store.close()

    async def _prove(
        self, what: str, prober: Prober, attempt: Callable[[], Awaitable[T | None]]
    ) -> T | None:
        """Make an attempt until it finds something, or finds nothing between two probes."""
        for _ in range(ROUNDS_MAX):
            evidence = prober.has_evidence()  # asked before the request is sent
            found = await attempt()
            if found is not None:
                return found
            await prober.probe()
            if evidence:
                return None
        raise StoreUnavailable(f"{self.label}: {what}: 404, and answers too slow to prove it")

    def _prober_for(self, name: str) -> Prober:
        if self._canary is None or name == self._canary:
            return self._container_prober
        return self._canary_prober

    async def _probe_container(self) -> None:
        await self._store.head_account()
        if await self.info() is None:
            raise self._container_missing()

    async def _probe_canary(self) -> None:
        canary = self._canary
        if canary is None:  # unset since somebody asked
            await self._probe_container()
        elif await self._store.head(canary) is None:
            raise StoreUnavailable(f"{self.label}: 404, but also for {canary}, which must exist")

    def _container_missing(self) -> ContainerMissing:
        return ContainerMissing(f"{self.label}: the container does not exist")


def _mark_seen(task: asyncio.Task[None]) -> None:
    """Those who waited for it get its error; there may be none of them left."""
    if not task.cancelled():
        task.exception()
