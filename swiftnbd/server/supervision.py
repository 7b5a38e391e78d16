# SPDX-License-Identifier: MIT
"""What a service manager is told of a running server.

All of it comes from the event loop, in turn with the clients' requests: a loop that is stuck gives
no sign of life, and the service manager's watchdog ends what serves nobody any more.
"""

import asyncio
from collections.abc import Callable, Mapping

from swiftnbd.api.ending import ENDING
from swiftnbd.export.base import BaseExport
from swiftnbd.server.notify import Notifier, ServiceManager

STATUS_SECONDS = 5.0  # between looks at whether there is something new to say
WATCHDOG_PART = 3  # signs of life within the time of one: two may come late
ENDING_SECONDS = 0.5  # between looks at whether writing back goes on
MARGIN_SECONDS = 30.0  # beyond our own patience: what is lost has to be told, and we end then

_MIB = 1024 * 1024


class Supervision:
    """Tells ``manager``, if there is one, how the ``exports`` are doing."""

    def __init__(
        self,
        manager: ServiceManager | None,
        exports: Mapping[str, BaseExport],
        coming: Mapping[str, BaseExport],
        clients: Callable[[], int],
    ) -> None:
        self._manager = manager
        self._notifier = Notifier(manager)
        self._exports, self._coming, self._clients = exports, coming, clients
        self._task: asyncio.Task[None] | None = None
        self._patience: float | None = None  # seconds without progress; None: not ending
        self._to_do = self.to_do
        self._said = ""

    @property
    def unstored(self) -> int:
        """Bytes that are not written back."""
        devices = (export.device for export in self._exports.values())
        return sum(device.dirty_bytes for device in devices if device is not None)

    @property
    def to_do(self) -> tuple[float, float]:
        """Becomes less as long as the end does not stand still."""
        return -ENDING.steps, self.unstored

    def ready(self) -> None:
        """All is up, or up again after `reloading`."""
        self._said = self._status()
        self._notifier.ready(self._said)
        if self._manager is not None and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._tell_forever())

    def reloading(self) -> None:
        """The configuration is being read again."""
        self._notifier.reloading()

    def ending(self, patience_seconds: float) -> None:
        """The server ends. It gives up what stands still for so long, and looks that often."""
        self._patience = patience_seconds
        self._to_do = self.to_do
        self._said = self._status()
        self._notifier.stopping(self._said)
        self._extend()
        if self._task is not None:  # it may be asleep for a while
            self._task.cancel()
            self._task = asyncio.get_running_loop().create_task(self._tell_forever())

    def ended(self) -> None:
        """Nothing more is to be said."""
        if self._task is not None:
            self._task.cancel()

    async def _tell_forever(self) -> None:
        assert self._manager is not None
        seconds = STATUS_SECONDS if self._patience is None else ENDING_SECONDS
        watchdog = self._manager.watchdog_seconds
        if watchdog is not None:
            seconds = min(seconds, watchdog / WATCHDOG_PART)
        while True:
            if watchdog is not None:
                self._notifier.alive()
            self._tell()
            await asyncio.sleep(seconds)

    def _tell(self) -> None:
        if self._patience is not None and (to_do := self.to_do) < self._to_do:
            self._to_do = to_do
            self._extend()
        if (status := self._status()) != self._said:
            self._said = status
            self._notifier.status(status)

    def _extend(self) -> None:
        # what stopped right after one look is given up at the second one
        assert self._patience is not None
        self._notifier.extend(2 * self._patience + MARGIN_SECONDS)

    def _status(self) -> str:
        parts = [_count(len(self._exports), "export"), _count(self._clients(), "connection")]
        if self._coming:
            parts.append(f"{len(self._coming)} out of reach")
        parts.append(f"{self.unstored / _MIB:.1f} MiB not stored yet")
        return ("" if self._patience is None else "ending; ") + ", ".join(parts)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
