# SPDX-License-Identifier: MIT
"""Tries again what failed in passing, until one deadline per operation.

Between tries it waits: exponential back-off with full jitter (a random part of the whole delay, so
that many operations that failed together do not come back together), or longer if the store asked
for it. A last try is made shortly before the deadline. In an outage it waits for its turn instead
(`swiftnbd.store.outages`), and so does whoever comes new.

Two things a try can leave behind when its reply is lost:

* ``put(if_absent=True)`` that was done: the next try finds the name taken, by us. If what is there
  is what we wrote, that is success. So a caller whose claim must be told from everybody else's
  writes something unique.
* ``delete`` that was done: the next try finds nothing, and answers False.

And one thing that a try changes by itself: Swift puts an object whose bytes it finds damaged, while
it sends them, into quarantine; asked again, it says 404. That is no absence, but a damaged object.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from swiftnbd.errors import (
    CorruptObject,
    LeaseOver,
    ObjectExists,
    StoreError,
    StoreUnavailable,
    SwiftnbdError,
)
from swiftnbd.metrics import StoreTraffic
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
from swiftnbd.store.hashing import md5_now
from swiftnbd.store.outages import Circuit

DEADLINE_SECONDS_DEFAULT = 60.0  # half of the 120 s after which a Linux task counts as hung
TRY_SECONDS_MAX = 35.0  # above what a single request may take, as Proven makes several
# In an outage a new try begins every second: this bounds how many hang at once. The slowest good
# answers take a little more than 10 s, when Swift waits for one of several servers that hangs.
PROBE_SECONDS_MAX = 15.0
DELAY_SECONDS_FIRST = 0.1  # a restarted object server is back that fast
DELAY_SECONDS_MAX = 5.0  # still some ten tries in a minute
LAST_TRY_SECONDS = 2.0  # kept for the last try; a good answer takes much less
CORRUPT_TRIES_MAX = 4  # each may reach another replica, and most Swifts have three
TROUBLE_LOG_SECONDS = 10.0  # one line in that time says that the store is in trouble

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pacing:
    """Time and chance, for tests to replace."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random


@dataclass(slots=True)
class Effort:
    """How far an operation has come: which try this is, and how many bodies were corrupt.

    ``failed`` is what was wrong before. ``episode`` is the outage in which it was counted as held;
    0: in none.
    """

    what: str
    begin: float
    end: float
    tries: int = 0
    corrupt: int = 0
    failed: StoreError | None = None
    last: bool = False
    episode: int = 0


class Retrying(Store):
    """``store`` with patience: `StoreUnavailable` never leaves it.

    ``deadline_seconds``: of one operation, `math.inf` for none. ``circuit``: shared by all who use
    the container; None: every operation is on its own.
    """

    def __init__(
        self,
        store: Store,
        *,
        deadline_seconds: float = DEADLINE_SECONDS_DEFAULT,
        try_seconds: float = TRY_SECONDS_MAX,
        pacing: Pacing | None = None,
        traffic: StoreTraffic | None = None,
        circuit: Circuit | None = None,
    ) -> None:
        self.label = store.label
        self.place = store.place
        self._store = store
        self._deadline_seconds = deadline_seconds
        self._try_seconds = try_seconds
        self._pacing = Pacing() if pacing is None else pacing
        self._traffic = StoreTraffic() if traffic is None else traffic
        self._circuit = circuit
        self._trouble_logged = -TROUBLE_LOG_SECONDS

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
        async def attempt(effort: Effort) -> Blob | None:
            blob = await self._store.get(
                name,
                start=start,
                length=length,
                newest=newest or effort.corrupt > 0,
                size_max=size_max,
            )
            if blob is None and effort.corrupt:
                raise CorruptObject(
                    f"{self.label}: GET {name}: it was damaged, and the store has set it aside"
                )
            return blob

        return await self._retry(f"GET {name}", attempt)

    async def head(self, name: str, *, newest: bool = False) -> ObjectInfo | None:
        return await self._retry(
            f"HEAD {name}",
            lambda effort: self._store.head(name, newest=newest or effort.corrupt > 0),
        )

    async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
        async def attempt(effort: Effort) -> str:
            try:
                return await self._store.put(name, data, if_absent=if_absent)
            except ObjectExists:
                if effort.tries > 1 and await self._is_ours(name, data):
                    return md5_now(data)
                raise

        return await self._retry(f"PUT {name}", attempt)

    async def copy(self, name: str, source: Place, etag: str) -> None:
        await self._retry(f"COPY {name}", lambda _: self._store.copy(name, source, etag))

    async def delete(self, name: str) -> bool:
        return await self._retry(f"DELETE {name}", lambda _: self._store.delete(name))

    async def renew(self, name: str, token: str) -> bool:
        return await self._retry(f"POST {name}", lambda _: self._store.renew(name, token))

    async def listing(
        self, *, prefix: str = "", after: str = "", before: str = "", limit: int = LISTING_LIMIT_MAX
    ) -> list[Listed]:
        return await self._retry(
            "listing",
            lambda _: self._store.listing(prefix=prefix, after=after, before=before, limit=limit),
        )

    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        return await self._retry("HEAD", lambda _: self._store.info(count=count))

    async def set_metadata(self, changes: Mapping[str, str]) -> None:
        await self._retry("POST", lambda _: self._store.set_metadata(changes))

    async def create_container(
        self, metadata: Mapping[str, str] | None = None, *, policy: str | None = None
    ) -> bool:
        return await self._retry(
            "PUT", lambda _: self._store.create_container(metadata, policy=policy)
        )

    async def delete_container(self) -> bool:
        return await self._retry("DELETE", lambda _: self._store.delete_container())

    def set_canary(self, name: str | None) -> None:
        self._store.set_canary(name)

    def waiting(self) -> Store:
        return Retrying(
            self._store,
            deadline_seconds=inf,
            try_seconds=self._try_seconds,
            pacing=self._pacing,
            traffic=self._traffic,
            circuit=self._circuit,
        )

    async def close(self) -> None:
        await self._store.close()

    async def _is_ours(self, name: str, data: Body) -> bool:
        info = await self._store.head(name, newest=True)
        if info is None:
            raise StoreUnavailable(f"{self.label}: PUT {name}: it exists, and it does not")
        return info.size == len(data) and info.etag == md5_now(data)

    async def _retry(self, what: str, attempt: Callable[[Effort], Awaitable[T]]) -> T:
        begin = self._pacing.clock()
        effort = Effort(what, begin, begin + self._deadline_seconds)
        if self._circuit is not None and self._circuit.is_open:
            await self._pass(self._circuit, effort)
        while True:
            effort.tries += 1
            self._traffic.retries += effort.tries > 1
            try:
                if self._circuit is None:
                    return await self._try_alone(effort, attempt)
                return await self._try_in_circuit(self._circuit, effort, attempt)
            except CorruptObject as error:
                effort.corrupt += 1
                if effort.corrupt >= CORRUPT_TRIES_MAX or effort.last:
                    raise
                effort.failed = error
            except StoreUnavailable as error:
                effort.failed = error
            if self._circuit is not None and self._circuit.is_open:
                await self._pass(self._circuit, effort)
            else:
                await self._wait(effort, effort.failed)

    async def _try_in_circuit(
        self, circuit: Circuit, effort: Effort, attempt: Callable[[Effort], Awaitable[T]]
    ) -> T:
        """One try whose end, or lack of one, all others who use the container learn of."""
        began = circuit.began()
        loop, seconds = asyncio.get_running_loop(), circuit.hangs_seconds
        alarm = loop.call_later(seconds, self._hangs, circuit, began, effort)
        try:
            result = await self._try_alone(effort, attempt)
        except StoreUnavailable as error:
            circuit.failed(began, error)
            raise
        except LeaseOver:
            raise  # nobody was asked
        except SwiftnbdError:
            circuit.answered()
            raise
        finally:
            alarm.cancel()
        circuit.answered()
        return result

    def _hangs(self, circuit: Circuit, began: int, effort: Effort) -> None:
        silence = f"no answer for {circuit.hangs_seconds:g} s"
        circuit.suspect(began, StoreUnavailable(f"{self.label}: {effort.what}: {silence}"))

    async def _try_alone(self, effort: Effort, attempt: Callable[[Effort], Awaitable[T]]) -> T:
        """One try, which has an end even if the store below forgets its own limits."""
        left = max(0.0, effort.end - self._pacing.clock())
        is_probe = self._circuit is not None and self._circuit.is_open
        longest = min(self._try_seconds, PROBE_SECONDS_MAX) if is_probe else self._try_seconds
        timeout = asyncio.timeout(min(longest, left))
        try:
            async with timeout:
                return await attempt(effort)
        except TimeoutError:
            if isinstance(effort.failed, StoreUnavailable) and (
                effort.last or left < LAST_TRY_SECONDS
            ):
                raise effort.failed from None  # that says more than a try cut short by our own end
            raise StoreUnavailable(f"{self.label}: {effort.what}: no answer") from None

    async def _pass(self, circuit: Circuit, effort: Effort) -> None:
        """Wait until the outage is over or it is our turn to try; raise if that is too late."""
        if effort.episode != circuit.episode:
            effort.episode = circuit.episode
            circuit.held()
        left = effort.end - self._pacing.clock()
        try:
            await circuit.passing(None if left == inf else left)
        except StoreUnavailable as error:
            circuit.gave_up()
            raise self._given_up(effort, error) from error

    async def _wait(self, effort: Effort, error: StoreError) -> None:
        """Wait until the next try is due; raise if there is none."""
        now = self._pacing.clock()
        left = effort.end - now
        if effort.last or left <= 0:
            raise self._given_up(effort, error) from error
        delay = self._delay(effort, error)
        if delay >= left - LAST_TRY_SECONDS:
            effort.last = True
            delay = max(0.0, left - LAST_TRY_SECONDS)
        log.debug("%s; try %d in %.1f s", error, effort.tries + 1, delay)
        self._say_trouble(now, error)
        await self._pacing.sleep(delay)

    def _given_up(self, effort: Effort, error: StoreError) -> StoreError:
        elapsed = self._pacing.clock() - effort.begin
        tries = "try" if effort.tries == 1 else "tries"
        text = f"{error} (gave up after {effort.tries} {tries} in {elapsed:.0f} s)"
        own = f"{self.label}: {effort.what}"
        return StoreError(text if text.startswith(own) else f"{own}: not done, as {text}")

    def _delay(self, effort: Effort, error: StoreError) -> float:
        exponent = min(effort.tries - 1, 16)  # far beyond the maximum, and no huge numbers
        delay = min(DELAY_SECONDS_MAX, DELAY_SECONDS_FIRST * (1 << exponent))
        asked = error.retry_after if isinstance(error, StoreUnavailable) else None
        return (asked or 0.0) + delay * self._pacing.random()

    def _say_trouble(self, now: float, error: StoreError) -> None:
        if now - self._trouble_logged >= TROUBLE_LOG_SECONDS:
            self._trouble_logged = now
            log.info("%s; it is tried again%s", error, self._until)

    @property
    def _until(self) -> str:
        seconds = self._deadline_seconds
        return "" if seconds == inf else f" for up to {seconds:.0f} s"
