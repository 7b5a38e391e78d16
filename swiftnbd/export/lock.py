# SPDX-License-Identifier: MIT
"""Taking a container for oneself, keeping it, and giving it back: docs/locking.md in code.

::

                 acquire                     release
    (nothing) -----------> settled, leased ---------> released
                 |             |    ^
                 | failed      '----' renew
                 v
              withdrawn by acquire itself (somebody else has it), or by a later `Lock.release`
              (the store failed: something of ours may be there)

Nothing here decides when to renew (`swiftnbd.export.lease` does) or that a holder is gone
(`swiftnbd.export.watch`): this is the protocol alone, one request after the other.
"""

import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from swiftnbd.errors import (
    ContainerMissing,
    Locked,
    LockLost,
    ObjectExists,
    StoreError,
    StoreUnavailable,
)
from swiftnbd.export.epoch import (
    LEGACY_CANARY,
    Claim,
    Epoch,
    epoch_name,
    find_newest_known,
    held_state,
    read_epoch,
    released_state,
)
from swiftnbd.export.holders import (
    CLIENT,
    EPOCH,
    LAST,
    NOBODY,
    Marks,
    Sighting,
    Tenure,
    tenure_of,
)
from swiftnbd.export.layout import DiskInfo, parse_metadata
from swiftnbd.export.marks import describe_holder
from swiftnbd.export.pace import Pace, Timing
from swiftnbd.export.process import current_process
from swiftnbd.store.base import Store

SETTLE_ROUNDS_MAX = 3  # read back, mark again, read back; more would be somebody working against us

# A creator as quick as that was seen by every other one, whose settle delay begins once it is done:
# the whole delay by the arithmetic, less a margin for clocks and for the way of the reply.
SEEN_SHARE = 0.8
SLOW_CLAIMS_MAX = 3  # one after another; then a longer settle delay is needed

# A contender that reads old metadata looks for the epoch after one that was released long ago; as
# long as that exists, it finds its way up. So metadata may be so many tenures old.
EPOCHS_KEPT = 32
LEFT_MAX = 100  # by dead holders, one after the other: to remove them takes a second or two

log = logging.getLogger(__name__)


class Lock:
    """One holder's claim on one container. Each is acquired and released once.

    ``by_hand``: it never renews and holds until somebody unlocks it.
    """

    def __init__(
        self,
        store: Store,
        mark: str,
        pace: Pace | None = None,
        *,
        by_hand: bool = False,
        timing: Timing | None = None,
    ) -> None:
        self.store = store
        self.mark = mark
        self.pace = Pace() if pace is None else pace
        self.timing = Timing() if timing is None else timing
        self.marking = False  # something of ours may be stored
        self.settled = False  # it is ours
        self.predecessor = Tenure(0, "", "")
        self.renewed_at = self.deadline = self.timing.clock()  # by our clock
        self._by_hand = by_hand
        self._token = secrets.token_hex(16)
        self._epoch = 0
        self._etag = ""
        self._renewals = 0
        self._is_doubtful = True  # whether another creator may have read back its own before
        self._before = Marks()
        self._superseded: list[Epoch] = []

    @property
    def tenure(self) -> Tenure:
        """Our own, for what is to be trusted by the next holder."""
        return Tenure(self._epoch, self.mark, self._token)

    @property
    def epoch_name(self) -> str:
        """The object that exists as long as we hold the lock."""
        return epoch_name(self._epoch)

    # Taking

    async def acquire(self, over: Sighting = NOBODY) -> DiskInfo:
        """Make the container ours and return its metadata as they were.

        ``over`` says who is known to be gone: they may be superseded if they are still as seen.
        Raises `Locked` (who holds it), `ExportUnusable` or `StoreError`; after the latter
        something of ours may be left, for `release` to take back.
        """
        info = await self.store.info()
        if info is None:
            raise ContainerMissing(f"{self.store.label}: the container does not exist")
        disk = parse_metadata(info.metadata)
        await self.acquire_unread(Marks.of(info.metadata), over)
        return disk

    async def acquire_unread(self, marks: Marks, over: Sighting) -> None:
        """`acquire`, whatever else the metadata say. ``marks`` have just been read."""
        self._before = marks
        try:
            await self._acquire(over)
        except Locked:
            await self._withdraw()
            raise

    async def _acquire(self, over: Sighting) -> None:
        before = self._before
        hinted = await find_newest_known(self.store, before.epoch)
        self._check_mark(hinted, over)
        below = await self._create(hinted, over)
        await self._check_unchanged(below)
        marks = {CLIENT: self.mark, EPOCH: str(self._epoch)}
        await self.store.set_metadata(marks | ({LAST: before.client} if before.client else {}))
        await self._settle(marks)
        self.predecessor = tenure_of(below, before)
        self.settled = True
        self.store.set_canary(self.epoch_name)

    def _check_mark(self, hinted: Epoch | None, over: Sighting) -> None:
        """A mark that is not the newest epoch's is 0.11's."""
        client = self._before.client
        if client and client != over.client and (hinted is None or client != hinted.claim.mark):
            raise self._held_by(client)

    async def _create(self, hinted: Epoch | None, over: Sighting) -> Epoch | None:
        """Make an epoch of ours above all others; the one below, but for those we gave up."""
        below, number = hinted, max(self._before.epoch, hinted.number if hinted else 0)
        slow = 0
        while True:
            if below is not None and not below.is_released:
                self._supersede(below, over)
            number += 1
            try:
                took = await self._put_claim(number)
            except ObjectExists:
                below = await read_epoch(self.store, number)
                if below is None:
                    raise StoreUnavailable(
                        f"{self.store.label}: {epoch_name(number)} exists, and it does not"
                    ) from None
            else:
                if self._is_quick(took):
                    return below
                slow += 1
                await self._give_up_slow(took, slow)

    def _is_quick(self, took: float) -> bool:
        return took <= self.pace.settle_seconds / 2 or self.store.admits_one_creator

    async def _give_up_slow(self, took: float, times: int) -> None:
        """Release an epoch whose claim took long, if nobody else can believe it is theirs."""
        settle = self.pace.settle_seconds
        what = f"{self.store.label}: locking took {took:.1f} s, more than half of the settle delay"
        if self._is_doubtful or times == SLOW_CLAIMS_MAX:
            raise StoreError(f"{what} of {settle:g} s: use a longer one (--settle)")
        log.info("%s of %g s; trying again", what, settle)
        await self._sleep_settle()
        await self._read_back()
        await self.store.renew(self.epoch_name, released_state(self._token, ""))
        self._token = secrets.token_hex(16)

    def _supersede(self, epoch: Epoch, over: Sighting) -> None:
        mark = epoch.claim.mark
        if epoch in self._superseded:  # by a claim that was too slow
            return
        if epoch not in over.epochs:
            if not epoch.holder_is_dead:
                raise self._held_by(mark)
            log.info("%s: taken back from %s, which is dead", self.store.label, mark)
        self._superseded.append(epoch)

    async def _put_claim(self, number: int) -> float:
        """Claim an epoch that does not exist yet; the seconds that took."""
        clock = self.timing.clock
        claim = Claim(number, self._token, self.mark, None)
        if not self._by_hand:
            claim = replace(claim, term_seconds=self.pace.term_seconds, process=current_process())
        self.marking, self._epoch, self._is_doubtful = True, number, True
        sent = clock()
        self._etag = await self.store.put(epoch_name(number), claim.to_bytes(), if_absent=True)
        took = clock() - sent
        self._is_doubtful = took > SEEN_SHARE * self.pace.settle_seconds
        self.renewed_at, self.deadline = sent, sent + self.pace.term_seconds
        return took

    async def _check_unchanged(self, below: Epoch | None) -> None:
        """Nothing that we relied on has changed until our epoch was there.

        A holder that we take for gone looks for a later epoch after it has renewed, and we for a
        renewal after we have made ours: so one of us sees the other.
        """
        if below is not None and not await self.store.head(epoch_name(below.number), newest=True):
            raise StoreUnavailable(f"{self.store.label}: its metadata are old; try again")
        for epoch in self._superseded:
            if await read_epoch(self.store, epoch.number) != epoch:
                raise self._held_by(epoch.claim.mark)
        now = await self._read_marks()
        if now.client not in ("", self._before.client):
            raise self._held_by(now.client)
        if now.epoch != self._before.epoch:
            raise self._held_by(now.last or "somebody who was here for a moment")

    async def _settle(self, marks: Mapping[str, str]) -> None:
        """Wait for racers who began before we were done, and see who is left."""
        for _ in range(SETTLE_ROUNDS_MAX):
            await self._sleep_settle()
            await self._read_back()
            client = (await self._read_marks()).client
            if client == self.mark:
                return
            if client in ("", self._before.client):  # a holder before us was late with its end
                await self.store.set_metadata(marks)
            # else it is a racer's, who will see that and put ours back; or 0.11's
        raise self._held_by(client or "somebody who unlocked it while we locked it")

    async def _sleep_settle(self) -> None:
        if not self.store.admits_one_creator:
            await self.timing.sleep(self.pace.settle_seconds)

    async def _read_back(self) -> None:
        found = await read_epoch(self.store, self._epoch)
        if found is None or found.claim.token != self._token:
            raise self._held_by(found.claim.mark if found else "somebody who deletes its epochs")

    # Keeping

    async def renew(self) -> None:
        """Make the lease last for another term from now on.

        Raises `LockLost` if the lock is not ours any more, or `StoreError` if that cannot be said.
        """
        sent = self.timing.clock()
        self._renewals += 1
        state = held_state(self._token, self._renewals)
        if not await self.store.renew(self.epoch_name, state):
            await self._confirm_gone()
        found = await self.store.head(self.epoch_name, newest=True)
        if found is None:
            await self._confirm_gone()
        elif found.etag != self._etag:
            raise self._lost("another one created it too")
        elif found.token != state:
            raise StoreUnavailable(f"{self.store.label}: the renewal is not to be seen")
        await self._keep_mark()
        if self.timing.clock() >= self.deadline:
            await self._check_not_superseded()
        self.renewed_at, self.deadline = sent, sent + self.pace.term_seconds

    async def _confirm_gone(self) -> None:
        """Raise what a 404 of our epoch means."""
        await self._read_marks()  # the container answers
        found = await self.store.head(self.epoch_name, newest=True)
        if found is not None and found.etag == self._etag:
            raise StoreUnavailable(f"{self.store.label}: 404 for {self.epoch_name}, which exists")
        raise self._lost("its epoch is gone")

    async def _check_not_superseded(self) -> None:
        if await self.store.head(epoch_name(self._epoch + 1), newest=True) is not None:
            raise self._lost("it was taken over while the lease had run out")

    async def _keep_mark(self) -> None:
        """See that the metadata still name us, for 0.11 and for people."""
        marks = await self._read_marks()
        if marks.epoch > self._epoch:
            raise self._lost(f"it was taken over by {marks.client or marks.last}")
        if marks.client == self.mark:
            return
        if not marks.client and marks.last == self.mark:
            raise self._lost("somebody unlocked it")
        if marks.client not in ("", self._before.client, self._before.last):
            raise self._lost(f"{marks.client} wrote over it")
        log.info("%s: the mark was lost to a late write, marked again", self.store.label)
        await self.store.set_metadata({CLIENT: self.mark, EPOCH: str(self._epoch)})

    # Giving back

    async def release(self, *, changed: bool = True, last: str = "") -> None:
        """Let go of the container; what is not ours any more is left alone, with a WARNING.

        ``changed`` False: what the last holder kept is still true. ``last`` is who is remembered
        as the last holder, if not we. Can be tried again if the store fails.
        """
        if not self.settled:
            await self._withdraw()
            return
        self.store.set_canary(None)
        found = await read_epoch(self.store, self._epoch)
        marks = await self._read_marks()
        ours = found is not None and found.claim.token == self._token
        if found is not None and ours and not found.is_released:
            await self._remove_older()
            is_ours_alone = marks.client == self.mark and not last
            binding = self._token if changed else self.predecessor.binding
            state = released_state(self._token, binding if is_ours_alone else "")
            await self.store.renew(self.epoch_name, state)
        if marks.client == self.mark:
            await self.store.set_metadata({CLIENT: "", LAST: last or self.mark})
        elif not (found is not None and ours and found.is_released):  # by us, a moment ago
            log.warning(
                "%s: the lock %s is gone (now: %s); somebody unlocked it while it was in use",
                self.store.label,
                self.mark,
                marks.client or "unlocked",
            )

    async def _remove_older(self) -> None:
        """Delete what nobody looks for any more, also what dead holders before us have left.

        The oldest first: below a gap one would vouch for the name in the gap (`_check_unchanged`).
        """
        before = self.predecessor
        last = oldest = self._epoch - EPOCHS_KEPT
        gone = max(0, before.epoch - EPOCHS_KEPT if before.binding else last - LEFT_MAX)
        with suppress(StoreError):
            while oldest > gone + 1 and await self.store.head(epoch_name(oldest - 1), newest=True):
                oldest -= 1
            for number in range(max(1, oldest), last + 1):
                await self.store.delete(epoch_name(number))
            if not self.predecessor.epoch:
                await self.store.delete(LEGACY_CANARY)

    async def _withdraw(self) -> None:
        """Take back what an `acquire` that failed may have left."""
        if not self.marking:
            return
        await self._sleep_settle()
        found = await read_epoch(self.store, self._epoch)
        ours = found is not None and found.claim.token == self._token
        if ours and (not self._is_doubtful or self.store.admits_one_creator):
            await self.store.renew(self.epoch_name, released_state(self._token, ""))
        if (await self._read_marks()).client == self.mark:
            is_theirs = found is not None and not ours and not found.is_released
            theirs = found.claim.mark if found is not None and is_theirs else self._before.client
            await self.store.set_metadata({CLIENT: theirs})
        self.marking = False

    # Helpers

    async def _read_marks(self) -> Marks:
        info = await self.store.info()
        if info is None:
            raise ContainerMissing(f"{self.store.label}: the container does not exist")
        return Marks.of(info.metadata)

    def _held_by(self, mark: str) -> Locked:
        return Locked(
            f"{self.store.label} is in use by {describe_holder(mark)}; "
            f"if that is gone, free it with: swiftnbd-ctl unlock",
            mark,
        )

    def _lost(self, reason: str) -> LockLost:
        return LockLost(f"the lock {self.mark} is lost: {reason}")
