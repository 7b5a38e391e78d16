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
from swiftnbd.export.lock import break_lock
from swiftnbd.store.memory import MemoryStore
from tests.model.oracle import TAGS_MAX, Oracle
from tests.support.disks import SIZE, TURNS, joined, name, turns
from tests.support.faulty import Call, Fault, Faulty, Gate, Script, failing, reply_lost, short_body

OBJECTS = 8
DISK = OBJECTS * SIZE
TURNS_MAX = 3000  # of the event loop, for what nothing holds up
AT_WORK_MAX = 8  # requests, before new ones wait for old ones
CLIENT = Client("peer", "client.example", 4242)

T = TypeVar("T")

OFFSETS = st.builds(
    lambda index, start: index * SIZE + start,
    st.integers(0, OBJECTS - 1),
    st.sampled_from([0, 0, 0, 1, 200, SIZE - 1]),
)
LENGTHS = st.sampled_from([1, 7, 200, SIZE - 1, SIZE, SIZE, SIZE + 1, 2 * SIZE, 3 * SIZE])
STEPS = st.integers(0, 12)  # turns of the event loop before the next rule
FAULTS = st.sampled_from(["fail", "lose reply", "hang", "hang after", "hang and fail", "short"])


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
        self.memory = MemoryStore("disk")
        self.oracle = Oracle(DISK)
        self.pending: list[Pending] = []
        self.gates: list[Gate] = []
        self.script = Script()
        self.tag = 0
        self.capacity = 4

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

    @initialize(capacity=st.integers(4, 6))
    def set_up(self, capacity: int) -> None:
        self.capacity = capacity
        self.run(self.memory.create_container(setup_metadata(Geometry(OBJECTS, SIZE))))
        self._start()

    def _start(self) -> None:
        """A server starts on what is stored."""
        self.store = Faulty(self.memory, self._plan)
        self.export = Export("disk", self.store, cache_bytes=self.capacity * SIZE, settle_seconds=0)
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

    def _begin_change(
        self,
        work: Callable[[ObjectDevice], Coroutine[Any, Any, Any]],
        offset: int,
        length: int,
        tag: int | None,
        steps: int,
        *,
        rules_out: bool = True,
    ) -> None:
        change = self.oracle.begin_change(offset, offset + length, tag)
        end = self.oracle.end_change
        self.begin(work, lambda _, done: end(change, rules_out=done and rules_out), steps)

    @precondition(lambda self: self.tag < TAGS_MAX)
    @rule(offset=OFFSETS, length=LENGTHS, fua=st.booleans(), steps=STEPS)
    def write(self, offset: int, length: int, fua: bool, steps: int) -> None:
        self.tag += 1
        length = min(length, DISK - offset)
        change = self.oracle.begin_change(offset, offset + length, self.tag)
        data, end = change.data, self.oracle.end_change
        self.begin(
            lambda device: device.write(offset, data, fua=fua),
            lambda _, done: end(change, rules_out=done),
            steps,
        )

    @rule(offset=OFFSETS, length=LENGTHS, no_hole=st.booleans(), steps=STEPS)
    def zero(self, offset: int, length: int, no_hole: bool, steps: int) -> None:
        length = min(length, DISK - offset)
        self._begin_change(
            lambda device: device.zero(offset, length, no_hole=no_hole), offset, length, None, steps
        )

    @rule(offset=OFFSETS, length=LENGTHS, steps=STEPS)
    def trim(self, offset: int, length: int, steps: int) -> None:
        length = min(length, DISK - offset)
        self._begin_change(
            lambda device: device.trim(offset, length), offset, length, None, steps, rules_out=False
        )

    @rule(offset=OFFSETS, length=LENGTHS, steps=STEPS)
    def read(self, offset: int, length: int, steps: int) -> None:
        length = min(length, DISK - offset)
        reading = self.oracle.begin_read(offset, offset + length)

        def ended(pieces: Sequence[bytes] | None, done: bool) -> None:
            self.oracle.end_read(reading, joined(pieces) if done and pieces else None)

        self.begin(lambda device: device.read(offset, length), ended, steps)

    @rule(offset=OFFSETS, length=LENGTHS, steps=STEPS)
    def prefetch(self, offset: int, length: int, steps: int) -> None:
        length = min(length, DISK - offset)
        self.begin(lambda device: device.prefetch(offset, length), lambda _, done: None, steps)

    @rule(steps=STEPS)
    def flush(self, steps: int) -> None:
        flushing = self.oracle.begin_flush()
        end = self.oracle.end_flush
        self.begin(lambda device: device.flush(), lambda _, done: end(flushing, done=done), steps)

    # Trouble

    @rule(op=st.sampled_from(["get", "put", "put", "delete"]), kind=FAULTS, times=st.integers(1, 3))
    def fault(self, op: str, kind: str, times: int) -> None:
        for _ in range(times):
            self.script.on(op, self._fault(kind))

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

    @rule()
    def crash(self) -> None:
        """Everything in memory is gone at once; calls that had no effect yet never have one."""
        self._end_all_tasks()
        self.pending.clear()
        self.oracle.crash()
        self.oracle.see_both(self.image())
        metadata = self.memory.account.containers["disk"].metadata
        self.run(break_lock(self.memory, metadata["swiftnbd-client"]))
        self._start()

    def _end_all_tasks(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.run(_gather(tasks))
        self.gates.clear()
        self.script.clear()

    @rule()
    def change_clients(self) -> None:
        """The last connection goes, and the next one comes: on what was kept, or anew."""
        self._finish()
        self.script.clear()
        self._fail_some()
        flushing = self.oracle.begin_flush()
        self.run(self.export.detach())
        done = self.export.device is None
        self.oracle.end_flush(flushing, done=done)
        if done:
            self.oracle.see_both(self.image())
        self.script.clear()
        self._attach()

    def _fail_some(self) -> None:
        if self.tag % 2:
            self.script.on("put", failing())

    @rule()
    def check(self) -> None:
        """Nothing goes wrong any more: all is stored, readable, and nothing is left over."""
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
            assert self.device.cached_bytes <= self.capacity * SIZE
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
