# SPDX-License-Identifier: MIT
"""One holder per container, marked in its metadata the way swiftnbd 0.11 does.

``client`` set means held; ``last`` keeps the previous holder. Swift has no compare-and-set on
metadata, so a bare check-then-set lets two racers both win. Hence::

    read      client set            -> Locked
    write     client = our mark
    settle    wait, so that a racer who read before our write has written too
    read back client is not ours    -> Locked: the last writer wins, and sees its own mark
    create    the canary, if absent -> exists: somebody was sure before us -> Locked

The settle delay sorts out racers of ordinary speed; the canary, one who took so long between
reading and writing that its mark went over a holder's. That one puts the holder's mark back.

The canary is an object that exists as long as the container is held, and says by whom. It also
serves as the object whose presence proves that a 404 on another means absence (see
`swiftnbd.store.proven`). It goes before the mark does, so one that is found without its mark is
either a holder's whose mark was overwritten, or was left by a crash and an unlock by 0.11, which
then has left its mark in ``last``. (If 0.11 has locked once more since, ``last`` is another, and
we must take it for a holder's: `break_lock` sorts that out, by hand.)
"""

import asyncio
import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from swiftnbd.errors import ContainerMissing, Locked, ObjectExists, StoreError
from swiftnbd.export.layout import META_PREFIX, OWN_PREFIX, DiskInfo, parse_metadata
from swiftnbd.store.base import Store

CANARY = OWN_PREFIX + "canary"
SETTLE_SECONDS_DEFAULT = 0.25  # several times what a healthy Swift needs to read and write metadata

_CLIENT = META_PREFIX + "client"
_LAST = META_PREFIX + "last"
_MARK = re.compile(r"(?P<who>.+)@(?P<since>[0-9]{1,11})")  # 12 digits reach beyond the year 9999

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
    marking: bool = field(init=False, default=False)  # the container may bear our mark
    _canary: bytes = field(init=False)

    def __post_init__(self) -> None:
        # the token tells apart two holders whose marks happen to be the same
        self._canary = f"{self.mark} {secrets.token_hex(16)}".encode()

    async def acquire(self) -> DiskInfo:
        """Mark the container ours and return its metadata as it was.

        Raises `Locked` (who holds it), `ExportUnusable` or `StoreError`.
        """
        info = await self._read()
        if info.client:
            raise self._held_by(info.client)
        self.marking = True
        await self.store.set_metadata({_CLIENT: self.mark})
        await asyncio.sleep(self.settle_seconds)
        holder = (await self._read()).client
        if holder != self.mark:
            raise self._held_by(holder or "somebody who unlocked it while we locked it")
        try:
            await self._raise_canary(info.last)
        except Locked as error:
            await self.store.set_metadata({_CLIENT: error.holder})
            raise
        except StoreError:
            await self._undo()
            raise
        self.store.set_canary(CANARY)
        return info

    async def held(self) -> bool:
        """Whether the container still bears our mark."""
        return (await self._read()).client == self.mark

    async def release(self) -> None:
        """Take our canary and mark away; if the mark is not ours, leave all, with a WARNING."""
        self.store.set_canary(None)
        holder = (await self._read()).client
        if holder != self.mark:
            log.warning(
                "%s: the lock %s is gone (now: %s); somebody unlocked it while it was in use",
                self.store.label,
                self.mark,
                holder or "unlocked",
            )
            return
        await self.store.delete(CANARY)
        await self.store.set_metadata({_CLIENT: "", _LAST: self.mark})

    async def _raise_canary(self, last: str) -> None:
        try:
            await self.store.put(CANARY, self._canary, if_absent=True)
        except ObjectExists:
            blob = await self.store.get(CANARY, newest=True)
            holder = blob.data.decode(errors="replace").partition(" ")[0] if blob else last
            if holder != last:
                raise self._held_by(holder) from None
            await self.store.put(CANARY, self._canary)  # left over from ``last``

    async def _undo(self) -> None:
        """Take back what a failed `acquire` may have done; what cannot be stays locked."""
        blob = await self.store.get(CANARY, newest=True)
        if blob is not None and blob.data == self._canary:  # another's proves absence to them
            await self.store.delete(CANARY)
        await self.store.set_metadata({_CLIENT: ""})

    async def _read(self) -> DiskInfo:
        info = await self.store.info()
        if info is None:
            raise ContainerMissing(f"{self.store.label}: the container does not exist")
        return parse_metadata(info.metadata)

    def _held_by(self, mark: str) -> Locked:
        return Locked(
            f"{self.store.label} is in use by {describe_holder(mark)}; "
            f"if that is gone, free it with: swiftnbd-ctl unlock",
            mark,
        )


async def break_lock(store: Store, mark: str) -> None:
    """Take away somebody's ``mark``, remembering it as the last holder."""
    await store.delete(CANARY)
    await store.set_metadata({_CLIENT: "", _LAST: mark})
