# SPDX-License-Identifier: MIT
"""Clean blocks kept on a local disk, also over restarts: a cache, never a journal.

What it gives is worth as much as what is known of it. A block is *proven* if it was put here in
this session, confirmed by its ETag in this session, or either of that in the session before,
which ended in `close` with the binding (the lock's epoch and the container's last holder) that
`open` was given now: nobody else held the container in between. Anything else that is found is
given with its ETag: ask the store for the object's, and compare, before you believe it.

`drop` before an object changes, in whatever way. It works at once, and needs no disk: what the
file says meanwhile is believed by nobody (see `swiftnbd.export.slot_file`), and `close` writes
the table anew. A crash at any point leaves blocks that are unproven, torn ones that fail
their seal, or no cache.

A local disk that fails, is full or hangs is never a reason not to serve: the cache says so in
one WARNING and from then on finds nothing and keeps nothing. File work is done in threads that
nobody waits for without an end, not even the end of the process.

No more than ``limit_bytes`` of disk are taken. What goes when they are full is found by CLOCK: a
byte for each slot, searched in C (0.2 ms for 160,000 slots at the worst). Memory: 65 bytes for
each slot and some 150 for each block in one, 35 MB for 10 GiB of 64 KiB blocks, which take 0.3 s
to open. `drop` takes 0.3 us, `put` 17 us of the event loop, `get` of 64 KiB 0.15 ms, most of it
the change of threads and SHA-256.
"""

import asyncio
import hashlib
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from swiftnbd.api.threads import Threads
from swiftnbd.export.slot_file import (
    ETAG_BYTES_MAX,
    RECORD_BYTES,
    SlotFile,
    as_proven,
    record_of,
    records,
    same_block,
)
from swiftnbd.store.base import Buffer

READERS = 2  # threads: a read is the disk's time and 40 us of SHA-256 without Python's lock
QUEUE_BYTES_MAX = 8 * 1024 * 1024  # to be written; a disk slower than the store gets only a part
READ_SECONDS_MAX = 5.0  # a healthy disk takes milliseconds; the store could have answered by then
WRITE_SECONDS_MAX = 30.0  # without any being done, while a full queue waits for it
OPEN_SECONDS_MAX = 10.0  # a client waits to be attached, and millions of records take seconds
CLOSE_SECONDS_MAX = 10.0  # the lock is held meanwhile; `slot_file.SYNC_BYTES` bounds what is left

_IDLE, _USED, _BUSY = range(3)  # marks of slots: may be taken, has another round, being written
_NEXT_ROUND = bytes([_IDLE, _IDLE, _BUSY]).ljust(256)
_NOTHING = bytes(RECORD_BYTES)

log = logging.getLogger(__name__)


class Cached(NamedTuple):
    """A block from the disk. If not ``proven``, it is only good if ``etag`` is the object's."""

    data: bytes
    etag: str
    proven: bool


class DiskCache:
    """Blocks by index, in one file. For the event loop's thread; file work is done in others."""

    def __init__(
        self, label: str, path: Path, file: SlotFile | None, table: bytearray, writer: Threads
    ) -> None:
        self._label = label
        self._path = path
        self._file = file
        self._usable = file is not None  # neither failed nor closed
        self.failed = False
        self._table = table
        self._slots: dict[int, int] = {}
        self._marks = bytearray(len(table) // RECORD_BYTES)
        self._hand = 0
        self._freed: list[int] = []  # slots with nothing in them any more: used again first
        self._writing: dict[int, int] = {}  # the slot to be of a block, once it is written
        self._writes: set[asyncio.Future[bytes]] = set()
        self._queued_bytes = 0
        self._wrote_at = 0.0  # time of the loop: a write was done, or the first of them queued
        self._writer = writer
        self._readers = Threads(READERS, "disk-cache-reader")
        self._turns = asyncio.Semaphore(READERS)  # so that waiting is not taken for a slow disk
        self._ending: asyncio.Task[None] | None = None
        self._was_trusted = False
        for slot, record in records(table):
            self._was_trusted |= record.proven
            self._marks[slot] = _USED  # empty slots are filled first
            if self._slots.setdefault(record.block, slot) != slot:
                self._set_record(slot, _NOTHING)  # two of the same: left by a crash

    @classmethod
    async def open(
        cls,
        directory: Path,
        name: str,
        *,
        label: str,
        object_size: int,
        block_size: int,
        limit_bytes: int,
        binding: str | None,
    ) -> "DiskCache":
        """The cache of the blocks of ``name``, which says all that tells its container from others.

        ``label`` is for messages. ``binding`` is None if nobody can know who held the container
        last. Raises `ExportUnusable` if another process, or export, uses the file.
        """
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        path = directory / f"{digest[:32]}.blocks"

        def open_file() -> DiskCache:
            file, table = SlotFile.open(
                path,
                name=f"{name}\n{object_size}",
                block_size=block_size,
                limit_bytes=limit_bytes,
                binding=binding,
            )
            return cls(label, path, file, table, writer)

        writer = Threads(1, "disk-cache-writer")
        opening = writer.run(open_file)
        try:
            await asyncio.wait([opening], timeout=OPEN_SECONDS_MAX)
        except asyncio.CancelledError:
            opening.add_done_callback(partial(_close_late, writer))
            raise
        if not opening.done():
            error: BaseException | None = OSError(f"not open within {OPEN_SECONDS_MAX:.0f} s")
            opening.add_done_callback(partial(_close_late, writer))
        else:
            error = opening.exception()
        if error is None:
            found = opening.result()
            believed = "proven" if found._was_trusted else "to be compared with the store's"
            log.info("%s: %d blocks in %s, %s", label, len(found), path, believed)
            return found
        if not isinstance(error, OSError):
            writer.stop()
            raise error
        found = cls(label, path, None, bytearray(), writer)
        found._fail(error)
        return found

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, index: int) -> bool:
        return index in self._slots

    async def get(self, index: int) -> Cached | None:
        """The block, if it is here and whole.

        What is returned was not dropped until now; it may be by the time another *task* that
        waits for this one is resumed. So await it directly, and use it before the next await.
        """
        async with self._turns:
            slot = self._slots.get(index)
            if slot is None or self._file is None or not self._usable:
                return None
            record = self._record(slot)
            try:
                async with asyncio.timeout(READ_SECONDS_MAX):
                    data = await self._readers.run(self._file.read, slot, record)
            except TimeoutError:
                self._fail(OSError(f"a read took more than {READ_SECONDS_MAX:.0f} s"))
                return None
            except OSError as error:
                self._fail(error)
                return None
        now = self._record(slot)
        if self._slots.get(index) != slot or not same_block(now, record):
            return None  # dropped meanwhile, or replaced
        found = record_of(now)
        if data is None or found is None:
            log.debug("%s: block %d is damaged", self._path, index)
            self.drop(index)
            return None
        self._marks[slot] = _USED
        return Cached(data, found.etag, found.proven)

    def put(self, index: int, data: Buffer, etag: str) -> None:
        """Keep a block, if there is time: what is durable with this ETag, and will not change.

        ``data`` itself must not change either, until it is written. It replaces what was kept. A
        view is copied.
        """
        self.drop(index)
        fits = len(etag) <= ETAG_BYTES_MAX and etag.isascii()
        if self._file is None or not self._usable or not fits or self._is_busy(len(data)):
            return
        slot = self._take_slot()
        if slot is None:
            return
        self._writing[index] = slot
        self._queued_bytes += len(data)
        # a view would keep in memory all that it is a part of: a thousand times as much, perhaps
        own = bytes(data) if isinstance(data, memoryview) else data
        write = self._writer.run(self._file.write, slot, index, etag, own)
        self._writes.add(write)
        write.add_done_callback(partial(self._written, index, slot, len(data)))

    def _is_busy(self, size: int) -> bool:
        """Whether the queue has no room for so many bytes more; fails if it does not move."""
        now = asyncio.get_running_loop().time()
        if not self._queued_bytes:
            self._wrote_at = now
        elif self._queued_bytes + size > QUEUE_BYTES_MAX:
            if now - self._wrote_at > WRITE_SECONDS_MAX:
                self._fail(OSError(f"a write took more than {WRITE_SECONDS_MAX:.0f} s"))
            return True
        return False

    def drop(self, index: int) -> bool:
        """Forget a block; whether there was one. To be called before its object changes."""
        was_written = self._writing.pop(index, None) is not None
        slot = self._slots.pop(index, None)
        if slot is None:
            return was_written
        self._set_record(slot, _NOTHING)
        self._marks[slot] = _IDLE
        self._freed.append(slot)
        return True

    def drop_range(self, first: int, end: int) -> None:
        """Forget the blocks ``[first, end)``, in time bounded by how many are here."""
        if end - first <= len(self._slots) + len(self._writing):
            dropped: Iterable[int] = range(first, end)
        else:
            here = (*self._slots, *self._writing)
            dropped = [index for index in here if first <= index < end]
        for index in dropped:
            self.drop(index)

    def confirm(self, index: int, etag: str) -> None:
        """The object's ETag is this, says the store: a block with the same is proven, else gone."""
        slot = self._slots.get(index)
        if slot is None:
            return
        record = self._record(slot)
        found = record_of(record)
        if found is not None and found.etag == etag:
            self._set_record(slot, as_proven(record))
        else:
            self.drop(index)

    async def close(self, binding: str | None) -> None:
        """Finish what is queued, save, and let go of the file.

        With a ``binding``, the blocks that are proven now will be for who opens with the same:
        give what the container is left with when it is unlocked, and only when nothing can
        change it any more. Without, nothing will be. Who calls it again waits for the same end.
        """
        self._usable = False
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end(binding))
        done, _ = await asyncio.wait([self._ending], timeout=CLOSE_SECONDS_MAX)
        if not done:
            self._fail(OSError(f"not saved within {CLOSE_SECONDS_MAX:.0f} s"))

    async def _end(self, binding: str | None) -> None:
        if self._writes:
            await asyncio.wait(self._writes)
        if self._file is not None and not self.failed:
            try:
                await self._writer.run(self._file.save, self._table, binding)
            except OSError as error:
                self._fail(error)
        await self._close_file()

    async def _close_file(self) -> None:
        """Once its threads have ended, however long that takes."""
        closer = Threads(1, "disk-cache-closer")
        await closer.run(self._let_go)
        closer.stop()

    def _let_go(self) -> None:
        for threads in (self._writer, self._readers):
            threads.stop()
            threads.join()
        if self._file is not None:
            self._file.close()  # and only now: a number closed too early is another file's

    def _written(self, index: int, slot: int, size: int, write: asyncio.Future[bytes]) -> None:
        """A write has ended; the block may have been dropped, or put again, in the meantime."""
        self._writes.discard(write)
        self._queued_bytes -= size
        self._wrote_at = write.get_loop().time()
        error = write.exception()
        if error is not None:
            self._fail(error)
        if self.failed:
            return
        self._marks[slot] = _IDLE
        if self._writing.get(index) == slot:
            del self._writing[index]
            self._slots[index] = slot
            self._set_record(slot, write.result())
        else:
            self._freed.append(slot)

    def _take_slot(self) -> int | None:
        """A slot to write to, nobody's or of a block to give up; None if all are being written."""
        if self._freed:
            slot = self._freed.pop()
            self._marks[slot] = _BUSY
            return slot
        for _ in range(2):
            found = self._marks.find(_IDLE, self._hand)
            end = len(self._marks) if found < 0 else found
            passed = slice(self._hand, end)
            self._marks[passed] = self._marks[passed].translate(_NEXT_ROUND)
            self._hand = 0 if found < 0 else found + 1
            if found >= 0:
                given_up = record_of(self._record(found))
                if given_up is not None:
                    self.drop(given_up.block)
                    self._freed.pop()
                self._marks[found] = _BUSY
                return found
        return None

    def _record(self, slot: int) -> bytes:
        return bytes(self._table[slot * RECORD_BYTES : (slot + 1) * RECORD_BYTES])

    def _set_record(self, slot: int, record: bytes) -> None:
        self._table[slot * RECORD_BYTES : (slot + 1) * RECORD_BYTES] = record

    def _fail(self, error: BaseException) -> None:
        """Go on without. Says so once."""
        if not self.failed:
            self.failed, self._usable = True, False
            self._slots.clear()
            self._writing.clear()
            log.warning(
                "%s: going on without the disk cache %s: %s",
                self._label,
                self._path,
                getattr(error, "strerror", None) or error,
            )


def _close_late(writer: Threads, opening: asyncio.Future[DiskCache]) -> None:
    """A file that was opened when nobody waited for it any more: there is nothing to save."""
    if opening.exception() is not None:
        writer.stop()
        return
    found = opening.result()
    found._ending = opening.get_loop().create_task(found._close_file())
