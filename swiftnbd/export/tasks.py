# SPDX-License-Identifier: MIT
"""Work that belongs to a device, not to the request that caused it.

A client that goes away cannot cut an object's upload short, nor have one start later.
"""

import asyncio
from collections.abc import Coroutine
from errno import EIO

from swiftnbd.errors import ExportError


class Tasks:
    """The tasks of the device called ``label``."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._tasks: dict[asyncio.Task[None], None] = {}  # a set in a reproducible order

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Begin ``work``."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled():
            task.exception()  # whoever waits for it sees it; a flush will, if nobody does

    async def ended(self, task: asyncio.Task[None]) -> None:
        """Wait for one without being able to cancel it, and raise what it raised.

        Its being cancelled must not look like our own request's being cancelled.
        """
        await asyncio.wait([task])
        if task.cancelled():
            raise ExportError(EIO, f"{self._label}: closed before it was done")
        task.result()

    async def close(self) -> None:
        """End all of them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
