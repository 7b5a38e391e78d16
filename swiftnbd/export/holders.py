# SPDX-License-Identifier: MIT
"""Who holds a container, or held it: what is read of them, and what may be trusted of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from swiftnbd.export.epoch import Epoch
from swiftnbd.export.layout import META_PREFIX

CLIENT = META_PREFIX + "client"  # keys of the metadata
LAST = META_PREFIX + "last"
EPOCH = META_PREFIX + "epoch"


@dataclass(frozen=True, slots=True)
class Tenure:
    """One holder's time, and what connects it with what that holder kept about the disk.

    Whoever keeps something that is true only as long as nobody else writes (a map of which
    objects exist) stores ``binding`` with it: that of `Lock.tenure`, before `Lock.release`. On
    acquiring, only what carries the binding of `Lock.predecessor` may be trusted; '' is nobody's.

    ``last`` is the mark in the metadata: of `predecessor`, the one found; of `tenure`, our own.
    """

    epoch: int
    last: str
    binding: str


@dataclass(frozen=True, slots=True)
class Marks:
    """What the metadata say of holders, whether or not the rest of them makes sense."""

    client: str = ""
    last: str = ""
    epoch: int = 0

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "Marks":
        digits = metadata.get(EPOCH, "")
        hint = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 18 else 0
        return cls(metadata.get(CLIENT, ""), metadata.get(LAST, ""), hint)


@dataclass(frozen=True, slots=True)
class Sighting:
    """Who is in the way: the mark, and the epochs that are not released, as seen at some moment."""

    client: str = ""
    epochs: tuple[Epoch, ...] = ()

    @property
    def holder(self) -> str:
        """The mark of who holds it; '' if nobody is in the way."""
        return self.client or (self.epochs[-1].claim.mark if self.epochs else "")

    @property
    def renews(self) -> bool:
        """Whether silence says anything of it: 0.11, and who locks by hand, never renews."""
        marks = {each.claim.mark for each in self.epochs}
        return self.client in marks and all(each.claim.term_seconds for each in self.epochs)

    @property
    def quiet_seconds(self) -> float:
        """How long it must stay as it is for its holder to be taken for gone."""
        alive = (each for each in self.epochs if not each.holder_is_dead)
        return max((each.quiet_seconds for each in alive), default=0.0)


NOBODY = Sighting()


def tenure_of(below: Epoch | None, before: Marks) -> Tenure:
    """The tenure before ours. Its binding counts only if nobody like 0.11 has been here since."""
    if below is None:
        return Tenure(0, before.last, "")
    is_whole = below.is_released and not before.client and before.last == below.claim.mark
    return Tenure(below.number, before.last, below.binding if is_whole else "")
