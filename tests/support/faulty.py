# SPDX-License-Identifier: MIT
"""A store that goes wrong on command: `Faulty(store, plan)` around any other.

The plan is asked at every call and answers with what shall go wrong, or None. `Script` is a plan
written down by a test, `Seeded` one drawn from a seed. Every call gives up the event loop before
and after it takes effect, as a request over a network does.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import md5
from typing import NamedTuple

from swiftnbd.errors import StoreError, StoreUnavailable
from swiftnbd.store.base import (
    LISTING_LIMIT_MAX,
    OBJECT_BYTES_MAX,
    Blob,
    Body,
    ContainerInfo,
    Listed,
    ObjectInfo,
    Place,
    Store,
)


class Call(NamedTuple):
    """One call of the store: ``op`` is the method's name, ``name`` the object's or ''."""

    op: str
    name: str = ""


class Gate:
    """A place where calls stop until the test opens it. One never opened is a hang."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.arrivals = 0
        self._opened = asyncio.Event()

    async def pass_through(self) -> None:
        self.arrivals += 1
        self.arrived.set()
        await self._opened.wait()

    def open(self) -> None:
        self._opened.set()


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one call. The default is nothing.

    ``before`` and ``after`` stop the call before and after it takes effect; then ``error`` is
    raised, without effect unless ``done`` (the reply was lost), or ``late``: a put or delete that
    takes effect at `Faulty.land`. ``body`` changes what a get answers; ``stale`` answers it from
    the version before the last change (None: was absent).
    """

    before: Gate | None = None
    after: Gate | None = None
    error: StoreError | None = None
    done: bool = False
    late: bool = False
    body: Callable[[bytes], bytes] | None = None
    stale: bool = False


def failing(error: StoreError | None = None) -> Fault:
    """The call has no effect and raises."""
    return Fault(error=error or StoreUnavailable("faulty: it fails"))


def reply_lost() -> Fault:
    """The call takes effect and raises."""
    return Fault(error=StoreUnavailable("faulty: the reply was lost"), done=True)


def late() -> Fault:
    """The call raises, and takes effect long after."""
    return Fault(error=StoreUnavailable("faulty: nobody waits so long"), late=True)


def short_body(missing: int = 1) -> Fault:
    """A get answers with fewer bytes than there are, and does not notice."""
    return Fault(body=lambda data: data[: max(0, len(data) - missing)])


def corrupt_body(at: int = 0) -> Fault:
    """A get answers with one byte changed, under the ETag of the right ones."""
    return Fault(body=lambda data: data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])


Plan = Callable[[Call], Fault | None]


class Script:
    """Faults for the next calls that match, in the order they were announced."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, str, Fault]] = []

    def on(self, op: str, fault: Fault, *, name: str = "", times: int = 1) -> None:
        """The next ``times`` calls of ``op`` (on object ``name``, if one is given)."""
        self._steps += [(op, name, fault)] * times

    def hold(self, op: str, *, name: str = "", times: int = 1) -> Gate:
        """Stop these calls before they take effect; returns what to open."""
        gate = Gate()
        self.on(op, Fault(before=gate), name=name, times=times)
        return gate

    def clear(self) -> None:
        """Nothing more goes wrong."""
        self._steps.clear()

    def __call__(self, call: Call) -> Fault | None:
        for number, (op, name, fault) in enumerate(self._steps):
            if op == call.op and name in ("", call.name):
                del self._steps[number]
                return fault
        return None


class Seeded:
    """A share of all calls of each op goes wrong, in a way drawn from ``seed``."""

    def __init__(self, seed: int, shares: Mapping[str, float], faults: Sequence[Fault]) -> None:
        self.seed = seed
        self._random = random.Random(seed)
        self._shares = shares
        self._faults = faults

    def __call__(self, call: Call) -> Fault | None:
        if self._random.random() >= self._shares.get(call.op, 0):
            return None
        return self._random.choice(self._faults)


@dataclass
class Faulty(Store):
    """``store`` behind ``plan``. Counts ``calls``, and ``at_once_max``: how many overlapped.

    ``late`` are the changes that have yet to `land`: object, which change of it, what it becomes.
    """

    store: Store
    plan: Plan = field(default_factory=Script)
    calls: Counter[Call] = field(default_factory=Counter)
    at_once: int = 0
    at_once_max: int = 0
    canary: str | None = None
    admits_one_creator: bool = field(default=False, init=False)
    _now: dict[str, Blob | None] = field(default_factory=dict)
    _before: dict[str, Blob | None] = field(default_factory=dict)
    late: list[tuple[str, int, Blob | None]] = field(default_factory=list)
    _sent: Counter[str] = field(default_factory=Counter)  # changes of each object
    _newest: Counter[str] = field(default_factory=Counter)  # the number of the last one made

    def __post_init__(self) -> None:
        self.label = self.store.label
        self.admits_one_creator = self.store.admits_one_creator
        self.place = self.store.place

    def count(self, op: str) -> int:
        """How many calls of ``op`` there were, on whatever object."""
        return sum(times for call, times in self.calls.items() if call.op == op)

    @asynccontextmanager
    async def _call(
        self, op: str, name: str = "", change: tuple[int, Blob | None] | None = None
    ) -> AsyncIterator[Fault]:
        call = Call(op, name)
        self.calls[call] += 1
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        try:
            fault = self.plan(call) or Fault()
            await asyncio.sleep(0)
            if fault.before is not None:
                await fault.before.pass_through()
            if fault.late and change is not None:
                self.late.append((name, *change))
            if fault.error is not None and not fault.done:
                raise fault.error
            yield fault
            await asyncio.sleep(0)
            if fault.after is not None:
                await fault.after.pass_through()
            if fault.error is not None:
                raise fault.error
        finally:
            self.at_once -= 1

    def _changed(self, name: str, number: int, now: Blob | None) -> None:
        self._before[name] = self._now.get(name)
        self._now[name] = now
        self._newest[name] = number

    async def land(self) -> None:
        """What was ``late`` happens now; not over a change sent after it, as Swift has it."""
        late, self.late = self.late, []
        for name, number, blob in late:
            if number > self._newest[name]:
                if blob is None:
                    await self.store.delete(name)
                else:
                    await self.store.put(name, blob.data)
                self._changed(name, number, blob)

    def forget_late(self) -> None:
        """What was ``late`` never happens."""
        self.late.clear()

    async def get(
        self,
        name: str,
        *,
        start: int = 0,
        length: int | None = None,
        newest: bool = False,
        size_max: int = OBJECT_BYTES_MAX,
    ) -> Blob | None:
        async with self._call("get", name) as fault:
            blob = await self.store.get(name, start=start, length=length, size_max=size_max)
            if fault.stale and not newest and name in self._before:
                old, end = self._before[name], None if length is None else start + length
                blob = old and replace(old, data=old.data[start:end])
            if blob is not None and fault.body is not None:
                blob = replace(blob, data=fault.body(blob.data))
        return blob

    async def head(self, name: str, *, newest: bool = False) -> ObjectInfo | None:
        async with self._call("head", name):
            return await self.store.head(name, newest=newest)

    async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
        whole = bytes(data)
        blob = Blob(whole, md5(whole).hexdigest())
        number = self._send(name)
        async with self._call("put", name, (number, blob)):
            etag = await self.store.put(name, blob.data, if_absent=if_absent)
            self._changed(name, number, blob)
        # a network takes the bytes when it likes, so they must be the same all the time
        assert bytes(data) == blob.data, f"the body of PUT {name} changed under way"
        return etag

    async def copy(self, name: str, source: Place, etag: str) -> None:
        number = self._send(name)
        async with self._call("copy", name):
            await self.store.copy(name, source, etag)
            self._changed(name, number, await self.store.get(name))

    async def delete(self, name: str) -> bool:
        number = self._send(name)
        async with self._call("delete", name, (number, None)):
            existed = await self.store.delete(name)
            self._changed(name, number, None)
        return existed

    def _send(self, name: str) -> int:
        self._sent[name] += 1
        return self._sent[name]

    async def renew(self, name: str, token: str) -> bool:
        async with self._call("renew", name):
            return await self.store.renew(name, token)

    async def listing(
        self, *, prefix: str = "", after: str = "", before: str = "", limit: int = LISTING_LIMIT_MAX
    ) -> list[Listed]:
        async with self._call("listing"):
            return await self.store.listing(prefix=prefix, after=after, before=before, limit=limit)

    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        async with self._call("info"):
            return await self.store.info(count=count)

    async def set_metadata(self, changes: Mapping[str, str]) -> None:
        async with self._call("set_metadata"):
            await self.store.set_metadata(changes)

    async def create_container(
        self, metadata: Mapping[str, str] | None = None, *, policy: str | None = None
    ) -> bool:
        async with self._call("create_container"):
            return await self.store.create_container(metadata, policy=policy)

    async def delete_container(self) -> bool:
        async with self._call("delete_container"):
            return await self.store.delete_container()

    def set_canary(self, name: str | None) -> None:
        self.canary = name
        self.store.set_canary(name)

    async def close(self) -> None:
        await self.store.close()
