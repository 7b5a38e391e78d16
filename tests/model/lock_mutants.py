# SPDX-License-Identifier: MIT
"""Flaws to plant in the lock, each a plausible mistake."""

from collections.abc import Callable

import pytest

from swiftnbd.errors import Locked
from swiftnbd.export import epoch as epoch_module
from swiftnbd.export import lock as lock_module
from swiftnbd.export.epoch import Claim, Epoch, epoch_name, read_epoch
from swiftnbd.export.holders import Sighting
from swiftnbd.export.lock import Lock
from tests.model import lock_model
from tests.model.lock_model import Troubles

Plant = Callable[[pytest.MonkeyPatch], None]

MUTANTS: list[Plant] = []


def mutant(plant: Plant) -> Plant:
    MUTANTS.append(plant)
    return plant


def forget_quickly(patch: pytest.MonkeyPatch) -> None:
    """Epochs are kept for so long that some flaws are harmless: not here, nor are metadata new."""
    patch.setattr(lock_module, "EPOCHS_KEPT", 1)
    patch.setattr(lock_model, "STALE_EPOCHS", 1000)
    patch.setattr(lock_model, "LAGGARDS", 1.0)


async def nothing(*_: object) -> None:
    pass


@mutant
def epoch_is_not_read_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lock, "_read_back", nothing)


@mutant
def renewal_is_a_put(patch: pytest.MonkeyPatch) -> None:
    """It makes its epoch again, which was deleted."""
    forget_quickly(patch)
    renew = Lock.renew

    async def put(self: Lock) -> None:
        name = epoch_name(self._epoch)
        claim = Claim(self._epoch, self._token, self.mark, self.pace.term_seconds)
        self._etag = await self.store.put(name, claim.to_bytes())
        await renew(self)

    patch.setattr(Lock, "renew", put)


@mutant
def lease_counts_from_the_reply(patch: pytest.MonkeyPatch) -> None:
    renew = Lock.renew

    async def late(self: Lock) -> None:
        await renew(self)
        self.renewed_at = self.timing.clock()
        self.deadline = self.renewed_at + self.pace.term_seconds

    patch.setattr(Lock, "renew", late)


@mutant
def name_is_used_again(patch: pytest.MonkeyPatch) -> None:
    """Metadata are believed whose epoch is not there any more."""
    forget_quickly(patch)
    patch.setattr(lock_module, "find_newest_known", read_epoch)


@mutant
def slow_claim_is_released_whoever_may_have_read_back_the_same_epoch(
    patch: pytest.MonkeyPatch,
) -> None:
    """It does harm if who claims stands still for a moment, seldom if only requests are slow.

    And only if epochs that dead holders left stay below a gap: its names can be used again.
    """
    forget_quickly(patch)
    patch.setattr(lock_module, "LEFT_MAX", 0)
    patch.setattr(Troubles, "of_a_laggard", lambda _: Troubles(0, 0, 0.8, 0.1, 0, 0))
    patch.setattr(lock_module, "SEEN_SHARE", 1000.0)


@mutant
def lease_that_was_over_goes_on_without_a_look(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lock, "_check_not_superseded", nothing)


@mutant
def contender_waits_less_than_the_term(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(epoch_module, "quiet_seconds", lambda term: term / 2)


@mutant
def epoch_without_a_mark_is_nobodys(patch: pytest.MonkeyPatch) -> None:
    supersede = Lock._supersede

    def hasty(self: Lock, epoch: Epoch, over: Sighting) -> None:
        try:
            supersede(self, epoch, over)
        except Locked:
            if self._before.client:
                raise

    patch.setattr(Lock, "_supersede", hasty)
