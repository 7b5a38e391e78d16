# SPDX-License-Identifier: MIT
"""Several machines, one container, and everything that may go wrong between them, from a seed.

Neither asyncio nor a real clock: coroutines are stepped by a heap of events, so that a seed is one
schedule, repeated exactly, and some thousands of them take seconds. What is run are the very
`Lock`, `Keeper.keep` and `Watch`. What goes wrong:

* requests and replies are slow or lost; what was given up may still be done, for up to half a
  minute; between the look for "If-None-Match" and the effect of a PUT there is time;
* machines are cut off, their processes pause, are killed and started again;
* clocks begin anywhere and run unequally; metadata are read from old replicas.

What is checked: at no moment do two processes believe that they may write; what one of them has
stored, and been told so, is what everybody reads afterwards.
"""

import heapq
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from hashlib import md5
from typing import Any, NoReturn

from swiftnbd.errors import Locked, ObjectExists, StoreError, StoreUnavailable
from swiftnbd.export.epoch import Claim, epoch_name, released_state
from swiftnbd.export.holders import NOBODY
from swiftnbd.export.lease import Keeper
from swiftnbd.export.lock import Lock
from swiftnbd.export.pace import DRIFT, Pace, Timing
from swiftnbd.export.process import Process
from swiftnbd.export.watch import Watch
from swiftnbd.store.base import Blob, Body, ContainerInfo, Listed, ObjectInfo, Store
from swiftnbd.store.memory import MemoryContainer, MemoryObject

# Everything is five times as fast as by default, and renewals are fewer: more of what matters in
# the same number of events.
SECONDS = 100.0  # of one schedule
PACE = Pace(settle_seconds=0.4, term_seconds=10.0)
RENEWALS = 3
PUT_SECONDS = 6.0  # in place of PUT_SECONDS_MAX
DONE_SECONDS_MAX = PUT_SECONDS - 0.1  # a request is done by then, or never
REQUEST_SECONDS_MAX = 12.0  # until who asked gives up
HERD_SECONDS = 10.0
LAGGARDS = 0.5  # share of the schedules with one
EPOCHS_KEPT = 4
STALE_EPOCHS = 2  # how far old metadata may be behind
PART = "disk.part/00000000"

Done = Callable[[Any, BaseException | None], None]
Arm = Callable[[Done], None]


class Wait:
    """What a coroutine of the model waits for: ``arm`` is given whom to call."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm

    def __await__(self) -> Generator[Arm, Any, Any]:
        return (yield self.arm)


@dataclass
class Troubles:
    """How much goes wrong on one machine; shares of all requests, and rates per second."""

    slow: float
    lost: float
    stale: float
    pauses: float
    cuts: float
    kills: float

    @classmethod
    def of_a_laggard(cls, chance: random.Random) -> "Troubles":
        """One who acts, now and then, on what was so long ago."""
        slow, pauses = chance.choice([(0.5, 0.0), (0.0, 0.1), (0.2, 0.1)])
        return cls(slow, 0, 0.8, pauses, 0, 0)

    @classmethod
    def draw(cls, chance: random.Random) -> "Troubles":
        def some(most: float) -> float:
            return chance.choice([0, 0, most / 4, most])

        return cls(some(0.4), some(0.2), some(0.9), some(0.08), some(0.03), some(0.02))


class World:
    """Time, the container, and the machines."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.container = MemoryContainer()
        self.history: list[tuple[float, dict[str, str]]] = []
        self.legal = {0}  # what the disk may hold
        self.values = 0
        self.tenures = 0
        self.dead: set[int] = set()
        self.current: Machine | None = None
        self.tasks: list[Task] = []
        self.gaps = [0.1, 3.0, 20.0]  # seconds between what a holder does
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._set_up()
        troubles = self._draw_troubles(self.chance.choice([2, 3]))
        self.machines = [Machine(self, number, each) for number, each in enumerate(troubles)]

    def _draw_troubles(self, machines: int) -> list[Troubles]:
        if self.chance.random() >= LAGGARDS:
            return [Troubles.draw(self.chance) for _ in range(machines)]
        self.gaps = [0.1, 0.5, 3.0]  # much happens while the laggard is away
        others = [Troubles(0, 0, 0, 0, 0, 0) for _ in range(machines - 1)]
        return [Troubles.of_a_laggard(self.chance), *others]

    def _set_up(self) -> None:
        claim = Claim(1, "00", "first:1@1", PACE.term_seconds).to_bytes()
        state = released_state("00", "")
        epoch = MemoryObject(claim, md5(claim).hexdigest(), state)
        self.container.objects = {epoch_name(1): epoch, PART: MemoryObject(b"0", "")}
        self.change_metadata(
            {
                "swiftnbd-version": "1",
                "swiftnbd-objects": "1",
                "swiftnbd-object-size": "512",
                "swiftnbd-last": "first:1@1",
                "swiftnbd-epoch": "1",
            }
        )

    def at(self, delay: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, event))

    def run(self) -> None:
        while self._events and self._events[0][0] <= SECONDS:
            self.now, _, event = heapq.heappop(self._events)
            event()

    def end(self) -> None:
        """Of everybody. What is left are no circles, or looking for them would take long."""
        for task in self.tasks:
            task.end()
        for machine in self.machines:
            machine.__dict__.clear()
        self.tasks.clear()
        self._events.clear()

    def change_metadata(self, changes: Mapping[str, str]) -> None:
        self.container.change_metadata(changes)
        self.history.append((self.now, dict(self.container.metadata)))

    def read_metadata(self, stale: float) -> dict[str, str]:
        """Those of now, or of a replica that missed up to `STALE_EPOCHS` tenures."""
        if not stale or self.chance.random() >= stale:
            return dict(self.container.metadata)
        newest = max(int(metadata["swiftnbd-epoch"]) for _, metadata in self.history)
        while int(self.history[0][1]["swiftnbd-epoch"]) < newest - STALE_EPOCHS:
            del self.history[0]
        moment = self.now - self.chance.uniform(0, self.chance.choice([1.0, 10.0, SECONDS / 2]))
        old = [metadata for since, metadata in self.history if since <= moment]
        return dict(old[-1] if old else self.history[0][1])

    def check(self) -> None:
        """At most one believes that it may write."""
        holders = [machine for machine in self.machines if machine.may_write]
        assert len(holders) <= 1, f"{self.now:.1f} s: {len(holders)} hold the container"


class Machine:
    """One host. It runs one process at a time, which tries to hold the container now and then."""

    def __init__(self, world: World, number: int, troubles: Troubles) -> None:
        self.world = world
        self.troubles = troubles
        self.host = f"host{number}"
        self.offset = world.chance.uniform(0, 10000)
        self.rate = 1 + world.chance.uniform(-DRIFT, DRIFT) / 2
        self.timing = Timing(self.clock, self.sleep)
        self.store = ModelStore(self)
        self.generation = 0  # of the process: what belongs to an earlier one is dead
        self.paused_until = self.cut_until = 0.0
        self.keeper: Keeper | None = None
        self.start()
        self._plan(troubles.cuts, self._cut)
        self._plan(troubles.kills, self._kill)

    # Processes

    @property
    def pid(self) -> int:
        return self.generation * 10 + int(self.host[-1])

    def start(self) -> None:
        self.keeper = None
        self.generation += 1
        self.spawn(self._live())

    def spawn(self, work: Coroutine[Arm, Any, None]) -> "Task":
        task = Task(self, work)
        self.world.tasks.append(task)
        self.world.at(0, lambda: task.step(None, None))
        return task

    def clock(self) -> float:
        return self.offset + self.rate * self.world.now

    def sleep(self, seconds: float) -> Awaitable[None]:
        return Wait(lambda done: self.world.at(seconds / self.rate, lambda: done(None, None)))

    def _plan(self, rate: float, event: Callable[[], None]) -> None:
        if rate:

            def happen() -> None:
                event()
                self._plan(rate, event)

            self.world.at(self.world.chance.expovariate(rate), happen)

    def may_pause(self) -> None:
        """After a request: where a process stands still matters, not when."""
        chance = self.world.chance
        if chance.random() < self.troubles.pauses:
            length = chance.uniform(0, chance.choice([1.0, 15.0, 50.0]))
            self.paused_until = max(self.paused_until, self.world.now + length)

    def _cut(self) -> None:
        self.cut_until = self.world.now + self.world.chance.uniform(0, 30)

    def _kill(self) -> None:
        """Its last requests may still be done, but not that which stores data (docs: a gap)."""
        self.world.dead.add(self.pid)
        self.generation += 1  # nothing of it goes on
        self.keeper = None
        self.world.at(self.world.chance.uniform(0, 5), self.start)

    # What a process does

    @property
    def may_write(self) -> bool:
        keeper = self.keeper
        return keeper is not None and keeper.lost is None and self.clock() < keeper.lock.deadline

    async def _live(self) -> None:
        chance = self.world.chance
        while True:
            # often all at the same moment
            herd = self.rate * (HERD_SECONDS - self.world.now % HERD_SECONDS)
            await self.sleep(chance.choice([0.0, herd, herd, 8.0]))
            lock = await self._acquire(Watch(self.store, self.timing), chance.random() < 0.9)
            if lock is not None:
                await self._hold(lock)

    async def _acquire(self, watch: Watch, asked: bool) -> Lock | None:
        over = NOBODY
        while True:
            mark = f"{self.host}:{self.pid}@{int(self.world.now * 1000)}"
            lock = Lock(self.store, mark, PACE, timing=self.timing)
            try:
                await lock.acquire(over)
            except Locked:
                over = NOBODY
            except StoreError:
                await self._release(lock)
                return None
            else:
                return lock
            try:
                left = await watch.look()
            except StoreError:
                return None
            seen = watch.seen
            if seen.client and not (asked and seen.renews):
                return None
            if not left:
                over = seen
            await self.sleep(min(left, 6.0))

    async def _hold(self, lock: Lock) -> None:
        chance, world = self.world.chance, self.world
        world.tenures += 1
        keeper = self.keeper = ModelKeeper(lock, self)
        world.check()
        renewals = self.spawn(keeper.keep())
        await self._read()
        for _ in range(chance.randrange(4)):
            if self.may_write and not await self._write():
                await self.sleep(PUT_SECONDS * (1 + DRIFT))  # it may come late
            await self.sleep(chance.choice(world.gaps))
            await self._read()
        renewals.end()
        self.keeper = None
        if keeper.lost is None:
            await self._release(lock)

    async def _release(self, lock: Lock) -> None:
        for _ in range(self.world.chance.randrange(1, 4)):
            try:
                await lock.release()
            except StoreError:
                await self.sleep(1.0)
            else:
                return

    async def _write(self) -> bool:
        world = self.world
        world.check()
        world.values += 1
        value = world.values
        world.legal.add(value)
        try:
            await self.store.put(PART, str(value).encode())
        except StoreError:
            return False
        if self.may_write:  # else it would not be acknowledged
            world.legal = {value}
        return True

    async def _read(self) -> None:
        try:
            blob = await self.store.get(PART, newest=True)
        except StoreError:
            return
        if self.may_write:
            assert blob is not None
            value = int(blob.data)
            legal = self.world.legal
            assert value in legal, f"{self.world.now:.1f} s: read {value}, legal: {legal}"
            self.world.legal = {value}

    # swiftnbd.export.lease.Suspendable

    def suspend(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def fail(self, reason: str) -> None:
        pass


class ModelKeeper(Keeper):
    """Has its belief checked whenever it grows."""

    def _renewed(self) -> None:
        super()._renewed()
        user = self._user
        assert isinstance(user, Machine)
        user.world.check()


class Task:
    """A coroutine of one process."""

    def __init__(self, machine: Machine, work: Coroutine[Arm, Any, None]) -> None:
        self.machine = machine
        self.generation = machine.generation
        self.work = work
        self.is_over = False

    def end(self) -> None:
        self.is_over = True
        self.work.close()

    def step(self, value: Any, error: BaseException | None) -> None:
        machine, world = self.machine, self.machine.world
        if self.is_over:
            return
        if self.generation != machine.generation:
            self.end()
        elif world.now < machine.paused_until:
            world.at(machine.paused_until - world.now, lambda: self.step(value, error))
        else:
            world.current = machine
            try:
                arm = self.work.send(value) if error is None else self.work.throw(error)
            except StopIteration:
                self.is_over = True
            else:
                arm(self.step)


@dataclass
class Request:
    """``look`` when it arrives, which may raise, and some time later ``do``: the answer."""

    do: Callable[[], Any]
    look: Callable[[], None] = field(default=lambda: None)
    stores_data: bool = False


class ModelStore(Store):
    """The container as one machine reaches it."""

    def __init__(self, machine: Machine) -> None:
        self.label = "model:disk"
        self.machine = machine
        self.world = machine.world

    def _send(self, request: Request) -> Awaitable[Any]:
        return Wait(lambda done: self._start(request, done))

    def _start(self, request: Request, done: Done) -> None:
        world, machine, generation = self.world, self.machine, self.machine.generation
        chance, troubles, sent = world.chance, machine.troubles, world.now
        answered = False

        def answer(result: Any, error: BaseException | None) -> None:
            nonlocal answered
            if not answered:
                answered = True
                machine.may_pause()
                done(result, error)

        def give_up() -> None:
            if not answered:
                answer(None, StoreUnavailable("model: no answer"))

        def is_lost() -> bool:
            lost = world.now < machine.cut_until or chance.random() < troubles.lost
            if lost and not is_slow:
                world.at(sent + REQUEST_SECONDS_MAX - world.now, give_up)
            return lost

        def delay() -> float:
            slowly = is_slow and chance.random() < 0.5
            return chance.uniform(0, DONE_SECONDS_MAX / 2 if slowly else 0.05)

        def arrive() -> None:
            try:
                request.look()
            except StoreError as error:
                reply(None, error)
            else:
                world.at(delay(), take_effect)

        def take_effect() -> None:
            if not request.stores_data or generation == machine.generation:
                reply(request.do(), None)

        def reply(result: Any, error: BaseException | None) -> None:
            if not is_lost():
                slow = chance.uniform(0, REQUEST_SECONDS_MAX) if is_slow else 0.02
                world.at(slow, lambda: answer(result, error))

        is_slow = chance.random() < troubles.slow
        if is_slow:  # others are answered in time, unless they are lost
            world.at(REQUEST_SECONDS_MAX, give_up)
        if not is_lost():
            world.at(delay(), arrive)

    # The store contract

    @property
    def _objects(self) -> dict[str, MemoryObject]:
        return self.world.container.objects

    async def get(self, name: str, **_: Any) -> Blob | None:
        def do() -> Blob | None:
            found = self._objects.get(name)
            return None if found is None else Blob(found.data, found.etag)

        answer: Blob | None = await self._send(Request(do))
        return answer

    async def head(self, name: str, *, newest: bool = False) -> ObjectInfo | None:
        def do() -> ObjectInfo | None:
            found = self._objects.get(name)
            return None if found is None else ObjectInfo(len(found.data), found.etag, found.token)

        answer: ObjectInfo | None = await self._send(Request(do))
        return answer

    async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
        body = bytes(data)
        etag = md5(body).hexdigest()

        def look() -> None:
            if if_absent and name in self._objects:
                raise ObjectExists("412")

        def do() -> str:
            self._objects[name] = MemoryObject(body, etag)
            return etag

        answer: str = await self._send(Request(do, look, stores_data=name == PART))
        return answer

    async def delete(self, name: str) -> bool:
        return bool(await self._send(Request(lambda: self._objects.pop(name, None))))

    async def renew(self, name: str, token: str) -> bool:
        def do() -> bool:
            if name in self._objects:
                self._objects[name].token = token
            return name in self._objects

        return bool(await self._send(Request(do)))

    async def listing(self, *, prefix: str = "", **_: Any) -> list[Listed]:
        names = await self._send(Request(lambda: sorted(self._objects)))
        return [Listed(name, 0) for name in names if name.startswith(prefix)]

    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        stale = self.machine.troubles.stale
        return ContainerInfo(await self._send(Request(lambda: self.world.read_metadata(stale))))

    async def set_metadata(self, changes: Mapping[str, str]) -> None:
        await self._send(Request(lambda: self.world.change_metadata(changes)))

    async def create_container(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError

    async def delete_container(self) -> NoReturn:
        raise NotImplementedError


class Processes:
    """Stands in for what `swiftnbd.export.process` finds out about the present machine."""

    def __init__(self) -> None:
        self.world: World | None = None

    def current(self) -> Process:
        assert self.world is not None
        machine = self.world.current
        assert machine is not None
        return Process(machine.host, "boot", "space", machine.pid, 1)

    def is_dead(self, process: Process) -> bool:
        assert self.world is not None
        machine = self.world.current
        assert machine is not None
        return process.host == machine.host and process.pid in self.world.dead


def explore(seed: int, processes: Processes) -> World:
    """Run one schedule. Raises AssertionError with what went wrong."""
    world = World(seed)
    processes.world = world
    try:
        world.run()
    finally:
        world.end()
    return world
