# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter luks file disk.luks passphrase=+FILE``"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from swiftnbd.api import (
    BOOLEAN,
    SECONDS,
    Buffer,
    Device,
    Filter,
    FilterPlugin,
    Opening,
    parameter,
)
from swiftnbd.api.access import joined, read_bytes, write_bytes
from swiftnbd.api.passphrases import PASSPHRASE
from swiftnbd.api.range_lock import RangeLock
from swiftnbd.api.threads import Threads
from swiftnbd.errors import ExportUnusable
from swiftnbd.filters.luks import header as luks
from swiftnbd.filters.luks.xts import SECTOR_BYTES, Xts

AT_ONCE_BYTES: Final = 16 * 1024  # encrypted without an await, some 0.3 ms
TURN_BYTES: Final = 64 * 1024  # encrypted, about 1 ms; then others have a turn
START_BYTES: Final = 64 * 1024  # what the header is written with: a multiple of any smallest block
ANY_KEY_BYTES: Final = 64  # of a key that is never used
KEYS_MAX: Final = 16  # kept: of the devices of one plugin that makes several


@dataclass(frozen=True)
class Luks(FilterPlugin):
    """Encrypts a disk in the format LUKS1, which qemu and Linux can open, too."""

    passphrase: bytes = parameter(
        PASSPHRASE,
        "The passphrase: in a file, asked for, from a descriptor, or itself.",
        secret=True,
    )
    luks_discard: bool = parameter(
        BOOLEAN, "Pass TRIM on, which shows what is not in use.", default=False
    )
    luks_format: bool = parameter(
        BOOLEAN, "Make a new LUKS disk of one that begins with 2 MiB of zeros.", default=False
    )
    luks_iter_time: float = parameter(
        SECONDS, "How long opening what luks-format makes is to take.", default=2.0
    )
    # By digests of headers: finding a key takes seconds, and anybody may ask what an export is.
    _keys: dict[bytes, bytes] = field(
        default_factory=dict, init=False, repr=False, compare=False, hash=False
    )
    # One for the filters of all connections, where each has its own: they share the sectors.
    _lock: RangeLock = field(default_factory=RangeLock, init=False, repr=False, compare=False)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        threads = Threads(1, "luks")
        try:
            xts, payload = await self._open(device, threads, opening)
        finally:
            threads.stop()
        return LuksFilter(device, xts, payload, self._lock, discards=self.luks_discard)

    async def _open(self, device: Device, threads: Threads, opening: Opening) -> tuple[Xts, int]:
        """What decrypts the disk, and where it begins."""
        start = await read_bytes(device, 0, min(luks.HEADER_BYTES, device.size))
        if self.luks_format and not luks.is_luks(start):
            if opening.only_look:
                await _check_room(device)
                return Xts(os.urandom(ANY_KEY_BYTES)), luks.PAYLOAD_BYTES
            made = await self._format(device, threads)
            start, key = made.header.packed(), made.key
            self._keep(start, key)
        header = luks.Header.parse(start, device.size)
        kept = self._keys.get(hashlib.sha256(start).digest())
        found = await self._found(device, header, start, threads) if kept is None else kept
        return Xts(found), header.payload_offset

    async def _found(
        self, device: Device, header: luks.Header, start: bytes, threads: Threads
    ) -> bytes:
        for slot in header.slots:
            material = await read_bytes(device, slot.offset, header.material_bytes)
            key = await threads.run(header.opened, self.passphrase, slot, material)
            if key is not None:
                self._keep(start, key)
                return key
        raise ExportUnusable(
            f"luks: the passphrase is wrong: it fits none of {len(header.slots)} key slots in use"
        )

    def _keep(self, start: bytes, key: bytes) -> None:
        if len(self._keys) >= KEYS_MAX:
            del self._keys[next(iter(self._keys))]
        self._keys[hashlib.sha256(start).digest()] = key

    async def _format(self, device: Device, threads: Threads) -> luks.Made:
        """Only where nothing is, and the header last: what is cut short is no LUKS disk."""
        await _check_room(device)
        made = await threads.run(luks.make, self.passphrase, self.luks_iter_time)
        slot = made.header.slots[0]
        region = bytearray(luks.PAYLOAD_BYTES)
        region[slot.offset : slot.offset + len(made.material)] = made.material
        await write_bytes(device, 0, region)
        await device.flush()
        region[: luks.HEADER_BYTES] = made.header.packed()
        await write_bytes(device, 0, region[:START_BYTES])
        await device.flush()
        return made


async def _check_room(device: Device) -> None:
    """Raises `ExportUnusable` where no LUKS disk can be made, or something is that it would end."""
    if device.size < luks.PAYLOAD_BYTES + SECTOR_BYTES:
        raise ExportUnusable(f"luks: a disk of {device.size} bytes is too small to be formatted")
    if any(await read_bytes(device, 0, luks.PAYLOAD_BYTES)):
        raise ExportUnusable(
            "luks: it is not formatted, as its first 2 MiB are no zeros: something is there"
        )


class LuksFilter(Filter):
    """The plaintext of what lies from ``payload`` on in ``device``.

    Sectors that are written in part are read, changed and written back, with nobody between. So
    that readers never see half a sector of one writer and half of another, they wait as well.
    """

    block_size_min = 1
    can_fast_zero = False

    def __init__(
        self, device: Device, xts: Xts, payload: int, lock: RangeLock, *, discards: bool
    ) -> None:
        """``lock``: of the plaintext's offsets, with all who use the same sectors.

        Raises `ExportUnusable` if the device cannot be asked for the sectors.
        """
        super().__init__(device)
        self._unit = max(SECTOR_BYTES, device.block_size_min)
        if payload % self._unit:
            raise ExportUnusable(
                f"luks: the disk begins at byte {payload}, which is no multiple of {self._unit}"
            )
        self.size = (device.size - payload) // self._unit * self._unit
        self.can_trim = device.can_trim and discards
        self._xts, self._payload, self._lock = xts, payload, lock

    def _around(self, offset: int, length: int) -> tuple[int, int]:
        """The whole sectors that a range touches."""
        unit = self._unit
        return offset // unit * unit, -(-(offset + length) // unit) * unit

    # Reading

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        start, end = self._around(offset, length)
        if end - start > AT_ONCE_BYTES or not self._lock.is_free(start, end, shared=True):
            return None
        pieces = self.device.read_now(self._payload + start, end - start)
        if pieces is None:
            return None
        plain = self._xts.decrypt(start // SECTOR_BYTES, joined(pieces))
        return (memoryview(plain)[offset - start :][:length],)

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        start, end = self._around(offset, length)
        async with self._lock.shared(start, end):
            stored = await read_bytes(self.device, self._payload + start, end - start)
        pieces = await self._in_turns(self._xts.decrypt, start, stored)
        if end - start == length:
            return pieces
        return (memoryview(b"".join(pieces))[offset - start :][:length],)

    async def prefetch(self, offset: int, length: int) -> None:
        start, end = self._around(offset, length)
        await self.device.prefetch(self._payload + start, end - start)

    # Writing

    def write_now(self, offset: int, data: Buffer) -> bool:
        start, end = self._around(offset, len(data))
        if (
            end - start != len(data)
            or len(data) > AT_ONCE_BYTES
            or not self._lock.is_free(start, end, shared=False)
        ):
            return False
        stored = self._xts.encrypt(start // SECTOR_BYTES, data)
        return self.device.write_now(self._payload + start, stored)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        start, end = self._around(offset, len(data))
        async with self._lock.exclusive(start, end):
            if end - start != len(data):
                data = await self._completed(start, end, offset, data)
            stored = b"".join(await self._in_turns(self._xts.encrypt, start, data))
            await write_bytes(self.device, self._payload + start, stored, fua=fua)

    async def _completed(self, start: int, end: int, offset: int, data: Buffer) -> bytes:
        """``data`` with what is around it in its first and last sector."""
        stop = offset + len(data)
        before = after = b""
        if start < offset:
            before = await self._plain(start, start + self._unit)
        if stop < end:
            last = end - self._unit
            after = before if before and last == start else await self._plain(last, end)
        return b"".join((before[: offset - start], data, after[len(after) - (end - stop) :]))

    async def _plain(self, start: int, end: int) -> bytes:
        stored = await read_bytes(self.device, self._payload + start, end - start)
        return self._xts.decrypt(start // SECTOR_BYTES, stored)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Whole sectors only. They read as noise afterwards, which is as good as anything."""
        unit = self._unit
        start, end = -(-offset // unit) * unit, (offset + length) // unit * unit
        if start < end and self.can_trim:
            options = {"fua": True} if fua else {}
            async with self._lock.exclusive(start, end):
                await self.device.trim(self._payload + start, end - start, **options)

    async def _in_turns(
        self, work: Callable[[int, Buffer], bytes], start: int, data: Buffer
    ) -> list[bytes]:
        view, done = memoryview(data), list[bytes]()
        for at in range(0, len(view), TURN_BYTES):
            if at:
                await asyncio.sleep(0)
            done.append(work((start + at) // SECTOR_BYTES, view[at : at + TURN_BYTES]))
        return done
