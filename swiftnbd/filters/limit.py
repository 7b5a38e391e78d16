# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter limit PLUGIN limit=3``"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from swiftnbd.api import INTEGER, Buffer, Device, FilterPlugin, Opening, parameter
from swiftnbd.api.around import Around, Call
from swiftnbd.errors import Locked

T = TypeVar("T")


@dataclass(slots=True)
class _State:
    connections: int = 0
    turns: asyncio.Semaphore | None = None


@dataclass(frozen=True)
class Limit(FilterPlugin):
    """So many connections at a time, and so many requests of all of them.

    Connections beyond it are refused, requests wait.
    """

    per_connection = True

    limit: int = parameter(INTEGER, "Connections; 0 is no limit.", default=1)
    limit_requests: int = parameter(INTEGER, "Requests; 0 is no limit.", default=0)

    _state: _State = field(init=False, compare=False, repr=False, default_factory=_State)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        if opening.client is None:  # who only wants to know what there would be
            return device
        state = self._state
        if self.limit and state.connections >= self.limit:
            raise Locked(f"{opening.name} has as many connections as it may have", "")
        if self.limit_requests and state.turns is None:
            state.turns = asyncio.Semaphore(self.limit_requests)
        state.connections += 1
        return LimitFilter(device, state)


class LimitFilter(Around):
    """One of the connections."""

    def __init__(self, device: Device, state: _State) -> None:
        super().__init__(device)
        self._state, self._turns = state, state.turns
        self._counts = True

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return self.device.read_now(offset, length) if self._is_free else None

    def write_now(self, offset: int, data: Buffer) -> bool:
        return self._is_free and self.device.write_now(offset, data)

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        if self._turns is None:
            return await work()
        async with self._turns:
            return await work()

    async def close(self) -> None:
        if self._counts:
            self._counts = False
            self._state.connections -= 1
        await super().close()

    @property
    def _is_free(self) -> bool:
        return self._turns is None or not self._turns.locked()
