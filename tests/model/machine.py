# SPDX-License-Identifier: MIT
"""Hypothesis drives an export on a store that goes wrong, and an oracle checks every byte.

All of it runs in one event loop that moves only when a rule says so, so an example is repeated
exactly by its seed. Hanging calls wait for gates that rules open; no clock decides anything.
"""

import asyncio
import math
import os
import random
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from swiftnbd.api.device import Extent
from swiftnbd.errors import StoreUnavailable, SwiftnbdError
from swiftnbd.export.disk import ObjectDevice
from swiftnbd.export.export import Client, Export
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.export.presence import State
from swiftnbd.export.settings import CacheMode, CacheSettings
from swiftnbd.export.watch import break_lock, sight
from swiftnbd.store.base import Buffer, Store
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from tests.model.oracle import TAGS_MAX, Change, Oracle
from tests.support.disks import SIZE, TURNS, joined, name, turns
from tests.support.faulty import (
    Call,
    Fault,
    Faulty,
    Gate,
    Script,
    failing,
    late,
    reply_lost,
    short_body,
)

OBJECTS, CACHED = 8, 4
UNIT = SIZE // 4  # of the cache, in some of the examples
CACHES = st.builds(
    CacheSettings,
    cache_bytes=st.just(CACHED * SIZE),
    mode=st.sampled_from([CacheMode.WRITEBACK] * 3 + [CacheMode.WRITETHROUGH]),
    block_bytes=st.sampled_from([None, UNIT]),
    dirty_bytes=st.sampled_from([None, SIZE, CACHED * SIZE]),
    dirty_seconds=st.sampled_from([0.0, math.inf]),  # by no clock
    retry_seconds=st.just(0.0),
    read_ahead_bytes=st.sampled_from([0, SIZE]),
    requests=st.sampled_from([2, 16]),
    reads_reserved=st.just(1),
)
DISK = OBJECTS * SIZE
LOCAL = 8192 + 5 * (SIZE + 256)  # bytes of a local disk: there is no room for all of it
SECTOR = 512
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
KINDS = st.sampled_from(
    ["write"] * 4
    + ["write fua"] * 2
    + ["read"] * 3
    + ["zero", "zero fua", "no_hole", "trim", "trim fua", "prefetch", "extents"]
)
FURTHER = st.sampled_from([0, 0, 0, 130, SIZE])
BURSTS = st.lists(st.tuples(KINDS, FURTHER, LENGTHS, STEPS), min_size=2, max_size=8)
TROUBLE = ["fail", "lose reply", "late", "hang", "hang after", "hang and fail"]
EXCUSES = {"fail", "lose reply", "late", "hang and fail", "short"}  # for a request that fails
FAULTS = st.lists(
    st.sampled_from(
        [("put", kind) for kind in TROUBLE]
        + [("delete", kind) for kind in TROUBLE]
        + [("get", kind) for kind in ("fail", "hang", "hang after", "short", "stale", "stale")]
    ),
    max_size=4,
)
CRASHES = st.sampled_from(["kill", "power cut", "power cut"])
RULES_BETWEEN_CRASHES = 2  # often, for what is wrongly acknowledged may be mended a moment later
RULES_BETWEEN_RESTS = 6  # rules between two that bring everything to rest


@dataclass(eq=False)
class Pending:
    """A request at work, and what the oracle is to be told of its end."""

    task: asyncio.Task[Any]
    ended: Callable[[Any, bool], None]
    only_reads: bool


class DiskMachine(RuleBasedStateMachine):
    """One disk through writes, errors, cancellations, crashes and new clients."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.loop.set_debug(False)  # it would take most of the time
        self.sound = self.sound_store()
        self.store = Faulty(self.sound, self._plan)
        self.is_set_up = False
        self.oracle = Oracle(DISK, UNIT)
        self.pending: list[Pending] = []
        self.gates: list[Gate] = []
        self.script = Script()
        self.tag = 0
        self.kept: dict[int, Change] = {}  # by the number of the object: see `_begin_keeping`
        self.busy = 0  # rules since everything was at rest
        self.suspended_at: int | None = None  # changes sent to the store when it was suspended
        self.folder: tempfile.TemporaryDirectory[str] | None = None  # of a disk cache
        self.synced = b""  # what a power cut leaves at least of its file
        self.failing: set[str] = set()  # what has gone wrong in the store since a rest

    # The store, and the second witness

    def sound_store(self) -> Store:
        """What the faulty one is built on, without a container."""
        self.account = MemoryAccount()
        return MemoryStore("disk", self.account)

    def stored(self) -> Mapping[str, bytes]:
        """All objects, read without any of the code under test."""
        objects = self.account.containers["disk"].objects
        return {key: each.data for key, each in objects.items()}

    # Running

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What needs no gate: it ends within a number of turns, or it hangs."""
        return self.loop.run_until_complete(_within_turns(work))

    def go(self, steps: int) -> None:
        """Let the event loop turn, then tell the oracle what has ended."""
        self.loop.run_until_complete(turns(steps))
        for each in [each for each in self.pending if each.task.done()]:
            self.pending.remove(each)
            try:
                result, done = each.task.result(), True
            except asyncio.CancelledError:
                result, done = None, False
            except SwiftnbdError as error:
                self._check_excused(each, error)
                result, done = None, False
            assert not (done and self.suspended_at is not None), "answered while suspended"
            each.ended(result, done)

    def _check_excused(self, request: Pending, error: SwiftnbdError) -> None:
        """Nothing fails that has no reason to; for a read, a change that failed is none."""
        excuses = {"get"} if request.only_reads else {"get", "put", "delete"}
        assert self.failing & excuses, f"nothing was wrong, and yet: {error}"

    def begin(
        self,
        work: Callable[[ObjectDevice], Coroutine[Any, Any, Any]],
        ended: Callable[[Any, bool], None],
        steps: int,
        *,
        only_reads: bool = False,
    ) -> None:
        if len(self.pending) >= AT_WORK_MAX:
            self._finish(at_work_max=AT_WORK_MAX - 1)
        task = self.loop.create_task(work(self.device))
        self.pending.append(Pending(task, ended, only_reads))
        self.go(steps)

    def _open_gates(self) -> None:
        for gate in self.gates:
            gate.open()
        self.gates.clear()

    def _finish(self, at_work_max: int = 0) -> None:
        """Every request ends, whatever goes wrong; with the gates open none may hang."""
        self._resume()
        for _ in range(40):
            self._open_gates()
            self.go(TURNS)
            if len(self.pending) <= at_work_max:
                return
        raise AssertionError(f"requests hang: {self.pending}")

    def _plan(self, call: Call) -> Fault | None:
        return self.script(call) if call.name.startswith("disk.part/") else None

    # Life

    @initialize(cache=CACHES, filled=st.booleans(), local=st.booleans())
    def set_up(self, cache: CacheSettings, filled: bool, local: bool) -> None:
        if local:
            self.folder = tempfile.TemporaryDirectory(dir=_memory())
            folder = Path(self.folder.name)
            cache = replace(cache, disk_directory=folder, disk_bytes=LOCAL)
        self.cache = cache
        self.writes_through = cache.mode is CacheMode.WRITETHROUGH
        self.run(self.sound.create_container(setup_metadata(Geometry(OBJECTS, SIZE))))
        self.is_set_up = True
        if filled:
            image = self.oracle.begin_change(0, DISK, 0)
            for index in range(OBJECTS):
                part = image.data[index * SIZE : (index + 1) * SIZE]
                self.run(self.store.put(name(index), part))
            self.oracle.end_change(image, rules_out=True, durable=True)
        self._start()

    def _start(self) -> None:
        """A server starts on what is stored."""
        self.lock_is_lost = False
        self.export = Export("disk", self.store, cache=self.cache)
        self.run(self.export.load())
        self._attach()

    def _attach(self) -> None:
        device = self.run(self.export.attach(CLIENT))
        assert isinstance(device, ObjectDevice)
        if self.folder is not None and getattr(self, "device", None) is not device:
            self.synced = self._local_file().read_bytes()
        self.device = device

    def _local_file(self) -> Path:
        assert self.folder is not None
        (path,) = Path(self.folder.name).iterdir()
        return path

    def _crash_local(self, how: str, seed: int) -> None:
        """What was written to the local disk and never synced may be there or not, by sectors."""
        cache = self.export._disk_cache
        assert cache is not None
        assert cache._file is not None
        cache._file.close()
        path, chance = self._local_file(), random.Random(seed)
        left = bytearray(path.read_bytes())
        for at in range(0, len(left), SECTOR):
            if how == "power cut" and chance.random() < 0.5:
                before = self.synced[at : at + SECTOR].ljust(SECTOR, b"\0")
                left[at : at + SECTOR] = before[: len(left) - at]
        path.write_bytes(left)

    def image(self) -> bytes:
        """What the second witness says is on the disk."""
        objects = self.stored()
        parts = [objects.get(name(index)) for index in range(OBJECTS)]
        assert all(part is None or len(part) == SIZE for part in parts)
        return b"".join(bytes(SIZE) if part is None else part for part in parts)

    # Requests

    @rule(faults=FAULTS, offset=OFFSETS, burst=BURSTS)
    def requests(
        self,
        faults: list[tuple[str, str]],
        offset: int,
        burst: list[tuple[str, int, int, int]],
    ) -> None:
        self._requests(faults, offset, burst)

    @rule(faults=FAULTS, offset=OFFSETS, burst=BURSTS)
    def more_requests(
        self,
        faults: list[tuple[str, str]],
        offset: int,
        burst: list[tuple[str, int, int, int]],
    ) -> None:
        self._requests(faults, offset, burst)  # as often as two rules

    def _requests(
        self,
        faults: list[tuple[str, str]],
        offset: int,
        burst: list[tuple[str, int, int, int]],
    ) -> None:
        """Some at once, in one place, while the store does this and that."""
        self.busy += 1
        for op, kind in faults:
            self.script.on(op, self._fault(op, kind))
        for kind, further, length, steps in burst:
            start = min(offset + further, DISK - 1)
            self._request(kind, start, min(length, DISK - start), steps)

    def _request(self, kind: str, offset: int, length: int, steps: int) -> None:
        what, _, flag = kind.partition(" ")
        match what:
            case "read":
                self._read(offset, length, steps)
            case "extents":
                self._extents(offset, length, steps)
            case "prefetch":
                work = lambda device: device.prefetch(offset, length)  # noqa: E731
                self.begin(work, _ignore, steps, only_reads=True)
            case "write" if self.tag < TAGS_MAX:
                self.tag += 1
                self._change(what, offset, length, self.tag, steps, fua=flag == "fua")
            case _:
                self._change(what, offset, length, None, steps, fua=flag == "fua")

    def _change(
        self, what: str, offset: int, length: int, tag: int | None, steps: int, *, fua: bool
    ) -> None:
        change = self.oracle.begin_change(offset, offset + length, tag)
        self._begin_keeping(change, keep=what == "no_hole")

        async def work(device: ObjectDevice) -> None:
            if what == "trim":
                await device.trim(offset, length, fua=fua)
            elif tag is None:
                await device.zero(offset, length, no_hole=what == "no_hole", fua=fua)
            elif fua or not device.write_now(offset, change.data):  # as a connection does it
                await device.write(offset, change.data, fua=fua)

        def ended(_: object, done: bool) -> None:
            if not done:
                self.kept = {index: each for index, each in self.kept.items() if each != change}
            self.oracle.end_change(
                change, rules_out=done and what != "trim", durable=fua or self.writes_through
            )

        self.begin(work, ended, steps)

    def _begin_keeping(self, change: Change, *, keep: bool) -> None:
        """Objects that must exist: zeroed with NO_HOLE last, which nothing else disturbed."""
        for index in range(change.start // SIZE, -(-change.end // SIZE)):
            self.kept.pop(index, None)
            start, end = index * SIZE, (index + 1) * SIZE
            alone = not any(x.overlaps(start, end) for x in self.oracle.running - {change})
            if keep and alone:
                self.kept[index] = change

    def _read(self, offset: int, length: int, steps: int) -> None:
        reading = self.oracle.begin_read(offset, offset + length)

        async def work(device: ObjectDevice) -> Sequence[Buffer]:
            pieces = device.read_now(offset, length)
            return await device.read(offset, length) if pieces is None else pieces

        def ended(pieces: Sequence[bytes] | None, done: bool) -> None:
            self.oracle.end_read(reading, [(offset, joined(pieces))] if pieces else [])

        self.begin(work, ended, steps, only_reads=True)

    def _extents(self, offset: int, length: int, steps: int) -> None:
        """What is said to be zeros has been read, and was zeros."""
        reading = self.oracle.begin_read(offset, offset + length)

        def ended(extents: Sequence[Extent] | None, done: bool) -> None:
            zeros, position = [], offset
            for each in extents or ():
                assert each.length > 0
                assert each.zero or not each.hole  # objects are whole, or not there
                if each.zero:
                    zeros.append((position, bytes(each.length)))
                position += each.length
            assert position <= offset + length
            self.oracle.end_read(reading, zeros)

        count = 1 + offset % 3
        self.begin(
            lambda device: device.extents(offset, length, count=count),
            ended,
            steps,
            only_reads=True,
        )

    @precondition(lambda self: self.suspended_at is None)
    @rule(
        index=st.integers(0, OBJECTS - 1),
        change=st.sampled_from(["write fua", "zero fua"]),
        steps=STEPS,
    )
    def change_overtakes_read(self, index: int, change: str, steps: int) -> None:
        """The answer to the read was given before, and arrives afterwards."""
        gate = Gate()
        self.script.on("get", Fault(after=gate), name=name(index))
        self._request("read", index * SIZE, 1, TURNS)
        self._request(change, index * SIZE, SIZE, TURNS)
        gate.open()
        self.go(steps)

    @precondition(lambda self: self.suspended_at is None)
    @rule(index=st.integers(0, OBJECTS - 1), change=st.sampled_from(["write fua", "zero fua"]))
    def late_change_lands_between_two_reads(self, index: int, change: str) -> None:
        """Of other blocks of the object."""
        for op in ("put", "delete"):
            self.script.on(op, self._fault(op, "late"), name=name(index))
        self._request(change, index * SIZE, UNIT, TURNS)
        self._request("read", index * SIZE + UNIT, 1, TURNS)
        self.run(self.store.land())
        self._request("read", index * SIZE + 2 * UNIT, 1, TURNS)

    @rule(
        faults=FAULTS,
        start=st.integers(0, DISK // UNIT - 6),
        count=st.integers(3, 6),
        changes=st.sampled_from([0, 0, 1, 3]),
        steps=STEPS,
    )
    def read_on(
        self, faults: list[tuple[str, str]], start: int, count: int, changes: int, steps: int
    ) -> None:
        """One after the other, as read-ahead likes it; what comes next is written to meanwhile."""
        self.busy += 1
        for op, kind in faults:
            self.script.on(op, self._fault(op, kind))
        for number in range(start, start + count):
            self._request("read", number * UNIT, UNIT, steps)
        for number in range(start + count, min(start + count + changes, DISK // UNIT)):
            self._request("write fua", number * UNIT + 1, 7, 0)

    @rule(look=st.booleans(), faults=FAULTS, steps=STEPS)
    def flush(self, look: bool, faults: list[tuple[str, str]], steps: int) -> None:
        self.busy += 1
        if look:  # what was seen must be there after the flush
            self._read(0, DISK, TURNS)
        for op, kind in faults:
            self.script.on(op, self._fault(op, kind))
        flushing = self.oracle.begin_flush()
        end = self.oracle.end_flush
        self.begin(lambda device: device.flush(), lambda _, done: end(flushing, done=done), steps)

    # Trouble

    def _fault(self, op: str, kind: str) -> Fault:
        if kind in EXCUSES:
            self.failing.add(op)
        gate = Gate()
        if kind.startswith("hang"):
            self.gates.append(gate)
        error = StoreUnavailable("faulty: late")
        return {
            "fail": failing(),
            "lose reply": reply_lost(),
            "late": late(),
            "hang": Fault(before=gate),
            "hang after": Fault(after=gate),
            "hang and fail": Fault(before=gate, error=error),
            "short": short_body(),
            "stale": Fault(stale=True),
        }[kind]

    @precondition(lambda self: self.suspended_at is None and self.busy >= RULES_BETWEEN_CRASHES)
    @rule(
        index=st.integers(0, OBJECTS - 1),
        changes=st.lists(st.sampled_from(["write", "zero", "trim"]), min_size=1, max_size=3),
        early=st.booleans(),
        how=CRASHES,
        seed=st.integers(0, 2**32),
    )
    def change_during_an_upload(
        self, index: int, changes: list[str], early: bool, how: str, seed: int
    ) -> None:
        """Of what is being stored: neither may be lost when a flush has promised both.

        ``early``: that flush comes before the first one ends, and only this one's upload does.
        """
        self._finish()
        self._nothing_goes_wrong()
        gate = Gate()
        self.script.on("put", Fault(before=gate), name=name(index))
        self._request("write", index * SIZE, SIZE, 0)
        self.flush(look=False, faults=[], steps=TURNS)
        if early:
            for op in ("put", "delete"):
                self.script.on(op, Fault(before=Gate()), name=name(index))
        for change in changes:
            whole = early and change == "zero"
            start, length = (0, SIZE) if whole else (1, 200)
            self._request(change, index * SIZE + start, length, TURNS)
        if early:
            self.flush(look=False, faults=[], steps=TURNS)
        gate.open()
        self.go(TURNS)
        if not early:
            self.flush(look=True, faults=[], steps=TURNS)
        self._crash(lock_is_lost=False, how=how, seed=seed)

    @precondition(lambda self: self.suspended_at is None and self.busy >= RULES_BETWEEN_CRASHES)
    @rule(
        index=st.integers(0, OBJECTS - 2),
        promise=st.sampled_from(["write fua", "zero fua", "flush"]),
        faults=st.lists(st.sampled_from(["fail", "lose reply", "hang"]), min_size=1, max_size=2),
        how=CRASHES,
        seed=st.integers(0, 2**32),
    )
    def crash_after_a_promise(
        self, index: int, promise: str, faults: list[str], how: str, seed: int
    ) -> None:
        """Two objects are to be stored, one of them is not, and no time is left to mend it."""
        self._finish()
        self._nothing_goes_wrong()
        start = index * SIZE + 1
        for number, kind in enumerate(faults):
            for op in ("put", "delete"):
                self.script.on(op, self._fault(op, kind), name=name(index + number))
        if promise == "flush":
            self._request("write", start, SIZE, 0)
            self.flush(look=False, faults=[], steps=TURNS)
        else:
            self._request(promise, start, SIZE, TURNS)
        self._crash(lock_is_lost=False, how=how, seed=seed)

    @rule(steps=st.integers(1, TURNS))
    def wait(self, steps: int) -> None:
        self.go(steps)

    @precondition(lambda self: self.gates)
    @rule(which=st.integers(0, 20), steps=STEPS)
    def open_gate(self, which: int, steps: int) -> None:
        self.gates.pop(which % len(self.gates)).open()
        self.go(steps)

    @precondition(lambda self: self.store.late)
    @rule(steps=STEPS)
    def land(self, steps: int) -> None:
        """Changes that were given up are made after all."""
        self.run(self.store.land())
        self.go(steps)

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 20), steps=STEPS)
    def cancel(self, which: int, steps: int) -> None:
        """The client is gone."""
        self.pending[which % len(self.pending)].task.cancel()
        self.go(steps)

    @precondition(lambda self: self.suspended_at is None and self.busy % 3 == 1)
    @rule(steps=STEPS)
    def suspend(self, steps: int) -> None:
        """The lock may be lost: nothing is answered, and no change is sent to the store."""
        self.go(0)
        self.device.suspend()
        self.suspended_at = self._changes_sent()
        self.go(steps)

    @precondition(lambda self: self.suspended_at is not None)
    @rule(steps=STEPS)
    def resume(self, steps: int) -> None:
        self._resume()
        self.go(steps)

    def _resume(self) -> None:
        if self.suspended_at is not None:
            assert self._changes_sent() == self.suspended_at, "stored while suspended"
            self.suspended_at = None
            self.run(_called(self.device.resume))

    def _changes_sent(self) -> int:
        return self.store.count("put") + self.store.count("delete")

    @precondition(lambda self: self.busy >= RULES_BETWEEN_CRASHES)
    @rule(lock_is_lost=st.booleans(), how=CRASHES, seed=st.integers(0, 2**32))
    def crash(self, lock_is_lost: bool, how: str, seed: int) -> None:
        """Everything in memory is gone at once; calls that had no effect yet never have one."""
        self._crash(lock_is_lost, how, seed)

    def _crash(self, lock_is_lost: bool, how: str, seed: int) -> None:
        self.busy = 0
        if lock_is_lost:
            self._lose_lock()
        self._end_all_tasks()
        if self.folder is not None:
            self._crash_local(how, seed)
        self.pending.clear()
        self.oracle.crash()
        self.kept.clear()
        self.oracle.see_both(self.image())
        self.run(_break_lock(self.sound))
        self._start()

    def _lose_lock(self) -> None:
        """Whoever waits is told so, and nothing is stored any more."""
        self.go(0)
        self.failing |= {"get", "put", "delete"}
        self.device.fail("the lock is lost")
        self.lock_is_lost = True
        sent, self.suspended_at = self._changes_sent(), 0
        self._open_gates()
        self.go(TURNS)
        assert not self.pending
        assert self._changes_sent() == sent, "stored without the lock"

    def _end_all_tasks(self) -> None:
        self.suspended_at = None
        self.device.suspend()  # so that nothing new begins
        tasks = sorted(asyncio.all_tasks(self.loop), key=_number)
        for task in tasks:
            task.cancel()
        self.run(_gather(tasks))
        self.gates.clear()
        self._nothing_goes_wrong()
        self.store.forget_late()

    def _nothing_goes_wrong(self) -> None:
        """At rest."""
        self.script.clear()
        self.failing.clear()

    @precondition(lambda self: self.busy >= RULES_BETWEEN_RESTS)
    @rule()
    def change_clients(self) -> None:
        """The last connection goes, and the next one comes: on what was kept, or anew."""
        self.busy = 0
        self._finish()
        self._nothing_goes_wrong()
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
        else:
            self._check_dirty_ranges()
        self._nothing_goes_wrong()
        self._attach()

    def _check_dirty_ranges(self) -> None:
        """What is lost if the server ends now is said to be dirty, every byte of it."""
        image = bytearray(self.image())
        for start, end in self.device.dirty_ranges():
            image[start:end] = joined(self.run(self.device.read(start, end - start)))
        assert bytes(image) == joined(self.run(self.device.read(0, DISK)))

    @precondition(lambda self: self.busy >= RULES_BETWEEN_RESTS)
    @rule()
    def check(self) -> None:
        """Nothing goes wrong any more: all is stored, readable, and nothing is left over."""
        self.busy = 0
        self._finish()
        self._nothing_goes_wrong()
        flushing = self.oracle.begin_flush()
        self.run(self.device.flush())
        self.oracle.end_flush(flushing, done=True)
        image = self.image()
        self.oracle.see_both(image)
        assert joined(self.run(self.device.read(0, DISK))) == image
        stored = self.stored()
        assert all(name(index) in stored for index in self.kept)
        self.run(turns(TURNS))
        assert self.device.dirty_bytes == 0
        assert not self.device._disk.tasks
        assert self.store.at_once == 0
        assert not [block for block in self.device._disk.cache.blocks.values() if block.pins]

    @invariant()
    def cache_is_bounded(self) -> None:
        if self.is_set_up:
            assert self.device.cached_bytes <= CACHED * SIZE

    @invariant()
    def presence_is_right(self) -> None:
        """But for objects that are being changed, of which it may be right."""
        if self.is_set_up:
            stored = self.stored()
            objects = self.device._disk.objects
            for index in range(OBJECTS):
                state = objects.presence.get(index)
                if state is not State.UNKNOWN and index not in objects._changing:
                    is_there = name(index) in stored
                    assert state is (State.PRESENT if is_there else State.ABSENT), index

    def teardown(self) -> None:
        try:
            if self.is_set_up and not self.lock_is_lost:
                self.change_clients()
                self.check()
                self.run(self.export.detach())
                assert not self.export.attached
        finally:
            if self.is_set_up:  # else hypothesis gave up before `set_up`
                self._end_all_tasks()
            self.loop.close()
            if self.folder is not None:
                self.folder.cleanup()


async def _break_lock(store: Store) -> None:
    """As ``swiftnbd-ctl unlock`` does; this very process made it, so it does not count as dead."""
    await break_lock(store, "unlock:1@1700000000", await sight(store))


def _memory() -> str | None:
    """Where syncing a file takes no time."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _ignore(result: object, done: bool) -> None:
    pass


async def _called(work: Callable[[], None]) -> None:
    """For what needs a running loop."""
    work()


async def _within_turns(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.get_running_loop().create_task(work)
    for _ in range(TURNS_MAX):
        if task.done():
            return task.result()
        await asyncio.sleep(0)
    task.cancel()
    raise AssertionError(f"hangs: {task}")


def _number(task: asyncio.Task[Any]) -> int:
    """In which order they were made: a set of them has another one each time."""
    return int(task.get_name().removeprefix("Task-"))


async def _gather(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
