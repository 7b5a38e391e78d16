# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter xz file disk.img.xz``"""

import asyncio
from dataclasses import dataclass
from typing import Final

from swiftnbd.api import SIZE, Device, FilterPlugin, Opening, integer, parameter
from swiftnbd.api.access import read_bytes
from swiftnbd.api.decoded import Decoded
from swiftnbd.api.threads import Threads
from swiftnbd.filters.xz.container import Index, decode, read_index

BLOCK_BYTES_MAX_DEFAULT: Final = 64 * 1024 * 1024
DEPTH_DEFAULT: Final = 8
DEPTH_MAX: Final = 1024
AT_ONCE: Final = 2  # blocks that are being made, each with a dictionary of its own


@dataclass(frozen=True)
class Xz(FilterPlugin):
    """Reads an image that was compressed with xz, block by block."""

    xz_max_block: int = parameter(
        SIZE, "Refuse files with larger blocks.", default=BLOCK_BYTES_MAX_DEFAULT
    )
    xz_max_depth: int = parameter(
        integer(1, DEPTH_MAX), "How many blocks are kept in memory.", default=DEPTH_DEFAULT
    )

    async def wrap(self, device: Device, opening: Opening) -> Device:
        threads = Threads(AT_ONCE, "xz")
        try:
            index = await read_index(device, threads, self.xz_max_block)
        except BaseException:
            threads.stop()
            raise
        return XzFilter(device, threads, index, self.xz_max_depth)


class XzFilter(Decoded):
    """What the blocks of ``index`` hold."""

    def __init__(self, device: Device, threads: Threads, index: Index, kept_max: int) -> None:
        super().__init__(device, index.starts, kept_max)
        self._threads, self._index = threads, index
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def decode(self, block: int) -> bytes:
        found = self._index[block]
        async with self._slots:
            stored = await read_bytes(self.device, found.offset, -(-found.stored // 4) * 4)
            return await self._threads.call(decode, found, block, stored)

    async def close(self) -> None:
        self._threads.stop()
        await super().close()
