# SPDX-License-Identifier: MIT
"""The store on a Swift in moments that a real one has and no test can bring about.

Replicas that were away, proxies whose clocks differ, answers that are lost, late or not Swift's.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from hashlib import md5

import pytest

from swiftnbd.errors import CorruptObject, ObjectExists
from swiftnbd.store.auth import Login
from swiftnbd.store.base import Blob, Store
from swiftnbd.store.open import Patience, SwiftAccount, Timeouts, open_swift
from tests.store.fake_cluster import PREFIX, SECOND_POLICY, FakeCluster, Fault

CONTAINER, NAME = "c", "disk.part/00000042"
PATH = f"{CONTAINER}/{NAME}"
OLD, NEW = b"old" * 1000, b"new" * 1000

pytestmark = pytest.mark.allows_log("WARNING .*outage of .*; requests wait, and it is asked again")


def blob(data: bytes) -> Blob:
    return Blob(data, md5(data).hexdigest())


@pytest.fixture
async def swift() -> AsyncIterator[FakeCluster]:
    async with FakeCluster(proxies=2) as swift:
        yield swift


class Through:
    """Logs in to one proxy."""

    def __init__(self, swift: FakeCluster, proxy: int) -> None:
        self.swift, self.proxy = swift, proxy

    async def login(self) -> Login:
        port = self.swift.proxies[self.proxy].port
        return Login(f"http://127.0.0.1:{port}{PREFIX}", self.swift.new_token())


@pytest.fixture
async def stores(swift: FakeCluster) -> AsyncIterator[list[Store]]:
    """One through each proxy; the container exists, in the second policy."""
    accounts = [SwiftAccount(Through(swift, n), Timeouts(5, 2)) for n in range(2)]
    stores = [open_swift(account, CONTAINER, Patience(20)) for account in accounts]
    await stores[0].create_container(policy=SECOND_POLICY)
    yield stores
    for store in stores:
        await store.close()
    for account in accounts:
        await account.close()


@pytest.fixture
def store(stores: list[Store]) -> Store:
    return stores[0]


def count(swift: FakeCluster, method: str) -> int:
    return swift.requests.count(f"{method} {PATH}")


# clocks


async def test_put_through_a_proxy_whose_clock_is_behind_is_sent_again_until_it_is_written(
    swift: FakeCluster, stores: list[Store]
) -> None:
    swift.proxies[1].skew = -0.5
    await stores[0].put(NAME, OLD)
    begin = time.monotonic()
    assert await stores[1].put(NAME, NEW) == blob(NEW).etag
    assert time.monotonic() - begin > 0.3
    assert count(swift, "PUT") > 2  # 202 until then
    assert await stores[0].get(NAME, newest=True) == blob(NEW)


async def test_delete_through_a_proxy_whose_clock_is_behind_is_sent_again(
    swift: FakeCluster, stores: list[Store]
) -> None:
    swift.proxies[1].skew = -0.5
    await stores[0].put(NAME, OLD)
    assert await stores[1].delete(NAME) is True
    assert await stores[0].get(NAME, newest=True) is None


# replicas


async def test_a_replica_that_missed_an_overwrite_serves_old_bytes_but_not_to_x_newest(
    swift: FakeCluster, store: Store
) -> None:
    await store.put(NAME, OLD)
    stale = swift.replicas.all[0]
    stale.is_away = True
    await store.put(NAME, NEW)
    stale.is_away = False
    assert blob(OLD) in [await store.get(NAME) for _ in range(3)]
    for _ in range(3):
        assert await store.get(NAME, newest=True) == blob(NEW)
    swift.replicas.repair()
    for _ in range(3):
        assert await store.get(NAME) == blob(NEW)


async def test_a_replica_that_missed_a_delete_serves_old_bytes_but_not_to_x_newest(
    swift: FakeCluster, store: Store
) -> None:
    await store.put(NAME, OLD)
    stale = swift.replicas.all[0]
    stale.is_away = True
    assert await store.delete(NAME) is True
    stale.is_away = False
    assert await store.get(NAME) == blob(OLD)
    assert await store.get(NAME, newest=True) is None


async def test_x_newest_is_no_proof_while_those_who_know_are_away(
    swift: FakeCluster, store: Store
) -> None:
    await store.put(NAME, OLD)
    swift.replicas.all[0].is_away = True
    await store.put(NAME, NEW)
    swift.replicas.all[0].is_away = False
    for fresh in swift.replicas.all[1:]:
        fresh.is_away = True
    assert await store.get(NAME, newest=True) == blob(OLD)


async def test_a_phantom_makes_a_new_name_taken_until_its_replica_is_repaired(
    swift: FakeCluster, store: Store
) -> None:
    await store.put(NAME, OLD)
    swift.replicas.all[0].is_away = True
    await store.delete(NAME)
    swift.replicas.all[0].is_away = False
    with pytest.raises(ObjectExists):
        await store.put(NAME, NEW, if_absent=True)
    swift.replicas.repair()
    await store.put(NAME, NEW, if_absent=True)


async def test_two_creators_at_once_can_both_be_told_that_they_created(
    swift: FakeCluster, stores: list[Store]
) -> None:
    swift.bodies = asyncio.Barrier(2)  # each has passed its check before either is written
    creators = [
        asyncio.create_task(store.put(NAME, data, if_absent=True))
        for store, data in zip(stores, (OLD, NEW), strict=True)
    ]
    etags = await asyncio.gather(*creators)
    assert set(etags) == {blob(OLD).etag, blob(NEW).etag}
    found = await stores[0].get(NAME, newest=True)
    assert found in (blob(OLD), blob(NEW))  # which is why a creator reads back


async def test_a_missing_object_is_503_and_no_zeros_while_replicas_are_away(
    swift: FakeCluster, store: Store
) -> None:
    await store.put(NAME, OLD)
    for replica in swift.replicas.all[:2]:
        replica.is_away = True
    get = asyncio.create_task(store.get("disk.part/none"))
    await asyncio.wait([get], timeout=0.5)
    assert not get.done()
    assert await store.get(NAME) == blob(OLD)  # which one replica has
    swift.replicas.all[0].is_away = False
    assert await get is None


async def test_a_404_of_an_account_out_of_reach_is_no_absence_and_no_delete(
    swift: FakeCluster, store: Store
) -> None:
    await store.put(NAME, OLD)
    swift.account_is_away = True
    swift.proxies[0].forget()
    tasks = [asyncio.create_task(store.get(NAME)), asyncio.create_task(store.delete("none"))]
    write = asyncio.create_task(store.put("disk.part/new", NEW))
    await asyncio.wait([*tasks, write], timeout=0.5)
    assert not any(task.done() for task in (*tasks, write))
    swift.account_is_away = False
    assert await tasks[0] == blob(OLD)
    assert await tasks[1] is False
    await write
    assert await store.get("disk.part/new") == blob(NEW)


async def test_a_listing_that_lags_behind_misses_objects_and_names_gone_ones(
    swift: FakeCluster, store: Store
) -> None:
    await store.put("a", OLD)
    swift.updates_are_held = True
    await store.put("b", OLD)
    await store.delete("a")
    assert [row.name for row in await store.listing()] == ["a"]
    assert await store.get("b") == blob(OLD)
    assert await store.get("a") is None
    swift.run_updater()
    assert [row.name for row in await store.listing()] == ["b"]


# answers


async def test_a_storm_of_401_logs_in_one_at_a_time_and_passes(
    swift: FakeCluster, store: Store
) -> None:
    await store.put(NAME, OLD)
    before, swift.refusals = swift.logins, 44
    results = await asyncio.gather(*(store.get(NAME) for _ in range(20)))
    assert results == [blob(OLD)] * 20
    assert swift.logins - before <= 60  # two tries use each at most


@pytest.mark.parametrize("status", [429, 498, 503])
async def test_a_limit_of_rate_is_obeyed_as_told(
    swift: FakeCluster, store: Store, status: int
) -> None:
    await store.put("other", OLD)
    swift.fault(Fault(status=status, headers={"Retry-After": "1"}), method="PUT", path=PATH)
    begin = time.monotonic()
    slow = asyncio.create_task(store.put(NAME, NEW))
    await asyncio.wait([slow], timeout=0.2)
    if status != 503:  # which may be an outage
        assert await store.get("other") == blob(OLD)  # others go on
        assert not slow.done()
    await slow
    assert time.monotonic() - begin >= 1
    assert count(swift, "PUT") == 2


async def test_a_put_whose_reply_was_lost_is_sent_again(swift: FakeCluster, store: Store) -> None:
    swift.fault(Fault(lost=True), method="PUT", path=PATH)
    assert await store.put(NAME, NEW) == blob(NEW).etag
    assert count(swift, "PUT") == 2
    assert await store.get(NAME) == blob(NEW)


async def test_a_creation_whose_reply_was_lost_is_known_as_ours(
    swift: FakeCluster, store: Store
) -> None:
    swift.fault(Fault(lost=True), method="PUT", path=PATH)
    assert await store.put(NAME, NEW, if_absent=True) == blob(NEW).etag
    assert count(swift, "PUT") == 2


async def test_a_delete_whose_reply_was_lost_is_sent_again(
    swift: FakeCluster, store: Store
) -> None:
    await store.put(NAME, OLD)
    swift.fault(Fault(lost=True), method="DELETE", path=PATH)
    assert await store.delete(NAME) is False  # by then it is gone
    assert await store.get(NAME, newest=True) is None


async def test_a_slow_body_is_waited_for(swift: FakeCluster, store: Store) -> None:
    await store.put(NAME, OLD)
    swift.fault(Fault(slow=0.5), method="GET", path=PATH)
    assert await store.get(NAME) == blob(OLD)
    assert count(swift, "GET") == 1


BAD_BODIES = {
    "cut": Fault(cut=100),
    "short": Fault(body=OLD[:-1]),
    "long": Fault(body=OLD + b"x"),
    "html": Fault(body=b"<html><title>Log in to this network</title></html>"),
    "etag": Fault(etag=blob(NEW).etag),
    "hang": Fault(hang=True),
}


@pytest.mark.parametrize("kind", BAD_BODIES)
async def test_a_bad_body_is_read_again_and_never_given(
    swift: FakeCluster, store: Store, kind: str
) -> None:
    await store.put(NAME, OLD)
    swift.fault(BAD_BODIES[kind], method="GET", path=PATH)
    assert await store.get(NAME, size_max=len(OLD)) == blob(OLD)
    assert count(swift, "GET") == 2


async def test_a_body_that_stays_bad_is_an_error(swift: FakeCluster, store: Store) -> None:
    await store.put(NAME, OLD)
    swift.fault(BAD_BODIES["html"], method="GET", path=PATH, times=99)
    with pytest.raises(CorruptObject, match=f"GET {NAME}"):
        await store.get(NAME)


async def test_a_put_stored_as_something_else_is_sent_again(
    swift: FakeCluster, store: Store
) -> None:
    swift.fault(Fault(etag=blob(OLD).etag), method="PUT", path=PATH)
    assert await store.put(NAME, NEW) == blob(NEW).etag
    assert count(swift, "PUT") == 2


async def test_a_dead_proxy_comes_back(swift: FakeCluster, store: Store) -> None:
    await store.put(NAME, OLD)
    await swift.proxies[0].stop()
    get = asyncio.create_task(store.get(NAME))
    await asyncio.wait([get], timeout=0.3)
    assert not get.done()
    await swift.proxies[0].start()
    assert await get == blob(OLD)
