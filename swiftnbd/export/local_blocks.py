# SPDX-License-Identifier: MIT
"""The blocks of a disk's objects on a local disk: which of them may be used instead of the store's.

A block that is *proven* (see `swiftnbd.export.disk_cache`) is used at once; any other one only if
its object has the same ETag, which the store is asked for: with a HEAD, or by fetching what is
missing around it. What has another ETag is of another time, and is fetched.

Nothing is kept here of what an object was before a change: `LocalBlocks.drop` comes before it.
"""

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from swiftnbd.buffers import Body, Buffer, pieces_of
from swiftnbd.export.disk_cache import Cached, DiskCache


class Found(NamedTuple):
    """What is here of a range that begins at ``start``: its blocks of ``size``, None for gaps."""

    start: int
    size: int
    blocks: list[Cached | None]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return None not in self.blocks

    @property
    def is_proven(self) -> bool:
        """Whether all of it may be used at once."""
        return all(block is not None and block.proven for block in self.blocks)

    @property
    def gap(self) -> tuple[int, int]:
        """The smallest range with all that is missing."""
        missing = [number for number, block in enumerate(self.blocks) if block is None]
        return self.start + missing[0] * self.size, self.start + (missing[-1] + 1) * self.size

    def has(self, etag: str) -> bool:
        """Whether all that is here is of the object with this ETag."""
        return all(block is None or block.etag == etag for block in self.blocks)

    def filled(self, start: int, data: bytes) -> bytes:
        """All of the range, given what was missing: ``data`` from ``start`` on."""
        if len(self.blocks) == 1 and self.blocks[0] is not None:
            return self.blocks[0].data
        size, view = self.size, memoryview(data)
        pieces = []
        for number, block in enumerate(self.blocks):
            at = self.start + number * size - start
            pieces.append(view[at : at + size] if block is None else block.data)
        return b"".join(pieces)


class LocalBlocks:
    """The blocks of ``block_size`` bytes, ``per_object`` to an object, that ``cache`` keeps."""

    def __init__(self, cache: DiskCache, block_size: int, per_object: int) -> None:
        self._cache = cache
        self._size = block_size
        self._per_object = per_object

    async def find(self, index: int, start: int, end: int) -> Found | None:
        """What is here of bytes ``[start, end)`` of one object; None if that is nothing.

        It was true at some moment during this call, as bytes from the store would be.
        """
        blocks = self._blocks(index, start, end)
        if not any(block in self._cache for block in blocks):
            return None
        found = await asyncio.gather(*map(self._cache.get, blocks))
        return Found(start, self._size, found) if any(found) else None

    def keep(self, index: int, start: int, data: Buffer, etag: str) -> None:
        """Keep what the store has given: bytes from ``start`` on of an object with this ETag."""
        self._keep(index, start, data, etag, self._blocks(index, start, start + len(data)))

    def keep_changed(self, index: int, data: Body, etag: str, blocks: Iterable[int]) -> None:
        """Keep these ``blocks`` of an object that was stored with this ETag, with all its ``data``.

        The others are not worth their place: they were not here, nor were they asked for.
        """
        wanted, start = set(blocks), 0
        for piece in pieces_of(data):  # of whole blocks each
            here = self._blocks(index, start, start + len(piece))
            self._keep(index, start, piece, etag, [block for block in here if block in wanted])
            start += len(piece)

    def learn(self, index: int, etag: str | None) -> None:
        """The object's ETag is this, or it does not exist: what is here is proven, or goes."""
        for block in self._all(index):
            if etag is None:
                self._cache.drop(block)
            else:
                self._cache.confirm(block, etag)

    def drop(self, index: int) -> set[int]:
        """Forget an object, before it changes; which blocks of it there were."""
        return {block for block in self._all(index) if self._cache.drop(block)}

    def _keep(self, index: int, start: int, data: Buffer, etag: str, blocks: Iterable[int]) -> None:
        size, view = self._size, memoryview(data)
        for block in blocks:
            at = (block - index * self._per_object) * size - start
            self._cache.put(block, data if len(data) == size else view[at : at + size], etag)

    def _all(self, index: int) -> range:
        return range(index * self._per_object, (index + 1) * self._per_object)

    def _blocks(self, index: int, start: int, end: int) -> range:
        assert start % self._size == end % self._size == 0
        first = index * self._per_object
        return range(first + start // self._size, first + end // self._size)
