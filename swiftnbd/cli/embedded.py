# SPDX-License-Identifier: MIT
"""The engine in somebody else's process: one export, in an event loop in a thread of its own.

All methods block, and may be called in any thread but that one.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from swiftnbd.api.client import Client
from swiftnbd.api.device import Device
from swiftnbd.cli.plan import Plan, outages_of
from swiftnbd.cli.server import new_export
from swiftnbd.cli.stores import Stores
from swiftnbd.errors import SwiftnbdError
from swiftnbd.server.config import ExportConfig

if TYPE_CHECKING:
    from swiftnbd.export.base import BaseExport
    from swiftnbd.store.base import Store

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """What one connection uses."""

    export: "BaseExport"
    device: Device

    @property
    def multi_conn(self) -> bool:
        """Whether a flush on one connection is a flush for all of them."""
        promised = self.device.multi_conn
        is_shared = self.export.shares_device if promised is None else promised
        return is_shared and self.export.multi_conn


class Engine:
    """Serves the one export of ``plan``. All who `attach` are one client: this process."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._config = plan.exports[0]
        self._exports: dict[bool, BaseExport] = {}  # by whether they are read-only
        self._loading = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._end = asyncio.Event()
        self._ready: Future[None] = Future()
        self._ended: Future[None] = Future()

    def check(self) -> None:
        """Look once whether it can be served. No thread is left. Raises `SwiftnbdError`."""
        asyncio.run(self._look())

    def start(self) -> None:
        """Return when it is served. Raises `SwiftnbdError`."""
        self._thread = threading.Thread(target=self._run, name="swiftnbd", daemon=True)
        self._thread.start()
        self._ready.result()

    def stop(self) -> None:
        """Write back, unlock, and end the thread. Raises `SwiftnbdError` saying what is lost."""
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._ended.result()

    def attach(self, *, read_only: bool) -> Opened:
        """One more connection. Give it back with `detach`. Raises `SwiftnbdError`."""
        return self._run_there(self._attach(read_only or self._config.read_only))

    def detach(self, opened: Opened) -> None:
        """One connection less. With the last one everything is written back and unlocked."""
        self._run_there(opened.export.detach(opened.device))

    def call(self, opened: Opened, request: Coroutine[Any, Any, T]) -> T:
        """What a ``request`` on the device that was opened returns."""
        return self._run_there(_checked(opened.export, request))

    def _run_there(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # In the event loop

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                self._ended.set_exception(error)
            else:
                self._ready.set_exception(error)
        else:
            self._ended.set_result(None)

    async def _look(self) -> None:
        async with self._stores() as stores:
            export = self._new(stores, self._config)
            try:
                await export.load()
            except SwiftnbdError as error:
                raise SwiftnbdError(f"{self._config.name}: {error}") from None
            finally:
                await export.shut_down()

    async def _serve(self) -> None:
        async with self._stores() as self._open_stores:
            await self._export(self._config.read_only)
            self._loop = asyncio.get_running_loop()
            self._ready.set_result(None)
            await self._end.wait()
            failures = [await self._let_go(export) for export in self._exports.values()]
        for failure in filter(None, failures):
            raise failure

    async def _let_go(self, export: "BaseExport") -> SwiftnbdError | None:
        try:
            await export.shut_down()
        except SwiftnbdError as error:
            log.error("%s: %s: %s", export.name, export.left_as, error)
            return error
        finally:
            await export.abandon()
        return None

    async def _attach(self, read_only: bool) -> Opened:
        export = await self._export(read_only)
        number = os.getpid()
        shown = f"nbdkit (process {number})"
        client = Client(f"nbdkit {number}", "localhost", number, shown, process=number)
        return Opened(export, await export.attach(client))

    async def _export(self, read_only: bool) -> "BaseExport":
        """The one that is so. ``nbdkit -r`` is only heard of when somebody connects."""
        async with self._loading:
            if read_only not in self._exports:
                export = self._new(self._open_stores, replace(self._config, read_only=read_only))
                await export.load()
                self._exports[read_only] = export
            return self._exports[read_only]

    def _stores(self) -> Stores:
        return Stores(self._plan.auth, slow_seconds=self._plan.server.slow_seconds)

    def _new(self, stores: Stores, config: ExportConfig) -> "BaseExport":
        def open_store(export: ExportConfig) -> "Store":
            return stores.open(
                export, seconds=outages_of(export, self._plan.server.outages).seconds
            )

        return new_export(self._plan, config, open_store)


async def _checked(export: "BaseExport", request: Coroutine[Any, Any, T]) -> T:
    export.check_lock()  # the process may have stood still, and the lease be over
    return await request
