# SPDX-License-Identifier: MIT
"""A command's store at one request of which the command ends, killed or interrupted."""

import asyncio
from typing import Any

from swiftnbd.store.memory import MemoryAccount, MemoryStore

_REQUESTS = {
    "get", "head", "put", "copy", "delete", "renew", "listing", "info", "set_metadata",
    "create_container", "delete_container",
}  # fmt: skip


class Killed(BaseException):
    """The process is no more: nothing is cleaned up after this."""


class Doomed(MemoryStore):
    """A process that is killed at its ``requests``-th request, which is ``done`` or not."""

    def __init__(self, name: str, account: MemoryAccount, requests: int, *, done: bool) -> None:
        super().__init__(name, account)
        self.left = [requests]
        self.tasks: list[asyncio.Task[Any]] = []  # the command, for who interrupts it
        self.done = done

    def another(self, name: str) -> "Doomed":
        """Another container of the same process."""
        other = type(self)(name, self.account, 0, done=self.done)
        other.left, other.tasks = self.left, self.tasks
        return other

    async def end(self) -> None:
        """The end of the process; this never returns."""
        raise Killed

    @property
    def has_ended(self) -> bool:
        """Whether nothing is asked for any more."""
        return self.left[0] < 0

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        if name not in _REQUESTS:
            return attribute

        async def request(*arguments: Any, **options: Any) -> Any:
            self.left[0] -= 1
            if self.has_ended:
                await self.end()
            if self.left[0] != 0 or self.done:
                result = await attribute(*arguments, **options)
            if self.left[0] == 0:
                await self.end()
            return result

        return request


class Interrupted(Doomed):
    """A command that gets a Ctrl-C at that request, and cleans up afterwards."""

    @property
    def has_ended(self) -> bool:
        return False

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.Event().wait()
