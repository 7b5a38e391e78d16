# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter delay PLUGIN rdelay=100ms``"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from errno import ENOTSUP
from typing import Any, TypeVar

from swiftnbd.api import (
    BOOLEAN,
    SECONDS,
    ConfigError,
    Device,
    ExportError,
    FilterPlugin,
    Opening,
    parameter,
)
from swiftnbd.api.around import Around, Call
from swiftnbd.api.ending import ENDING

T = TypeVar("T")


def _delay(what: str) -> Any:
    return parameter(SECONDS, f"For {what}.", default=None)


@dataclass(frozen=True)
class Delay(FilterPlugin):
    """Has requests wait before they are done, as a slow or distant disk would.

    When the server ends, what waits is done at once.
    """

    per_connection = True

    rdelay: float | None = _delay("reads")
    wdelay: float | None = _delay("writes, zeros and trims")
    delay_read: float | None = _delay("reads, as rdelay")
    delay_write: float | None = _delay("writes")
    delay_zero: float | None = _delay("zeros")
    delay_trim: float | None = _delay("trims")
    delay_extents: float | None = _delay("block status")
    delay_cache: float | None = _delay("prefetching")
    delay_fast_zero: bool = parameter(
        BOOLEAN, "No: zeros that must be fast are refused, at once.", default=True
    )
    delay_open: float | None = _delay("a connection to begin")
    delay_close: float | None = _delay("a connection to end")

    def __post_init__(self) -> None:
        if self.rdelay is not None and self.delay_read is not None:
            raise ConfigError("rdelay and delay-read are the same: give one of them")

    async def wrap(self, device: Device, opening: Opening) -> Device:
        reads = self.rdelay if self.delay_read is None else self.delay_read
        given = {
            "read": reads,
            "write": self.wdelay if self.delay_write is None else self.delay_write,
            "zero": self.wdelay if self.delay_zero is None else self.delay_zero,
            "trim": self.wdelay if self.delay_trim is None else self.delay_trim,
            "extents": self.delay_extents,
            "prefetch": self.delay_cache,
        }
        close_seconds = 0.0
        if opening.client is not None:
            await ENDING.sleep(self.delay_open or 0.0)
            close_seconds = self.delay_close or 0.0
        seconds = {name: each for name, each in given.items() if each}
        return DelayFilter(device, seconds, close_seconds, refuses_fast=not self.delay_fast_zero)


class DelayFilter(Around):
    """``seconds`` for each request, by its name."""

    def __init__(
        self,
        device: Device,
        seconds: Mapping[str, float],
        close_seconds: float,
        *,
        refuses_fast: bool,
    ) -> None:
        super().__init__(device)
        self._seconds, self._close_seconds = seconds, close_seconds
        self._refuses_fast = refuses_fast

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        if self._refuses_fast and "fast" in call.flags:
            raise ExportError(ENOTSUP, "zeros are not fast: delay-fast-zero=no")
        if seconds := self._seconds.get(call.name):
            await ENDING.sleep(seconds)
        return await work()

    async def close(self) -> None:
        seconds, self._close_seconds = self._close_seconds, 0.0
        try:
            await ENDING.sleep(seconds)
        finally:
            await super().close()
