# SPDX-License-Identifier: MIT
"""``swiftnbd-server sparse-random 1T``

The disk is cut into cells of equal size. In each lies one run of data, somewhere, on the average
``runlength`` long; the rest is a hole. Place, length and content follow from the seed and the
number of the cell or block, so a disk of any size takes no memory.
"""

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from errno import EIO
from functools import lru_cache
from hashlib import blake2b, shake_128
from typing import Final

from swiftnbd.api import (
    BOOLEAN,
    INTEGER,
    SIZE,
    Buffer,
    Device,
    ExportError,
    Extent,
    Kind,
    Opening,
    Plugin,
    holes,
    parameter,
)
from swiftnbd.plugins.pattern import check_written

BLOCK_BYTES: Final = 4096
RUN_BYTES_DEFAULT: Final = 16 * 1024 * 1024
NOW_BYTES_MAX: Final = 256 * 1024  # made at once in the connection's receive loop
TURN_BYTES: Final = 1024 * 1024  # made, some milliseconds; then others have a turn
RUNS_PER_TURN: Final = 4096
_BYTES_PER_HASH: Final = 64


def _percent(text: str) -> float:
    share = float(text.removesuffix("%"))
    if not 0 <= share <= 100:
        raise ValueError
    return share


PERCENT: Final = Kind("PERCENT", "a number from 0 to 100", _percent, lambda value: f"{value:g}")


@dataclass(frozen=True)
class SparseRandom(Plugin):
    """Runs of random data with holes between them, in the shape of a real disk, of any size.

    What is written must be what is there already; anything else fails with EIO and says where. So a
    disk can be copied onto itself to test what copies.
    """

    size: int = parameter(SIZE, "How large it is.", main=True)
    seed: int | None = parameter(
        INTEGER, "The same seed gives the same disk; one by chance if it is left out.", default=None
    )
    percent: float = parameter(PERCENT, "How much of it is data.", default=10.0)
    runlength: int = parameter(
        SIZE, "How long runs of data are, on the average.", default=RUN_BYTES_DEFAULT
    )
    random_content: bool = parameter(
        BOOLEAN, "Each byte is random; else all of a block are the same one.", default=False
    )

    async def open(self, opening: Opening) -> Device:
        seed = secrets.randbits(64) if self.seed is None else self.seed
        return SparseRandomDevice(
            self.size, seed, self.percent / 100, self.runlength, random_content=self.random_content
        )


class SparseRandomDevice(Device):
    """``share`` of ``size`` bytes is data, in runs of about ``run_bytes``."""

    can_fua = True
    can_fast_zero = True
    block_size = BLOCK_BYTES

    def __init__(
        self, size: int, seed: int, share: float, run_bytes: int, *, random_content: bool
    ) -> None:
        self.size = size
        self._key = blake2b(seed.to_bytes(-(-seed.bit_length() // 8) or 1), digest_size=32).digest()
        self._run = max(1, round(run_bytes / BLOCK_BYTES))  # blocks
        self._cell = 0 if not share else max(self._run, round(self._run / share))
        self._random_content = random_content
        # a device's own cache, so that it goes with it
        self._fills = lru_cache(maxsize=1024)(self._hashed_fills)
        self._runs_of = lru_cache(maxsize=1024)(self._hashed_run)

    # Where data is

    def _number(self, what: bytes, index: int) -> int:
        return int.from_bytes(self._hash(what, index, 16))

    def _hash(self, what: bytes, index: int, length: int) -> bytes:
        made = blake2b(index.to_bytes(8), digest_size=length, key=self._key, person=what)
        return made.digest()

    def _hashed_run(self, cell: int) -> tuple[int, int]:
        """The first block of a cell's run of data, and the first one after it."""
        spread = min(self._run, self._cell - self._run)
        length = self._run - spread + self._number(b"length", cell) % (2 * spread + 1)
        begin = cell * self._cell + self._number(b"place", cell) % (self._cell - length + 1)
        return begin, begin + length

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """A range in order: where each part begins and ends, and whether it is data."""
        end = offset + length
        if not self._cell:
            yield offset, end, False
            return
        cell_bytes = self._cell * BLOCK_BYTES
        for cell in range(offset // cell_bytes, -(-end // cell_bytes)):
            first, last = (block * BLOCK_BYTES for block in self._runs_of(cell))
            bounds = (cell * cell_bytes, first, last, (cell + 1) * cell_bytes)
            for begin, stop, is_data in zip(bounds, bounds[1:], (False, True, False), strict=False):
                begin, stop = max(begin, offset), min(stop, end)
                if begin < stop:
                    yield begin, stop, is_data

    # What it is

    def _hashed_fills(self, group: int) -> bytes:
        """The byte of each of some blocks; none is zero."""
        found = self._hash(b"fill", group, _BYTES_PER_HASH)
        return bytes(1 + byte % 255 for byte in found)

    def _block(self, index: int) -> bytes:
        if self._random_content:
            return shake_128(self._hash(b"content", index, 32)).digest(BLOCK_BYTES)
        group, which = divmod(index, _BYTES_PER_HASH)
        return self._fills(group)[which : which + 1] * BLOCK_BYTES

    def _data(self, begin: int, end: int) -> bytes:
        first = begin // BLOCK_BYTES
        whole = b"".join(map(self._block, range(first, -(-end // BLOCK_BYTES))))
        start = begin - first * BLOCK_BYTES
        return whole[start : start + end - begin]

    def _pieces(self, offset: int, length: int) -> list[Buffer]:
        pieces: list[Buffer] = []
        for begin, end, is_data in self._parts(offset, length):
            pieces += [self._data(begin, end)] if is_data else holes(end - begin)
        return pieces

    # Device

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return self._pieces(offset, length) if length <= NOW_BYTES_MAX else None

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        pieces: list[Buffer] = []
        for begin in range(offset, offset + length, TURN_BYTES):
            pieces += self._pieces(begin, min(TURN_BYTES, offset + length - begin))
            await asyncio.sleep(0)
        return pieces

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        view = memoryview(data)
        for at in range(0, len(view), TURN_BYTES):
            part = view[at : at + TURN_BYTES]
            check_written(offset + at, part, b"".join(self._pieces(offset + at, len(part))))
            await asyncio.sleep(0)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        for number, (begin, _, is_data) in enumerate(self._parts(offset, length), 1):
            if is_data:
                raise ExportError(EIO, f"the zeros written at {begin} are not what belongs there")
            if number % RUNS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def flush(self) -> None:
        pass

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        found: list[Extent] = []
        for begin, end, is_data in self._parts(offset, length):
            if found and found[-1].hole is not is_data:
                found[-1] = Extent(found[-1].length + end - begin, not is_data, not is_data)
            elif len(found) == min(count, RUNS_PER_TURN):
                break
            else:
                found.append(Extent(end - begin, not is_data, not is_data))
        return found
