# SPDX-License-Identifier: MIT
"""One cached block of a disk: which of its bytes are known, and whether they are durable.

::

              filled                 write                begin_upload
    EMPTY --------------> CLEAN --------------> DIRTY ------------------> UPLOADING
      |                     ^                   ^ ^ ^                      |  |   |
      +------- write -------|-------------------+ | +------ failed --------+  |   | write
                            |                     |                           |   v
                            +---------------------|----------- stored --------+  REDIRTIED
                                                  +-------- stored, failed ---------+

A write needs no fetch: `Block.known` tells which bytes are current, None meaning all of them.
What the store has fills only the gaps. An EMPTY block knows nothing, a CLEAN one everything, a
DIRTY one at least what was written; before it is UPLOADING the gaps are filled.

A block's bytes are replaced, never changed, once somebody else may look at them: a reply in
the transport's buffer, a PUT under way. ``frozen`` says so, and the next write copies first.
"""

import asyncio
import enum

from swiftnbd.buffers import hole, is_hole
from swiftnbd.export import ranges
from swiftnbd.export.eviction import Queue
from swiftnbd.export.ranges import Ranges
from swiftnbd.store.base import Buffer

# A reply up to this size is copied: that costs less than freezing the block, which makes the
# next write copy all of it. (64 KiB memcpy: about 6 us.)
COPY_BYTES_MAX = 32 * 1024
RANGES_MAX = 64  # known pieces of one block; one more, and the gaps are worth a fetch


class State(enum.Enum):
    """See the diagram above."""

    EMPTY = enum.auto()
    CLEAN = enum.auto()
    DIRTY = enum.auto()
    UPLOADING = enum.auto()
    REDIRTIED = enum.auto()


_MOVES = {
    (State.EMPTY, State.CLEAN),
    (State.EMPTY, State.DIRTY),
    (State.CLEAN, State.DIRTY),
    (State.DIRTY, State.DIRTY),
    (State.DIRTY, State.UPLOADING),
    (State.UPLOADING, State.CLEAN),
    (State.UPLOADING, State.DIRTY),
    (State.UPLOADING, State.REDIRTIED),
    (State.REDIRTIED, State.REDIRTIED),
    (State.REDIRTIED, State.DIRTY),
}


class Block:
    """The bytes ``[index * size, (index + 1) * size)`` of a disk, or a place for them.

    ``pins`` counts who relies on this very block staying in the cache; ``used`` is set by
    readers and looked at by eviction, ``queue`` is eviction's own; ``fetch`` is the task
    that brings its bytes, if one runs, ``wanted`` says that somebody waits for it.
    """

    __slots__ = (
        "_data",
        "fetch",
        "frozen",
        "index",
        "known",
        "pins",
        "queue",
        "size",
        "state",
        "used",
        "wanted",
    )

    def __init__(self, index: int, size: int) -> None:
        self.index = index
        self.size = size
        self.state = State.EMPTY
        self.known: Ranges | None = []
        self.frozen = False
        self.used = False
        self.queue = Queue.NEW
        self.pins = 0
        self.fetch: asyncio.Task[None] | None = None
        self.wanted = False
        self._data: Buffer = b""

    def move(self, to: State) -> None:
        """Change state; an arrow that is not in the diagram is a bug."""
        assert (self.state, to) in _MOVES, f"block {self.index}: {self.state} -> {to}"
        self.state = to

    @property
    def dirty(self) -> bool:
        """Whether it holds bytes that are not durable."""
        return self.state not in (State.EMPTY, State.CLEAN)

    @property
    def is_hole(self) -> bool:
        """Whether it is known to be zeros because somebody said so, not by looking."""
        return self.known is None and is_hole(self._data)

    def has(self, start: int, end: int) -> bool:
        """Whether bytes ``[start, end)`` are known."""
        return self.known is None or ranges.covers(self.known, start, end)

    @property
    def data(self) -> Buffer:
        """All its bytes, which must be known."""
        assert self.known is None
        return self._data

    def hold(self) -> Buffer:
        """All its bytes, which must be known, and which will never change."""
        self.frozen = True
        return self.data

    def piece(self, start: int, end: int) -> Buffer:
        """Bytes ``[start, end)``, which must be known, and which will never change.

        A view is given only of at least half the block, so that a reply that waits for its
        client keeps no more than twice its own bytes alive after the block was evicted.
        """
        data = self._data
        length = end - start
        if length <= COPY_BYTES_MAX or 2 * length < self.size:
            return data[start:end]
        self.frozen = True
        return memoryview(data)[start:end]

    # Knowing

    def fill(self, data: Buffer) -> None:
        """The store's bytes have come (or zeros, where it has none): they go into the gaps."""
        assert len(data) == self.size
        if self.known is None or self.unmark():
            return
        if not self.known:
            self._data = data
            self.frozen = True  # whoever gave them may have given them to others too
        else:
            own, view = self._own(), memoryview(data)
            for start, end in ranges.gaps(self.known, self.size):
                own[start:end] = view[start:end]
        self.known = None
        if self.state is State.EMPTY:
            self.move(State.CLEAN)

    def mark(self) -> None:
        """Let the next read take the slow way, where read-ahead sees it; see `unmark`."""
        assert self.state is State.CLEAN
        self.known = [(0, self.size)]

    def unmark(self) -> bool:
        """Undo `mark`; whether there was something to undo."""
        if self.known == [(0, self.size)]:
            self.known = None
            return True
        return False

    # Changing

    def takes(self, start: int, end: int) -> bool:
        """Whether a write there leaves it with a sensible number of gaps."""
        return self.known is None or len(self.known) < RANGES_MAX or self.has(start, end)

    def write(self, start: int, data: Buffer) -> None:
        """Copy ``data`` to ``start``."""
        length = len(data)
        if length == self.size:
            self._data = bytearray(data)
            self.frozen = False
            self.known = None
        else:
            self._own()[start : start + length] = data
            self._learn(start, start + length)
        self._changed()

    def overwrite(self, start: int, data: Buffer) -> bool:
        """`write` once more into a block that has changed already, if all of it is known.

        False: nothing happened. This is the path of most small writes, so it is short.
        """
        if self.known is not None or not (
            self.state is State.DIRTY or self.state is State.REDIRTIED
        ):
            return False
        if self.frozen:
            self._own()
        self._data[start : start + len(data)] = data  # type: ignore[index]  # ours: a bytearray
        return True

    def zero(self, start: int, end: int) -> None:
        """Put zeros at ``[start, end)``."""
        if end - start == self.size:
            self._data = hole(self.size)
            self.frozen = True
            self.known = None
        else:
            self._own()[start:end] = bytes(end - start)
            self._learn(start, end)
        self._changed()

    def begin_upload(self) -> Buffer:
        """Freeze what is there now, all of it known, and return it, to be stored."""
        self.move(State.UPLOADING)
        return self.hold()

    def end_upload(self, *, done: bool) -> None:
        """The upload that `begin_upload` began is durable, or failed."""
        assert self.state in (State.UPLOADING, State.REDIRTIED)
        self.move(State.CLEAN if done and self.state is State.UPLOADING else State.DIRTY)

    def _own(self) -> bytearray:
        if self.known == [] or is_hole(self._data):
            self._data = bytearray(self.size)
        elif self.frozen:
            self._data = bytearray(self._data)
        self.frozen = False
        assert isinstance(self._data, bytearray)
        return self._data

    def _learn(self, start: int, end: int) -> None:
        if self.known is not None:
            ranges.add(self.known, start, end)
            if self.known == [(0, self.size)]:
                self.known = None

    def _changed(self) -> None:
        uploading = self.state in (State.UPLOADING, State.REDIRTIED)
        self.move(State.REDIRTIED if uploading else State.DIRTY)
