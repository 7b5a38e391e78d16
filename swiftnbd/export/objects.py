# SPDX-License-Identifier: MIT
"""The objects of one disk in its store: requests for them, and what is known of them.

Whoever holds the lock is the only one who changes them, so what was learnt stays true:
`Presence` says which objects exist, with proof, and `Etags` what they should be like. A change
that was not answered leaves its object in doubt: it may have been made, or be made later on. So
nothing is learnt of it, whatever is read, until a later change is answered; the store takes them
in the order in which they were sent.

Stale replicas: an object whose ETag is not remembered is asked for with ``newest``. One that is,
is asked for plainly, and if the answer is another object, or none, with ``newest`` after all;
if that is still not the one we stored, it is an error: better no bytes than old ones. Only an
answer that no change overtook is held to that: any other may be of the object before it.

If there is a cache on a local disk, `DiskObjects.local`, it is asked first. What is said above of
learning goes for what it keeps, too.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from errno import EIO
from functools import partial
from typing import Self, TypeVar

from swiftnbd.errors import CorruptObject, ExportError
from swiftnbd.export.etags import Etags
from swiftnbd.export.layout import OWN_PREFIX, PART_PREFIX, Geometry, object_index, object_name
from swiftnbd.export.local_blocks import LocalBlocks
from swiftnbd.export.presence import Presence, State, dump_bytes_max
from swiftnbd.export.slots import Slots
from swiftnbd.metrics import Counters
from swiftnbd.store.base import Blob, Body, Listed, ObjectInfo, Place, Store

PRESENCE = OWN_PREFIX + "presence"  # the name of the map's object
OBJECTS_PACKED_AT_ONCE = 256 * 1024  # at worst 2 ms; a larger map is packed in a thread
REQUEST_SECONDS_MAX = 65.0  # a store gives up after 60 and says why; many may wait behind it

T = TypeVar("T", Blob | None, ObjectInfo | None)
U = TypeVar("U")
Span = Callable[[], tuple[int, int]]  # bytes [start, end) of an object
Urgency = Callable[[], bool]  # whether somebody waits for it by now


@dataclass(eq=False, slots=True)
class _Look:
    """A read of an object, among all those ``under_way``; it ``counts`` until something changes it.

    What was seen meanwhile is true afterwards if it still counts.
    """

    index: int
    counts: bool
    under_way: "dict[int, list[_Look]]"

    def __enter__(self) -> Self:
        self.under_way.setdefault(self.index, []).append(self)
        return self

    def __exit__(self, *_: object) -> None:
        looks = self.under_way[self.index]
        looks.remove(self)
        if not looks:
            del self.under_way[self.index]


async def store_presence(store: Store, presence: Presence, binding: str) -> None:
    """Keep a map for whoever can prove by ``binding`` that nobody changed the disk since.

    A late or lost PUT of it does no harm: it carries a binding that nobody trusts any more.
    """
    if presence.objects <= OBJECTS_PACKED_AT_ONCE:
        data = presence.dumps(binding)
    else:
        data = await asyncio.to_thread(presence.dumps, binding)
    await store.put(PRESENCE, data)


async def load_presence(store: Store, objects: int, binding: str) -> Presence | None:
    """The map of so many objects that was stored under the same ``binding``; '' is nobody's."""
    if not binding:
        return None
    size_max = dump_bytes_max(objects, binding)
    try:
        blob = await store.get(PRESENCE, newest=True, size_max=size_max)
    except CorruptObject:
        return None  # such as one of a disk that was larger
    if blob is None:
        return None
    if objects <= OBJECTS_PACKED_AT_ONCE:
        return Presence.loads(blob.data, objects, binding)
    return await asyncio.to_thread(Presence.loads, blob.data, objects, binding)


class DiskObjects:
    """The objects ``disk.part/*`` of ``store``.

    ``exclusive``: nobody else changes them, as far as the lock can promise. Without it nothing
    is remembered of them.
    """

    def __init__(
        self,
        store: Store,
        geometry: Geometry,
        slots: Slots,
        counters: Counters,
        *,
        exclusive: bool = True,
        request_seconds: float | None = REQUEST_SECONDS_MAX,
    ) -> None:
        self.label = store.label
        self.size = geometry.object_size
        self.presence = Presence(geometry.objects)
        self.local: LocalBlocks | None = None
        self._store = store
        self._etags = Etags()
        self._slots = slots
        self._counters = counters
        self._exclusive = exclusive
        self._request_seconds = request_seconds
        self._changing: set[int] = set()
        self._doubtful: set[int] = set()  # all those, and dirty objects whose change failed
        self._looks: dict[int, list[_Look]] = {}  # objects being read, while they are

    def is_absent(self, index: int) -> bool:
        """Whether there is proof that it does not exist, and so reads as zeros."""
        return self.presence.get(index) is State.ABSENT

    def holds_any(self) -> bool:
        """Whether any object is known to exist."""
        runs = self.presence.runs(0, self.presence.objects)
        return any(state is State.PRESENT for _, state in runs)

    async def get(self, index: int, span: Span, *, urgent: Urgency) -> bytes | None:
        """Some bytes of one object, or None if it does not exist.

        ``span`` is asked which, ``[start, end)``, once, when its turn has come, and ``urgent``
        whenever it begins to wait for one: from then on `hurry` finds it.
        """
        if self.local is None:
            return _data(await self._fetch(index, span, urgent=urgent))
        start, end = span()
        found = await self.local.find(index, start, end)
        if found is not None:
            if found.is_proven and self._exclusive:
                return found.filled(start, b"")
            if found.is_whole:
                first, etag, data = start, await self._ask_etag(index, urgent=urgent), b""
            else:
                first, last = found.gap
                blob = await self._fetch(index, lambda: (first, last), urgent=urgent)
                etag, data = (None, b"") if blob is None else (blob.etag, blob.data)
            if etag is None:
                return None
            if found.has(etag):
                return found.filled(first, data)
        return _data(await self._fetch(index, lambda: (start, end), urgent=urgent))

    async def _fetch(self, index: int, span: Span, *, urgent: Urgency) -> Blob | None:
        return await self.in_turn(
            lambda: self._fetch_now(index, *span()), urgent=urgent(), key=index
        )

    async def _fetch_now(self, index: int, start: int, end: int) -> Blob | None:
        async def ask(newest: bool) -> Blob | None:
            return await self._get(index, start, end, newest=newest)

        blob, holds = await self._ask_current(index, ask)
        if blob is None:
            return None
        self._counters.store_in += len(blob.data)
        if blob.size not in (None, self.size):  # a part of what is no object of this disk
            raise self._error(index, f"has {blob.size} bytes, not {self.size}")
        if len(blob.data) != end - start:
            raise self._error(index, f"gave {len(blob.data)} bytes, not {end - start}")
        if self.local is not None and holds:  # no await since it was seen
            self.local.keep(index, start, blob.data, blob.etag)
        return blob

    async def _ask_etag(self, index: int, *, urgent: Urgency) -> str | None:
        """The ETag of one object, or None if it does not exist."""

        async def ask(newest: bool) -> ObjectInfo | None:
            return await self._store.head(object_name(index), newest=newest)

        asked = self.in_turn(lambda: self._ask_current(index, ask), urgent=urgent(), key=index)
        info, _ = await asked
        return None if info is None else info.etag

    def hurry(self, index: int) -> None:
        """Somebody waits now for what is to be read of this object."""
        self._slots.hurry(index)

    def _look(self, index: int) -> _Look:
        return _Look(index, self._exclusive and index not in self._doubtful, self._looks)

    async def _ask_current(self, index: int, ask: Callable[[bool], Awaitable[T]]) -> tuple[T, bool]:
        """What ``ask(newest)`` answers of the object, and whether that may be kept of it."""
        newest = not self._etags.knows(index)
        while True:
            with self._look(index) as look:
                try:
                    found = await ask(newest)
                except CorruptObject:
                    # It exists. Swift sets it aside and says 404 from now on: that is no zeros.
                    if look.counts:
                        self.presence.set(index, State.PRESENT)
                    raise
            if self._fits(index, found):
                if look.counts:
                    self._learn(index, None if found is None else found.etag)
                return found, look.counts or not self._exclusive
            if newest and look.counts:
                raise self._error(index, "is not the one that was stored last")
            newest = True

    def _learn(self, index: int, etag: str | None) -> None:
        if self.local is not None and not self._etags.knows(index):
            self.local.learn(index, etag)
        self.presence.set(index, State.ABSENT if etag is None else State.PRESENT)
        if etag is not None:
            self._etags.set(index, etag)

    async def _get(self, index: int, start: int, end: int, *, newest: bool) -> Blob | None:
        name = object_name(index)
        if end - start == self.size:
            return await self._store.get(name, newest=newest, size_max=self.size)
        return await self._store.get(name, start=start, length=end - start, newest=newest)

    def _fits(self, index: int, found: Blob | ObjectInfo | None) -> bool:
        if found is None:  # one that we know to exist cannot have gone
            known = self.presence.get(index) is State.PRESENT
            return not known and not self._etags.knows(index)
        return self._etags.fits(index, found.etag)

    async def put(self, index: int, data: Body, *, changed: Collection[int] = ()) -> None:
        """Replace one object whole, in one's turn; durable on return.

        ``changed`` are blocks of it that are worth keeping on the local disk.
        """
        assert len(data) == self.size
        etag, were_local = await self._change(
            index, partial(self._store.put, object_name(index), data)
        )
        self._etags.set(index, etag)
        self.presence.set(index, State.PRESENT)
        self._counters.store_out += len(data)
        if self.local is not None:
            self.local.keep_changed(index, data, etag, were_local.union(changed))

    async def copy(self, index: int, source: Place, etag: str) -> None:
        """Replace one object by that of another disk, inside the store; as `put`."""
        await self._change(index, partial(self._store.copy, object_name(index), source, etag))
        self._etags.set(index, etag)
        self.presence.set(index, State.PRESENT)

    async def delete(self, index: int) -> bool:
        """See to it that one object does not exist, in one's turn; durable on return.

        Whether it did. After a lost answer that cannot be told; then it is False.
        """
        existed, _ = await self._change(index, partial(self._store.delete, object_name(index)))
        self.presence.set(index, State.ABSENT)
        return existed

    async def head(self, index: int) -> ObjectInfo | None:
        """What the newest version of one object is like, in one's turn; None if there is none.

        That says nothing new of one that is known: it may have been lost.
        """
        if self.is_absent(index):
            return None
        with self._look(index) as look:
            found = await self._store.head(object_name(index), newest=True)
        if look.counts and self._fits(index, found):
            self._learn(index, None if found is None else found.etag)
        return found

    async def _change(self, index: int, change: Callable[[], Awaitable[U]]) -> tuple[U, set[int]]:
        """What the store answers to a change of one object, and which of its blocks were local.

        Until it has answered, and if it never does, nobody knows what is there.
        """
        assert index not in self._changing, f"object {index}: two changes at once"
        self._changing.add(index)
        self._doubtful.add(index)
        for look in self._looks.get(index, ()):
            look.counts = False
        self.presence.set(index, State.UNKNOWN)
        self._etags.forget(index)
        were_local = set() if self.local is None else self.local.drop(index)
        try:
            answer = await change()
        finally:
            self._changing.discard(index)
        self._doubtful.discard(index)
        return answer, were_local

    async def listed(self, first: int, end: int) -> AsyncIterator[list[int]]:
        """Which of the objects ``[first, end)`` a listing names, page by page.

        A hint: one that it does not name may exist all the same.
        """
        after, before = object_name(first - 1) if first else PART_PREFIX, object_name(end)
        while True:
            page = await self.in_turn(partial(self._list, after, before), urgent=True)
            if not page:
                return
            after = page[-1].name
            found = (object_index(row.name) for row in page)
            yield [index for index in found if index is not None]

    async def _list(self, after: str, before: str) -> list[Listed]:
        return await self._store.listing(prefix=PART_PREFIX, after=after, before=before)

    async def recall(self, binding: str) -> None:
        """Take over the presence map that `remember` stored under the same ``binding``."""
        load = partial(load_presence, self._store, self.presence.objects, binding)
        found = await self.in_turn(load, urgent=True)
        if found is not None:
            self.presence = found

    async def remember(self, binding: str) -> None:
        """Store the presence map, which is true as long as nobody changes an object."""
        await self.in_turn(
            partial(store_presence, self._store, self.presence, binding), urgent=True
        )

    async def in_turn(
        self, work: Callable[[], Awaitable[U]], *, urgent: bool = False, key: int | None = None
    ) -> U:
        """Do something that takes requests of the store, in its turn.

        Waiting for that counts against its time. ``key``: the object, for `hurry`.
        """
        try:
            async with asyncio.timeout(self._request_seconds):
                return await self._slots.run(work, urgent=urgent, key=key)
        except TimeoutError:
            assert self._request_seconds is not None, "nothing else here is timed"
            raise ExportError(
                EIO, f"{self.label}: no answer within {self._request_seconds:.0f} s"
            ) from None

    def _error(self, index: int, what: str) -> ExportError:
        return ExportError(EIO, f"{self.label}: {object_name(index)} {what}")


def _data(blob: Blob | None) -> bytes | None:
    return None if blob is None else blob.data
