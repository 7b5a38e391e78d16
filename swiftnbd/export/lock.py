# SPDX-License-Identifier: MIT
"""One holder per container, marked in its metadata the way swiftnbd 0.11 does.

``client`` set means held; ``last`` keeps the previous holder. Swift has no compare-and-set on
metadata, so a bare check-then-set lets two racers both win. Hence::

    read      client set            -> Locked
    write     client = our mark
    settle    wait, so that a racer who read before our write has written too
    read back client is not ours    -> Locked: the last writer wins, and sees its own mark

A racer whose own read and write took longer than half the settle delay may have overwritten a
mark that was already read back, so it gives up and leaves the mark alone: a container that is
locked for nobody can be unlocked by hand, one with two writers is lost.

While it is held, `CANARY` exists in the container: its presence is what proves that a 404 on
another object means absence (see `swiftnbd.store.proven`).
"""

import asyncio
import logging
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from swiftnbd.errors import ContainerMissing, Locked, StoreError
from swiftnbd.export.layout import META_PREFIX, OWN_PREFIX, DiskInfo, parse_metadata
from swiftnbd.store.base import Store

CANARY = OWN_PREFIX + "canary"
SETTLE_SECONDS_DEFAULT = 0.25  # several times what a healthy Swift needs to read and write metadata

_CLIENT = META_PREFIX + "client"
_LAST = META_PREFIX + "last"
_MARK = re.compile(r"(?P<who>.+)@(?P<since>[0-9]{1,12})")

log = logging.getLogger(__name__)


def mark_for(host: str, port: int) -> str:
    """The mark of a holder from now on: ``HOST:PORT@UNIXTIME``."""
    return f"{host}:{port}@{int(time.time())}"


def describe_holder(mark: str) -> str:
    """A mark for people: ``192.0.2.7:4242 since 2026-01-02 03:04:05 UTC``."""
    match = _MARK.fullmatch(mark)
    if match is None:
        return mark
    since = datetime.fromtimestamp(int(match["since"]), UTC)
    return f"{match['who']} since {since:%Y-%m-%d %H:%M:%S} UTC"


@dataclass(slots=True)
class Lock:
    """The mark of one holder on one container."""

    store: Store
    mark: str
    settle_seconds: float = SETTLE_SECONDS_DEFAULT

    async def acquire(self) -> DiskInfo:
        """Mark the container ours and return its metadata as it was.

        Raises `Locked` (who holds it), `ExportUnusable` or `StoreError`.
        """
        started = time.monotonic()
        info = await self._read()
        if info.client:
            raise self._held_by(info.client)
        await self.store.set_metadata({_CLIENT: self.mark})
        took = time.monotonic() - started
        await asyncio.sleep(self.settle_seconds)
        holder = (await self._read()).client
        if holder != self.mark:
            raise self._held_by(holder)
        if self.settle_seconds and took > self.settle_seconds / 2:
            raise Locked(
                f"{self.store.label}: locking took {took:.2f} s, too long to be sure that nobody "
                f"else did it meanwhile; if nobody uses it, run: swiftnbd-ctl unlock",
                self.mark,
            )
        await self._raise_canary()
        return info

    async def held(self) -> bool:
        """Whether the container still bears our mark."""
        return (await self._read()).client == self.mark

    async def release(self) -> None:
        """Take our mark away; a mark that is not ours is left, with a WARNING."""
        self.store.set_canary(None)
        await self.store.delete(CANARY)
        holder = (await self._read()).client
        if holder != self.mark:
            log.warning(
                "%s: the lock %s is gone (now: %s); somebody unlocked it while it was in use",
                self.store.label,
                self.mark,
                holder or "unlocked",
            )
            return
        await self.store.set_metadata({_CLIENT: "", _LAST: self.mark})

    async def _raise_canary(self) -> None:
        try:
            await self.store.put(CANARY, self.mark.encode())
        except StoreError:
            await self.store.set_metadata({_CLIENT: ""})
            raise
        self.store.set_canary(CANARY)

    async def _read(self) -> DiskInfo:
        info = await self.store.info()
        if info is None:
            raise ContainerMissing(f"{self.store.label}: the container does not exist")
        return parse_metadata(info.metadata)

    def _held_by(self, mark: str) -> Locked:
        return Locked(f"{self.store.label} is in use by {describe_holder(mark)}", mark)


async def break_lock(store: Store, mark: str) -> None:
    """Take away somebody's ``mark``, remembering it as the last holder."""
    await store.set_metadata({_CLIENT: "", _LAST: mark})
    await store.delete(CANARY)
