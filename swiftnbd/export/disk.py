# SPDX-License-Identifier: MIT
"""The device whose blocks are objects in a store: format v1 through the block cache.

What belongs together lives in one module each, all of them sharing one `DiskState`:

* `swiftnbd.export.reading`: bringing blocks in; one fetch for all who wait, read-ahead, holes
* `swiftnbd.export.changing`: writes, zeros and trims, and what an upload is made of
* `swiftnbd.export.writeback`: which objects have changed, and when each is stored
* `swiftnbd.export.objects`: requests to the store, and what is known of its objects
* `swiftnbd.export.cache`, `block`: which blocks are in memory, and what is known of each

Here they are put together, and the promise of durability is kept: see docs/durability.md.
"""

from collections.abc import Coroutine, Iterator, Sequence
from errno import ESHUTDOWN
from itertools import islice

from swiftnbd.api.device import Device, Extent
from swiftnbd.api.profile import Profile
from swiftnbd.errors import ExportError
from swiftnbd.export.block_map import BlockMap, draw
from swiftnbd.export.changing import RUNS_PER_TURN_MAX, Writer
from swiftnbd.export.disk_cache import DiskCache
from swiftnbd.export.disk_state import DiskState, Part
from swiftnbd.export.layout import Geometry, preferred_block_size
from swiftnbd.export.local_blocks import LocalBlocks
from swiftnbd.export.objects import REQUEST_SECONDS_MAX, DiskObjects
from swiftnbd.export.presence import State
from swiftnbd.export.readahead import ReadAhead
from swiftnbd.export.reading import Reader
from swiftnbd.export.settings import CacheMode, CacheSettings
from swiftnbd.export.slots import Slots
from swiftnbd.export.status import CacheStatus
from swiftnbd.export.writeback import DirtyObject, WriteBack
from swiftnbd.metrics import Counters
from swiftnbd.store.base import Buffer, Store

FLUSH_SECONDS_MAX = 60.0  # without anything being stored: as long as one store operation may take
READ_AHEAD_BYTES_MIN = 128 * 1024  # the first window: what the kernel's own read-ahead asks for
READ_AHEAD_STREAMS = 8  # nbdcopy reads in four places, and a file system has readers of its own


class ObjectDevice(Device):
    """A disk of ``geometry`` in ``store``, cached as ``settings`` say.

    ``exclusive``: nobody else writes to it; see `swiftnbd.export.objects`. ``flush_seconds``: how
    long a flush goes on without anything being stored, ``request_seconds``: how long any other
    request waits for the store; None: for ever. ``close_seconds``: the last flush, if another time.
    """

    can_fua = True
    can_fast_zero = True
    multi_conn = True

    def __init__(
        self,
        store: Store,
        geometry: Geometry,
        settings: CacheSettings | None = None,
        *,
        counters: Counters | None = None,
        exclusive: bool = True,
        flush_seconds: float | None = FLUSH_SECONDS_MAX,
        close_seconds: float | None = None,
        request_seconds: float | None = REQUEST_SECONDS_MAX,
    ) -> None:
        settings = settings or CacheSettings()
        settings.check(geometry)
        self.size = geometry.size
        self.block_size = preferred_block_size(geometry)
        self.counters = counters if counters is not None else Counters()
        self.description = profile_of(store, geometry, read_only=False).description
        self._label = store.label
        self._close_seconds = flush_seconds if close_seconds is None else close_seconds
        objects = DiskObjects(
            store,
            geometry,
            Slots(settings.requests + settings.reads_reserved, settings.reads_reserved),
            self.counters,
            exclusive=exclusive,
            request_seconds=request_seconds,
        )
        self._disk = disk = DiskState(geometry, objects, settings, self.counters, flush_seconds)
        self._reader = Reader(disk, _read_ahead(self.size, disk, settings))
        is_durable = settings.mode is CacheMode.WRITETHROUGH
        self._writer = Writer(disk, self._reader, durable=is_durable, uploads=settings.requests)
        disk.writeback = WriteBack(
            self._writer.upload,
            disk.tasks,
            disk.gate,
            limit=settings.dirty_blocks(disk.block_size),
            per_object=disk.per_object,
            seconds=settings.dirty_seconds,
            retry_seconds=settings.retry_seconds,
            at_once=settings.requests,
            settle=disk.cache.settle,
            on_stored=self._went_on,
            on_failed=disk.no_room,
        )
        # for the two methods that the receive loop calls for each request: they are kept short
        self._unit = disk.block_size
        self._gate = disk.gate
        self._blocks = disk.cache.blocks
        self._changed = disk.writeback.objects
        self._note_change = disk.writeback.note_change
        self._per_object = disk.per_object
        self._accepts_now = not is_durable

    @property
    def cached_bytes(self) -> int:
        """What the cache holds now."""
        return len(self._disk.cache) * self._disk.block_size

    @property
    def dirty_bytes(self) -> int:
        """Bytes that are not stored (yet)."""
        return self._disk.dirty_bytes

    @property
    def cache_status(self) -> CacheStatus:
        """How full the cache is, at hardly any cost."""
        writeback, unit = self._disk.writeback, self._disk.block_size
        return CacheStatus(
            cached_bytes=self.cached_bytes,
            dirty_bytes=writeback.blocks * unit,
            dirty_limit_bytes=writeback.limit * unit,
            dirty_objects=len(writeback.objects),
            uploading_objects=writeback.uploading,
        )

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return self.size // self._disk.block_size

    async def block_map(self, first: int, end: int, cells: int) -> BlockMap:
        """Where the blocks ``[first, end)`` are, counted in so many cells or less."""
        return await draw(self._disk, first, end, cells)

    def dirty_ranges(self) -> list[tuple[int, int]]:
        """Byte ranges ``[start, end)`` that are not durable, adjacent ones as one, ascending."""
        ranges: list[tuple[int, int]] = []
        for start, end in sorted(self._disk.dirty_ranges()):
            if ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, end))
        return ranges

    # Reading

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        if not self._gate.is_open:
            return None
        index, start = divmod(offset, self._unit)
        end = start + length
        if end <= self._unit:
            block = self._blocks.get(index)
            if block is not None and block.known is None:
                block.used = True
                return (block.piece(start, end),)
        return self._reader.read_now(offset, length)

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        return await self._reader.read(offset, length)

    async def prefetch(self, offset: int, length: int) -> None:
        await self._reader.prefetch(offset, length)

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        await self._gate.passing()
        size, stop = self._disk.object_size, offset + length
        extents: list[Extent] = []
        kinds = self._kinds(offset // size, -(-stop // size))
        for first, end, kind in islice(kinds, RUNS_PER_TURN_MAX):
            start, after = max(offset, first * size), min(stop, end * size)
            if extents and extents[-1][1:] == kind:
                extents[-1] = Extent(extents[-1].length + after - start, *kind)
            elif len(extents) == count:
                break
            else:
                extents.append(Extent(after - start, *kind))
        return extents

    def _kinds(self, first: int, end: int) -> Iterator[tuple[int, int, tuple[bool, bool]]]:
        """Runs of objects ``[first, end)`` with whether they are holes, and zeros."""
        writeback = self._disk.writeback.objects
        changed = iter(sorted(index for index in writeback if first <= index < end))
        following = next(changed, end)
        for count, state in self._disk.objects.presence.runs(first, end):
            kind = (True, True) if state is State.ABSENT else (False, False)
            after = first + count
            while following < after:
                if first < following:
                    yield first, following, kind
                yield following, following + 1, _kind_of(writeback[following])
                first, following = following + 1, next(changed, end)
            if first < after:
                yield first, after, kind
            first = after

    # Changing

    def write_now(self, offset: int, data: Buffer) -> bool:
        if not (self._accepts_now and self._gate.is_open) or self._disk.writers:
            return False
        index, start = divmod(offset, self._unit)
        end = start + len(data)
        if end > self._unit:
            return False
        block = self._blocks.get(index)
        if block is not None and block.overwrite(start, data):
            self._note_change(self._changed[index // self._per_object])
            return True
        part = Part(index, start, end)
        return self._writer.takes(part) and self._writer.write_now(part, data) is not None

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self._writer.write(offset, data, fua=fua)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        await self._writer.zero(offset, length, no_hole=no_hole, fua=fua, fast=fast)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self._writer.trim(offset, length, fua=fua)

    # Making durable

    async def flush(self) -> None:
        await self._flush(self._disk.flush_seconds)

    async def _flush(self, seconds: float | None) -> None:
        await self._disk.turnstile.passing()
        with self._disk.writeback.flushing():
            await self._disk.make_durable(self._disk.writeback.all_stored(), seconds)
        await self._gate.passing()

    def _went_on(self) -> None:
        """Something was stored: there may be room, and whoever flushes has reason to wait on.

        A flush of much takes long; it fails only when nothing moves any more.
        """
        self._disk.serve_soon()
        self._disk.patience.moved()

    async def close(self) -> None:
        await self._flush(self._close_seconds)
        self._disk.writeback.close()
        await self._disk.tasks.close()

    # Presence, kept while nobody holds the lock

    async def recall(self, binding: str) -> None:
        """Take over the presence map that was remembered under ``binding``, if there is one.

        Before anything else is asked of the device. A map that cannot be had is no error.
        """
        await self._disk.objects.recall(binding)

    async def remember(self, binding: str) -> None:
        """Store the presence map for whoever can prove that nobody changed the disk since."""
        await self._disk.objects.remember(binding)

    def use_disk_cache(self, cache: DiskCache | None) -> None:
        """Look there before the store is asked, and keep there what it gives; None: no more."""
        disk = self._disk
        local = None if cache is None else LocalBlocks(cache, disk.block_size, disk.per_object)
        disk.objects.local = local

    def beside(self, work: Coroutine[None, None, None]) -> None:
        """Do that while the device is open; whether it fails matters to nobody."""
        self._disk.tasks.spawn(work)

    # The lease of the lock

    def suspend(self) -> None:
        """Answer nothing and store nothing until `resume` or `fail`: the lock may be lost."""
        self._gate.close()
        self._disk.writeback.abort()

    def resume(self) -> None:
        """Go on after `suspend`: the lock is still ours."""
        self._gate.open()
        self._disk.writeback.resume()

    def fail(self, reason: str) -> None:
        """Never answer anything again; what is not stored stays in `dirty_ranges`."""
        error = ExportError(ESHUTDOWN, reason)
        self._gate.fail(error)
        self.use_disk_cache(None)
        self._disk.writeback.fail(error)
        self._disk.readers.fail(error)
        self._disk.writers.fail(error)


def _kind_of(dirty: DirtyObject) -> tuple[bool, bool]:
    """Whether a changed object is a hole, and zeros, as a reader sees it."""
    return dirty.is_hole and not dirty.keep_zeros, dirty.is_hole


def profile_of(store: Store, geometry: Geometry, *, read_only: bool) -> Profile:
    """What clients are told of the disk, whether it is open or not."""
    return Profile(
        geometry.size,
        preferred_block_size(geometry),
        read_only=read_only,
        description=f"{store.label}, {geometry.object_size} byte objects",
    )


def _read_ahead(size: int, disk: DiskState, settings: CacheSettings) -> ReadAhead | None:
    unit = max(disk.object_size, READ_AHEAD_BYTES_MIN)
    # more than a quarter of the cache would push out what it brought in
    window = min(settings.read_ahead_bytes, settings.cache_bytes // 4)
    if window < unit:
        return None
    return ReadAhead(size, unit, window, READ_AHEAD_STREAMS)
