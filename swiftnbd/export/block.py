# SPDX-License-Identifier: MIT
"""One cached object of a disk, and the states it goes through.

::

              fetch              fetched
    EMPTY ------------> FETCHING -------> CLEAN
     |  ^                 |   |             |
     |  +---- failed -----+   |             | write
     |                        | whole       |
     +--- whole write ------> + write       |
                              v             v   upload
                            DIRTY <---------+ --------> UPLOADING --stored--> CLEAN
                              ^ ^                        |    |
                              | +-------- failed --------+    | write
                              |                               v
                              +------ stored, failed ---- REDIRTIED

A block's bytes are replaced, never changed, once somebody else may look at them: a reply in
the transport's buffer, a PUT under way. `frozen` says so, and the next write copies first.

Every write makes a new *generation*. ``attempted`` is the generation that the last upload
carried, ``stored`` the last one that is durable; so whoever waits for a write knows whether an
upload's end, good or bad, was about it.
"""

import asyncio
import enum

from swiftnbd.store.base import Buffer

# A reply up to this size is copied: that costs less than freezing the block, which makes the
# next write copy all of it. (64 KiB memcpy: about 6 us.)
COPY_BYTES_MAX = 32 * 1024


class State(enum.Enum):
    """See the diagram above."""

    EMPTY = enum.auto()
    FETCHING = enum.auto()
    CLEAN = enum.auto()
    DIRTY = enum.auto()
    UPLOADING = enum.auto()
    REDIRTIED = enum.auto()


_MOVES = {
    (State.EMPTY, State.FETCHING),
    (State.EMPTY, State.DIRTY),
    (State.FETCHING, State.EMPTY),
    (State.FETCHING, State.CLEAN),
    (State.FETCHING, State.DIRTY),
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
    """The bytes of object ``index``, or a place for them.

    ``data`` is None until they are known. ``pins`` counts who relies on this very block staying
    in the cache; ``used`` is set by readers and cleared by eviction.
    """

    __slots__ = (
        "attempted",
        "data",
        "fetch",
        "frozen",
        "generation",
        "index",
        "keep_zeros",
        "pins",
        "state",
        "stored",
        "upload",
        "used",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.state = State.EMPTY
        self.data: bytes | bytearray | None = None
        self.frozen = False
        self.keep_zeros = False
        self.used = False
        self.pins = 0
        self.generation = 0
        self.attempted = 0
        self.stored = 0
        self.fetch: asyncio.Task[None] | None = None
        self.upload: asyncio.Task[None] | None = None

    def move(self, to: State) -> None:
        """Change state; an arrow that is not in the diagram is a bug."""
        assert (self.state, to) in _MOVES, f"block {self.index}: {self.state} -> {to}"
        self.state = to

    @property
    def dirty(self) -> bool:
        """Whether it holds bytes that are not durable."""
        return self.stored < self.generation

    def piece(self, start: int, end: int) -> Buffer:
        """Bytes ``[start, end)``, which will never change.

        A view is given only of at least half the block, so that a reply that waits for its
        client keeps no more than twice its own bytes alive after the block was evicted.
        """
        data = self.data
        assert data is not None
        length = end - start
        if length <= COPY_BYTES_MAX or 2 * length < len(data):
            return data[start:end]
        self.frozen = True
        return memoryview(data)[start:end]

    def fill(self, data: bytes) -> None:
        """The fetch is done."""
        assert self.state is State.FETCHING, f"block {self.index}: filled in {self.state}"
        self.move(State.CLEAN)
        self.data = data
        self.frozen = True  # bytes cannot be written to

    def write(self, start: int, data: Buffer) -> int:
        """Put ``data`` at ``start`` and return the new generation.

        Replaces the block if ``data`` covers it; otherwise its bytes must be known.
        """
        if self.data is None or (start == 0 and len(data) == len(self.data)):
            self.data = bytearray(data)
            self.frozen = False
        else:
            self._own()[start : start + len(data)] = data
        return self._changed(keep_zeros=False)

    def zero(self, start: int, end: int, *, keep_zeros: bool) -> int:
        """Put zeros at ``[start, end)``, a part of the block, and return the new generation."""
        self._own()[start:end] = bytes(end - start)
        return self._changed(keep_zeros=keep_zeros)

    def clear(self, zeros: bytes, *, keep_zeros: bool) -> int:
        """Replace all of it by ``zeros``, which is shared, and return the new generation."""
        self.data = zeros
        self.frozen = True
        return self._changed(keep_zeros=keep_zeros)

    def begin_upload(self) -> bytes | bytearray:
        """Freeze what is there now and return it, to be stored."""
        self.move(State.UPLOADING)
        self.attempted = self.generation
        self.frozen = True
        assert self.data is not None
        return self.data

    def end_upload(self, *, done: bool) -> None:
        """The upload that `begin_upload` began is durable, or failed."""
        assert self._uploading, f"block {self.index}: upload ends in {self.state}"
        if done:
            self.stored = self.attempted
        if self.state is State.UPLOADING and done:
            self.move(State.CLEAN)
        else:
            self.move(State.DIRTY)

    @property
    def _uploading(self) -> bool:
        return self.state in (State.UPLOADING, State.REDIRTIED)

    def _own(self) -> bytearray:
        if self.frozen:
            assert self.data is not None
            self.data = bytearray(self.data)
            self.frozen = False
        assert isinstance(self.data, bytearray)
        return self.data

    def _changed(self, *, keep_zeros: bool) -> int:
        self.move(State.REDIRTIED if self._uploading else State.DIRTY)
        self.keep_zeros = keep_zeros
        self.generation += 1
        return self.generation
