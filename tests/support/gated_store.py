# SPDX-License-Identifier: MIT
"""A memory store whose requests can be held at a gate or made to fail, by script."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from swiftnbd.errors import StoreUnavailable
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.store.base import (
    LISTING_LIMIT_MAX,
    OBJECT_BYTES_MAX,
    Blob,
    Body,
    ContainerInfo,
    Listed,
)
from swiftnbd.store.memory import MemoryStore


@dataclass
class Gate:
    """Requests that match wait here, before or after they are carried out."""

    pattern: re.Pattern[str]
    after: bool = False
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0

    async def reached(self, times: int = 1) -> None:
        """Return when so many more requests have arrived."""
        for _ in range(times):
            await asyncio.wait_for(self.arrived.acquire(), 30)

    def open(self) -> None:
        """Let all pass, now and later."""
        self.opened.set()

    async def pass_through(self) -> None:
        self.waiting += 1
        self.arrived.release()
        try:
            await self.opened.wait()
        finally:
            self.waiting -= 1


class GatedStore(MemoryStore):
    """``calls`` lists every request as "verb name"; `gate` and `fail` select by regex on that.

    The verbs are get, put, delete, listing, info and set (of metadata: the "name" is the changes).
    """

    def __init__(self, name: str, objects: int = 16, object_size: int = 65536) -> None:
        super().__init__(name)
        self.objects, self.object_size = objects, object_size
        self.calls: list[str] = []
        self.failing: list[re.Pattern[str]] = []
        self.gates: list[Gate] = []

    async def set_up(self) -> None:
        """Make the container, as ``setup`` does."""
        geometry = Geometry(self.objects, self.object_size)
        await self.create_container(setup_metadata(geometry))

    def gate(self, pattern: str, *, after: bool = False) -> Gate:
        """Hold the requests that match, until the gate is opened."""
        gate = Gate(re.compile(pattern), after)
        self.gates.append(gate)
        return gate

    def fail(self, pattern: str) -> None:
        """From now on let those requests fail, undone."""
        self.failing.append(re.compile(pattern))

    def heal(self) -> None:
        """Nothing fails any more."""
        self.failing.clear()

    @property
    def metadata(self) -> dict[str, str]:
        """The container's metadata, read from the dictionaries themselves."""
        return self.account.containers[self.name].metadata

    @property
    def holder(self) -> str:
        """The mark in the container, or ''."""
        return self.metadata.get("swiftnbd-client", "")

    def part(self, index: int) -> bytes | None:
        """The stored bytes of one part of the disk, read from the dictionaries themselves."""
        found = self.account.containers[self.name].objects.get(f"disk.part/{index:08d}")
        return None if found is None else found.data

    async def _before(self, call: str) -> None:
        self.calls.append(call)
        for gate in self.gates:
            if not gate.after and gate.pattern.search(call):
                await gate.pass_through()
        if any(pattern.search(call) for pattern in self.failing):
            raise StoreUnavailable(f"{self.label}: {call.split()[0]}: 503 by script")

    async def _after(self, call: str) -> None:
        for gate in self.gates:
            if gate.after and gate.pattern.search(call):
                await gate.pass_through()

    async def get(
        self,
        name: str,
        *,
        start: int = 0,
        length: int | None = None,
        newest: bool = False,
        size_max: int = OBJECT_BYTES_MAX,
    ) -> Blob | None:
        await self._before(f"get {name}")
        return await super().get(name, start=start, length=length, newest=newest, size_max=size_max)

    async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
        await self._before(f"put {name}")
        etag = await super().put(name, data, if_absent=if_absent)
        await self._after(f"put {name}")
        return etag

    async def delete(self, name: str) -> bool:
        await self._before(f"delete {name}")
        return await super().delete(name)

    async def listing(
        self, *, prefix: str = "", after: str = "", before: str = "", limit: int = LISTING_LIMIT_MAX
    ) -> list[Listed]:
        await self._before(f"listing {prefix}")
        return await super().listing(prefix=prefix, after=after, before=before, limit=limit)

    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        await self._before("info")
        return await super().info(count=count)

    async def set_metadata(self, changes: Mapping[str, str]) -> None:
        call = f"set {dict(changes)}"
        await self._before(call)
        await super().set_metadata(changes)
        await self._after(call)
