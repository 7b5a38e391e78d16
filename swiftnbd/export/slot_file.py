# SPDX-License-Identifier: MIT
"""The file of a disk cache: its format, and every access to it. All of it blocks: for threads.

=====================  =======================================================================
offset                 what
=====================  =======================================================================
0                      the header: magic, version and sizes; SHA-256 of the name; a salt;
                       SHA-256 of the binding (zeros while the file is in use) and of the
                       table; and SHA-256 of all this
4096                   the table: a record of 64 bytes for each slot: flags, index, ETag, seal
the next multiple      the slots, each of the size of a block
of 4096
=====================  =======================================================================

A seal is SHA-256, cut to 16 bytes, of the file's salt, the record and the slot's bytes. So bytes
that were torn, are from another slot or another object, or were left by an earlier file in the
same place do not pass. (SHA-256 takes 37 us for 64 KiB where the processor helps, blake2b 100,
MD5 93; CRC-32, 23 us, would pass one mix-up in 4 billion, and a hostile one always.)

Only a header with a binding makes the table trustworthy, and it is there only between `save`
and the next `open`: `save` writes it when all else is on disk, and `open` does not return
before its removal is on disk. After any other end the records say nothing but what they are
about; who has the object's ETag may still compare.
"""

import fcntl
import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from errno import ENOSPC, EPERM
from pathlib import Path
from typing import NamedTuple

from swiftnbd.errors import ExportUnusable
from swiftnbd.store.base import Buffer

PAGE_BYTES = 4096
RECORD_BYTES = 64
ETAG_BYTES_MAX = 32  # an MD5 in hexadecimal digits
SLOTS_MAX = 1 << 22  # 256 GiB of 64 KiB blocks; their table and index take 0.9 GB of memory
SYNC_BYTES = 64 * 1024 * 1024  # written: so much can be left to be synced at the end, no more

_MAGIC = b"swiftnbd blocks\n"
_VERSION = 1
_HEADER = struct.Struct("<16sQQQ32s16s32s32s")
_RECORD = struct.Struct("<BB6xQ32s16s")  # the seal is over all but the flags and itself
_SEALED = slice(1, 48)
_SEAL_BYTES = 16
_VALID = 1
_PROVEN = 2
_IN_USE = bytes(32)
_NOT_PROVEN = bytes(flags & ~_PROVEN for flags in range(256))


class Record(NamedTuple):
    """Which block is in a slot. ``proven``: it was the object's when the file was last in use."""

    block: int
    etag: str
    proven: bool


class SlotFile:
    """An open file, locked against any other use. The methods may be called in several threads."""

    def __init__(self, fd: int, block_size: int, slots: int, name: str) -> None:
        self.slots = slots
        self._fd = fd
        self._block_size = block_size
        self._name = _digest(_bytes(name))
        self._salt = b""
        self._unsynced = 0
        self._used = 0  # bytes of the table in the file; behind them there are only zeros
        self._begin = _slots_begin(slots)

    @classmethod
    def open(
        cls, path: Path, *, name: str, block_size: int, limit_bytes: int, binding: str | None
    ) -> "tuple[SlotFile, bytearray]":
        """The file, made if need be, and its table; its records are proven if the binding is this.

        Raises `OSError`, and `ExportUnusable` if another process, or export, has it open.
        """
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _lock(fd, path)
            _check_owner(fd)
            found = cls(fd, block_size, _slot_count(block_size, limit_bytes), name)
            return found, found._load(binding)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Let others use it. No other method may be running."""
        os.close(self._fd)

    def read(self, slot: int, record: bytes) -> bytes | None:
        """The bytes of a slot; None if they are not those the record is about."""
        data = _read(self._fd, self._block_size, self._offset(slot))
        return data if self._seal(record, data) == record[-_SEAL_BYTES:] else None

    def write(self, slot: int, block: int, etag: str, data: Buffer) -> bytes:
        """Put a block into a slot, and return its record, which says proven."""
        assert len(data) == self._block_size
        text = etag.encode()
        flags = _VALID | _PROVEN
        unsealed = _RECORD.pack(flags, len(text), block, text, bytes(_SEAL_BYTES))
        record = unsealed[:-_SEAL_BYTES] + self._seal(unsealed, data)
        _write(self._fd, data, self._offset(slot))
        _write(self._fd, record, PAGE_BYTES + slot * RECORD_BYTES)
        self._used = max(self._used, (slot + 1) * RECORD_BYTES)
        self._unsynced += len(data)
        if self._unsynced >= SYNC_BYTES:
            self._unsynced = 0
            os.fdatasync(self._fd)
        return record

    def save(self, table: bytearray, binding: str | None) -> None:
        """Write the table. With a binding, it can be trusted by who opens it with the same one."""
        used = bytes(table[: self._used])
        _write(self._fd, used, PAGE_BYTES)
        if binding is not None:
            os.fsync(self._fd)
            self._write_header(_digest(_bytes(binding)), _digest(used.rstrip(b"\0")))

    def _load(self, binding: str | None) -> bytearray:
        header = _read(self._fd, _HEADER.size + 32, 0)
        body, digest = header[: _HEADER.size], header[_HEADER.size :]
        table, trusted = b"", False
        if _digest(body) == digest and body.startswith(self._identity()):
            self._salt, bound, table_digest = _HEADER.unpack(body)[-3:]
            # most of a large table is nothing, and then costs nothing
            table = _read(self._fd, self.slots * RECORD_BYTES, PAGE_BYTES).rstrip(b"\0")
            trusted = binding is not None and bound == _digest(_bytes(binding))
            trusted = trusted and table_digest == _digest(table)
        else:
            os.ftruncate(self._fd, 0)
            self._salt = os.urandom(16)
        self._write_header(_IN_USE, bytes(32))
        self._used = -(-len(table) // RECORD_BYTES) * RECORD_BYTES
        found = bytearray(self.slots * RECORD_BYTES)
        found[: len(table)] = table
        if not trusted:
            flags = slice(0, self._used, RECORD_BYTES)
            found[flags] = found[flags].translate(_NOT_PROVEN)
        return found

    def _identity(self) -> bytes:
        """What the header begins with, of this block size, limit and name."""
        empty = _HEADER.pack(_MAGIC, _VERSION, self._block_size, self.slots, self._name, *[b""] * 3)
        return empty[: -16 - 32 - 32]

    def _write_header(self, binding: bytes, table_digest: bytes) -> None:
        identity = self._identity()
        body = identity + self._salt + binding + table_digest
        _write(self._fd, body + _digest(body), 0)
        os.fsync(self._fd)

    def _offset(self, slot: int) -> int:
        assert 0 <= slot < self.slots
        return self._begin + slot * self._block_size

    def _seal(self, record: bytes, data: Buffer) -> bytes:
        seal = hashlib.sha256(self._salt + record[_SEALED])
        seal.update(data)
        return seal.digest()[:_SEAL_BYTES]


def records(table: bytes | bytearray) -> Iterator[tuple[int, Record]]:
    """The slots that hold something, and what."""
    used = -(-len(table.rstrip(b"\0")) // RECORD_BYTES) * RECORD_BYTES
    for slot, fields in enumerate(_RECORD.iter_unpack(memoryview(table)[:used])):
        flags, length, block, etag, _ = fields
        if flags & _VALID:
            yield slot, Record(block, _text(etag[:length]), bool(flags & _PROVEN))


def record_of(record: bytes) -> Record | None:
    """What one record of the table says; None if its slot holds nothing."""
    return next((found for _, found in records(record)), None)


def same_block(record: bytes, other: bytes) -> bool:
    """Whether both say the same of their slot, apart from what is proven."""
    return record[1:] == other[1:]


def as_proven(record: bytes) -> bytes:
    """The same record, proven."""
    return bytes([record[0] | _PROVEN]) + record[1:]


def _text(etag: bytes) -> str:
    return etag.decode("ascii", "replace")  # a damaged one is of no block's seal


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _digest(data: bytes | bytearray) -> bytes:
    return hashlib.sha256(data).digest()


def _slot_count(block_size: int, limit_bytes: int) -> int:
    """How many slots fit, the header and the table included."""
    slots = max(0, (limit_bytes - 2 * PAGE_BYTES) // (block_size + RECORD_BYTES))
    if not slots:
        raise OSError(ENOSPC, f"its limit of {limit_bytes} bytes leaves no room for a block")
    return min(slots, SLOTS_MAX)


def _slots_begin(slots: int) -> int:
    return -(-(PAGE_BYTES + slots * RECORD_BYTES) // PAGE_BYTES) * PAGE_BYTES


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ExportUnusable(
            f"{path}: another process uses this disk cache; give each server its own cache-dir"
        ) from None


def _check_owner(fd: int) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise OSError(EPERM, "not a file of ours")
    os.fchmod(fd, 0o600)


def _read(fd: int, length: int, offset: int) -> bytes:
    """So many bytes, or less at the end of the file."""
    found = os.pread(fd, length, offset)
    while 0 < len(found) < length and (
        more := os.pread(fd, length - len(found), offset + len(found))
    ):
        found += more
    return found


def _write(fd: int, data: Buffer, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
