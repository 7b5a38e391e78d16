# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter rate PLUGIN rate=100M``"""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final

from swiftnbd.api import (
    PATH,
    SECONDS,
    Buffer,
    Device,
    FilterPlugin,
    Kind,
    Opening,
    parameter,
)
from swiftnbd.api.around import Passing
from swiftnbd.api.ending import ENDING
from swiftnbd.units import parse_size

LOOK_SECONDS: Final = 1.0  # between looks at a file; and so long until a new rate is obeyed
_FILE_BYTES_MAX: Final = 64  # of a file with a number in it

log = logging.getLogger(__name__)


def _parse(text: str) -> int:
    return parse_size(text, least=0)


BITS: Final = Kind("BITS", "bits per second like 10M, or 0 for no limit", _parse)


class Source:
    """Bits per second, 0 being no limit, that a file may say anew."""

    def __init__(self, bits: int, file: Path | None) -> None:
        self._bits, self._file = bits, file
        self._looked = -LOOK_SECONDS
        self._complaint = ""

    @property
    def is_none(self) -> bool:
        """Whether it will never limit anything."""
        return not self._bits and self._file is None

    def bytes_per_second(self, now: float) -> float:
        """As it is ``now``, by the monotonic clock. What is at work at the end need not wait."""
        if ENDING.has_begun:
            return 0.0
        if self._file is not None and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look(self._file)
        return self._bits / 8

    def _look(self, file: Path) -> None:
        """A file that is not there, or says nothing of use, leaves the rate as it was."""
        complaint = ""
        try:
            self._bits = _parse(_read(file))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            complaint = error.strerror or "" if isinstance(error, OSError) else str(error)
        if complaint and complaint != self._complaint:
            log.warning("the rate stays %d bit/s: %s: %s", self._bits, file, complaint)
        self._complaint = complaint


def _read(file: Path) -> str:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe has no rate
    try:
        return os.read(descriptor, _FILE_BYTES_MAX).decode(errors="replace").strip()
    finally:
        os.close(descriptor)


class Bucket:
    """Lets bytes pass in their order at the rate of ``source``; after a rest, the bytes of
    ``burst_seconds`` at once. Its capacity is in bytes that were allowed beyond those taken."""

    def __init__(
        self, source: Source, burst_seconds: float, clock: Callable[[], float] | None = None
    ) -> None:
        self._source, self._burst_seconds = source, burst_seconds
        self._clock = monotonic if clock is None else clock
        self._at = self._clock()
        self._rate = source.bytes_per_second(self._at)
        self._taken = 0.0
        self._allowed = self._rate * burst_seconds

    def has(self, count: int) -> bool:
        """Whether so many may pass at once. If they do, `pay` for them."""
        self._refill()
        return not self._rate or self._allowed - self._taken >= count

    def pay(self, count: int) -> None:
        self._taken += count

    async def take(self, count: int) -> None:
        """Wait until so many may pass."""
        self._refill()
        self._taken += count
        mine = self._taken
        try:
            while self._rate and (missing := mine - self._allowed) >= 1:
                await asyncio.sleep(min(missing / self._rate, LOOK_SECONDS))
                self._refill()
        except asyncio.CancelledError:
            self._allowed += count  # those behind need not wait for what does not pass
            raise

    def _refill(self) -> None:
        now = self._clock()
        rate = self._source.bytes_per_second(now)
        passed, self._at = now - self._at, now
        full = self._taken + self._rate * self._burst_seconds
        if self._rate:
            self._allowed = min(self._allowed + passed * self._rate, full)
        else:
            self._allowed = self._taken
        self._rate = rate


@dataclass(slots=True)
class Limit:
    """One for each direction."""

    reads: Bucket
    writes: Bucket
    connections: int = 0


@dataclass(slots=True)
class _State:
    """What connections share: the limit for all, and that of each client."""

    total: Limit | None = None
    clients: dict[str, Limit] = field(default_factory=dict)


@dataclass(frozen=True)
class Rate(FilterPlugin):
    """Limits the bytes that are read, and those that are written, in a second.

    Rates are bits per second; zeros and trims are free, as nobody sends them.
    """

    per_connection = True

    rate: int = parameter(BITS, "Of all connections together.", default=0)
    connection_rate: int = parameter(BITS, "Of each connection.", default=0)
    client_rate: int = parameter(BITS, "Of all connections of a client.", default=0)
    rate_file: Path | None = parameter(PATH, "A file that says rate anew.", default=None)
    connection_rate_file: Path | None = parameter(
        PATH, "A file that says connection-rate anew.", default=None
    )
    client_rate_file: Path | None = parameter(
        PATH, "A file that says client-rate anew.", default=None
    )
    burstiness: float = parameter(SECONDS, "After a rest, what this gives at once.", default=2.0)

    _state: _State = field(init=False, compare=False, repr=False, default_factory=_State)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        limits: list[Limit] = []
        state = self._state
        if state.total is None:
            state.total = self._limit(self.rate, self.rate_file)
        if state.total is not None:
            limits.append(state.total)
        if own := self._limit(self.connection_rate, self.connection_rate_file):
            limits.append(own)
        identity = "" if opening.client is None else opening.client.identity
        client = state.clients.get(identity) or self._limit(self.client_rate, self.client_rate_file)
        if client is None:
            return RateFilter(device, limits) if limits else device
        state.clients[identity] = client
        client.connections += 1
        return RateFilter(device, [*limits, client], lambda: self._leave(identity))

    def _limit(self, bits: int, file: Path | None) -> Limit | None:
        source = Source(bits, file)
        if source.is_none:
            return None
        return Limit(Bucket(source, self.burstiness), Bucket(source, self.burstiness))

    def _leave(self, identity: str) -> None:
        client = self._state.clients[identity]
        client.connections -= 1
        if not client.connections:
            del self._state.clients[identity]


class RateFilter(Passing):
    """Bytes pass the device when all ``limits`` let them; ``leave`` is called at the end."""

    def __init__(
        self, device: Device, limits: Sequence[Limit], leave: Callable[[], None] | None = None
    ) -> None:
        super().__init__(device)
        self._reads = [limit.reads for limit in limits]
        self._writes = [limit.writes for limit in limits]
        self._leave = leave

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        if not all(bucket.has(length) for bucket in self._reads):
            return None
        pieces = self.device.read_now(offset, length)
        if pieces is not None:
            for bucket in self._reads:
                bucket.pay(length)
        return pieces

    def write_now(self, offset: int, data: Buffer) -> bool:
        length = len(data)
        if not all(bucket.has(length) for bucket in self._writes):
            return False
        is_done = self.device.write_now(offset, data)
        if is_done:
            for bucket in self._writes:
                bucket.pay(length)
        return is_done

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        for bucket in self._reads:
            await bucket.take(length)
        return await self.device.read(offset, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        for bucket in self._writes:
            await bucket.take(len(data))
        await super().write(offset, data, fua=fua)

    async def close(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
        await super().close()
