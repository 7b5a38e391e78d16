# SPDX-License-Identifier: MIT
"""Writing back: which objects have changed, and when each is stored.

An object is the unit: one upload of it is under way at a time and carries all that changed
before it began; what changes meanwhile is carried by the next one. ::

    (clean) --changed--> waiting --start--> uploading --ended, nothing new--> (clean)
                            ^                   |
                            +-- failed, or changed meanwhile

Every change of an object makes a new *generation*. ``attempted`` is the generation that the
last upload was about, ``stored`` the last one that is durable. Whoever waits for a change has a
`Demand` at its object, with its generation; an upload's end is told to those that it was about, if
it is a bad one only to those who came before it began, and the others wait for the next one.

Uploads start when somebody waits for them (`WriteBack.stored`), when too much is waiting, when
somebody waits for room, or when a change is old enough; the oldest first, a bounded number at a
time. Those who wait for uploads take turns, so that a write with FUA does not wait for the whole
flush before it. While a flush waits for its last uploads, what changed after it takes the room they
leave: whoever flushes will soon flush again. An object that somebody is just writing from end to
end is left alone as long as anything else makes room: stored half written it would be stored twice,
and fetched in between. After one has failed none starts by itself for a while: whoever asks is told
at once, and a store in trouble is left alone.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EIO
from math import inf

from swiftnbd.errors import ExportError, SwiftnbdError, afresh
from swiftnbd.export.block import Block, State
from swiftnbd.export.demand import Demand, Demands
from swiftnbd.export.gate import Gate
from swiftnbd.export.tasks import Tasks

# Objects that got a new block last: each of several writers (nbdcopy has four) fills one at a time.
FILLING_MAX = 8

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class DirtyObject:
    """Object ``index``: what of it has changed and is not stored yet.

    ``blocks`` are those with changes, by index. ``cleared`` is the generation at which all of
    it became zeros, or was known to be: until that is stored, what is not in a block is zero,
    whatever the store has. ``keep_zeros``: store it even if it is all zeros.
    ``begun``: which upload of all its last one was. ``deleted``: the upload that ends has left
    nothing in the store. ``aborted``: it was cut short: if it fails, that is nobody's error.
    ``not_before``: a time of the loop, after a failure; until then it is stored only if somebody
    asks: ``demands`` are those, with the generation that each waits for.
    """

    index: int
    since: float
    blocks: dict[int, Block] = field(default_factory=dict)
    generation: int = 1  # what it was before; the first change makes the second one
    attempted: int = 0
    stored: int = 0
    cleared: int = 0
    keep_zeros: bool = False
    deleted: bool = False
    aborted: bool = False
    begun: int = 0
    not_before: float = 0.0
    demands: dict[Demand, int] = field(default_factory=dict)
    upload: asyncio.Task[None] | None = None

    @property
    def lies_on_zeros(self) -> bool:
        """Whether what is not in a block is zero."""
        return self.cleared > self.stored

    @property
    def is_hole(self) -> bool:
        """Whether all of it is zeros because somebody said so."""
        return self.lies_on_zeros and all(block.is_hole for block in self.blocks.values())

    def is_whole(self, blocks: int) -> bool:
        """Whether all of its ``blocks`` have changed, every byte of them: nothing is to come."""
        return len(self.blocks) == blocks and all(
            block.known is None for block in self.blocks.values()
        )

    @property
    def is_cleared(self) -> bool:
        """Whether all of it has changed, also what is in no block."""
        return self.cleared > max(1, self.stored) or not self.blocks

    def begin_upload(self) -> list[Block]:
        """All changes so far are carried by the upload that begins; which blocks those are."""
        self.attempted = self.generation
        blocks = list(self.blocks.values())
        for block in blocks:
            block.begin_upload()
        return blocks


Change = tuple[DirtyObject, int]  # an object, and the generation that must become durable


class WriteBack:
    """The changed objects of one device, the oldest change first.

    ``upload`` stores one: it calls `DirtyObject.begin_upload` once it has all its bytes. ``limit``
    is the number of blocks, and of objects, that may be changed and not stored; from half of it
    on they are written back without waiting for their age, ``seconds``. ``per_object`` is the
    number of blocks of an object. ``on_stored`` is called when there may be room again,
    ``on_failed`` when there will be none for a while.
    """

    def __init__(
        self,
        upload: Callable[[DirtyObject], Coroutine[None, None, None]],
        tasks: Tasks,
        gate: Gate,
        *,
        limit: int,
        per_object: int,
        seconds: float,
        retry_seconds: float,
        at_once: int,
        settle: Callable[[Block], None],
        on_stored: Callable[[], None],
        on_failed: Callable[[SwiftnbdError], None],
    ) -> None:
        assert limit > 0
        self.objects: dict[int, DirtyObject] = {}
        self.blocks = 0  # of all of them
        self.limit = limit
        self._upload = upload
        self._tasks = tasks
        self._gate = gate
        self._background = limit // 2
        self._per_object = per_object
        self._seconds = seconds
        self._retry_seconds = retry_seconds
        self._at_once = at_once
        self._settle = settle
        self._on_stored = on_stored
        self._on_failed = on_failed
        self._waiting: dict[int, DirtyObject] = {}  # not uploading, the oldest change first
        self._demands = Demands()
        # The last is the latest. Not all that may be dirty: random writes fill nothing.
        filling = max(1, min(FILLING_MAX, limit // per_object // 2))
        self._filling: deque[int] = deque(maxlen=filling)
        self._uploading = 0
        self._begun = 0  # uploads, ever
        self._asked = 0  # uploads that somebody waits for, since one that nobody does had a turn
        self._failures = 0  # in a row
        self._not_before = 0.0  # time of the loop: none starts by itself until then
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = inf  # time of the loop, of that timer
        self._pressed = False
        self._flushes = 0  # under way

    @property
    def uploading(self) -> int:
        """How many objects are being stored."""
        return self._uploading

    @property
    def has_room(self) -> bool:
        """Whether one more block, in one more object, may change."""
        return self.blocks < self.limit and len(self.objects) < self.limit

    # Changes

    def touch(self, index: int, *, absent: bool) -> DirtyObject:
        """Object ``index`` has changed; ``absent``: the store has nothing of it, that is proven."""
        dirty = self.objects.get(index)
        if dirty is None:
            dirty = DirtyObject(index, asyncio.get_running_loop().time())
            dirty.cleared = 1 if absent else 0
            self.objects[index] = self._waiting[index] = dirty
            self._note_filling(index)
            if self.has_room:
                self._wake_at(max(dirty.since + self._seconds, self._not_before))
            else:
                self._pump()
        self.note_change(dirty)
        return dirty

    def note_change(self, dirty: DirtyObject) -> None:
        """An object that is here has changed, and now has another generation."""
        dirty.generation += 1
        self._demands.changed()

    def add(self, dirty: DirtyObject, block: Block) -> None:
        """A block of it has changed that had not before."""
        assert block.dirty
        dirty.blocks[block.index] = block
        self.blocks += 1
        self._note_filling(dirty.index)
        if self._pressed or self._flushes or self.blocks > self._background:
            self._pump()

    def _note_filling(self, index: int) -> None:
        if index in self._filling:
            self._filling.remove(index)
        self._filling.append(index)

    def press(self) -> None:
        """Somebody waits for room: store something."""
        self._pressed = True
        self._pump()

    def relax(self) -> None:
        """Nobody waits for room any more."""
        self._pressed = False

    # Storing

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """A flush is under way."""
        self._flushes += 1
        try:
            yield
        finally:
            self._flushes -= 1

    async def stored(self, changes: Iterable[Change]) -> None:
        """Return when all of these are durable.

        If some could not be stored, raise why once all others are. Each is tried after this was
        asked for: an upload that fails says nothing about a change that it did not carry, nor
        about the store if it began earlier. Then the next one is waited for.
        """
        await self._met(self._demands.add(changes, self._begun))

    async def all_stored(self) -> None:
        """The same for all that has changed so far."""
        came = self._begun
        while True:
            demand = self._demands.of_all(self.objects.values(), self._begun)
            try:
                return await self._met(demand)
            except SwiftnbdError:
                if demand.since >= came or self._gate.error is not None:
                    raise  # or it had tried before we came

    async def _met(self, demand: Demand) -> None:
        """Wait for it, with others or alone."""
        demand.waiting += 1
        try:
            self._gate.check()
            self._pump()
            await asyncio.shield(demand.ended)
        finally:
            demand.waiting -= 1
            if not demand.waiting:
                self._demands.drop(demand)
        if demand.error is not None:
            raise afresh(demand.error)

    def _pump(self) -> None:
        """Start what is due."""
        if not self._gate.is_open:
            return
        now = asyncio.get_running_loop().time()
        while self._uploading < self._at_once:
            each = self._next(now)
            if each is None:
                return
            self._start(each)

    def _next(self, now: float) -> DirtyObject | None:
        """What somebody waits for; what nobody does has a turn, too, if it is due by itself."""
        each = None
        if self._asked >= self._at_once and (self._pressed or self._is_late(now)):
            self._asked = 0
            each = self._due(now)
        if each is None and (each := self._demands.next()) is not None:
            self._asked += 1
        return each or self._due(now)

    def _is_late(self, now: float) -> bool:
        oldest = next(iter(self._waiting.values()), None)
        return oldest is not None and oldest.since + self._seconds <= now

    def _due(self, now: float) -> DirtyObject | None:
        """The oldest that should be stored now. If there is none, the timer is set."""
        needs_room = self._pressed or not self.has_room
        is_crowded = needs_room or self.blocks > self._background
        spared: list[DirtyObject] = []
        wake = inf
        for each in self._waiting.values():
            if each.not_before > now:
                wake = min(wake, each.not_before)
                continue
            hurries = is_crowded or (self._flushes > 0 and not each.not_before)
            is_spared = hurries and self._is_filling(each)
            age = each.since + self._seconds if is_spared or not hurries else 0.0
            begin = max(age, self._not_before)
            if begin <= now:
                return each
            wake = min(wake, begin)
            if is_spared:
                spared.append(each)
            elif hurries or not self._flushes:
                break  # the others are younger
        if spared and needs_room and not self._uploading and self._not_before <= now:
            return spared[0]
        self._wake_at(wake)
        return None

    def _is_filling(self, dirty: DirtyObject) -> bool:
        return dirty.index in self._filling and not dirty.is_whole(self._per_object)

    def _wake_at(self, when: float) -> None:
        if when >= self._wakes_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = when  # uvloop's timer does not know it if it is due at once
        self._timer = asyncio.get_running_loop().call_at(when, self._on_time)

    def _on_time(self) -> None:
        self._timer, self._wakes_at = None, inf
        self._pump()

    def _start(self, dirty: DirtyObject) -> None:
        del self._waiting[dirty.index]
        self._uploading += 1
        self._begun += 1
        dirty.attempted, dirty.aborted, dirty.begun = dirty.generation, False, self._begun
        dirty.upload = self._tasks.spawn(self._upload(dirty))
        dirty.upload.add_done_callback(lambda task: self._ended(dirty, task))

    def _ended(self, dirty: DirtyObject, task: asyncio.Task[None]) -> None:
        error = _failure(task)
        done = error is None
        dirty.upload = None
        self._uploading -= 1
        if done:
            dirty.stored, dirty.not_before = dirty.attempted, 0.0
            if dirty.deleted:  # what changed meanwhile lies on zeros, too
                dirty.cleared = max(dirty.cleared, dirty.stored + 1)
        dirty.deleted = False
        self._end_blocks(dirty, done=done)
        if dirty.stored == dirty.generation:
            del self.objects[dirty.index]
        else:
            dirty.since = asyncio.get_running_loop().time()
            self._waiting[dirty.index] = dirty
        if not dirty.aborted or done:
            self._demands.tell(dirty, error)
        self._demands.begin_again(dirty)
        if error is None:
            self._failures = 0
            self._on_stored()
        elif not dirty.aborted and not task.cancelled():
            self._put_off(dirty, error)
        self._pump()

    def _put_off(self, dirty: DirtyObject, error: SwiftnbdError) -> None:
        """One object failed: it waits. If that is all there is, or many do, all wait."""
        dirty.not_before = asyncio.get_running_loop().time() + self._retry_seconds
        self._failures += 1
        others = self._uploading or any(
            not each.not_before for each in self._waiting.values() if each is not dirty
        )
        if not others or self._failures >= self._at_once:
            self._not_before = dirty.not_before
            self._on_failed(error)

    def _end_blocks(self, dirty: DirtyObject, *, done: bool) -> None:
        for block in list(dirty.blocks.values()):
            if block.state is State.DIRTY:
                continue  # changed first while the others were uploading
            block.end_upload(done=done)
            if block.state is State.CLEAN:
                del dirty.blocks[block.index]
                self.blocks -= 1
                self._settle(block)

    # Life

    def abort(self) -> None:
        """Cut short what is under way; nothing starts while the gate is closed."""
        for dirty in self.objects.values():
            if dirty.upload is not None:
                dirty.aborted = True
                dirty.upload.cancel()

    def fail(self, error: SwiftnbdError) -> None:
        """Nothing will ever be stored again: the gate has failed. Whoever waits is told so."""
        self.abort()
        for dirty in self.objects.values():
            for demand in dirty.demands:
                demand.met(dirty, error)
            dirty.demands.clear()

    def resume(self) -> None:
        """The gate is open again."""
        self._not_before = 0.0
        self._pump()

    def close(self) -> None:
        """Nothing is left, and nothing will come."""
        assert not self.objects
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._wakes_at = None, inf


def _failure(task: asyncio.Task[None]) -> SwiftnbdError | None:
    """Why a task failed. What is no error of ours is a bug: it is logged."""
    if task.cancelled():
        return ExportError(EIO, "an upload was cut short")
    error = task.exception()
    if error is None or isinstance(error, SwiftnbdError):
        return error
    log.error("an upload failed", exc_info=error)
    return ExportError(EIO, f"an upload failed: {error!r}")
