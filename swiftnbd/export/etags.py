# SPDX-License-Identifier: MIT
"""What the store's objects should be like, so that a stale replica is recognised.

A replica that missed an overwrite has the old bytes, with an ETag that fits them. So for each
object we have stored, or have read from the newest replica, since we hold the lock, a digest of
its ETag is remembered; an answer with another one is not believed.

Four bytes per object, in pages; the page that was used longest ago is forgotten when they are
too many. What is forgotten is asked for with ``X-Newest`` again: slower, not less safe. Two ETags
of one object have the same digest once in four thousand million times.
"""

from array import array

ETAG_BYTES_MAX = 8 * 1024 * 1024  # two million objects: 128 GiB of 64 KiB objects
_PAGE = 1024  # objects
_UNKNOWN = 0


class Etags:
    """The ETags of a disk's objects, as far as they are remembered."""

    def __init__(self, bytes_max: int = ETAG_BYTES_MAX) -> None:
        self._pages: dict[int, array[int]] = {}  # the one used last is the last
        self._pages_max = bytes_max // (_PAGE * array("I").itemsize)

    def set(self, index: int, etag: str) -> None:
        """Object ``index`` has this ETag now."""
        page, at = divmod(index, _PAGE)
        digests = self._touch(page)
        if digests is None:
            if len(self._pages) >= self._pages_max:
                del self._pages[next(iter(self._pages))]
            digests = self._pages[page] = array("I", bytes(_PAGE * array("I").itemsize))
        digests[at] = _digest(etag)

    def forget(self, index: int) -> None:
        """Nobody can say what object ``index`` is like."""
        page, at = divmod(index, _PAGE)
        if page in self._pages:
            self._pages[page][at] = _UNKNOWN

    def knows(self, index: int) -> bool:
        """Whether it is remembered."""
        digests = self._touch(index // _PAGE)
        return digests is not None and digests[index % _PAGE] != _UNKNOWN

    def fits(self, index: int, etag: str) -> bool:
        """Whether ``etag`` is the one that is remembered, if one is."""
        digests = self._pages.get(index // _PAGE)
        remembered = _UNKNOWN if digests is None else digests[index % _PAGE]
        return remembered in (_UNKNOWN, _digest(etag))

    def _touch(self, page: int) -> "array[int] | None":
        digests = self._pages.pop(page, None)
        if digests is not None:
            self._pages[page] = digests
        return digests


def _digest(etag: str) -> int:
    """32 bits of an ETag, never `_UNKNOWN`. Not all ETags are MD5 in hex (large objects')."""
    return hash(etag) % 0xFFFFFFFF + 1
