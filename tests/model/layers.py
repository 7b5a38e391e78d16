# SPDX-License-Identifier: MIT
"""What a filter makes of the disk below it, as arrays of bytes.

A `Layer` says what lies above it (``view``), and what has to become of the layers below when that
is changed. They are made from the top down: each is given what it has to show, and says what the
disk below it must then hold. Nothing here comes from the filters, ciphers and tables included.
"""

import gzip
import random
import struct
import subprocess
import zlib
from collections.abc import Iterator
from errno import EIO, ENOSPC, EPERM
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.support.clients import find

SECTOR = 512
Told = list[tuple[str, dict[str, object]]]  # names of filters, and what each is told


class Layer:
    """A disk that is seen through nothing but what keeps every byte.

    ``told``: the filters, the first one being asked first. ``unit``: what sizes and offsets of
    all disks are multiples of, where the disk at the bottom needs that.
    """

    is_read_only = False
    is_own = False  # per connection

    def __init__(self, *told: tuple[str, dict[str, object]], is_own: bool = False) -> None:
        self.told: Told = list(told)
        self.is_own = is_own
        self.view = bytearray()
        self._below: Layer | None = None

    @property
    def below(self) -> "Layer":
        assert self._below is not None
        return self._below

    def __str__(self) -> str:
        return " ".join(
            " ".join([name, *(f"{key}={value}" for key, value in keys.items())])
            for name, keys in self.told
        )

    def stack_on(self, below: "Layer") -> None:
        self._below = below
        self.refresh()

    def shown_from(self, content: bytes, chance: random.Random, unit: int) -> bytes:
        """What the disk below has to hold, so that ``content`` is what is seen."""
        return content

    def refresh(self) -> None:
        """See what is there now: the disk below has become another one."""
        self.view = bytearray(self.below.view)

    # Changes

    def put(self, offset: int, data: bytes) -> None:
        """These bytes were written."""
        if data:
            self.view[offset : offset + len(data)] = data
            self.below.put(offset, data)

    def refusals(self, offset: int, data: bytes, what: str) -> set[int]:
        """The errors that a write, zero or trim of what is ``data`` then may fail with; it must
        fail with one of them, if there are any."""
        return self.below.refusals(offset, data, what) if data else set()

    def can_be_trimmed(self, offset: int, data: bytes) -> bool:
        """Whether it may read as ``data`` after a trim."""
        return not data or self.below.can_be_trimmed(offset, data)

    def old(self, offset: int, length: int) -> bytes:
        return bytes(self.view[offset : offset + length])

    # Its life

    def emptied(self) -> bool:
        """Its last user has gone; whether something is another than before."""
        return False


class Retrying(Layer):
    """What fails by chance is done again, until it is done or fails with the last error."""

    def refusals(self, offset: int, data: bytes, what: str) -> set[int]:
        found = super().refusals(offset, data, what)
        return found | {EIO} if ENOSPC in found else found  # which is tried again, too


class Bottom(Layer):
    """The plugin's disk."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.view = bytearray(content)
        self.first = content

    def refresh(self) -> None:
        pass

    def put(self, offset: int, data: bytes) -> None:
        self.view[offset : offset + len(data)] = data

    def refusals(self, offset: int, data: bytes, what: str) -> set[int]:
        return set()

    def can_be_trimmed(self, offset: int, data: bytes) -> bool:
        return _is_old_or_zero(self.old(offset, len(data)), data)


class Part(Layer):
    """``start`` and what follows are all that is seen of the disk below."""

    start = 0

    def shown_from(self, content: bytes, chance: random.Random, unit: int) -> bytes:
        return content + chance.randbytes(chance.randrange(8) * unit)

    def refresh(self) -> None:
        size = len(self.view) or self._size()
        self.view = bytearray(self.below.view[self.start : self.start + size])

    def _size(self) -> int:
        raise NotImplementedError

    def put(self, offset: int, data: bytes) -> None:
        self.view[offset : offset + len(data)] = data
        self.below.put(self.start + offset, data)

    def refusals(self, offset: int, data: bytes, what: str) -> set[int]:
        return self.below.refusals(self.start + offset, data, what)

    def can_be_trimmed(self, offset: int, data: bytes) -> bool:
        return self.below.can_be_trimmed(self.start + offset, data)


class OffsetLayer(Part):
    def shown_from(self, content: bytes, chance: random.Random, unit: int) -> bytes:
        self.start = chance.randrange(20) * unit
        keys: dict[str, object] = {"offset": self.start, "range": len(content)}
        after = chance.randbytes(chance.randrange(8) * unit)
        if not after:
            del keys["range"]
        self.told, self._length = [("offset", keys)], len(content)
        return chance.randbytes(self.start) + content + after

    def _size(self) -> int:
        return self._length


class Shorter(Part):
    def shown_from(self, content: bytes, chance: random.Random, unit: int) -> bytes:
        self.told, self._length = [("truncate", {"truncate": len(content)})], len(content)
        return super().shown_from(content, chance, unit)

    def _size(self) -> int:
        return self._length


class PartitionLayer(Part):
    def shown_from(self, content: bytes, chance: random.Random, unit: int) -> bytes:
        assert not len(content) % SECTOR
        first = chance.choice((40, 48, 64))  # multiples of 4 KiB: a smallest block may be that
        self.start, self._length = first * SECTOR, len(content)
        sectors = len(content) // SECTOR
        disk = bytearray(chance.randbytes(self.start) + content + chance.randbytes(72 * SECTOR))
        if chance.random() < 0.5:
            number = chance.randrange(1, 5)
            disk[:SECTOR] = mbr({number: (0x83, first, sectors)})
        else:
            number = chance.randrange(1, 129)
            entries_at = len(disk) // SECTOR - 33
            disk[:SECTOR] = mbr({1: (0xEE, 1, len(disk) // SECTOR - 1)})
            own = {number: (first, first + sectors - 1)}
            disk[SECTOR : 34 * SECTOR] = gpt(1, 2, own)
            table = gpt(len(disk) // SECTOR - 1, entries_at, own)
            disk[-33 * SECTOR :] = table[SECTOR:] + table[:SECTOR]
            if chance.random() < 0.2:
                disk[SECTOR : SECTOR + 8] = bytes(8)  # that at the end is left
        self.told = [("partition", {"partition": number})]
        return bytes(disk)

    def _size(self) -> int:
        return self._length


def mbr(entries: dict[int, tuple[int, int, int]]) -> bytes:
    """Type, first sector and sectors, by number."""
    sector = bytearray(SECTOR)
    for number, (kind, first, sectors) in entries.items():
        struct.pack_into("<B3xII", sector, 446 + 16 * (number - 1) + 4, kind, first, sectors)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def gpt(own: int, entries_at: int, parts: dict[int, tuple[int, int]]) -> bytes:
    """A sector of header and 32 of entries; ``parts`` are first and last sector by number."""
    entries, header = bytearray(128 * 128), bytearray(SECTOR)
    for number, (first, last) in parts.items():
        struct.pack_into("<16s16xQQ", entries, 128 * (number - 1), b"some type of it.", first, last)
    numbers = (own, 0, 0, 0, bytes(16), entries_at, 128, 128, zlib.crc32(entries))
    struct.pack_into("<8sIIII4Q16sQIII", header, 0, b"EFI PART", 0x10000, 92, 0, 0, *numbers)
    struct.pack_into("<I", header, 16, zlib.crc32(header[:92]))
    return bytes(header + entries)


class Longer(Layer):
    """Zeros behind the disk below."""

    def shown_from(self, content: bytes, chance: random.Random, unit: int) -> bytes:
        self._size = len(content)
        least = max(-(-len(content.rstrip(b"\0")) // unit) * unit, unit)
        kept = max(chance.randrange(least, len(content) + 1) // unit * unit, least)
        up = next((each for each in (1 << 20, 65536, 4096) if -(-kept // each) * each == self._size
                   and each % unit == 0), None)  # fmt: skip
        self.told = [("truncate", {"truncate": self._size} if up is None else {"round-up": up})]
        return content[:kept]

    def refresh(self) -> None:
        self.view = self.below.view + bytes(self._size - len(self.below.view))

    def _inside(self, offset: int, data: bytes) -> bytes:
        return data[: max(len(self.below.view) - offset, 0)]

    def put(self, offset: int, data: bytes) -> None:
        inside = self._inside(offset, data)
        assert not any(data[len(inside) :])
        super().put(offset, inside)

    def refusals(self, offset: int, data: bytes, what: str) -> set[int]:
        inside = self._inside(offset, data)
        if what == "write" and any(data[len(inside) :]):
            return {ENOSPC}
        return super().refusals(offset, inside, what)

    def can_be_trimmed(self, offset: int, data: bytes) -> bool:
        inside = self._inside(offset, data)
        return not any(data[len(inside) :]) and super().can_be_trimmed(offset, inside)


class ProtectLayer(Layer):
    def shown_from(self, content: bytes, chance: random.Random, unit: int) -> bytes:
        first = chance.randrange(len(content))
        last = min(first + chance.choice((0, 511, 4096, 30_000)), len(content) - 1)
        start, end, text = first, last + 1, f"{first}-{last:#x}"
        self._spans = [(start, end)]
        if chance.random() < 0.2:
            self._spans, text = [(0, start), (end, len(content))], f"~{text}"
        self.told = [("protect", {"protect": text})]
        return content

    def _is_kept(self, offset: int, data: bytes) -> bool:
        """Whether this changes nothing that is protected."""
        for first, last in self._spans:
            start, end = max(first, offset), min(last, offset + len(data))
            if start < end and self.view[start:end] != data[start - offset : end - offset]:
                return False
        return True

    def refusals(self, offset: int, data: bytes, what: str) -> set[int]:
        if what != "trim" and not self._is_kept(offset, data):
            return {EPERM}
        return super().refusals(offset, data, what)

    def can_be_trimmed(self, offset: int, data: bytes) -> bool:
        return self._is_kept(offset, data) and super().can_be_trimmed(offset, data)


class CheckWriteLayer(Layer):
    """Nothing that goes further changes anything."""

    def __init__(self) -> None:
        super().__init__(("checkwrite", {}))

    def put(self, offset: int, data: bytes) -> None:
        assert self.old(offset, len(data)) == data

    def refusals(self, offset: int, data: bytes, what: str) -> set[int]:
        wanted = bytes(len(data)) if what == "trim" else data
        return set() if self.old(offset, len(data)) == wanted else {EIO}

    def can_be_trimmed(self, offset: int, data: bytes) -> bool:
        return self.old(offset, len(data)) == data


class CowLayer(Layer):
    """``path``: of the overlay, if that stays. ``commits``: at the end of its last user."""

    def __init__(self, keys: dict[str, object], path: Path | None, commits: bool) -> None:
        super().__init__(("cow", keys))
        self._stays, self._commits = path is not None, commits
        self._is_used = False

    def refresh(self) -> None:
        if not self._is_used:
            super().refresh()

    def put(self, offset: int, data: bytes) -> None:
        self._is_used = True  # what is below does not change as long as it is
        self.view[offset : offset + len(data)] = data

    def refusals(self, offset: int, data: bytes, what: str) -> set[int]:
        return set()

    def can_be_trimmed(self, offset: int, data: bytes) -> bool:
        return _is_old_or_zero(self.old(offset, len(data)), data)

    def emptied(self) -> bool:
        was_used = self._is_used
        if self._commits:
            self.below.put(0, bytes(self.view))
        if self._commits or not self._stays:
            self._is_used = False
        return was_used


class Decompressing(Layer):
    is_read_only = True

    def shown_from(self, content: bytes, chance: random.Random, unit: int) -> bytes:
        self._content = content
        ((name, _),) = self.told
        if name == "gzip":
            stored = gzip.compress(content, chance.choice((1, 9)))
        else:
            block = chance.choice(("4KiB", "64KiB", "1MiB"))
            command = [str(find("xz")), "-0", "-T1", f"--block-size={block}"]
            done = subprocess.run(command, input=content, stdout=subprocess.PIPE, check=True)
            stored = done.stdout
        return stored + bytes(-len(stored) % unit)

    def refresh(self) -> None:
        self.view = bytearray(self._content)


class LuksLayer(Layer):
    """``start``: header and key material; ``key`` is the key of what follows them."""

    def __init__(self, start: bytes, key: bytes, keys: dict[str, object]) -> None:
        super().__init__(("luks", keys))
        self._start, self._key = start, key

    def shown_from(self, content: bytes, chance: random.Random, unit: int) -> bytes:
        return self._start + self._crypt(0, content, is_new=True)

    def refresh(self) -> None:
        self.view = bytearray(self._crypt(0, bytes(self.below.view[len(self._start) :])))

    def _crypt(self, offset: int, data: bytes, *, is_new: bool = False) -> bytes:
        done = []
        for at in range(0, len(data), SECTOR):
            tweak = ((offset + at) // SECTOR).to_bytes(16, "little")
            cipher = Cipher(algorithms.AES(self._key), modes.XTS(tweak))
            one = cipher.encryptor() if is_new else cipher.decryptor()
            done.append(one.update(data[at : at + SECTOR]))
        return b"".join(done)

    def _stored(self, offset: int, data: bytes) -> tuple[int, bytes]:
        """What is written below, and where."""
        start, end = offset // SECTOR * SECTOR, -(-(offset + len(data)) // SECTOR) * SECTOR
        whole = self.view[start:end]
        whole[offset - start : offset - start + len(data)] = data
        return len(self._start) + start, self._crypt(start, bytes(whole), is_new=True)

    def put(self, offset: int, data: bytes) -> None:
        place, stored = self._stored(offset, data)
        self.view[offset : offset + len(data)] = data
        self.below.put(place, stored)

    def refusals(self, offset: int, data: bytes, what: str) -> set[int]:
        if what != "trim":
            return self.below.refusals(*self._stored(offset, data), "write")
        start, end = -(-offset // SECTOR) * SECTOR, (offset + len(data)) // SECTOR * SECTOR
        place = len(self._start) + start
        return self.below.refusals(place, bytes(end - start), what) if start < end else set()

    def can_be_trimmed(self, offset: int, data: bytes) -> bool:
        """Each sector is what it was, or what a trimmed one is decrypted to."""
        place, stored = self._stored(offset, data)
        whole = offset % SECTOR == 0, (offset + len(data)) % SECTOR == 0
        for at in range(0, len(stored), SECTOR):
            after = stored[at : at + SECTOR]
            is_part = (at == 0 and not whole[0]) or (at + SECTOR == len(stored) and not whole[1])
            if after != self.below.old(place + at, SECTOR) and (
                is_part or not self.below.can_be_trimmed(place + at, after)
            ):
                return False
        return True


def _is_old_or_zero(before: bytes, after: bytes) -> bool:
    return all(new in (0, old) for old, new in zip(before, after, strict=True))


def downwards(top: Layer) -> Iterator[Layer]:
    """From the top to the bottom."""
    layer: Layer | None = top
    while layer is not None:
        yield layer
        layer = layer._below
