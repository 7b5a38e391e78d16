# SPDX-License-Identifier: MIT
"""The store contract as tests: every store's test class inherits `StoreContract`.

A subclass says how to open a store (fixture `store`, its container made) and gives a `BackDoor`:
a way to look at and to change what is stored that does not go through the code under test.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from hashlib import md5
from typing import Any

import pytest

from swiftnbd.errors import (
    ContainerMissing,
    ContainerNotEmpty,
    CorruptObject,
    ObjectExists,
    StoreError,
)
from swiftnbd.store.base import Blob, ObjectInfo, Store, list_all

NAME = "disk.part/00000042"
DATA = bytes(range(256)) * 8
ODD_NAMES = [
    "plain",
    "with space",
    "a//b",
    "per%cent/%41",
    "question?mark#hash",
    "up/..",
    ".hidden",
    "../up",
    "./here",
    "a/../b",
    ".container.json",
    ".tmp/x",
    "trailing/",
    "/leading",
    "..a/x",
    "ünïcödé/日本",
    "plus+and&amp;",
    "quote'\"`",
    "back\\slash",
    "semi;colon:at@star*",
    "n" * 250,
]
RANGES = [
    (0, 1),
    (0, 2048),
    (0, 5000),
    (1, 1),
    (1000, 24),
    (2047, 1),
    (2047, 100),
    (2048, 1),
    (2048, None),
    (9999, 10),
    (9999, None),
    (100, None),
    (0, 0),
    (7, 0),
]
TEXTS = [
    "1",
    "10.0.0.1:4242@1700000000",
    "two words",
    "grüße 日本",
    "a,b;c=d",
    "%41+%2B",
    '"q"',
    "x" * 256,
]


class BackDoor(ABC):
    """Another way to the same container."""

    @abstractmethod
    async def read(self, name: str) -> bytes | None:
        """What is stored under this name."""

    @abstractmethod
    async def write(self, name: str, data: bytes) -> None:
        """Store it."""

    @abstractmethod
    async def names(self) -> list[str]:
        """All object names."""

    @abstractmethod
    async def metadata(self) -> dict[str, str] | None:
        """The container's metadata, or None if there is no container."""


def etag_of(data: bytes) -> str:
    return md5(data).hexdigest()


class StoreContract:
    """What `swiftnbd.store.base` promises.

    ``odd_names`` are those that work; a store may refuse names with parts that have a meaning.
    """

    odd_names: Sequence[str] = ODD_NAMES
    last_name = "\uffff"  # of those with characters of three bytes

    # get

    async def test_get_reads_what_is_stored(self, store: Store, back: BackDoor) -> None:
        await back.write(NAME, DATA)
        assert await store.get(NAME) == Blob(DATA, etag_of(DATA))
        assert await store.get(NAME, newest=True) == Blob(DATA, etag_of(DATA))

    async def test_get_of_an_absent_object_is_none(self, store: Store) -> None:
        assert await store.get(NAME) is None
        assert await store.get(NAME, start=5, length=7) is None
        assert await store.get("no/such/folder") is None

    async def test_get_of_a_range_gives_those_bytes_and_the_whole_etag(
        self, store: Store, back: BackDoor
    ) -> None:
        await back.write(NAME, DATA)
        for start, length in RANGES:
            end = None if length is None else start + length
            expected = Blob(DATA[start:end], etag_of(DATA))
            got = await store.get(NAME, start=start, length=length)
            assert got == expected, (start, length)
            if 0 < len(got.data) < len(DATA):
                assert got.size == len(DATA), (start, length)

    async def test_get_sees_an_overwrite_of_the_same_length(
        self, store: Store, back: BackDoor
    ) -> None:
        for fill in (b"a", b"b", b"c", b"d"):
            await back.write(NAME, fill * 512)
            assert await store.get(NAME, start=0, length=2) == Blob(fill * 2, etag_of(fill * 512))
            info = await store.head(NAME)
            assert info is not None
            assert info.etag == etag_of(fill * 512)

    async def test_empty_object(self, store: Store, back: BackDoor) -> None:
        await store.put(NAME, b"")
        assert await back.read(NAME) == b""
        empty = Blob(b"", etag_of(b""))
        assert await store.get(NAME) == empty
        assert await store.get(NAME, start=0, length=10) == empty
        assert await store.get(NAME, start=3) == empty
        assert await store.head(NAME) == ObjectInfo(0, etag_of(b""))

    async def test_get_over_size_max_is_corrupt(self, store: Store, back: BackDoor) -> None:
        await back.write(NAME, DATA)
        with pytest.raises(CorruptObject, match="2048"):
            await store.get(NAME, size_max=2047)
        assert await store.get(NAME, size_max=2048) is not None
        blob = await store.get(NAME, start=0, length=10, size_max=10)
        assert blob is not None
        assert blob.data == DATA[:10]

    # head

    async def test_head_describes_an_object(self, store: Store, back: BackDoor) -> None:
        await back.write(NAME, DATA)
        assert await store.head(NAME) == ObjectInfo(2048, etag_of(DATA))
        assert await store.head(NAME, newest=True) == ObjectInfo(2048, etag_of(DATA))
        assert await store.head("disk.part/00000043") is None

    # put

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    async def test_put_stores_and_answers_the_md5(
        self, store: Store, back: BackDoor, kind: type
    ) -> None:
        assert await store.put(NAME, kind(DATA)) == etag_of(DATA)
        assert await back.read(NAME) == DATA
        assert await back.names() == [NAME]

    async def test_put_of_a_slice_of_a_larger_buffer(self, store: Store, back: BackDoor) -> None:
        await store.put(NAME, memoryview(bytearray(DATA))[100:200])
        assert await back.read(NAME) == DATA[100:200]

    async def test_put_replaces(self, store: Store, back: BackDoor) -> None:
        await store.put(NAME, DATA)
        await store.put(NAME, b"short")
        assert await back.read(NAME) == b"short"
        assert await store.get(NAME) == Blob(b"short", etag_of(b"short"))

    async def test_large_object_survives(self, store: Store, back: BackDoor) -> None:
        data = bytes(range(251)) * 20_000
        assert await store.put(NAME, bytearray(data)) == etag_of(data)
        assert await back.read(NAME) == data
        assert await store.get(NAME) == Blob(data, etag_of(data))
        assert await store.get(NAME, start=4_000_000, length=70_000) == Blob(
            data[4_000_000:4_070_000], etag_of(data)
        )

    async def test_put_if_absent_creates_once(self, store: Store, back: BackDoor) -> None:
        assert await store.put(NAME, b"first", if_absent=True) == etag_of(b"first")
        for data in (b"other", b"first"):
            with pytest.raises(ObjectExists):
                await store.put(NAME, data, if_absent=True)
        assert await back.read(NAME) == b"first"
        await store.delete(NAME)
        await store.put(NAME, b"again", if_absent=True)
        assert await back.read(NAME) == b"again"

    async def test_any_name_works(self, store: Store, back: BackDoor) -> None:
        for name in self.odd_names:  # a loop, as a container of a real Swift for each takes long
            await store.put(name, name.encode())
            assert await back.read(name) == name.encode(), name
        assert [row.name for row in await store.listing()] == sorted(self.odd_names)
        for name in self.odd_names:
            assert await store.get(name) == Blob(name.encode(), etag_of(name.encode())), name
            assert await store.renew(name, "t") is True, name
            assert await store.delete(name) is True, name
        assert await back.names() == []

    async def test_impossible_names_are_refused(self, fresh: Store) -> None:
        for name in ("", "x" * 1025, "a\nb", "nul\0", "\ud800"):
            with pytest.raises(StoreError, match="object name"):
                await fresh.put(name, b"x")
            with pytest.raises(StoreError, match="object name"):
                await fresh.get(name)

    # copy, for stores that have a place

    @pytest.fixture
    async def other(self, store: Store) -> AsyncIterator[Store]:
        """Another container in the same home, made."""
        other = self.beside(store)
        await other.create_container()
        yield other
        await other.close()

    def beside(self, store: Store, *, impatient: bool = False) -> Store:
        """A store in the home of this one, whose container does not exist."""
        raise NotImplementedError

    async def test_copy_makes_the_same_object(
        self, store: Store, other: Store, back: BackDoor
    ) -> None:
        assert other.place is not None
        assert store.place is not None
        assert other.place.home == store.place.home
        large = bytes(range(251)) * 20_000
        for name, data in [(NAME, DATA), ("empty", b""), ("large", large), ("per%cent/ü?#", b"x")]:
            await other.put(name, data)
            await store.copy(name, other.place, etag_of(data))
            assert await back.read(name) == data
            assert await store.get(name) == Blob(data, etag_of(data))
            assert await store.head(name) == ObjectInfo(len(data), etag_of(data))

    async def test_copy_replaces_and_leaves_the_source_alone(
        self, store: Store, other: Store, back: BackDoor
    ) -> None:
        assert other.place is not None
        await store.put(NAME, b"something longer than that" * 100)
        await store.renew(NAME, "token")
        await other.put(NAME, DATA)
        await other.renew(NAME, "theirs")
        await store.copy(NAME, other.place, etag_of(DATA))
        assert await store.head(NAME) == ObjectInfo(len(DATA), etag_of(DATA))  # no token
        assert await other.head(NAME) == ObjectInfo(len(DATA), etag_of(DATA), "theirs")
        await other.put(NAME, b"changed")
        await other.delete(NAME)
        assert await back.read(NAME) == DATA

    async def test_copy_of_another_object_than_expected_is_corrupt(
        self, store: Store, other: Store
    ) -> None:
        assert other.place is not None
        await other.put(NAME, DATA)
        with pytest.raises(CorruptObject, match=f"COPY {NAME}: .*not {etag_of(b'else')}"):
            await store.copy(NAME, other.place, etag_of(b"else"))

    async def test_copy_of_an_absent_object_fails(
        self, impatient: Store, store: Store, other: Store, back: BackDoor
    ) -> None:
        assert other.place is not None
        await store.put(NAME, DATA)
        with pytest.raises(StoreError, match=f"COPY {NAME}"):
            await impatient.copy(NAME, other.place, etag_of(DATA))
        assert await back.read(NAME) == DATA

    async def test_copy_into_no_container_fails(self, store: Store, other: Store) -> None:
        assert store.place is not None
        await store.put(NAME, DATA)
        await other.delete_container()
        missing = self.beside(store, impatient=True)
        with pytest.raises(StoreError):
            await missing.copy(NAME, store.place, etag_of(DATA))
        assert await missing.info() is None
        await missing.close()

    # delete

    async def test_delete_makes_absent(self, store: Store, back: BackDoor) -> None:
        await back.write(NAME, DATA)
        assert await store.delete(NAME) is True
        assert await back.read(NAME) is None
        assert await store.get(NAME) is None
        assert await store.head(NAME) is None
        assert await store.delete(NAME) is False
        assert await store.delete("no/such/folder") is False

    # renew

    async def test_renew_puts_a_token_and_leaves_the_content(
        self, store: Store, back: BackDoor
    ) -> None:
        await store.put(NAME, DATA)
        for token in ("one", "two", "!" * 256):
            assert await store.renew(NAME, token) is True
            assert await store.head(NAME) == ObjectInfo(2048, etag_of(DATA), token)
        assert await back.read(NAME) == DATA
        assert await back.names() == [NAME]

    async def test_renew_never_creates(self, store: Store, back: BackDoor) -> None:
        assert await store.renew(NAME, "token") is False
        assert await back.names() == []

    async def test_put_and_delete_clear_the_token(self, store: Store) -> None:
        await store.put(NAME, DATA)
        await store.renew(NAME, "token")
        await store.put(NAME, DATA)
        assert await store.head(NAME) == ObjectInfo(2048, etag_of(DATA))
        await store.renew(NAME, "token")
        await store.delete(NAME)
        await store.put(NAME, DATA)
        assert await store.head(NAME) == ObjectInfo(2048, etag_of(DATA))

    async def test_token_must_be_visible_ascii(self, fresh: Store) -> None:
        for token in ("", "ü", "two words", "x" * 257, "line\n"):
            with pytest.raises(StoreError, match="token"):
                await fresh.renew(NAME, token)

    # listing

    async def test_listing_is_in_utf8_byte_order(self, store: Store, back: BackDoor) -> None:
        names = ["b", "a/2", "a/1", "B", "é", "a-1", self.last_name, "\U0001f600", "a0", "c/d/e"]
        for name in names:
            await back.write(name, name.encode())
        expected = [(name, len(name.encode())) for name in sorted(names, key=str.encode)]
        page = await store.listing()
        assert [(row.name, row.size) for row in page] == expected
        known = [row for row in page if row.etag]  # a store may leave it out
        assert [row.etag for row in known] == [md5(row.name.encode()).hexdigest() for row in known]

    async def test_listing_bounds_are_exclusive(self, store: Store, back: BackDoor) -> None:
        for name in ("p/1", "p/2", "p/3", "p/4", "q/1", "o"):
            await back.write(name, b"x")

        async def names(**bounds: Any) -> list[str]:
            return [row.name for row in await store.listing(**bounds)]

        assert await names(prefix="p/") == ["p/1", "p/2", "p/3", "p/4"]
        assert await names(prefix="p") == ["p/1", "p/2", "p/3", "p/4"]
        assert await names(prefix="p/", after="p/1", before="p/4") == ["p/2", "p/3"]
        assert await names(after="p/3") == ["p/4", "q/1"]
        assert await names(before="p/2") == ["o", "p/1"]
        assert await names(prefix="none") == []

    async def test_listing_in_pages(self, store: Store, back: BackDoor) -> None:
        for number in range(7):
            await back.write(f"n/{number}", b"x")
        page = await store.listing(prefix="n/", limit=3)
        assert [row.name for row in page] == ["n/0", "n/1", "n/2"]
        page = await store.listing(prefix="n/", after="n/2", limit=3)
        assert [row.name for row in page] == ["n/3", "n/4", "n/5"]
        assert await store.listing(prefix="n/", after="n/6", limit=3) == []
        assert len([row async for row in list_all(store)]) == 7

    # containers

    async def test_metadata_is_changed_key_by_key(self, store: Store, back: BackDoor) -> None:
        await store.set_metadata({"swiftnbd-version": "1", "swiftnbd-object-size": "65536"})
        await store.set_metadata({"swiftnbd-client": "h:1@2", "swiftnbd-version": "2"})
        await store.set_metadata({"swiftnbd-object-size": "", "never-set": ""})
        expected = {"swiftnbd-version": "2", "swiftnbd-client": "h:1@2"}
        info = await store.info()
        assert info is not None
        assert dict(info.metadata) == expected
        assert await back.metadata() == expected

    async def test_metadata_values_come_back_as_sent(self, store: Store) -> None:
        for text in TEXTS:
            await store.set_metadata({"key": text})
            info = await store.info()
            assert info is not None
            assert dict(info.metadata) == {"key": text}

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("under_score", "1"),
            ("Upper", "1"),
            ("", "1"),
            ("a b", "1"),
            ("k", " x"),
            ("k", "a\r\nX-Evil: 1"),
            ("k", "x" * 257),
            ("k" * 129, "x"),
        ],
    )
    async def test_metadata_that_would_not_survive_is_refused(
        self, fresh: Store, key: str, value: str
    ) -> None:
        with pytest.raises(StoreError, match="metadata"):
            await fresh.set_metadata({key: value})
        with pytest.raises(StoreError, match="metadata"):
            await fresh.create_container({key: value})

    async def test_create_container_twice_sets_metadata(self, store: Store, back: BackDoor) -> None:
        assert await store.create_container({"one": "1"}) is False
        assert await store.create_container({"two": "2"}) is False
        assert await back.metadata() == {"one": "1", "two": "2"}

    async def test_create_container_with_an_unknown_policy_is_refused(self, fresh: Store) -> None:
        with pytest.raises(StoreError, match="no-such-policy"):
            await fresh.create_container(policy="no-such-policy")
        assert await fresh.info() is None

    async def test_container_life(self, fresh: Store) -> None:
        assert await fresh.info() is None
        assert await fresh.create_container({"key": "value"}) is True
        info = await fresh.info(count=True)
        assert info is not None
        assert (dict(info.metadata), info.objects, info.versioned) == ({"key": "value"}, 0, False)
        assert info.policy
        await fresh.put(NAME, b"x")
        with pytest.raises(ContainerNotEmpty):
            await fresh.delete_container()
        await fresh.renew(NAME, "token")
        await fresh.delete(NAME)
        assert await fresh.delete_container() is True
        assert await fresh.delete_container() is False
        assert await fresh.info() is None

    async def test_info_counts_objects(self, store: Store) -> None:
        await store.put("a/1", b"12345")
        await store.put("a/2", b"678")
        await store.renew("a/1", "token")
        info = await store.info(count=True)
        assert info is not None
        assert (info.objects, info.bytes_used) == (2, 8)

    @pytest.fixture
    def impatient(self, fresh: Store) -> Store:
        """As `fresh`, but one that gives up soon."""
        return fresh

    async def test_without_a_container_nothing_is_there_and_nothing_is_made(
        self, fresh: Store, impatient: Store
    ) -> None:
        with pytest.raises(ContainerMissing):
            await fresh.listing()
        with pytest.raises(ContainerMissing):
            await fresh.set_metadata({"key": "value"})
        with pytest.raises(StoreError):
            await impatient.put(NAME, b"x")
        for read in (fresh.get(NAME), fresh.head(NAME)):
            with pytest.raises(ContainerMissing):  # never None: that would be zeros
                await read
        assert await fresh.info() is None

    # all at once

    async def test_concurrent_use(self, store: Store, back: BackDoor) -> None:
        async def one(number: int) -> None:
            name, data = f"disk.part/{number:08}", bytes([number]) * 1000
            await store.put(name, data)
            assert await store.get(name) == Blob(data, etag_of(data))
            if number % 2:
                assert await store.delete(name) is True

        await asyncio.gather(*map(one, range(40)))
        assert await back.names() == [f"disk.part/{number:08}" for number in range(0, 40, 2)]

    async def test_concurrent_puts_of_one_object_leave_one_of_them(
        self, store: Store, back: BackDoor
    ) -> None:
        bodies = [bytes([number]) * 5000 for number in range(8)]
        await asyncio.gather(*(store.put(NAME, body) for body in bodies))
        assert await back.read(NAME) in bodies

    async def test_close_twice(self, fresh: Store) -> None:
        await fresh.close()
        await fresh.close()
