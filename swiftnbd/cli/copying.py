# SPDX-License-Identifier: MIT
"""Making one disk's objects those of another, by as few requests as can be trusted.

Objects of the same size, one by one::

    in the source       in the target                     done
    -----------------   -------------------------------   ------------------------------------
    absent, proven      absent, with proof                nothing
                        anything else                     DELETE, confirmed or proven 404
    anything else       has the ETag of the source's      nothing
                        anything else                     COPY, or GET and PUT; the ETag is checked

If the sizes differ, a window of whole target objects is put together from the source objects it
overlaps, and each target object is compared and stored likewise.

While it is under way a record in the target says so (`swiftnbd.cli.unfinished`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import md5

from swiftnbd.cli.common import BUFFER_BYTES_MAX, IN_FLIGHT_MAX, objects_in_flight
from swiftnbd.cli.downloading import check_not_lost, read_object
from swiftnbd.cli.parallel import for_each, in_thread
from swiftnbd.cli.progress import Advance
from swiftnbd.errors import CopyUnsupported, CorruptObject
from swiftnbd.export.layout import is_zeros, object_name
from swiftnbd.export.objects import DiskObjects
from swiftnbd.export.presence import State
from swiftnbd.store.base import Place, Store


@dataclass(slots=True)
class Tally:
    """Objects of the target, by what was done for them."""

    copied: int = 0
    copied_bytes: int = 0
    already_there: int = 0
    deleted: int = 0
    server_side: bool = False


class Copy:
    """``sources``, the objects in ``source``, to ``targets`` in ``target``; both are held."""

    def __init__(
        self,
        source: Store,
        sources: DiskObjects,
        target: Store,
        targets: DiskObjects,
        advance: Advance,
    ) -> None:
        self.tally = Tally()
        self._source = source
        self._sources = sources
        self._target = target
        self._targets = targets
        self._advance = advance
        self._place = self._shared_place()

    def _shared_place(self) -> Place | None:
        """The source's place, if the target can copy from there by itself."""
        here, there = self._source.place, self._target.place
        if here is None or there is None or here.home != there.home:
            return None
        return here if self._sources.size == self._targets.size else None

    async def run(self) -> None:
        """Return when the target is the source, and zeros behind it, durably."""
        self.tally.server_side = self._place is not None
        if self._sources.size == self._targets.size:
            in_flight = objects_in_flight(self._sources.size)
            await for_each(self._work(), self._bring, in_flight=in_flight)
        else:
            windows = Windows(self._sources.size, self._targets.size)
            at_once = windows.at_once
            numbers = range(windows.count(self._sources.presence.objects))
            await for_each(numbers, partial(self._bring_window, windows), in_flight=at_once)
        await self._clear_behind()

    # Object by object

    def _work(self) -> Iterator[int]:
        """Objects that may need something done; those that are absent on both sides do not."""
        first = 0
        for count, state in self._sources.presence.runs(0, self._sources.presence.objects):
            if state is State.ABSENT:
                yield from self._to_clear(first, first + count)
            else:
                yield from range(first, first + count)
            first += count

    def _to_clear(self, first: int, end: int) -> Iterator[int]:
        """Those of the target's objects ``[first, end)`` that are not known to be absent."""
        for count, state in self._targets.presence.runs(first, end):
            if state is State.ABSENT:
                self._advance(count * self._targets.size)
            else:
                yield from range(first, first + count)
            first += count

    async def _bring(self, index: int) -> None:
        found = await self._sources.head(index)
        if found is None:
            check_not_lost(self._source, index, self._sources.presence.get(index))
            await self._clear(index)
        elif found.size != self._sources.size:
            raise CorruptObject(
                f"{self._source.label}: {object_name(index)} has {found.size} bytes, "
                f"expected {self._sources.size}"
            )
        elif await self._has(index, found.etag):
            self.tally.already_there += 1
        else:
            await self._transfer(index, found.etag)
            self._count_copied()
        self._advance(self._targets.size)

    async def _transfer(self, index: int, etag: str) -> None:
        if self._place is not None:
            try:
                await self._targets.copy(index, self._place, etag)
            except CopyUnsupported:
                self._place, self.tally.server_side = None, False
            else:
                return
        data = await read_object(self._source, index, self._sources.size)
        if data is None:
            raise CorruptObject(
                f"{self._source.label}: {object_name(index)} is gone since it was seen"
            )
        await self._targets.put(index, data)

    async def _has(self, index: int, etag: str) -> bool:
        there = await self._targets.head(index)
        return there is not None and there.etag == etag

    async def _clear(self, index: int) -> None:
        if not self._targets.is_absent(index):
            existed = await self._targets.delete(index)
            self.tally.deleted += existed

    def _count_copied(self) -> None:
        self.tally.copied += 1
        self.tally.copied_bytes += self._targets.size

    # Objects of another size

    async def _bring_window(self, windows: "Windows", number: int) -> None:
        """Put together some objects of the target."""
        objects = self._sources.presence.objects
        sources = windows.sources(number, objects)
        targets = windows.targets(number, objects)
        buffer: bytearray | None = None
        if all(map(self._sources.is_absent, sources)):
            if all(map(self._targets.is_absent, targets)):
                self._advance(len(targets) * windows.target_size)
                return
        else:
            buffer = bytearray(len(targets) * windows.target_size)
            fill = partial(self._fill, buffer, targets.start * windows.target_size)
            await for_each(sources, fill, in_flight=windows.within)
        bring = partial(self._bring_piece, buffer, targets.start)
        await for_each(targets, bring, in_flight=windows.within)

    async def _fill(self, buffer: bytearray, start: int, index: int) -> None:
        """Add what a source object has of the bytes from ``start`` on."""
        if self._sources.is_absent(index):
            return
        size = self._sources.size
        known = self._sources.presence.get(index)
        data = await read_object(self._source, index, size, known)
        if data is None:
            return
        at = index * size - start
        skip, end = max(0, -at), min(size, len(buffer) - at)
        buffer[at + skip : at + end] = memoryview(data)[skip:end]

    async def _bring_piece(self, buffer: bytearray | None, first: int, index: int) -> None:
        size = self._targets.size
        start = (index - first) * size
        data = b"" if buffer is None else bytes(memoryview(buffer)[start : start + size])
        if is_zeros(data):
            await self._clear(index)
        elif await self._holds(index, data):
            self.tally.already_there += 1
        else:
            await self._targets.put(index, data)
            self._count_copied()
        self._advance(size)

    async def _holds(self, index: int, data: bytes) -> bool:
        there = await self._targets.head(index)
        if there is None:
            return False
        return there.etag == await in_thread(lambda: md5(data).hexdigest())

    # What lies behind the source's end

    async def _clear_behind(self) -> None:
        size = self._sources.presence.objects * self._sources.size
        behind = self._to_clear(-(-size // self._targets.size), self._targets.presence.objects)

        async def clear(index: int) -> None:
            await self._clear(index)
            self._advance(self._targets.size)

        await for_each(behind, clear, in_flight=IN_FLIGHT_MAX)


@dataclass(frozen=True, slots=True)
class Windows:
    """Stretches of a disk: whole target objects, together about as large as a source object."""

    source_size: int
    target_size: int

    @property
    def size(self) -> int:
        """Bytes of a window."""
        return self.target_size * max(1, self.source_size // self.target_size)

    @property
    def at_once(self) -> int:
        """How many windows fit into memory, each with as much in requests."""
        return max(1, min(IN_FLIGHT_MAX, BUFFER_BYTES_MAX // (2 * self.size)))

    @property
    def within(self) -> int:
        """How many requests of one window at once."""
        return max(1, IN_FLIGHT_MAX // self.at_once)

    def count(self, objects: int) -> int:
        """Windows of a source of so many objects."""
        return -(-objects * self.source_size // self.size)

    def sources(self, number: int, objects: int) -> range:
        """The source objects, of so many, that a window overlaps."""
        start = number * self.size
        return range(
            start // self.source_size, min(objects, -(-(start + self.size) // self.source_size))
        )

    def targets(self, number: int, objects: int) -> range:
        """The target objects of a window; at the end of the source, as far as that goes."""
        end = min((number + 1) * self.size, objects * self.source_size)
        return range(number * self.size // self.target_size, -(-end // self.target_size))
