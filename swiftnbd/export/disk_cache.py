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
one WARNING and from then on finds nothing and keeps nothing, until the next start.

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
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
CLOSE_SECONDS_MAX = 30.0  # what is queued, and the kernel's own cache of what was written

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

    def __init__(self, path: Path, file: SlotFile | None, table: bytearray) -> None:
        self._path = path
        self._file = file
        self._usable = file is not None  # neither failed nor closed
        self._failed = False
        self._table = table
        self._slots: dict[int, int] = {}
        self._marks = bytearray(len(table) // RECORD_BYTES)
        self._hand = 0
        self._writing: dict[int, int] = {}  # the slot to be of a block, once it is written
        self._writes: set[asyncio.Future[bytes]] = set()
        self._queued_bytes = 0
        self._writer = ThreadPoolExecutor(1, "disk-cache-writer")
        self._readers = ThreadPoolExecutor(READERS, "disk-cache-reader")
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, directory: Path, name: str, *, block_size: int, limit_bytes: int, binding: str | None
    ) -> "DiskCache":
        """The cache of the blocks of ``name``, which says all that tells its container from others.

        ``binding`` is None if nobody can know who held the container last. Raises
        `ExportUnusable` if another process uses the file.
        """
        return await asyncio.to_thread(cls._open, directory, name, block_size, limit_bytes, binding)

    @classmethod
    def _open(
        cls, directory: Path, name: str, block_size: int, limit_bytes: int, binding: str | None
    ) -> "DiskCache":
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        path = directory / f"{digest[:32]}.blocks"
        try:
            file, table = SlotFile.open(
                path, name=name, block_size=block_size, limit_bytes=limit_bytes, binding=binding
            )
        except OSError as error:
            found = cls(path, None, bytearray())
            found._fail(error)
            return found
        found = cls(path, file, table)
        for slot, record in records(table):
            found._marks[slot] = _USED  # empty slots are filled first
            if found._slots.setdefault(record.block, slot) != slot:
                found._set_record(slot, _NOTHING)  # two of the same: left by a crash
        return found

    def __len__(self) -> int:
        return len(self._slots)

    async def get(self, index: int) -> Cached | None:
        """The block, if it is here and whole.

        What is returned was not dropped until now; it may be by the time another *task* that
        waits for this one is resumed. So await it directly, and use it before the next await.
        """
        slot = self._slots.get(index)
        if slot is None or self._file is None or not self._usable:
            return None
        record = self._record(slot)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(READ_SECONDS_MAX):
                data = await loop.run_in_executor(self._readers, self._file.read, slot, record)
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

        ``data`` itself must not change either, until it is written. It replaces what was kept.
        """
        self.drop(index)
        busy = self._queued_bytes and self._queued_bytes + len(data) > QUEUE_BYTES_MAX
        fits = len(etag) <= ETAG_BYTES_MAX and etag.isascii()
        if self._file is None or not self._usable or busy or not fits:
            return
        slot = self._take_slot()
        if slot is None:
            return
        self._writing[index] = slot
        self._queued_bytes += len(data)
        write = asyncio.get_running_loop().run_in_executor(
            self._writer, self._file.write, slot, index, etag, data
        )
        self._writes.add(write)
        write.add_done_callback(partial(self._written, index, slot, len(data)))

    def drop(self, index: int) -> None:
        """Forget a block. To be called before its object changes, whether or not it is here."""
        self._writing.pop(index, None)
        slot = self._slots.pop(index, None)
        if slot is not None:
            self._set_record(slot, _NOTHING)
            self._marks[slot] = _IDLE

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
        """The object's ETag is this, says the store: a block that has the same is proven."""
        slot = self._slots.get(index)
        if slot is None:
            return
        record = self._record(slot)
        found = record_of(record)
        if found is not None and found.etag == etag:
            self._set_record(slot, as_proven(record))

    async def close(self, binding: str | None) -> None:
        """Finish what is queued, save, and let go of the file.

        With a ``binding``, the blocks that are proven now will be for who opens with the same:
        give what the container is left with when it is unlocked, and only when nothing can
        change it any more. Without, nothing will be.
        """
        assert self._ending is None, "closed twice"
        self._usable = False
        self._ending = asyncio.get_running_loop().create_task(self._end(binding))
        done, _ = await asyncio.wait([self._ending], timeout=CLOSE_SECONDS_MAX)
        if not done:
            self._fail(OSError(f"not saved within {CLOSE_SECONDS_MAX:.0f} s"))

    async def _end(self, binding: str | None) -> None:
        if self._writes:
            await asyncio.wait(self._writes)
        if self._file is not None and not self._failed:
            try:
                await asyncio.to_thread(self._file.save, bytes(self._table), binding)
            except OSError as error:
                self._fail(error)
        await asyncio.to_thread(self._let_go)

    def _let_go(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        if self._file is not None:
            self._file.close()  # and only now: a number closed too early is another file's

    def _written(self, index: int, slot: int, size: int, write: asyncio.Future[bytes]) -> None:
        """A write has ended; the block may have been dropped, or put again, in the meantime."""
        self._writes.discard(write)
        self._queued_bytes -= size
        error = write.exception()
        if error is not None:
            self._fail(error)
        if self._failed:
            return
        self._marks[slot] = _IDLE
        if self._writing.get(index) == slot:
            del self._writing[index]
            self._slots[index] = slot
            self._set_record(slot, write.result())

    def _take_slot(self) -> int | None:
        """A slot to write to, nobody's or of a block to give up; None if all are being written."""
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
                self._marks[found] = _BUSY
                return found
        return None

    def _record(self, slot: int) -> bytes:
        return bytes(self._table[slot * RECORD_BYTES : (slot + 1) * RECORD_BYTES])

    def _set_record(self, slot: int, record: bytes) -> None:
        self._table[slot * RECORD_BYTES : (slot + 1) * RECORD_BYTES] = record

    def _fail(self, error: BaseException) -> None:
        """Go on without. Says so once."""
        if not self._failed:
            self._failed, self._usable = True, False
            self._slots.clear()
            self._writing.clear()
            log.warning("%s: going on without the disk cache: %s", self._path, error)
