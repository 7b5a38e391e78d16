# SPDX-License-Identifier: MIT
"""Hypothesis drives an export on a store that goes wrong, and an oracle checks every byte.

All of it runs in one event loop that moves only when a rule says so, so an example is repeated
exactly by its seed. Hanging calls wait for gates that rules open; no clock decides anything.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from swiftnbd.errors import StoreUnavailable, SwiftnbdError
from swiftnbd.export.disk import ObjectDevice
from swiftnbd.export.export import Client, Export
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.export.watch import break_lock, sight
from swiftnbd.store.memory import MemoryStore
from tests.model.oracle import TAGS_MAX, Oracle
from tests.support.disks import SIZE, TURNS, joined, name, turns
from tests.support.faulty import Call, Fault, Faulty, Gate, Script, failing, reply_lost, short_body

OBJECTS, CACHED = 6, 4
DISK = OBJECTS * SIZE
TURNS_MAX = 3000  # of the event loop, for what nothing holds up
AT_WORK_MAX = 8  # requests, before new ones wait for old ones
CLIENT = Client("peer", "client.example", 4242)

T = TypeVar("T")

# Close together, so that requests meet in one block and blocks are evicted all the same.
OFFSETS = st.builds(
    lambda index, start: index * SIZE + start,
    st.integers(0, OBJECTS - 1),
    st.sampled_from([0, 0, 0, 1, 200, SIZE - 1]),
)
LENGTHS = st.sampled_from([1, 200, SIZE - 1, SIZE, SIZE, SIZE + 1, 2 * SIZE, 3 * SIZE])
STEPS = st.sampled_from([0, 0, 0, 1, 2, 3, 5, 8, 20])  # turns of the loop before what is next
KINDS = st.sampled_from(["write"] * 4 + ["read"] * 3 + ["zero", "no_hole", "trim", "prefetch"])
FURTHER = st.sampled_from([0, 0, 0, SIZE])
BURSTS = st.lists(st.tuples(KINDS, FURTHER, LENGTHS, STEPS), min_size=2, max_size=8)
FAULTS = st.lists(
    st.tuples(
        st.sampled_from(["get", "put", "put", "delete"]),
        st.sampled_from(["fail", "lose reply", "hang", "hang after", "hang and fail", "short"]),
    ),
    max_size=4,
)
RULES_BETWEEN_CRASHES = 2  # often, for what is wrongly acknowledged may be mended a moment later
RULES_BETWEEN_RESTS = 6  # rules between two that bring everything to rest


@dataclass(eq=False)
class Pending:
    """A request at work, and what the oracle is to be told of its end."""

    task: asyncio.Task[Any]
    ended: Callable[[Any, bool], None]


class DiskMachine(RuleBasedStateMachine):
    """One disk through writes, errors, cancellations, crashes and new clients."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.loop.set_debug(False)  # it would take most of the time
        self.memory = MemoryStore("disk")
        self.oracle = Oracle(DISK)
        self.pending: list[Pending] = []
        self.gates: list[Gate] = []
        self.script = Script()
        self.tag = 0
        self.busy = 0  # rules since everything was at rest

    # Running

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What needs no gate: it ends within a number of turns, or it hangs."""
        return self.loop.run_until_complete(_within_turns(work))

    def go(self, steps: int) -> None:
        """Let the event loop turn, then tell the oracle what has ended."""
        self.run(turns(steps))
        for each in [each for each in self.pending if each.task.done()]:
            self.pending.remove(each)
            try:
                result, done = each.task.result(), True
            except (SwiftnbdError, asyncio.CancelledError):
                result, done = None, False
            each.ended(result, done)

    def begin(
        self,
        work: Callable[[ObjectDevice], Coroutine[Any, Any, Any]],
        ended: Callable[[Any, bool], None],
        steps: int,
    ) -> None:
        while len(self.pending) >= AT_WORK_MAX:
            self._open_gates()
            self.go(TURNS)
        self.pending.append(Pending(self.loop.create_task(work(self.device)), ended))
        self.go(steps)

    def _open_gates(self) -> None:
        for gate in self.gates:
            gate.open()
        self.gates.clear()

    def _finish(self) -> None:
        """Every request ends, whatever goes wrong; with the gates open none may hang."""
        for _ in range(40):
            self._open_gates()
            self.go(TURNS)
            if not self.pending:
                return
        raise AssertionError(f"requests hang: {self.pending}")

    def _plan(self, call: Call) -> Fault | None:
        return self.script(call) if call.name.startswith("disk.part/") else None

    # Life

    @initialize()
    def set_up(self) -> None:
        self.run(self.memory.create_container(setup_metadata(Geometry(OBJECTS, SIZE))))
        self._start()

    def _start(self) -> None:
        """A server starts on what is stored."""
        self.store = Faulty(self.memory, self._plan)
        self.export = Export("disk", self.store, cache_bytes=CACHED * SIZE)
        self.run(self.export.load())
        self._attach()

    def _attach(self) -> None:
        device = self.run(self.export.attach(CLIENT))
        assert isinstance(device, ObjectDevice)
        self.device = device

    def image(self) -> bytes:
        """The second witness: what is stored, read without any of the code under test."""
        objects = self.memory.account.containers["disk"].objects
        parts = [objects.get(name(index)) for index in range(OBJECTS)]
        assert all(part is None or len(part.data) == SIZE for part in parts)
        return b"".join(bytes(SIZE) if part is None else part.data for part in parts)

    # Requests

    @rule(faults=FAULTS, offset=OFFSETS, burst=BURSTS)
    def requests(
        self,
        faults: list[tuple[str, str]],
        offset: int,
        burst: list[tuple[str, int, int, int]],
    ) -> None:
        """Some at once, in one place, while the store does this and that."""
        self.busy += 1
        for op, kind in faults:
            self.script.on(op, self._fault(kind))
        for kind, further, length, steps in burst:
            start = min(offset + further, DISK - 1)
            self._request(kind, start, min(length, DISK - start), steps)

    def _request(self, kind: str, offset: int, length: int, steps: int) -> None:
        match kind:
            case "read":
                self._read(offset, length, steps)
            case "prefetch":
                self.begin(lambda device: device.prefetch(offset, length), _ignore, steps)
            case "write" if self.tag < TAGS_MAX:
                self.tag += 1
                self._change(kind, offset, length, self.tag, steps)
            case _:
                self._change(kind, offset, length, None, steps)

    def _change(self, kind: str, offset: int, length: int, tag: int | None, steps: int) -> None:
        change = self.oracle.begin_change(offset, offset + length, tag)
        end = self.oracle.end_change

        def work(device: ObjectDevice) -> Coroutine[Any, Any, None]:
            if tag is not None:
                return device.write(offset, change.data, fua=tag % 2 == 0)
            if kind == "trim":
                return device.trim(offset, length)
            return device.zero(offset, length, no_hole=kind == "no_hole")

        self.begin(work, lambda _, done: end(change, rules_out=done and kind != "trim"), steps)

    def _read(self, offset: int, length: int, steps: int) -> None:
        reading = self.oracle.begin_read(offset, offset + length)

        def ended(pieces: Sequence[bytes] | None, done: bool) -> None:
            self.oracle.end_read(reading, joined(pieces) if done and pieces else None)

        self.begin(lambda device: device.read(offset, length), ended, steps)

    @rule(look=st.booleans(), faults=FAULTS, steps=STEPS)
    def flush(self, look: bool, faults: list[tuple[str, str]], steps: int) -> None:
        self.busy += 1
        if look:  # what was seen must be there after the flush
            self._read(0, DISK, TURNS)
        for op, kind in faults:
            self.script.on(op, self._fault(kind))
        flushing = self.oracle.begin_flush()
        end = self.oracle.end_flush
        self.begin(lambda device: device.flush(), lambda _, done: end(flushing, done=done), steps)

    # Trouble

    def _fault(self, kind: str) -> Fault:
        gate = Gate()
        if kind.startswith("hang"):
            self.gates.append(gate)
        error = StoreUnavailable("faulty: late")
        return {
            "fail": failing(),
            "lose reply": reply_lost(),
            "hang": Fault(before=gate),
            "hang after": Fault(after=gate),
            "hang and fail": Fault(before=gate, error=error),
            "short": short_body(),
        }[kind]

    @rule(steps=st.integers(1, TURNS))
    def wait(self, steps: int) -> None:
        self.go(steps)

    @precondition(lambda self: self.gates)
    @rule(which=st.integers(0, 20), steps=STEPS)
    def open_gate(self, which: int, steps: int) -> None:
        self.gates.pop(which % len(self.gates)).open()
        self.go(steps)

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 20), steps=STEPS)
    def cancel(self, which: int, steps: int) -> None:
        """The client is gone."""
        self.pending[which % len(self.pending)].task.cancel()
        self.go(steps)

    @precondition(lambda self: self.busy >= RULES_BETWEEN_CRASHES)
    @rule()
    def crash(self) -> None:
        """Everything in memory is gone at once; calls that had no effect yet never have one."""
        self.busy = 0
        self._end_all_tasks()
        self.pending.clear()
        self.oracle.crash()
        self.oracle.see_both(self.image())
        self.run(_break_lock(self.memory))
        self._start()

    def _end_all_tasks(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.run(_gather(tasks))
        self.gates.clear()
        self.script.clear()

    @precondition(lambda self: self.busy >= RULES_BETWEEN_RESTS)
    @rule()
    def change_clients(self) -> None:
        """The last connection goes, and the next one comes: on what was kept, or anew."""
        self.busy = 0
        self._finish()
        self.script.clear()
        self._read(0, DISK, TURNS)
        self._finish()
        if self.tag % 2:
            self.script.on("put", failing())
        flushing = self.oracle.begin_flush()
        self.run(self.export.detach())
        done = self.export.device is None
        self.oracle.end_flush(flushing, done=done)
        if done:
            self.oracle.see_both(self.image())
        self.script.clear()
        self._attach()

    @precondition(lambda self: self.busy >= RULES_BETWEEN_RESTS)
    @rule()
    def check(self) -> None:
        """Nothing goes wrong any more: all is stored, readable, and nothing is left over."""
        self.busy = 0
        self._finish()
        self.script.clear()
        flushing = self.oracle.begin_flush()
        self.run(self.device.flush())
        self.oracle.end_flush(flushing, done=True)
        image = self.image()
        self.oracle.see_both(image)
        assert joined(self.run(self.device.read(0, DISK))) == image
        self.run(turns(TURNS))
        assert self.device.dirty_bytes == 0
        assert not self.device._tasks
        assert self.store.at_once == 0
        assert not [block for block in self.device._cache.blocks.values() if block.pins]

    @invariant()
    def cache_is_bounded(self) -> None:
        if self.memory.account.containers:
            assert self.device.cached_bytes <= CACHED * SIZE
            assert self.device.dirty_bytes <= self.device.cached_bytes

    def teardown(self) -> None:
        try:
            if self.memory.account.containers:
                self.check()
                self.run(self.export.detach())
                assert not self.export.attached
        finally:
            self._end_all_tasks()
            self.loop.close()


async def _break_lock(store: MemoryStore) -> None:
    """As ``swiftnbd-ctl unlock`` does; this very process made it, so it does not count as dead."""
    await break_lock(store, "unlock:1@1700000000", await sight(store))


def _ignore(result: object, done: bool) -> None:
    pass


async def _within_turns(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.get_running_loop().create_task(work)
    for _ in range(TURNS_MAX):
        if task.done():
            return task.result()
        await asyncio.sleep(0)
    task.cancel()
    raise AssertionError(f"hangs: {task}")


async def _gather(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
