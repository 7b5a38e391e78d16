# SPDX-License-Identifier: MIT
"""Looking at everything a container holds, without changing anything.

What should be there comes from two sides: the listing, and the presence map if nobody has used
the disk since it was written. The listing alone proves nothing, so an object that it does not name
is looked at if the map knows it, and one that it names may be gone for good reasons.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from swiftnbd.cli.common import IN_FLIGHT_MAX, objects_in_flight
from swiftnbd.cli.parallel import for_each
from swiftnbd.cli.unfinished import COPY, UPLOAD
from swiftnbd.errors import CorruptObject, StoreError
from swiftnbd.export.epoch import LEGACY_CANARY, epoch_number
from swiftnbd.export.layout import OWN_PREFIX, Geometry, object_index, object_name
from swiftnbd.export.objects import PRESENCE
from swiftnbd.export.presence import Presence, State
from swiftnbd.store.base import Listed, Store

FINDINGS_MAX = 100_000  # more say nothing more, and would fill memory

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Damage:
    """Objects ``[first, end)`` of the disk that are not as they should be, all in one way."""

    first: int
    end: int
    what: str


@dataclass(slots=True)
class Found:
    """What a check has found. ``notes`` are no damage; ``checked`` counts objects."""

    checked: int = 0
    damaged: dict[int, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether all of the disk can be read, and is what was written."""
        return not self.damaged and not self.problems

    def damage(self) -> list[Damage]:
        """What is damaged, in order, neighbours together."""
        runs: list[Damage] = []
        for index, what in sorted(self.damaged.items()):
            if runs and (runs[-1].end, runs[-1].what) == (index, what):
                runs[-1] = Damage(runs[-1].first, index + 1, what)
            else:
                runs.append(Damage(index, index + 1, what))
        return runs


class Check:
    """One look at the disk. ``presence`` None: somebody holds it, and it may change meanwhile."""

    def __init__(
        self,
        store: Store,
        geometry: Geometry,
        presence: Presence | None,
        found: Found,
        *,
        fast: bool,
        advance: Callable[[int], None],
    ) -> None:
        self._store = store
        self._geometry = geometry
        self._presence = presence
        self._found = found
        self._fast = fast
        self._advance = advance
        self._listed = bytearray(-(-geometry.objects // 8))

    async def run(self) -> None:
        """Look at every object that is listed or known to exist."""
        size = self._geometry.object_size
        in_flight = IN_FLIGHT_MAX if self._fast else objects_in_flight(size)
        after = ""
        while page := await self._store.listing(after=after):
            await for_each(self._of_disk(page), self._check, in_flight=in_flight)
            after = page[-1].name
        await for_each(self._unlisted(), self._check, in_flight=in_flight)
        self._advance((self._geometry.objects - self._found.checked) * size)

    def _of_disk(self, page: list[Listed]) -> Iterator[int]:
        """The disk's objects of a page; what is none is noted."""
        for row in page:
            index = object_index(row.name)
            if index is None:
                if not _is_ours(row.name):
                    self._note(f"stray object {row.name!r} of {row.size} bytes")
            elif index >= self._geometry.objects:
                self._note(f"object {row.name} lies behind the end of the disk")
            else:
                self._listed[index // 8] |= 1 << index % 8
                yield index

    def _unlisted(self) -> Iterator[int]:
        if self._presence is None:
            return
        at = 0
        for count, state in self._presence.runs(0, self._geometry.objects):
            if state is State.PRESENT:
                yield from (i for i in range(at, at + count) if not self._is_listed(i))
            at += count

    def _is_listed(self, index: int) -> bool:
        return bool(self._listed[index // 8] & 1 << index % 8)

    async def _check(self, index: int) -> None:
        try:
            size = await (self._head(index) if self._fast else self._get(index))
        except CorruptObject as error:
            self._damage(index, str(error))
        except StoreError as error:
            await self._store.info()  # if the store is away, that is what is wrong
            self._damage(index, f"cannot be read: {error}")
        else:
            self._judge(index, size)
        self._found.checked += 1
        self._advance(self._geometry.object_size)

    async def _head(self, index: int) -> int | None:
        info = await self._store.head(object_name(index), newest=True)
        return None if info is None else info.size

    async def _get(self, index: int) -> int | None:
        """A whole body, whose ETag the store checks."""
        size_max = self._geometry.object_size
        blob = await self._store.get(object_name(index), newest=True, size_max=size_max)
        return None if blob is None else len(blob.data)

    def _judge(self, index: int, size: int | None) -> None:
        state = State.UNKNOWN if self._presence is None else self._presence.get(index)
        if size is None:
            if state is State.PRESENT:
                self._damage(index, "is gone, though nobody has deleted it")
            elif self._presence is None or state is State.ABSENT:
                self._note(f"object {object_name(index)} is listed, but was deleted")
            else:
                self._damage(index, "is listed, but is not there: it reads as zeros")
        elif size != self._geometry.object_size:
            self._damage(index, f"has {size} bytes, not {self._geometry.object_size}")
        elif state is State.ABSENT:
            self._damage(index, "is there, though it was deleted: it reads as zeros")

    def _damage(self, index: int, what: str) -> None:
        if len(self._found.damaged) < FINDINGS_MAX:
            self._found.damaged[index] = what

    def _note(self, text: str) -> None:
        if len(self._found.notes) < FINDINGS_MAX:
            self._found.notes.append(text)


def _is_ours(name: str) -> bool:
    if not name.startswith(OWN_PREFIX):
        return False
    return bool(epoch_number(name)) or name in (PRESENCE, COPY, UPLOAD, LEGACY_CANARY)
