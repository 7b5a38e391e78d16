# SPDX-License-Identifier: MIT
"""Bringing an image to the content of a disk, or a disk's content out in order.

Where the image holds something already, because a download was interrupted or it is a device that
was written before, its bytes are compared with the newest object's size and ETag: what is the
same is not fetched. Nothing else is believed, so nothing can go wrong with what was left behind.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

from swiftnbd.cli.common import objects_in_flight
from swiftnbd.cli.image import Image
from swiftnbd.cli.parallel import abandonable, for_each, in_thread
from swiftnbd.errors import CorruptObject
from swiftnbd.export.layout import DiskInfo, object_name
from swiftnbd.export.presence import Presence, State
from swiftnbd.store.base import Buffer, Store
from swiftnbd.store.hashing import md5_of

ABSENT_BYTES = 64 * 1024 * 1024  # of a hole, cleared at once
# Downloads go in order: behind so many objects that differ, one after the other, nothing of an
# interrupted one will follow, and asking before fetching only takes longer.
MISSES_MAX = 64
# 64 KiB go into the page cache in 30 us; handing them to a thread takes three times as long, and
# ten times on a machine that a Swift on it keeps busy.
WRITE_IN_THREAD_BYTES = 256 * 1024
ZEROS_BYTES = 1024 * 1024  # put out at once
SYNC_BYTES = 32 * 1024 * 1024  # are made durable while others come: little is left for the end

Advance = Callable[[int], None]


def disk_bytes(disk: DiskInfo) -> int:
    """Bytes of the image: those that were uploaded, if the disk is larger than that."""
    return disk.geometry.size if disk.image_size is None else disk.image_size


async def read_object(
    store: Store, index: int, object_size: int, known: State = State.UNKNOWN
) -> bytes | None:
    """One object of the disk, whole and of the latest version; None if it is absent.

    One that is ``known`` to be present cannot be: `CorruptObject`, as zeros would be wrong bytes.
    """
    name = object_name(index)
    blob = await store.get(name, newest=True, size_max=object_size)
    if blob is None:
        check_not_lost(store, index, known)
        return None
    if len(blob.data) != object_size:
        raise CorruptObject(
            f"{store.label}: {name} has {len(blob.data)} bytes, expected {object_size}"
        )
    return blob.data


def check_not_lost(store: Store, index: int, known: State) -> None:
    """An object is not found: `CorruptObject` if it is ``known`` to be present."""
    if known is State.PRESENT:
        raise CorruptObject(
            f"{store.label}: {object_name(index)} was stored and is not found any more"
        )


class Download:
    """The disk into ``image``; ``presence`` says which objects need not be asked for."""

    def __init__(
        self, store: Store, disk: DiskInfo, presence: Presence, image: Image, advance: Advance
    ) -> None:
        self.fetched_bytes = 0
        self.objects_already_there = 0
        self.size = disk_bytes(disk)  # grows if the disk holds more than the image it came from
        self._store = store
        self._geometry = disk.geometry
        self._presence = presence
        self._image = image
        self._advance = advance
        self._misses = 0
        self._unsynced_bytes = 0

    async def run(self) -> None:
        """Return when all of it is written, if not durable yet."""
        size = self.size
        self._image.set_size(size)
        await self._copy_all()
        if self.size != size:
            # What lay behind the end was left as it is, and on a device that may be anything.
            self._advance = _ignore
            await self._copy_all()

    async def _copy_all(self) -> None:
        size = self._geometry.object_size
        spans = _spans(self._presence, size)
        await for_each(spans, self._copy, in_flight=objects_in_flight(size))

    async def _copy(self, span: tuple[int, int, State]) -> None:
        first, end, state = span
        size = self._geometry.object_size
        start, length = first * size, (end - first) * size
        if state is State.ABSENT or not await self._is_there(first):
            data = None
            if state is not State.ABSENT:
                data = await read_object(self._store, first, size, state)
            if data is None:
                await self._clear(start, start + length)
            else:
                self.fetched_bytes += len(data)
                await self._write(start, data)
        self._advance(length)

    async def _is_there(self, index: int) -> bool:
        """Whether the image holds the newest version of this object already."""
        size = self._geometry.object_size
        start = index * size
        if self._misses > MISSES_MAX or start + size > self.size:
            return False
        if not self._image.may_hold(start, size):
            return False
        data = await in_thread(partial(self._image.read, start, size))
        found = await self._store.head(object_name(index), newest=True)
        if found is None or (found.size, found.etag) != (size, await md5_of(data)):
            self._misses += 1
            return False
        self._misses = 0
        self.objects_already_there += 1
        return True

    async def _write(self, start: int, data: bytes) -> None:
        behind = data[max(0, self.size - start) :]
        if behind.count(0) == len(behind):
            data = data[: len(data) - len(behind)]
        else:  # somebody has used the disk beyond the end of the image it came from
            self.size = self._geometry.size
            self._image.set_size(self.size)
        if len(data) > WRITE_IN_THREAD_BYTES:
            await in_thread(partial(self._image.write, start, data))
        elif data:
            self._image.write(start, data)
        self._unsynced_bytes += len(data)
        if self._unsynced_bytes >= SYNC_BYTES:
            self._unsynced_bytes = 0
            await in_thread(self._image.sync)

    async def _clear(self, start: int, end: int) -> None:
        end = min(end, self.size)
        if start < end and self._image.may_hold(start, end - start):
            await in_thread(partial(self._image.clear, start, end - start))


def _ignore(_amount: int) -> None:
    pass


def _spans(presence: Presence, object_size: int) -> Iterator[tuple[int, int, State]]:
    """The disk in order: holes, not too much at once, and single objects."""
    at, step = 0, max(1, ABSENT_BYTES // object_size)
    for count, state in presence.runs(0, presence.objects):
        stride = step if state is State.ABSENT else 1
        for first in range(at, at + count, stride):
            yield first, min(first + stride, at + count), state
        at += count


async def contents(store: Store, disk: DiskInfo, presence: Presence) -> AsyncIterator[bytes | int]:
    """The disk in order, several objects ahead: bytes, or how many zeros."""
    size = disk.geometry.object_size

    async def fetch(span: tuple[int, int, State]) -> bytes | int:
        first, end, state = span
        data = None if state is State.ABSENT else await read_object(store, first, size, state)
        return (end - first) * size if data is None else data

    ahead: deque[asyncio.Task[bytes | int]] = deque()
    try:
        for span in _spans(presence, size):
            ahead.append(asyncio.create_task(fetch(span)))
            if len(ahead) >= objects_in_flight(size):
                yield await ahead.popleft()
        while ahead:
            yield await ahead.popleft()
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


class Stream:
    """A disk put out in order through ``write``.

    It ends where the image did from which the disk came, unless there are data behind.
    """

    def __init__(self, size: int, write: Callable[[Buffer], None]) -> None:
        self.size = size
        self.fetched_bytes = 0
        self._write = write
        self._at = 0  # what has been written ends here
        self._owed = 0  # zeros behind that, not written yet
        self._zeros = bytes(ZEROS_BYTES)

    async def run(self, pieces: AsyncIterator[bytes | int], advance: Advance) -> None:
        """Put all of it out."""
        async for piece in pieces:
            length = piece if isinstance(piece, int) else len(piece)
            if isinstance(piece, bytes):
                self.fetched_bytes += length
            if isinstance(piece, int) or piece.count(0) == length:
                self._owed += length
            else:
                await self._pay(self._at + self._owed)
                await self._put(piece)
            await self._pay(min(self._at + self._owed, self.size))
            advance(length)

    async def _put(self, data: bytes) -> None:
        keep = len(data)
        if self._at + keep > self.size:
            keep = max(len(data.rstrip(b"\0")), self.size - self._at)
        await abandonable(partial(self._write, memoryview(data)[:keep]))
        self._at += keep
        self._owed = len(data) - keep
        self.size = max(self.size, self._at)

    async def _pay(self, end: int) -> None:
        """Write the zeros that are owed, up to ``end``."""
        while self._at < end:
            length = min(end - self._at, ZEROS_BYTES)
            await abandonable(partial(self._write, memoryview(self._zeros)[:length]))
            self._at += length
            self._owed -= length
