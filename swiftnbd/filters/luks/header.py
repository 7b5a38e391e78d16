# SPDX-License-Identifier: MIT
"""LUKS version 1: the header, and how a passphrase becomes the key of the disk.

::

    0          the header, 592 bytes: how it is encrypted, a digest of the disk's key, eight slots
    slot's     key material: the disk's key, split into 4000 stripes (so that a disk that keeps
    offset     a part of it keeps nothing), encrypted with a key that is made of a passphrase
    payload    the disk, encrypted in sectors of 512 bytes, which are counted from here

All numbers are big-endian, offsets are counted in sectors. Source: "LUKS On-Disk Format
Specification", version 1.2.3.
"""

import hashlib
import hmac
import os
import struct
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from swiftnbd.errors import ExportUnusable
from swiftnbd.filters.luks.xts import SECTOR_BYTES, Xts

HEADER_BYTES: Final = 592
PAYLOAD_BYTES: Final = 2 * 1024 * 1024  # before the payload of what we make, as cryptsetup has it

_MAGIC: Final = b"LUKS\xba\xbe"
_HEADER: Final = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT: Final = struct.Struct(">II32sII")
_SLOTS: Final = 8
_ENABLED, _DISABLED = 0x00AC71F3, 0x0000DEAD
_STRIPES: Final = 4000
_HASHES: Final = ("sha1", "sha256", "sha512")
_KEY_BYTES: Final = (32, 64)  # two keys of AES-128, or two of AES-256
_DIGEST_BYTES: Final = 20
_SALT_BYTES: Final = 32
# cryptsetup takes as many as it does in 2 s, some millions. This many take us minutes, once.
ITERATIONS_MAX: Final = 64 * 1024 * 1024
_ITERATIONS_MIN: Final = 1000  # the specification's
_ITERATIONS_TRIED: Final = 20_000  # to measure how long they take
_SLOT_ALIGNMENT: Final = 8  # sectors, 4096 bytes


class Slot(NamedTuple):
    """Where the disk's key is, encrypted with one passphrase. ``offset`` is in bytes."""

    number: int
    iterations: int
    salt: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a disk says of itself; ``slots`` are those in use."""

    key_bytes: int
    hash: str
    payload_offset: int
    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: str
    slots: tuple[Slot, ...]

    @property
    def material_bytes(self) -> int:
        """How much lies at a slot's offset."""
        return -(-self.key_bytes * _STRIPES // SECTOR_BYTES) * SECTOR_BYTES

    @classmethod
    def parse(cls, data: bytes, size: int) -> Self:
        """The first `HEADER_BYTES` of a disk of ``size`` bytes. Raises `ExportUnusable`."""
        if not is_luks(data):
            raise ExportUnusable("luks: it does not begin with a LUKS header")
        fields = _HEADER.unpack_from(data)
        if fields[1] != 1:
            raise ExportUnusable(f"luks: it is LUKS{fields[1]}, and only LUKS1 can be opened")
        _, _, *names, payload, key_bytes, digest, salt, iterations, name = fields
        cipher, mode, hash = map(_text, names)
        if (cipher, mode) != ("aes", "xts-plain64") or key_bytes not in _KEY_BYTES:
            raise ExportUnusable(
                f"luks: its cipher is {cipher}-{mode} with {8 * key_bytes} bits, "
                "and only aes-xts-plain64 with 256 or 512 can be opened"
            )
        if hash not in _HASHES:
            raise ExportUnusable(
                f"luks: its hash is {hash}, and only {', '.join(_HASHES)} is known"
            )
        offset = payload * SECTOR_BYTES
        header = cls(key_bytes, hash, offset, digest, salt, iterations, _text(name), ())
        slots = tuple(header._slots(data))
        header._check(size, slots)
        return cls(key_bytes, hash, offset, digest, salt, iterations, header.uuid, slots)

    def _slots(self, data: bytes) -> Iterator[Slot]:
        for number in range(_SLOTS):
            place = _HEADER.size + number * _SLOT.size
            state, iterations, salt, offset, stripes = _SLOT.unpack_from(data, place)
            if state == _DISABLED:
                continue
            if state != _ENABLED or stripes != _STRIPES:
                raise ExportUnusable(f"luks: the header is damaged: key slot {number}")
            yield Slot(number, iterations, salt, offset * SECTOR_BYTES)

    def _check(self, size: int, slots: tuple[Slot, ...]) -> None:
        """What would read elsewhere, or keep us busy for ever."""
        for slot in slots:
            end = slot.offset + self.material_bytes
            if slot.offset < HEADER_BYTES or end > self.payload_offset:
                raise ExportUnusable(f"luks: the header is damaged: key slot {slot.number}")
        for iterations in (self.digest_iterations, *(slot.iterations for slot in slots)):
            if not 1 <= iterations <= ITERATIONS_MAX:
                raise ExportUnusable(
                    f"luks: the header wants {iterations} iterations, "
                    f"which is not between 1 and {ITERATIONS_MAX}"
                )
        if not HEADER_BYTES <= self.payload_offset < size:
            raise ExportUnusable(
                f"luks: the disk begins at byte {self.payload_offset}, but there are {size} bytes"
            )
        if not slots:
            raise ExportUnusable("luks: no key slot is in use, so no passphrase opens it")

    def packed(self) -> bytes:
        """As it is stored; slots that are not in use have the places that are left."""
        names = (b"aes", b"xts-plain64", self.hash.encode())
        numbers = (self.payload_offset // SECTOR_BYTES, self.key_bytes)
        digest = (self.digest, self.digest_salt, self.digest_iterations, self.uuid.encode())
        data = _HEADER.pack(_MAGIC, 1, *names, *numbers, *digest)
        used = {slot.number: slot for slot in self.slots}
        stride = -(-self.material_bytes // (_SLOT_ALIGNMENT * SECTOR_BYTES)) * _SLOT_ALIGNMENT
        for number in range(_SLOTS):
            slot, place = used.get(number), _SLOT_ALIGNMENT + number * stride
            if slot is None:
                data += _SLOT.pack(_DISABLED, 0, bytes(_SALT_BYTES), place, _STRIPES)
            else:
                sector = slot.offset // SECTOR_BYTES
                data += _SLOT.pack(_ENABLED, slot.iterations, slot.salt, sector, _STRIPES)
        return data

    def opened(self, passphrase: bytes, slot: Slot, material: bytes) -> bytes | None:
        """The disk's key, if the passphrase is that of a slot. Takes seconds: not for the loop."""
        own = self._derived(passphrase, slot)
        split = Xts(own).decrypt(0, material)[: self.key_bytes * _STRIPES]
        key = _merged(split, self.key_bytes, self.hash)
        return key if hmac.compare_digest(self._digest(key), self.digest) else None

    def _derived(self, passphrase: bytes, slot: Slot) -> bytes:
        return hashlib.pbkdf2_hmac(
            self.hash, passphrase, slot.salt, slot.iterations, self.key_bytes
        )

    def _digest(self, key: bytes) -> bytes:
        rounds = self.digest_iterations
        return hashlib.pbkdf2_hmac(self.hash, key, self.digest_salt, rounds, _DIGEST_BYTES)


class Made(NamedTuple):
    """A new disk: ``header`` and ``material`` are what is to be stored, ``key`` is its key."""

    header: Header
    material: bytes
    key: bytes


def make(passphrase: bytes, seconds: float) -> Made:
    """A header for one passphrase, whose key takes about so long to find. Takes as long itself."""
    hash, key_bytes = "sha256", 64
    iterations = _iterations(hash, key_bytes, seconds)
    key = os.urandom(key_bytes)
    slot = Slot(0, iterations, os.urandom(_SALT_BYTES), _SLOT_ALIGNMENT * SECTOR_BYTES)
    salt, rounds = os.urandom(_SALT_BYTES), max(_ITERATIONS_MIN, iterations // 8)
    digest = hashlib.pbkdf2_hmac(hash, key, salt, rounds, _DIGEST_BYTES)
    header = Header(
        key_bytes, hash, PAYLOAD_BYTES, digest, salt, rounds, str(uuid.uuid4()), (slot,)
    )
    split = _split(key, hash)
    material = Xts(header._derived(passphrase, slot)).encrypt(0, split)
    return Made(header, material, key)


def is_luks(data: bytes) -> bool:
    """Whether the first bytes of a disk are a header's, of whatever version."""
    return data[: len(_MAGIC)] == _MAGIC and len(data) >= HEADER_BYTES


def _iterations(hash: str, key_bytes: int, seconds: float) -> int:
    begin = time.perf_counter()
    hashlib.pbkdf2_hmac(hash, b"x", bytes(_SALT_BYTES), _ITERATIONS_TRIED, key_bytes)
    rate = _ITERATIONS_TRIED / (time.perf_counter() - begin)
    return max(_ITERATIONS_MIN, min(int(rate * seconds), ITERATIONS_MAX))


def _text(field: bytes) -> str:
    """A field of the header for people, whatever is in it."""
    return field.partition(b"\0")[0].decode("ascii", "backslashreplace")


# The anti-forensic splitter: every bit of all stripes is needed to have one of the key.


def _split(key: bytes, hash: str) -> bytes:
    stripes = [os.urandom(len(key)) for _ in range(_STRIPES - 1)]
    mixed = bytes(len(key))
    for stripe in stripes:
        mixed = _diffused(_xor(mixed, stripe), hash)
    return b"".join((*stripes, _xor(mixed, key)))


def _merged(split: bytes, key_bytes: int, hash: str) -> bytes:
    mixed = bytes(key_bytes)
    for start in range(0, key_bytes * (_STRIPES - 1), key_bytes):
        mixed = _diffused(_xor(mixed, split[start : start + key_bytes]), hash)
    return _xor(mixed, split[-key_bytes:])


def _diffused(data: bytes, hash: str) -> bytes:
    width = hashlib.new(hash).digest_size
    parts = (data[start : start + width] for start in range(0, len(data), width))
    return b"".join(
        hashlib.new(hash, index.to_bytes(4, "big") + part).digest()[: len(part)]
        for index, part in enumerate(parts)
    )


def _xor(one: bytes, other: bytes) -> bytes:
    number = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return number.to_bytes(len(one), "big")
