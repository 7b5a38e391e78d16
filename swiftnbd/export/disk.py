# SPDX-License-Identifier: MIT
"""The device whose blocks are objects in a store: format v1 through the block cache.

Each request is cut at object boundaries; each part pins its block, and from then on:

* a read waits until the block's bytes are known. One fetch serves all who wait for it.
* a write that covers the block needs nothing; a smaller one waits for the bytes. Between the
  bytes being known and being changed there is no await, so a read-modify-write is atomic
  against every other request, on whichever connection.
* a change is then *written through*: the request waits for an upload that began after it. One
  upload per object is under way at a time; writes that arrive meanwhile are all carried by the
  next one.

An upload whose block has become all zeros deletes the object, unless WRITE_ZEROES asked to
keep its space. A failed upload leaves the block dirty: the write is answered with the error,
reads go on to see the new bytes, and the next flush tries again, or whoever needs its room.

While the device is *suspended* every request waits, and what it asked of the store is aborted and
asked again afterwards; after `ObjectDevice.fail` every request is refused.

Uploads and fetches belong to the device, not to the request that caused them: a client that
goes away cannot cut an object's upload short, nor start one later.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from errno import EIO, ENOTSUP
from typing import NamedTuple

from swiftnbd.errors import ExportError, StoreError, SwiftnbdError
from swiftnbd.export.block import Block, State
from swiftnbd.export.cache import BlockCache, check_cache
from swiftnbd.export.device import Device, Extent
from swiftnbd.export.layout import (
    PART_PREFIX,
    Geometry,
    object_index,
    object_name,
    preferred_block_size,
)
from swiftnbd.export.parallel import for_each
from swiftnbd.export.suspension import Suspension
from swiftnbd.metrics import Counters
from swiftnbd.store.base import Buffer, Listed, Store

REQUESTS_MAX = 16  # store requests at once: saturates a Swift node, more only add latency
REQUEST_SECONDS_MAX = 65.0  # a store gives up after 60 and says why; many may wait behind it
TRIM_UNLISTED_MAX = 16  # objects that are deleted without asking first which of them exist
FLUSH_SECONDS_MAX = 60.0  # as long as one store operation may take: a flush runs them in parallel


class Part(NamedTuple):
    """Bytes ``[start, end)`` of object ``number``."""

    number: int
    start: int
    end: int


class ObjectDevice(Device):
    """A disk of ``geometry`` in ``store``, with at most ``cache_bytes`` of it in memory."""

    def __init__(
        self,
        store: Store,
        geometry: Geometry,
        *,
        cache_bytes: int,
        counters: Counters | None = None,
        flush_seconds: float = FLUSH_SECONDS_MAX,
        request_seconds: float = REQUEST_SECONDS_MAX,
    ) -> None:
        check_cache(geometry, cache_bytes)
        self.size = geometry.size
        self.block_size = preferred_block_size(geometry)
        self.counters = counters if counters is not None else Counters()
        self._store = store
        self._object_size = geometry.object_size
        self._zeros = bytes(geometry.object_size)
        self._cache = BlockCache(cache_bytes // geometry.object_size, self._flush_block)
        self._dirty: dict[int, Block] = {}
        self._requests = asyncio.Semaphore(REQUESTS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._suspension = Suspension()
        self._flush_seconds = flush_seconds
        self._request_seconds = request_seconds

    @property
    def cached_bytes(self) -> int:
        """What the cache holds now."""
        return len(self._cache) * self._object_size

    @property
    def dirty_bytes(self) -> int:
        """Bytes of blocks whose last upload has not succeeded (yet)."""
        return len(self._dirty) * self._object_size

    def dirty_ranges(self) -> list[tuple[int, int]]:
        """Byte ranges ``[start, end)`` that are not durable, adjacent ones as one, ascending."""
        ranges: list[tuple[int, int]] = []
        for index in sorted(self._dirty):
            start = index * self._object_size
            if ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, (index + 1) * self._object_size))
        return ranges

    # The lock

    def suspend(self) -> None:
        """Nothing is answered, stored or read until `resume`; what is under way is aborted."""
        self._suspension.begin()
        for task in self._tasks:
            task.cancel()

    def resume(self) -> None:
        """Go on with what waits."""
        self._suspension.end()

    def fail(self, reason: str) -> None:
        """Refuse everything from now on. `dirty_ranges` says what is lost."""
        self.suspend()
        self._suspension.end(reason)

    # Reading

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        if self._suspension.lasts:
            return None
        size = self._object_size
        index, start = divmod(offset, size)
        end = start + length
        if end > size:
            return self._read_many_now(offset, length)
        block = self._cache.blocks.get(index)
        if block is None or block.data is None:
            return None
        block.used = True
        return (block.piece(start, end),)

    def _read_many_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        blocks = self._cache.blocks
        parts = list(self._parts(offset, length))
        for index, _, _ in parts:
            block = blocks.get(index)
            if block is None or block.data is None:
                return None
        pieces = []
        for index, start, end in parts:
            blocks[index].used = True
            pieces.append(blocks[index].piece(start, end))
        return pieces

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        pieces = self.read_now(offset, length)
        if pieces is not None:
            return pieces
        first = offset // self._object_size
        found: dict[int, Buffer] = {}

        async def read_part(part: Part) -> None:
            found[part.number] = await self._read_part(*part)

        await self._suspension.answered(lambda: for_each(self._parts(offset, length), read_part))
        return [found[first + number] for number in range(len(found))]

    async def _read_part(self, index: int, start: int, end: int) -> Buffer:
        block = await self._cache.pin(index)
        try:
            await self._know(block)
            block.used = True
            return block.piece(start, end)
        finally:
            self._cache.unpin(block)

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        return [Extent(length, hole=False, zero=False)]  # what is absent is not known yet

    async def prefetch(self, offset: int, length: int) -> None:
        # more than half the cache would only push out what it brought in
        blocks = itertools.islice(self._parts(offset, length), self._cache.capacity // 2)
        parts = list(blocks)
        await self._suspension.answered(lambda: for_each(parts, self._prefetch_part))

    async def _prefetch_part(self, part: Part) -> None:
        await self._read_part(part.number, 0, 0)

    # Changing

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        view = memoryview(data)

        async def write_part(part: Part) -> None:
            index, start, end = part
            at = index * self._object_size + start - offset
            await self._write_part(index, start, view[at : at + end - start])

        await self._suspension.answered(
            lambda: for_each(self._parts(offset, len(view)), write_part)
        )

    async def _write_part(self, index: int, start: int, data: memoryview) -> None:
        block = await self._cache.pin(index)
        try:
            if len(data) < self._object_size:
                await self._know(block)
            await self._store_change(block, block.write(start, data))
        finally:
            self._cache.unpin(block)

    def write_now(self, offset: int, data: Buffer) -> bool:
        return False  # written through: there is always an upload to wait for

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        if fast:
            raise ExportError(ENOTSUP, "zeros are written through, which is not fast")

        async def zero_part(part: Part) -> None:
            await self._zero_part(*part, keep_zeros=no_hole)

        await self._suspension.answered(lambda: for_each(self._parts(offset, length), zero_part))

    async def _zero_part(self, index: int, start: int, end: int, *, keep_zeros: bool) -> None:
        block = await self._cache.pin(index)
        whole = end - start == self._object_size
        try:
            if whole:
                generation = block.clear(self._zeros, keep_zeros=keep_zeros)
            else:
                await self._know(block)
                generation = block.zero(start, end, keep_zeros=keep_zeros)
            await self._store_change(block, generation)
        finally:
            self._cache.unpin(block, cold=whole)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Delete the objects that lie wholly inside the range.

        Being a hint, it may trust a listing for what exists: an object that the listing misses
        merely stays. So trimming a fresh disk takes one request, whatever its size.
        """
        size = self._object_size
        first, end = -(-offset // size), (offset + length) // size
        if first < end:
            await self._suspension.answered(lambda: self._trim_blocks(first, end))

    async def _trim_blocks(self, first: int, end: int) -> None:
        if end - first <= TRIM_UNLISTED_MAX:
            await for_each(range(first, end), self._trim_block)
            return
        await for_each(self._cache.within(first, end), self._trim_block)
        after, before = object_name(first - 1) if first else PART_PREFIX, object_name(end)
        while page := await self._listing(after, before):
            listed = (object_index(row.name) for row in page)
            await for_each((index for index in listed if index is not None), self._trim_block)
            after = page[-1].name

    async def _listing(self, after: str, before: str) -> list[Listed]:
        async with self._request():
            return await self._store.listing(prefix=PART_PREFIX, after=after, before=before)

    async def _trim_block(self, index: int) -> None:
        block = self._cache.blocks.get(index)
        kept = block is not None and (block.dirty or block.keep_zeros)
        if block is not None and block.data is self._zeros and not kept:
            return  # known to be absent
        await self._zero_part(index, 0, self._object_size, keep_zeros=False)

    # Making durable

    async def flush(self) -> None:
        await self._suspension.answered(self._flush)

    async def _flush(self) -> None:
        dirty = list(self._dirty.values())
        if not dirty:
            return
        try:
            async with asyncio.timeout(self._flush_seconds):
                await for_each(dirty, self._flush_block, go_on=True)
        except TimeoutError:
            raise ExportError(
                EIO,
                f"{self._store.label}: {self.dirty_bytes} bytes could not be stored "
                f"within {self._flush_seconds:.0f} s",
            ) from None

    async def _flush_block(self, block: Block) -> None:
        if not block.dirty:
            return  # stored since, and perhaps evicted
        self._cache.hold(block)
        try:
            await self._stored(block, block.generation)
        finally:
            self._cache.unpin(block)

    async def close(self) -> None:
        try:
            await self.flush()
        finally:
            await self._end_tasks()

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _store_change(self, block: Block, generation: int) -> None:
        self._dirty[block.index] = block
        if block.fetch is not None:
            block.fetch.cancel()  # overtaken by a write of the whole block: nobody needs it now
        await self._stored(block, generation)

    async def _stored(self, block: Block, generation: int) -> None:
        """Return when ``generation`` of the block is durable; raise why it could not be.

        An upload that failed without carrying that generation says nothing about it: then the
        next one is waited for.
        """
        while block.stored < generation:
            if block.upload is None or block.upload.done():
                block.upload = self._spawn(self._upload(block), block)
            try:
                await self._ended(block.upload)
            except StoreError:
                if block.attempted >= generation:
                    raise

    async def _upload(self, block: Block) -> None:
        async with self._request():
            await self._put(block)

    async def _put(self, block: Block) -> None:
        name, data = object_name(block.index), block.begin_upload()
        try:
            if data == self._zeros and not block.keep_zeros:
                await self._store.delete(name)
            else:
                await self._store.put(name, data)
                self.counters.store_out += len(data)
        except BaseException:
            block.end_upload(done=False)
            raise
        block.end_upload(done=True)
        if block.state is State.CLEAN:
            del self._dirty[block.index]

    # Knowing

    async def _know(self, block: Block) -> None:
        """Return when the block's bytes are known; raise why they cannot be."""
        while block.data is None:
            if block.fetch is None or block.fetch.done():
                block.fetch = self._spawn(self._fetch(block), block)
            try:
                await self._ended(block.fetch)
            except SwiftnbdError:
                if block.data is None:
                    raise

    async def _fetch(self, block: Block) -> None:
        if block.data is not None:
            return  # a write of the whole block came before our first step
        block.move(State.FETCHING)
        try:
            data = await self._get(block.index)
        except BaseException:
            if block.state is State.FETCHING:
                block.move(State.EMPTY)
                raise
            return  # a write of the whole block came first; the bytes are no longer needed
        if block.state is State.FETCHING:
            block.fill(data)

    async def _get(self, index: int) -> bytes:
        name = object_name(index)
        async with self._request():
            # newest: a replica that missed our last write has its old bytes, with a good ETag
            blob = await self._store.get(name, newest=True, size_max=self._object_size)
        if blob is None:
            return self._zeros
        self.counters.store_in += len(blob.data)
        if len(blob.data) != self._object_size:
            raise ExportError(
                EIO,
                f"{self._store.label}: {name} has {len(blob.data)} bytes, not {self._object_size}",
            )
        return blob.data

    # Helpers

    @asynccontextmanager
    async def _request(self) -> AsyncIterator[None]:
        """One of the store's requests. Waiting for its turn counts against its time."""
        try:
            async with asyncio.timeout(self._request_seconds), self._requests:
                yield
        except TimeoutError:
            raise ExportError(
                EIO, f"{self._store.label}: no answer within {self._request_seconds:.0f} s"
            ) from None

    def _spawn(self, work: Coroutine[None, None, None], block: Block) -> asyncio.Task[None]:
        """Run ``work`` on a block as the device's own task, which keeps the block pinned."""
        self._cache.hold(block)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def let_go(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._cache.unpin(block)
            if not task.cancelled():
                task.exception()  # whoever waits for it sees it; a flush will, if nobody does

        task.add_done_callback(let_go)
        return task

    async def _ended(self, task: asyncio.Task[None]) -> None:
        """Wait for a task of ours without being able to cancel it, and raise what it raised.

        Its being cancelled must not look like our own request's being cancelled.
        """
        await asyncio.wait([task])
        if task.cancelled():
            raise ExportError(EIO, f"{self._store.label}: closed before it was done")
        task.result()

    def _parts(self, offset: int, length: int) -> Iterator[Part]:
        """Cut a range at object boundaries."""
        size = self._object_size
        position, stop = offset, offset + length
        while position < stop:
            index, start = divmod(position, size)
            end = min(size, start + stop - position)
            yield Part(index, start, end)
            position += end - start
