# SPDX-License-Identifier: MIT
"""How long the steps of locking take, and whose clock says so. See docs/locking.md, "Time"."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from swiftnbd.errors import ConfigError

SETTLE_SECONDS_DEFAULT = 1.0  # half of it is several times what a PUT to a distant Swift takes
TERM_SECONDS_DEFAULT = 90.0
RENEWALS_PER_TERM = 6  # some may fail in passing, and an outage may begin right before one
PUT_SECONDS_MAX = 30.0  # as long as the Swift store waits for one answer
DRIFT = 0.01  # two quartz clocks differ by a hundredth of this


# Seconds, also those in which the machine slept: `time.monotonic` leaves them out. It is asked at
# every wake-up of every connection, so it is no function in Python.
boot_clock: Final[Callable[[], float]] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Pace:
    """``settle_seconds`` must be the same for all contenders, ``term_seconds`` is the holder's."""

    settle_seconds: float = SETTLE_SECONDS_DEFAULT
    term_seconds: float = TERM_SECONDS_DEFAULT

    @property
    def renewal_seconds(self) -> float:
        """From one renewal to the next."""
        return self.term_seconds / RENEWALS_PER_TERM

    def check_outages(self, outage_seconds: float) -> None:
        """Raise `ConfigError` if an outage that requests survive could outlast the lease."""
        left = self.term_seconds - self.renewal_seconds
        if left <= outage_seconds:
            least = outage_seconds * RENEWALS_PER_TERM / (RENEWALS_PER_TERM - 1)
            raise ConfigError(
                f"a lock term of {self.term_seconds:g} s is too short for requests that may take "
                f"{outage_seconds:g} s: it must be more than {least:g} s"
            )


def quiet_seconds(term_seconds: float) -> float:
    """How long a holder with this term must be silent to be taken for gone."""
    return term_seconds * (1 + DRIFT) + PUT_SECONDS_MAX


async def _sleep(seconds: float) -> None:
    import asyncio  # late: --help needs the defaults above, and no event loop

    await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Timing:
    """Time, for tests to replace. Only differences of ``clock`` mean anything."""

    clock: Callable[[], float] = boot_clock
    sleep: Callable[[float], Awaitable[None]] = _sleep
