# SPDX-License-Identifier: MIT
"""Bringing a disk to the content of an image, by as few requests as can be trusted.

For each object of the disk, in order::

    in the image   in the container                        done
    ------------   -------------------------------------   ------------------------------
    data           listed with that content, and a HEAD    nothing
                   of the newest version confirms it
                   anything else                           PUT, confirmed by its ETag
    zeros          absent, with proof                      nothing
                   anything else                           DELETE, confirmed or proven 404

So an upload that was interrupted, by a SIGKILL too, goes on where it was, and one over an older
version of the same image sends what has changed. The listing only says where a HEAD is worth it.

While it is under way a record says so (`swiftnbd.cli.unfinished`).
"""

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

from swiftnbd.cli.common import IN_FLIGHT_MAX, objects_in_flight
from swiftnbd.cli.parallel import for_each_of
from swiftnbd.cli.sizes import exact_size
from swiftnbd.cli.source import Source, Span
from swiftnbd.errors import SwiftnbdError
from swiftnbd.export.layout import PART_PREFIX, Geometry, object_name
from swiftnbd.export.objects import DiskObjects
from swiftnbd.export.presence import State
from swiftnbd.export.slots import Slots
from swiftnbd.metrics import Counters
from swiftnbd.store.base import Buffer, Listed, Store
from swiftnbd.store.hashing import md5_of


@dataclass(slots=True)
class Tally:
    """Objects, by what was done for them."""

    sent: int = 0
    already_there: int = 0
    deleted: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """One object that may need something done. ``data`` None: it is to read as zeros."""

    index: int
    data: memoryview | None
    listed: Listed | None


async def recalled(store: Store, geometry: Geometry, binding: str) -> DiskObjects:
    """The disk's objects, with what the last holder knew of them if its map can be trusted."""
    objects = DiskObjects(store, geometry, Slots(IN_FLIGHT_MAX, 0), Counters())
    if binding:
        await objects.recall(binding)
    return objects


class Upload:
    """``source`` into the disk whose objects are ``objects``. ``advance`` is told bytes."""

    def __init__(
        self,
        store: Store,
        objects: DiskObjects,
        source: Source,
        advance: Callable[[int], None],
    ) -> None:
        self.tally = Tally()
        self._store = store
        self._objects = objects
        self._source = source
        self._advance = advance
        self._zeros = bytes(objects.size)

    async def run(self) -> None:
        """Return when the disk is the image, and zeros behind it, durably."""
        in_flight = objects_in_flight(self._objects.size)
        await for_each_of(self._pieces(), self._bring, in_flight=in_flight)
        self._source.check_unchanged()

    async def _pieces(self) -> AsyncIterator[Piece]:
        """What needs work, in order; what is known to be right already is passed over."""
        hints = _Hints(self._store, self._objects)
        end = 0
        async for span in self._source.spans(self._objects.size):
            self._check_fits(span)
            async for piece in self._pieces_of(span, hints):
                yield piece
            end = span.end
        if end < self._objects.presence.objects:
            rest = Span(end, self._objects.presence.objects, None)
            async for piece in self._pieces_of(rest, hints):
                yield piece

    async def _pieces_of(self, span: Span, hints: "_Hints") -> AsyncIterator[Piece]:
        if span.data is None:
            at = span.first
            for count, state in self._objects.presence.runs(span.first, span.end):
                if state is State.ABSENT:
                    self._advance(count * self._objects.size)
                else:
                    for index in range(at, at + count):
                        yield Piece(index, None, None)
                at += count
            return
        size = self._objects.size
        for index in range(span.first, span.end):
            start = (index - span.first) * size
            data = span.data[start : start + size]
            if data != self._zeros:
                yield Piece(index, data, await hints.of(index))
            elif self._objects.is_absent(index):
                self._advance(size)
            else:
                yield Piece(index, None, None)

    async def _bring(self, piece: Piece) -> None:
        """See to it that one object is as it should be."""
        if piece.data is None:
            await self._objects.delete(piece.index)
            self.tally.deleted += 1
        elif await self._is_there(piece.index, piece.data, piece.listed):
            self._objects.presence.set(piece.index, State.PRESENT)
            self.tally.already_there += 1
        else:
            await self._objects.put(piece.index, piece.data)
            self.tally.sent += 1
            self.tally.sent_bytes += len(piece.data)
        self._advance(self._objects.size)

    async def _is_there(self, index: int, data: Buffer, listed: Listed | None) -> bool:
        """Whether the newest version of the object is ``data``, as a HEAD of it says."""
        if listed is None or listed.size != len(data):
            return False
        etag = await md5_of(data)
        if listed.etag not in ("", etag):
            return False
        found = await self._store.head(object_name(index), newest=True)
        return found is not None and (found.size, found.etag) == (len(data), etag)

    def _check_fits(self, span: Span) -> None:
        if span.end > self._objects.presence.objects:
            size = self._objects.presence.objects * self._objects.size
            raise SwiftnbdError(
                f"{self._source.name} does not fit on the disk of {exact_size(size)}"
            )


class _Hints:
    """What a listing says of the objects, asked for in their order, a page at a time."""

    def __init__(self, store: Store, objects: DiskObjects) -> None:
        self._store = store
        self._objects = objects
        self._page: dict[str, Listed] = {}
        self._last = PART_PREFIX  # nothing is known of what comes after this name
        self._ended = False

    async def of(self, index: int) -> Listed | None:
        """The row of one object, later than those that were asked for before; None: no hint."""
        if self._objects.is_absent(index):
            return None
        name = object_name(index)
        while name > self._last and not self._ended:
            rows = await self._store.listing(prefix=PART_PREFIX, after=self._last)
            self._page = {row.name: row for row in rows}
            self._ended = not rows
            self._last = rows[-1].name if rows else self._last
        return self._page.get(name)


async def try_to_remember(objects: DiskObjects, binding: str) -> None:
    """Keep what is known of the objects after a failure, if that can be done."""
    with suppress(SwiftnbdError):  # the next one has to look
        await objects.remember(binding)
