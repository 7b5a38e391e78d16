# SPDX-License-Identifier: MIT
"""Containers in buckets against the contract.

On Swift's own S3 API, which has Swift's weak answers and no conditional change; and on obstore's
store in memory, whose ETags are no MD5, and which does conditional changes as S3 itself.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from hashlib import md5
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore as MemoryClient

from swiftnbd.errors import (
    AccessRefused,
    ContainerMissing,
    CorruptObject,
    LeaseOver,
    StoreError,
    StoreUnavailable,
)
from swiftnbd.store.base import Store
from swiftnbd.store.bucket import Bucket, Version
from swiftnbd.store.bucket_objects import Document
from swiftnbd.store.bucket_settings import BucketSettings
from swiftnbd.store.bucket_store import BucketStore
from swiftnbd.store.leave import asking
from swiftnbd.store.open_bucket import containers, open_bucket
from tests.store.contract import DATA, NAME, ODD_NAMES, BackDoor, StoreContract, etag_of
from tests.store.plain_http import BucketBack
from tests.support.buckets import BUCKET, bucket_settings, make_bucket
from tests.support.swift_aio import RealSwift

PREFIX = "some/prefix"
SOON = 1.0  # seconds to give up after, on a busy machine


def is_own(name: str) -> bool:
    return name == "swiftnbd/metadata" or name.startswith("swiftnbd/tokens/")


class BucketContract(StoreContract):
    """What both have in common."""

    odd_names = tuple(name for name in ODD_NAMES if not {"", ".", ".."} & set(name.split("/")))
    last_name = "\ufffd"

    @pytest.fixture
    async def fresh(self, bucket: Bucket, container_name: str) -> AsyncIterator[Store]:
        store = open_bucket(bucket, container_name)
        yield store
        await store.close()

    @pytest.fixture
    async def impatient(self, bucket: Bucket, container_name: str) -> AsyncIterator[Store]:
        store = open_bucket(bucket, container_name, SOON)
        yield store
        await store.close()

    @pytest.fixture
    async def store(self, fresh: Store) -> Store:
        await fresh.create_container()
        return fresh

    @pytest.fixture(autouse=True)
    def _remember(self, bucket: Bucket) -> None:
        self.shared = bucket

    def beside(self, store: Store, *, impatient: bool = False) -> Store:
        assert store.place is not None
        return open_bucket(self.shared, f"{store.place.container}-other", SOON if impatient else 60)

    # A PUT finds no container where its metadata cannot be read, and that may pass.
    @pytest.mark.allows_log("WARNING .*outage of .*: COPY .*404.*; requests wait")
    async def test_copy_of_an_absent_object_fails(
        self, impatient: Store, store: Store, other: Store, back: BackDoor
    ) -> None:
        await super().test_copy_of_an_absent_object_fails(impatient, store, other, back)

    @pytest.mark.allows_log("WARNING .*outage of .*: COPY .*404.*; requests wait")
    async def test_copy_into_no_container_fails(self, store: Store, other: Store) -> None:
        await super().test_copy_into_no_container_fails(store, other)

    @pytest.mark.allows_log("WARNING .*outage of .*: PUT .*404.*; requests wait")
    async def test_without_a_container_nothing_is_there_and_nothing_is_made(
        self, fresh: Store, impatient: Store
    ) -> None:
        await super().test_without_a_container_nothing_is_there_and_nothing_is_made(
            fresh, impatient
        )

    async def test_names_that_would_be_changed_are_refused(self, fresh: Store) -> None:
        for name in ("/leading", "trailing/", "a//b", "../up", "a/./b", "\uffff"):
            with pytest.raises(StoreError, match="object name"):
                await fresh.put(name, b"x")

    async def test_its_own_objects_are_no_objects(self, store: Store) -> None:
        await store.put(NAME, DATA)
        await store.renew(NAME, "token")
        for name in ("swiftnbd/metadata", f"swiftnbd/tokens/{NAME}"):
            with pytest.raises(StoreError, match="kept for the container's own use"):
                await store.get(name)
            with pytest.raises(StoreError, match="kept for the container's own use"):
                await store.delete(name)
        assert [row.name for row in await store.listing()] == [NAME]
        assert [row.name for row in await store.listing(prefix="swiftnbd/")] == []

    async def test_metadata_have_a_limit(self, store: Store) -> None:
        with pytest.raises(StoreError, match="bytes of metadata, at most 65536"):
            await store.set_metadata({f"key-{number}": "x" * 250 for number in range(300)})


class MemoryBack(BackDoor):
    """obstore's client itself."""

    def __init__(self, client: MemoryClient, container: str) -> None:
        self.client, self.folder = client, f"{PREFIX}/{container}/"

    async def read(self, name: str) -> bytes | None:
        try:
            return bytes(await (await self.client.get_async(self.folder + name)).bytes_async())
        except FileNotFoundError:
            return None

    async def write(self, name: str, data: bytes) -> None:
        stamp = f"{md5(data).hexdigest()}-{'0123456789abcdef'}"
        await self.client.put_async(self.folder + name, data, attributes={"swiftnbd": stamp})

    async def names(self) -> list[str]:
        rows = await self.client.list(self.folder[:-1]).collect_async()
        names = (row["path"].removeprefix(self.folder) for row in rows)
        return sorted(name for name in names if not is_own(name))

    async def metadata(self) -> dict[str, str] | None:
        data = await self.read("swiftnbd/metadata")
        return None if data is None else dict(json.loads(data)["metadata"])


class TestBucketInMemory(BucketContract):
    """Conditions are honoured, ETags are no MD5."""

    @pytest.fixture
    def client(self) -> MemoryClient:
        return MemoryClient()

    @pytest.fixture
    async def bucket(self, client: MemoryClient) -> AsyncIterator[Bucket]:
        bucket = Bucket(BucketSettings("s3", BUCKET, PREFIX), client=client)
        yield bucket
        await bucket.close()

    @pytest.fixture
    def back(self, client: MemoryClient, container_name: str) -> BackDoor:
        return MemoryBack(client, container_name)

    async def test_two_who_change_the_metadata_at_once_lose_nothing(
        self, store: Store, bucket: Bucket, container_name: str, back: BackDoor
    ) -> None:
        stores = [open_bucket(bucket, container_name) for _ in range(4)]
        changes = [{f"key-{number}": str(number)} for number in range(len(stores))]
        await asyncio.gather(
            *(each.set_metadata(change) for each, change in zip(stores, changes, strict=True))
        )
        assert await back.metadata() == {f"key-{number}": str(number) for number in range(4)}

    async def test_it_admits_one_creator_and_others_learn_that(
        self, store: Store, bucket: Bucket, container_name: str
    ) -> None:
        assert store.admits_one_creator
        other = open_bucket(bucket, container_name)
        assert not other.admits_one_creator  # nothing is known yet
        await other.info()
        assert other.admits_one_creator

    async def test_behind_another_endpoint_nothing_is_known_of_conditions(
        self, store: Store, client: MemoryClient, container_name: str
    ) -> None:
        settings = BucketSettings("s3", BUCKET, PREFIX, (("endpoint", "http://elsewhere"),))
        moved = open_bucket(Bucket(settings, client=client), container_name)
        await moved.info()
        assert not moved.admits_one_creator
        await moved.set_metadata({"key": "value"})
        await store.info()
        assert store.admits_one_creator

    async def test_a_service_that_lists_from_the_beginning_does_no_harm(
        self, store: Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Azure's emulator, for one, knows nothing of where to begin."""
        whole = obstore.list

        def forgetful(*arguments: Any, offset: str | None, **options: Any) -> Any:
            return whole(*arguments, **options)

        monkeypatch.setattr(obstore, "list", forgetful)
        for number in range(5):
            await store.put(f"n/{number}", b"x")
        page = await store.listing(prefix="n/", after="n/1", limit=2)
        assert [row.name for row in page] == ["n/2", "n/3"]
        assert store.place is not None
        assert await containers(bucket) == [store.place.container]

    async def test_each_request_that_changes_something_is_asked_about(
        self, store: Store, back: BackDoor
    ) -> None:
        def refuse() -> None:
            raise LeaseOver("not ours any more")

        await store.put(NAME, DATA)
        with asking(refuse):
            for change in (
                store.put(NAME, b"late"),
                store.delete(NAME),
                store.renew(NAME, "late"),
                store.set_metadata({"late": "yes"}),
            ):
                with pytest.raises(LeaseOver):
                    await change
            assert (await store.head(NAME)) is not None
        assert await back.read(NAME) == DATA
        assert await back.names() == [NAME]
        assert await back.metadata() == {}

    async def test_damaged_bytes_are_found_out(
        self, store: Store, back: BackDoor, client: MemoryClient
    ) -> None:
        stamp = f"{etag_of(DATA)}-0123456789abcdef"
        assert isinstance(back, MemoryBack)
        await client.put_async(back.folder + NAME, DATA[:-1] + b"!", attributes={"swiftnbd": stamp})
        with pytest.raises(CorruptObject, match=f"GET {NAME}: 2048 bytes with MD5"):
            await store.get(NAME)

    async def test_damaged_metadata_are_no_missing_container(
        self, store: Store, bucket: Bucket, container_name: str, back: BackDoor
    ) -> None:
        alone = BucketStore(bucket, container_name)
        for text in (b"", b"[]", b'{"metadata": 7}', b"\xff"):
            await back.write("swiftnbd/metadata", text)
            with pytest.raises(CorruptObject, match="GET swiftnbd/metadata"):
                await alone.info()

    async def test_an_object_of_another_tool_is_known_by_its_etag(
        self, store: Store, back: BackDoor, client: MemoryClient
    ) -> None:
        assert isinstance(back, MemoryBack)
        await client.put_async(back.folder + NAME, DATA)
        blob, part, info = (
            await store.get(NAME),
            await store.get(NAME, start=5, length=5),
            await store.head(NAME),
        )
        assert blob is not None
        assert part is not None
        assert info is not None
        assert blob.data == DATA
        assert part.data == DATA[5:10]
        assert part.etag == info.etag


class TestBucketOnSwift(BucketContract):
    """As it is used, on the S3 API of a real Swift."""

    @pytest.fixture
    async def bucket(self, real_swift: RealSwift) -> AsyncIterator[Bucket]:
        await asyncio.to_thread(make_bucket, real_swift)
        bucket = Bucket(bucket_settings(real_swift, PREFIX))
        yield bucket
        await bucket.close()

    @pytest.fixture
    def back(self, real_swift: RealSwift, container_name: str) -> BackDoor:
        return BucketBack(real_swift, BUCKET, f"{PREFIX}/{container_name}")

    async def test_it_may_admit_two_creators(self, store: Store) -> None:
        assert not store.admits_one_creator
        await store.info()
        assert not store.admits_one_creator

    async def test_two_who_change_the_metadata_in_step_lose_nothing(
        self, store: Store, bucket: Bucket, container_name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both read, both write, and whoever does not find its change then makes it again.

        One whose write comes after the other has looked does take that one's change back.
        """
        step, first, write = asyncio.Barrier(2), [True, True], BucketStore._write

        async def in_step(self: BucketStore, document: Document, version: Version) -> None:
            if not first:
                await write(self, document, version)
                return
            first.pop()
            await step.wait()
            await write(self, document, version)
            await step.wait()

        monkeypatch.setattr(BucketStore, "_write", in_step)
        await asyncio.gather(
            *(open_bucket(bucket, container_name).set_metadata({key: "x"}) for key in ("a", "b"))
        )
        info = await store.info()
        assert info is not None
        assert info.metadata == {"a": "x", "b": "x"}


# What goes wrong, on a Swift and on servers of our own


async def test_a_bucket_that_is_not_there(real_swift: RealSwift, container_name: str) -> None:
    settings = bucket_settings(real_swift)
    bucket = Bucket(BucketSettings("s3", "no-such-bucket", "", settings.options))
    store = open_bucket(bucket, container_name, SOON)
    for call in (store.info(), store.get(NAME), store.listing(), store.create_container()):
        with pytest.raises(ContainerMissing, match="there is no bucket no-such-bucket"):
            await call


@pytest.mark.parametrize(
    "wrong", [{"secret_access_key": "wrong"}, {"access_key_id": "nobody:here"}]
)
async def test_wrong_credentials_are_refused_and_not_shown(
    real_swift: RealSwift, container_name: str, wrong: dict[str, str]
) -> None:
    make_bucket(real_swift)
    store = open_bucket(Bucket(bucket_settings(real_swift, **wrong)), container_name, SOON)
    for call in (store.info(), store.put(NAME, DATA), store.delete(NAME)):
        with pytest.raises(AccessRefused, match="403 Forbidden") as failure:
            await call
        assert "Signature>" not in str(failure.value)
        assert "\n" not in str(failure.value)


async def test_what_a_dead_service_looks_like(container_name: str) -> None:
    settings = BucketSettings(
        "s3",
        BUCKET,
        "",
        (("endpoint", "http://127.0.0.1:1"), ("access_key_id", "a"), ("secret_access_key", "b")),
    )
    store = BucketStore(Bucket(settings), container_name)
    with pytest.raises(StoreUnavailable, match="GET swiftnbd/metadata: connection refused"):
        await store.info()
