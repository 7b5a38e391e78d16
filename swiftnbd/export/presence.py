# SPDX-License-Identifier: MIT
"""Which objects of a disk exist in the store: known to be there, known not to be, or not known.

Two bits per object, four objects to a byte, `PAGE_OBJECTS` to a page; a page whose objects are
all in one state is only that state. So a new map of 16 million objects is a list of 245 entries,
and the worst mix of states takes the two bits, 4 MB.

What it costs (CPython 3.11, one core of a small machine): `get` 0.2 us, `set` 0.4 us, `fill`
over 16 million objects 0.1 ms, `runs` over 16 million objects in one state 0.03 ms. Inside of a
mixed page, `runs` passes over equal bytes in C (1 ns for 4 objects, so 4 ms for 16 million) and
takes about 1 us for each run it yields. It is lazy: who must not stall takes so many and leaves it.
"""

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum

PAGE_OBJECTS = 1 << 16  # 16 KiB: a disk of scattered objects has few pages, and they copy in 1 us

_MAGIC = b"swiftnbd presence 1\n"
_SIZES = struct.Struct(">QI")  # objects, bytes of the binding
_DIGEST_BYTES = 32
_MIXED = 3  # the kind of a page that is not one state; no object has this state
_LEVEL = 1  # of zlib: a page of runs shrinks to nothing at any level


class State(IntEnum):
    """What is known of one object. Absence needs proof; without it an object is UNKNOWN."""

    UNKNOWN = 0
    ABSENT = 1
    PRESENT = 2


_STATES = tuple(State)
_UNIFORM = tuple(bytes([0b01010101 * state]) * (PAGE_OBJECTS // 4) for state in State)
_ALL_ABSENT = int.from_bytes(_UNIFORM[State.ABSENT], "little")  # the lower bit of each pair
_SAME = tuple(re.compile(re.escape(page[:1]) + b"*") for page in _UNIFORM)
# By how many pairs of bits two bytes agree, given their XOR
_EQUAL = (4, *(((byte & -byte).bit_length() - 1) // 2 for byte in range(1, 256)))
_VALID = bytes(byte for byte in range(256) if not byte & byte >> 1 & 0b01010101)


class Presence:
    """The states of objects 0 to ``objects - 1``, at first all UNKNOWN."""

    def __init__(self, objects: int) -> None:
        assert objects > 0
        self.objects = objects
        self._pages: list[State | bytearray] = [State.UNKNOWN] * _page_count(objects)

    def get(self, index: int) -> State:
        """The state of one object."""
        assert 0 <= index < self.objects
        page = self._pages[index // PAGE_OBJECTS]
        if isinstance(page, bytearray):
            return _state_in(page, index % PAGE_OBJECTS)
        return page

    def set(self, index: int, state: State) -> None:
        """Change the state of one object."""
        assert 0 <= index < self.objects
        number = index // PAGE_OBJECTS
        page = self._pages[number]
        if not isinstance(page, bytearray):
            if page is state:
                return
            page = self._pages[number] = bytearray(_UNIFORM[page])
        at, shift = index % PAGE_OBJECTS // 4, index % 4 * 2
        page[at] = page[at] & ~(3 << shift) | state << shift

    def fill(self, first: int, end: int, state: State) -> None:
        """Change the state of the objects ``[first, end)``."""
        assert 0 <= first <= end <= self.objects
        if end == self.objects:
            end = len(self._pages) * PAGE_OBJECTS  # what is behind the last object may change too
        whole, whole_end = -(-first // PAGE_OBJECTS), end // PAGE_OBJECTS
        if whole > whole_end:
            self._fill_in_page(first, end, state)
            return
        self._fill_in_page(first, whole * PAGE_OBJECTS, state)
        self._pages[whole:whole_end] = [state] * (whole_end - whole)
        self._fill_in_page(whole_end * PAGE_OBJECTS, end, state)

    def _fill_in_page(self, first: int, end: int, state: State) -> None:
        if first >= end:
            return
        number = first // PAGE_OBJECTS
        page = self._pages[number]
        if page is state:
            return
        if not isinstance(page, bytearray):
            page = self._pages[number] = bytearray(_UNIFORM[page])
        start, stop = first - number * PAGE_OBJECTS, end - number * PAGE_OBJECTS
        bits = int.from_bytes(page[start // 4 : -(-stop // 4)], "little")
        mask = ((1 << 2 * (stop - start)) - 1) << 2 * (start % 4)
        same = int.from_bytes(_UNIFORM[state][start // 4 : -(-stop // 4)], "little")
        changed = bits & ~mask | same & mask
        page[start // 4 : -(-stop // 4)] = changed.to_bytes(-(-stop // 4) - start // 4, "little")

    def runs(self, first: int, end: int) -> Iterator[tuple[int, State]]:
        """How many objects in which state, from ``first`` to before ``end``; neighbours differ.

        A change of the map meanwhile is seen or not.
        """
        assert 0 <= first <= end <= self.objects
        begin, state = first, State.UNKNOWN
        while first < end:
            number = first // PAGE_OBJECTS
            page = self._pages[number]
            if isinstance(page, bytearray):
                at = first % PAGE_OBJECTS
                found = _state_in(page, at)
                after = first + _run_end(page, at, found) - at
                if after - first == PAGE_OBJECTS:
                    self._pages[number] = found
            else:
                found, after = page, (number + 1) * PAGE_OBJECTS
            if found is not state and first > begin:
                yield first - begin, state
                begin = first
            first, state = after, found
        if end > begin:
            yield end - begin, state

    def tally(self, first: int, end: int) -> list[int]:
        """How many of the objects ``[first, end)`` are in each state, by its number.

        A mixed page takes 0.1 ms.
        """
        assert 0 <= first <= end <= self.objects
        counts = [0] * len(_STATES)
        while first < end:
            number, start = divmod(first, PAGE_OBJECTS)
            stop = min(PAGE_OBJECTS, start + end - first)
            page = self._pages[number]
            if isinstance(page, bytearray):
                absent, present = _tally(page, start, stop)
                counts[State.ABSENT] += absent
                counts[State.PRESENT] += present
                counts[State.UNKNOWN] += stop - start - absent - present
            else:
                counts[page] += stop - start
            first += stop - start
        return counts

    def _folded(self, number: int) -> State | bytearray:
        """A page; as its state, if `set` by and by made all of it the same."""
        page = self._pages[number]
        if isinstance(page, bytearray):
            state = _state_in(page, 0)
            if page == _UNIFORM[state]:
                self._pages[number] = state
                return state
        return page

    # Kept over restarts

    def dumps(self, binding: str) -> bytes:
        """The map as bytes, good only for who gives `loads` the same ``binding``.

        At most `dump_bytes_max`. 7 ms per million objects in the worst mix: to be called in a
        thread, while nobody changes the map. `loads` takes less.
        """
        pages = [self._folded(number) for number in range(len(self._pages))]
        kinds = bytes(_MIXED if isinstance(page, bytearray) else page for page in pages)
        mixed = (page for page in pages if isinstance(page, bytearray))
        body = _header(self.objects, binding) + zlib.compress(b"".join((kinds, *mixed)), _LEVEL)
        return body + _digest(body)

    @classmethod
    def loads(cls, data: bytes, objects: int, binding: str) -> "Presence | None":
        """The map that `dumps` gave, of so many objects and with this binding; None if it is not.

        Never takes more memory than a map of ``objects`` can, whatever ``data`` is.
        """
        header = _header(objects, binding)
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if not body.startswith(header) or _digest(body) != digest:
            return None
        pages = _pages(body[len(header) :], _page_count(objects))
        if pages is None:
            return None
        found = cls(objects)
        found._pages = pages
        return found


def dump_bytes_max(objects: int, binding: str) -> int:
    """No map of ``objects`` has more bytes than this when dumped."""
    raw = _page_count(objects) * (1 + PAGE_OBJECTS // 4)
    slack = raw // 1000 + 64  # zlib, of what it cannot compress: 5 bytes per 16 KiB and a few
    return len(_header(objects, binding)) + raw + slack + _DIGEST_BYTES


def _page_count(objects: int) -> int:
    return -(-objects // PAGE_OBJECTS)


def _state_in(page: bytearray, position: int) -> State:
    return _STATES[page[position // 4] >> position % 4 * 2 & 3]


def _run_end(page: bytearray, position: int, state: State) -> int:
    """The first position after ``position``, which is in ``state``, that is in another."""
    at, expected = position // 4, _UNIFORM[state][0]
    different = (page[at] ^ expected) >> position % 4 * 2
    if different:
        return position + _EQUAL[different]
    same = _SAME[state].match(page, at + 1)
    assert same is not None  # it matches nothing, too
    at = same.end()
    return at * 4 + (_EQUAL[page[at] ^ expected] if at < len(page) else 0)


def _tally(page: bytearray, start: int, stop: int) -> tuple[int, int]:
    """How many of the positions ``[start, stop)`` are absent, and how many present."""
    bits = int.from_bytes(page[start // 4 : -(-stop // 4)], "little") >> start % 4 * 2
    if stop % 4:
        bits &= (1 << 2 * (stop - start)) - 1
    return (bits & _ALL_ABSENT).bit_count(), (bits & _ALL_ABSENT << 1).bit_count()


def _header(objects: int, binding: str) -> bytes:
    text = binding.encode("utf-8", "surrogatepass")
    return _MAGIC + _SIZES.pack(objects, len(text)) + text


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()


def _pages(packed: bytes, count: int) -> list[State | bytearray] | None:
    """Unpack ``count`` kinds and the mixed pages among them; None if it is anything else."""
    raw_max = count * (1 + PAGE_OBJECTS // 4)
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(packed, raw_max + 1)
    except zlib.error:
        return None
    kinds, mixed = raw[:count], raw[count:]
    if not unpacker.eof or unpacker.unused_data or len(kinds) != count or max(kinds) > _MIXED:
        return None
    size = PAGE_OBJECTS // 4
    if len(mixed) != kinds.count(_MIXED) * size or mixed.translate(None, _VALID):
        return None
    parts = iter(range(0, len(mixed), size))
    return [
        _STATES[kind] if kind != _MIXED else bytearray(mixed[(at := next(parts)) : at + size])
        for kind in kinds
    ]
