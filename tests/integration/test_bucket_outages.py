# SPDX-License-Identifier: MIT
"""A bucket on Swift's S3 API while parts of that Swift are killed and restarted."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from swiftnbd.errors import StoreUnavailable
from swiftnbd.store.base import Blob
from swiftnbd.store.bucket import Bucket
from swiftnbd.store.bucket_store import BucketStore
from swiftnbd.store.open_bucket import open_bucket
from swiftnbd.store.proven import Proven
from swiftnbd.store.retrying import Retrying
from tests.integration.test_swift_outages import Moment
from tests.support.buckets import bucket_settings, make_bucket
from tests.support.swift_aio import SECOND_POLICY, RealSwift

CANARY = "swiftnbd/canary"
NAME = "disk.part/00000042"
DATA = b"precious" * 1000


@pytest.fixture
async def bucket(own_swift: RealSwift) -> AsyncIterator[Bucket]:
    make_bucket(own_swift, policy=SECOND_POLICY)
    bucket = Bucket(bucket_settings(own_swift))
    yield bucket
    await bucket.close()


async def test_a_dead_account_server_and_a_cold_cache_make_nothing_absent(
    own_swift: RealSwift, bucket: Bucket
) -> None:
    """Swift answers 404 then, and through its S3 API even a DELETE that did nothing looks done."""
    store = Proven(alone := BucketStore(bucket, "c"))
    await store.create_container({"key": "value"})
    await store.put(NAME, DATA)
    await store.put(CANARY, b"here")
    own_swift.kill("account")
    own_swift.kill("proxy")  # and with it the cache
    own_swift.restart("proxy")
    assert await alone.head(NAME) is None  # what must not be believed
    assert await alone.delete(NAME) is False
    for canary in (None, CANARY):
        store.set_canary(canary)
        for call in (
            store.get(NAME),
            store.get(NAME, start=5, length=5),
            store.head(NAME),
            store.delete(NAME),
            store.renew(NAME, "token"),
            store.put(NAME, b"new"),
            store.put("other", b"new", if_absent=True),
            store.info(),
            store.listing(),
            store.set_metadata({"key": "other"}),
            store.delete_container(),
        ):
            with pytest.raises(StoreUnavailable):
                await call
    await asyncio.to_thread(own_swift.restart, "account")
    patient = open_bucket(bucket, "c", 30)
    blob, info = await patient.get(NAME), await patient.info()
    assert blob is not None
    assert info is not None
    assert blob.data == DATA
    assert info.metadata == {"key": "value"}
    assert await patient.get("other") is None
    await store.close()
    await patient.close()


async def test_an_object_server_that_comes_back_within_the_deadline(
    own_swift: RealSwift, bucket: Bucket
) -> None:
    moments = [Moment(), Moment(), Moment()]
    reader, writer, looker = (
        Retrying(Proven(BucketStore(bucket, "c")), deadline_seconds=30, pacing=moment.pacing)
        for moment in moments
    )
    await reader.create_container()
    await reader.put(NAME, DATA)
    await writer.info()
    own_swift.kill("object")
    get = asyncio.create_task(reader.get(NAME))
    put = asyncio.create_task(writer.put("new", DATA))
    delete = asyncio.create_task(looker.delete("none"))
    for moment in moments:
        await moment.first.wait()  # each has failed at least once
    await asyncio.to_thread(own_swift.restart, "object")
    for moment in moments:
        moment.go_on.set()
    blob, etag = await get, await put
    assert blob == Blob(DATA, etag)
    assert await delete is False
    assert await reader.get("new") == blob
    for store in (reader, writer, looker):
        await store.close()
