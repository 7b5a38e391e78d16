# SPDX-License-Identifier: MIT
"""What the filters of one overlay have in common.

Where each connection has a device of its own, or a filter below that is its own, there is a filter
for each of them as well: without this each would write to an overlay that no other one sees.
"""

import asyncio
from pathlib import Path
from typing import Final

from swiftnbd.api.range_lock import RangeLock
from swiftnbd.api.threads import Threads
from swiftnbd.errors import ExportUnusable
from swiftnbd.filters.cow.overlay import Overlay

THREADS: Final = 8


class Shared:
    """An overlay that is open, for ``users`` filters. With the last one it is closed."""

    def __init__(self, overlay: Overlay, threads: Threads) -> None:
        self.overlay, self.threads = overlay, threads
        self.lock = RangeLock()  # of offsets
        self.flushing = asyncio.Lock()
        self.users = 0


class Overlays:
    """Those of one plugin that are open, by the names of their exports."""

    def __init__(self) -> None:
        self._open: dict[str, Shared] = {}
        self._turn = asyncio.Lock()

    async def join(
        self, name: str, size: int, block_bytes: int, path: Path | None, folder: Path
    ) -> Shared:
        """The overlay of an export, opened if it is not, with one user more.

        Raises as `Overlay`, and `ExportUnusable` if a disk of another size uses it.
        """
        async with self._turn:
            shared = self._open.get(name)
            if shared is None:
                shared = await self._opened(size, block_bytes, path, folder)
                self._open[name] = shared
            elif shared.overlay.size != size:
                raise ExportUnusable(
                    f"cow: the disk has {size} bytes, and {shared.overlay.size} for other clients"
                )
            shared.users += 1
            return shared

    async def _opened(self, size: int, block_bytes: int, path: Path | None, folder: Path) -> Shared:
        threads = Threads(THREADS, "cow")
        try:
            overlay = await threads.call(Overlay, size, block_bytes, path, folder)
        except BaseException:
            threads.stop()
            raise
        return Shared(overlay, threads)

    def end(self, shared: Shared) -> None:
        """Close one that nobody uses any more, and that is flushed."""
        self._open = {name: each for name, each in self._open.items() if each is not shared}
        shared.threads.stop()
        shared.overlay.close()

    def end_all(self) -> None:
        """Close those that nobody could write back, or flush: they stay as they are."""
        for shared in tuple(self._open.values()):
            self.end(shared)
