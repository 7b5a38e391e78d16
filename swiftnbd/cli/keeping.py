# SPDX-License-Identifier: MIT
"""Keeping a lock for as long as a command of swiftnbd-ctl needs it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from swiftnbd.errors import StoreError
from swiftnbd.export.lease import Keeper, Leased
from swiftnbd.export.lock import Lock


class _Command:
    """The task that relies on the lock: it has nothing to gain by waiting for a store."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.reason = ""

    def suspend(self) -> None:
        self.fail("the lock could not be renewed")

    def resume(self) -> None:
        pass

    def fail(self, reason: str) -> None:
        if not self.reason:
            self.reason = reason
            self.task.cancel()


@asynccontextmanager
async def kept(lock: Lock, name: str) -> AsyncIterator[Leased]:
    """Renew an acquired lock; if that fails, what is inside is cancelled, as a `StoreError`.

    Gives the lock's store for what is inside to change: not after the lease, whatever happens.
    """
    command = _Command()
    keeper = Keeper(lock, command)
    keeper.start()
    try:
        try:
            yield Leased(lock.store, keeper)
        finally:
            await keeper.stop()
    except asyncio.CancelledError:
        if not command.reason:
            raise
        command.task.uncancel()
        raise StoreError(f"{name}: {command.reason}") from None
