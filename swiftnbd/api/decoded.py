# SPDX-License-Identifier: MIT
"""A read-only disk that is kept in another form, of which a part can be had only as a block."""

from abc import abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence

from swiftnbd.api.device import PAYLOAD_BYTES_MAX, Device
from swiftnbd.api.filter import Filter
from swiftnbd.api.range_lock import RangeLock
from swiftnbd.buffers import Buffer


class Decoded(Filter):
    """Blocks that `decode` makes, of which the last few are kept in memory.

    ``starts``: where each block begins, ascending, and behind them all where the last one ends.
    """

    read_only: bool = True
    can_flush: bool = False
    block_size: int = 64 * 1024
    block_size_min: int = 1
    block_size_max: int = PAYLOAD_BYTES_MAX
    multi_conn: bool | None = None

    def __init__(self, device: Device, starts: Sequence[int], kept_max: int) -> None:
        super().__init__(device)
        self._starts, self._kept_max = starts, kept_max
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._lock = RangeLock()  # of block numbers: each is made once
        self.size = starts[-1]

    @abstractmethod
    async def decode(self, block: int) -> bytes:
        """All of a block. It may be called for several at once."""

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        blocks = range(*self._touched(offset, length))
        if not all(block in self._kept for block in blocks):
            return None
        return [self._part(block, self._known(block), offset, length) for block in blocks]

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        pieces = []
        for block in range(*self._touched(offset, length)):
            async with self._lock.exclusive(block, block + 1):
                data = self._known(block) if block in self._kept else await self._made(block)
            pieces.append(self._part(block, data, offset, length))
        return pieces

    def _touched(self, offset: int, length: int) -> tuple[int, int]:
        first = bisect_right(self._starts, offset) - 1
        return first, bisect_right(self._starts, offset + length - 1)

    def _part(self, block: int, data: bytes, offset: int, length: int) -> bytes:
        """A copy: or a slow client would keep whole blocks in memory."""
        start = self._starts[block]
        return data[max(offset - start, 0) : offset + length - start]

    def _known(self, block: int) -> bytes:
        self._kept.move_to_end(block)
        return self._kept[block]

    async def _made(self, block: int) -> bytes:
        data = await self.decode(block)
        self._kept[block] = data
        if len(self._kept) > self._kept_max:
            self._kept.popitem(last=False)
        return data
