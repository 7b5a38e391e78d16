# SPDX-License-Identifier: MIT
"""Lock epochs as they are stored: the claim, which never changes, and the state beside it.

::

    swiftnbd/epoch/N     the claim: JSON, created once with If-None-Match
    its renew token      ''                               created, not renewed yet
                         TOKEN:held:COUNT:UNIXTIME        each renewal writes another
                         TOKEN:released:BINDING:UNIXTIME  the end; BINDING may be empty

Names are never used twice. docs/locking.md says how this makes a lock.
"""

import json
import re
import time
from dataclasses import asdict, dataclass, replace

from swiftnbd.errors import StoreError, StoreUnavailable
from swiftnbd.export.layout import OWN_PREFIX
from swiftnbd.export.pace import TERM_SECONDS_DEFAULT, quiet_seconds
from swiftnbd.export.process import Process
from swiftnbd.store.base import Store

EPOCH_PREFIX = OWN_PREFIX + "epoch/"
LEGACY_CANARY = OWN_PREFIX + "canary"  # versions before epochs had it; nobody minds it any more

READ_TRIES_MAX = 3  # it is replaced at most by those who created it at the same moment
_CLAIM_BYTES_MAX = 16 * 1024  # several times the longest host names
_TERM_BEYOND = 1e9  # seconds, 30 years: nobody's
_STATE = re.compile(
    r"(?P<token>[0-9a-f]+):(?P<word>held|released):(?P<more>[^:]*):(?P<at>[0-9]{1,11})"
)


def epoch_name(number: int) -> str:
    """Name of an epoch's object."""
    return f"{EPOCH_PREFIX}{number}"


def epoch_number(name: str) -> int:
    """Inverse of `epoch_name`; 0, which no epoch has, for any other name."""
    digits = name.removeprefix(EPOCH_PREFIX)
    is_ours = digits != name and digits.isascii() and digits.isdigit() and len(digits) <= 18
    return int(digits) if is_ours else 0


@dataclass(frozen=True, slots=True)
class Claim:
    """What a holder says of itself. ``term_seconds`` None: it never renews, being a lock by hand.

    ``process`` None: it cannot be told whether it lives.
    """

    epoch: int
    token: str
    mark: str
    term_seconds: float | None
    process: Process | None = None

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> "Claim":
        """Raises ValueError for what is no claim."""
        try:
            fields = json.loads(data)
            process = fields.pop("process")
            claim = cls(**fields, process=None if process is None else Process(**process))
            term = claim.term_seconds
            is_sound = term is None or (isinstance(term, float | int) and 0 < term < _TERM_BEYOND)
            if not (is_sound and isinstance(claim.token, str) and isinstance(claim.mark, str)):
                raise ValueError(data)
            if claim.process is not None and not claim.process.is_sound:
                raise ValueError(data)
        except (TypeError, KeyError, AttributeError, UnicodeDecodeError, RecursionError):
            raise ValueError(data) from None
        return claim


def held_state(token: str, count: int) -> str:
    """The renew token of the ``count``-th renewal."""
    return f"{token}:held:{count}:{int(time.time())}"


def released_state(token: str, binding: str) -> str:
    """The renew token that ends an epoch. For ``binding`` see `swiftnbd.export.holders.Tenure`."""
    return f"{token}:released:{binding}:{int(time.time())}"


@dataclass(frozen=True, slots=True)
class Epoch:
    """An epoch as seen at some moment. Equal if nothing has happened to it in between."""

    claim: Claim
    etag: str
    state: str

    @property
    def number(self) -> int:
        return self.claim.epoch

    @property
    def is_released(self) -> bool:
        match = self._match()
        return match is not None and match["word"] == "released"

    @property
    def binding(self) -> str:
        """What its release said; '' if it is not released."""
        match = self._match()
        return match["more"] if match is not None and match["word"] == "released" else ""

    @property
    def renewed_at(self) -> int | None:
        """Unix time of the last renewal, by the holder's clock: for people only."""
        match = self._match()
        return int(match["at"]) if match is not None else None

    @property
    def quiet_seconds(self) -> float:
        """How long it must not change for its holder to be taken for gone. By hand: at once."""
        term = self.claim.term_seconds
        return 0.0 if term is None else quiet_seconds(term)

    @property
    def holder_is_dead(self) -> bool:
        """Whether a process of this very machine made it, and is no more."""
        return self.claim.process is not None and self.claim.process.is_dead()

    def _match(self) -> re.Match[str] | None:
        match = _STATE.fullmatch(self.state)
        return match if match is not None and match["token"] == self.claim.token else None


async def read_epoch(store: Store, number: int) -> Epoch | None:
    """The epoch as it is now on the newest replica, or None if there is none."""
    name = epoch_name(number)
    for _ in range(READ_TRIES_MAX):
        blob = await store.get(name, newest=True, size_max=_CLAIM_BYTES_MAX)
        info = None if blob is None else await store.head(name, newest=True)
        if blob is None or info is None:
            return None
        if info.etag == blob.etag:
            return Epoch(_claim_of(number, blob.data), blob.etag, info.token)
    raise StoreUnavailable(f"{store.label}: {name} changes under our eyes")


def _claim_of(number: int, data: bytes) -> Claim:
    try:
        return replace(Claim.from_bytes(data), epoch=number)
    except ValueError:
        # Not of our making, so nothing is known of its holder but that there may be one.
        return Claim(number, "", f"unknown ({epoch_name(number)})", TERM_SECONDS_DEFAULT)


async def find_newest_known(store: Store, hint: int) -> Epoch | None:
    """The epoch that the metadata's ``hint`` names; None if there never was one.

    If that one is not there, the metadata are old, or somebody has removed objects of ours. A
    listing proves nothing, but where it shows later ones they exist. Never is an epoch made on
    the word of metadata alone: its name could have been used before.
    """
    if hint and (found := await read_epoch(store, hint)) is not None:
        return found
    number = await _last_listed(store)
    if number > hint:
        found = await read_epoch(store, number)
        if found is None:
            raise StoreUnavailable(f"{store.label}: {epoch_name(number)} is gone since; try again")
        return found
    if hint:
        raise StoreError(
            f"{store.label}: {epoch_name(hint)}, which its metadata name, does not exist; if it "
            f"was removed, or the container copied without it, run: swiftnbd-ctl unlock --force"
        )
    return None


async def is_hint_wrong(store: Store, hint: int) -> bool:
    """Whether no epoch is to be seen at all though the metadata name one."""
    return bool(hint and await read_epoch(store, hint) is None and not await _last_listed(store))


async def _last_listed(store: Store) -> int:
    rows = await store.listing(prefix=EPOCH_PREFIX)
    return max((epoch_number(row.name) for row in rows), default=0)
