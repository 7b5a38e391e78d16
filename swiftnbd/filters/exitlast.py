# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter exitlast PLUGIN``"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from swiftnbd.api import Device, Filter, FilterPlugin, Opening
from swiftnbd.api.ending import ENDING

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _State:
    connections: int = 0


@dataclass(frozen=True)
class ExitLast(FilterPlugin):
    """The server ends with the last connection. It does not end before the first one."""

    per_connection = True

    _state: _State = field(init=False, compare=False, repr=False, default_factory=_State)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        if opening.client is None:  # who only wants to know what there would be
            return device
        self._state.connections += 1
        return Leaving(device, self._left)

    def _left(self) -> None:
        self._state.connections -= 1
        if not self._state.connections and ENDING.ask():
            log.info("the last client has left, so the server ends")


class Leaving(Filter):
    """Calls ``left`` once, when it has been closed."""

    def __init__(self, device: Device, left: Callable[[], object]) -> None:
        super().__init__(device)
        self._left: Callable[[], object] | None = left

    async def close(self) -> None:
        left, self._left = self._left, None
        try:
            await super().close()
        finally:
            if left is not None:
                left()
