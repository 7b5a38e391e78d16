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

from swiftnbd.cli.common import locked_by
from swiftnbd.cli.exits import Exit, SeveralFailed, exit_code
from swiftnbd.errors import SwiftnbdError
from swiftnbd.export.base import BaseExport
from swiftnbd.log import about

LOADS_AT_ONCE_MAX = 16
LATE_SECONDS = 10.0  # those that are ready do not wait longer for the others
RETRY_SECONDS = 1.0  # between tries, each of which goes on for the time-out of a request

log = logging.getLogger(__name__)


@asynccontextmanager
async def loaded(
    exports: Sequence[BaseExport],
    *,
    late_seconds: float = LATE_SECONDS,
    retry_seconds: float = RETRY_SECONDS,
) -> AsyncIterator["Loader"]:
    """Those of ``exports`` that can be served, at least one; others join as long as this lasts.

    One WARNING for each that cannot be served now. Raises `SeveralFailed` if none can.
    """
    loader = Loader(retry_seconds)
    for export in exports:
        loader.add(export)
    try:
        await loader.some_ready(late_seconds)
        loader.is_later = True
        yield loader
    finally:
        await loader.stop()


class Loader:
    """Loads exports: ``ready`` in the order of the configuration, ``coming`` may be ready later.

    One is decided when its first try has ended. ``is_later``: the start is over, so that what
    becomes ready is told of.
    """

    def __init__(self, retry_seconds: float) -> None:
        self.ready: dict[str, BaseExport] = {}
        self.coming: dict[str, BaseExport] = {}
        self.is_later = False
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._order: list[str] = []
        self._undecided: set[str] = set()
        self._told: set[str] = set()
        self._failures: dict[str, SwiftnbdError] = {}  # the last one of each
        self._slots = asyncio.Semaphore(LOADS_AT_ONCE_MAX)
        self._changed = asyncio.Event()
        self._retry_seconds = retry_seconds

    def add(self, export: BaseExport) -> None:
        """Load one more, whose name is neither ready nor coming."""
        name = export.name
        self.coming[name] = export
        self._undecided.add(name)
        self._told.discard(name)
        if name not in self._order:
            self._order.append(name)
        self._tasks[name] = asyncio.get_running_loop().create_task(self._load(export))

    def check(self, export: BaseExport) -> None:
        """Look again at one that is ready. It stays so; only a WARNING may come."""
        self._tasks[export.name].cancel()  # the last look
        self._tasks[export.name] = asyncio.get_running_loop().create_task(self._look_again(export))

    def forget(self, name: str) -> None:
        """Load one no more that is coming."""
        del self.coming[name]
        self._tasks.pop(name).cancel()

    def drop(self, export: BaseExport) -> None:
        """Serve one no more that is ready and idle, and let go of what it still holds."""
        export.retire()
        del self.ready[export.name]
        task = asyncio.get_running_loop().create_task(self._let_go(export))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _let_go(self, export: BaseExport) -> None:
        about(export=export.name)
        try:
            await export.shut_down()
        except SwiftnbdError as error:
            log.error("%s: %s", export.name, error)

    def put_in_order(self, names: Sequence[str]) -> None:
        """Let those of ``names`` be in this order."""
        self._order = [*names, *(name for name in self._order if name not in names)]

    async def stop(self) -> None:
        """Load no more."""
        for task in self._tasks.values():
            task.cancel()
        results = await asyncio.gather(
            *self._tasks.values(), *self._leaving, return_exceptions=True
        )
        for result in results:
            if isinstance(result, Exception):
                log.error("loading an export failed", exc_info=result)

    async def some_ready(self, late_seconds: float) -> None:
        """Wait until all are decided; if some are ready, for the others only so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(late_seconds):
                await self._until(lambda: not self._undecided)
        await self._until(lambda: bool(self.ready) or not self._undecided)
        if not self.ready:
            raise SeveralFailed("nothing is left to export", list(self._failures.values()))
        for name in self._order:
            if name in self._undecided:
                self._tell_late(name, "no answer yet")

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _load(self, export: BaseExport) -> None:
        """Return when it is ready, or never will be."""
        about(export=export.name)
        try:
            while not await self._try(export):
                self._decided(export.name)
                await asyncio.sleep(self._retry_seconds)
        finally:
            self._decided(export.name)

    async def _look_again(self, export: BaseExport) -> None:
        about(export=export.name)
        try:
            await export.look_again()
        except SwiftnbdError as error:
            log.warning("%s: with its new settings: %s", export.name, error)

    def _decided(self, name: str) -> None:
        self._undecided.discard(name)
        self._changed.set()

    async def _try(self, export: BaseExport) -> bool:
        """One try; whether nothing more is to be done."""
        name = export.name
        try:
            async with self._slots:
                await export.load()
        except SwiftnbdError as error:
            return self._failed(name, error)
        except Exception as error:  # a bug, perhaps of somebody's plugin
            log.exception("%s: loading it failed", name)
            return self._failed(name, SwiftnbdError(f"loading it failed: {error!r}"))
        self._add(self.coming.pop(name))
        return True

    def _failed(self, name: str, error: SwiftnbdError) -> bool:
        """Whether nothing more is to be done about it."""
        self._failures[name] = error
        if exit_code(error) is Exit.UNREACHABLE:
            self._tell_late(name, str(error))
            return False
        del self.coming[name]
        log.warning("%s: %s; skipping", name, error)
        return True

    def _tell_late(self, name: str, reason: str) -> None:
        if name not in self._told:
            self._told.add(name)
            log.warning("%s: %s; it is served as soon as it can be reached", name, reason)

    def _add(self, export: BaseExport) -> None:
        ready = self.ready  # the server has this very dictionary
        ready[export.name] = export
        in_order = {name: ready[name] for name in self._order if name in ready}
        ready.clear()
        ready.update(in_order)
        if export.name in self._told:
            log.info("%s: reached, it is served now", export.name)
        elif self.is_later:
            log.info("%s: it is served now", export.name)
        if holder := export.facts.holder:
            log.info("%s", locked_by(export.name, holder))
