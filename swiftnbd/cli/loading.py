# SPDX-License-Identifier: MIT
"""Which exports there are: at the start, and later when a Swift that was out of reach is back.

A container that is missing, not set up or refused to us is skipped for good: somebody has to do
something about it. One that cannot be reached is tried again until it can. If none can be reached
at the start, the server ends and says so: a wrong URL must not look like a server that runs.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from swiftnbd.cli.common import locked_by
from swiftnbd.cli.exits import Exit, SeveralFailed, exit_code
from swiftnbd.errors import SwiftnbdError
from swiftnbd.export.export import Export
from swiftnbd.log import about

LOADS_AT_ONCE_MAX = 16
LATE_SECONDS = 10.0  # those that are ready do not wait longer for the others
RETRY_SECONDS = 1.0  # between tries, each of which goes on for the time-out of a request

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Exports:
    """By name: ``ready`` in the order of the configuration, ``coming`` may be ready later."""

    ready: dict[str, Export] = field(default_factory=dict)
    coming: dict[str, Export] = field(default_factory=dict)


@asynccontextmanager
async def loaded(
    exports: Sequence[Export],
    *,
    late_seconds: float = LATE_SECONDS,
    retry_seconds: float = RETRY_SECONDS,
) -> AsyncIterator[Exports]:
    """Those of ``exports`` that can be served, at least one; others join as long as this lasts.

    One WARNING for each that cannot be served now. Raises `SeveralFailed` if none can.
    """
    loader = _Loader(exports, retry_seconds)
    tasks = [asyncio.create_task(loader.load(export)) for export in exports]
    try:
        await loader.some_ready(late_seconds)
        yield loader.found
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                log.error("loading an export failed", exc_info=result)


class _Loader:
    """Loads exports. One is decided when its first try has ended."""

    def __init__(self, exports: Sequence[Export], retry_seconds: float) -> None:
        self.found = Exports(coming={export.name: export for export in exports})
        self._order = [export.name for export in exports]
        self._undecided = set(self._order)
        self._told: set[str] = set()
        self._failures: list[SwiftnbdError] = []
        self._slots = asyncio.Semaphore(LOADS_AT_ONCE_MAX)
        self._changed = asyncio.Event()
        self._retry_seconds = retry_seconds

    async def some_ready(self, late_seconds: float) -> None:
        """Wait until all are decided; if some are ready, for the others only so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(late_seconds):
                await self._until(lambda: not self._undecided)
        await self._until(lambda: bool(self.found.ready) or not self._undecided)
        if not self.found.ready:
            raise SeveralFailed("no container is left to export", self._failures)
        for name in self._order:
            if name in self._undecided:
                self._tell_late(name, "no answer yet")

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def load(self, export: Export) -> None:
        """Return when it is ready, or never will be."""
        about(export=export.name)
        try:
            while not await self._try(export):
                self._decided(export.name)
                await asyncio.sleep(self._retry_seconds)
        finally:
            self._decided(export.name)

    def _decided(self, name: str) -> None:
        self._undecided.discard(name)
        self._changed.set()

    async def _try(self, export: Export) -> bool:
        """One try; whether nothing more is to be done."""
        name = export.name
        try:
            async with self._slots:
                await export.load()
        except SwiftnbdError as error:
            self._failures.append(error)
            if exit_code(error) is Exit.UNREACHABLE:
                self._tell_late(name, str(error))
                return False
            del self.found.coming[name]
            log.warning("%s: %s; skipping", name, error)
        else:
            self._add(self.found.coming.pop(name))
        return True

    def _tell_late(self, name: str, reason: str) -> None:
        if name not in self._told:
            self._told.add(name)
            log.warning("%s: %s; it is served as soon as it can be reached", name, reason)

    def _add(self, export: Export) -> None:
        ready = self.found.ready
        ready[export.name] = export
        in_order = {name: ready[name] for name in self._order if name in ready}
        ready.clear()
        ready.update(in_order)
        if export.name in self._told:
            log.info("%s: reached, it is served now", export.name)
        if holder := export.info.client:
            log.info("%s", locked_by(export.name, holder))
