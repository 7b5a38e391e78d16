# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter error PLUGIN error-rate=1%``"""

import errno
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from swiftnbd.api import FRACTION, PATH, Device, ExportError, FilterPlugin, Kind, Opening, parameter
from swiftnbd.api.around import Around, Call

T = TypeVar("T")

ERRORS: Final = ("EPERM", "EIO", "ENOMEM", "EINVAL", "ENOSPC", "ESHUTDOWN")
# a device's names of requests, and those of the keys
_KEYS: Final = {
    "read": "pread",
    "write": "pwrite",
    "trim": "trim",
    "zero": "zero",
    "extents": "extents",
    "prefetch": "cache",
}


def _parse(text: str) -> int:
    if text.upper() not in ERRORS:
        raise ValueError
    return int(getattr(errno, text.upper()))


ERROR: Final = Kind("ERROR", f"one of {', '.join(ERRORS)}", _parse, errno.errorcode.__getitem__)


def _which(what: str) -> Any:
    return parameter(ERROR, f"The error of {what}, if not that.", default=None)


def _rate(what: str) -> Any:
    return parameter(FRACTION, f"How many {what} fail, if not so many.", default=None)


@dataclass(frozen=True)
class Error(FilterPlugin):
    """Lets requests fail at random, to see what clients make of it.

    One that fails has not been done. Flushes never fail.
    """

    error: int = parameter(ERROR, "The error.", default=errno.EIO)
    error_rate: float = parameter(FRACTION, "How many requests fail.", default=0.0)
    error_file: Path | None = parameter(
        PATH, "They only fail while there is such a file.", default=None
    )
    error_pread: int | None = _which("reads")
    error_pread_rate: float | None = _rate("reads")
    error_pread_file: Path | None = parameter(PATH, "The same for reads.", default=None)
    error_pwrite: int | None = _which("writes")
    error_pwrite_rate: float | None = _rate("writes")
    error_pwrite_file: Path | None = parameter(PATH, "The same for writes.", default=None)
    error_trim: int | None = _which("trims")
    error_trim_rate: float | None = _rate("trims")
    error_trim_file: Path | None = parameter(PATH, "The same for trims.", default=None)
    error_zero: int | None = _which("zeros")
    error_zero_rate: float | None = _rate("zeros")
    error_zero_file: Path | None = parameter(PATH, "The same for zeros.", default=None)
    error_extents: int | None = _which("block status")
    error_extents_rate: float | None = _rate("block status")
    error_extents_file: Path | None = parameter(PATH, "The same for block status.", default=None)
    error_cache: int | None = _which("prefetching")
    error_cache_rate: float | None = _rate("prefetching")
    error_cache_file: Path | None = parameter(PATH, "The same for prefetching.", default=None)

    chance: random.Random = field(
        init=False, compare=False, repr=False, default_factory=random.Random
    )

    async def wrap(self, device: Device, opening: Opening) -> Device:
        plans = {name: self._plan(key) for name, key in _KEYS.items()}
        if not any(plan.rate for plan in plans.values()):
            return device
        return ErrorFilter(device, plans, self.chance)

    def _plan(self, key: str) -> "Plan":
        error, rate, file = (getattr(self, f"error_{key}{end}") for end in ("", "_rate", "_file"))
        return Plan(
            self.error if error is None else error,
            self.error_rate if rate is None else rate,
            self.error_file if file is None else file,
        )


class Plan(NamedTuple):
    """How requests of one kind fail."""

    errno: int
    rate: float
    file: Path | None

    @property
    def is_on(self) -> bool:
        return self.file is None or os.path.exists(self.file)


class ErrorFilter(Around):
    """``plans`` by the name of the request; the others do not fail."""

    def __init__(self, device: Device, plans: dict[str, Plan], chance: random.Random) -> None:
        super().__init__(device)
        self._plans, self._chance = plans, chance

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        plan = self._plans.get(call.name)
        if plan is not None and self._chance.random() < plan.rate and plan.is_on:
            raise ExportError(plan.errno, f"injected, as an error of {call.name}")
        return await work()
