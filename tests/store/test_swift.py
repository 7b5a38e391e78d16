# SPDX-License-Identifier: MIT
"""The Swift store against the contract, on a real Swift: whole, and on a second policy."""

from collections.abc import AsyncIterator

import pytest

from swiftnbd.errors import StoreError, StoreUnavailable
from swiftnbd.store.base import Store
from swiftnbd.store.open import Patience, SwiftAccount, V1Auth, open_swift
from swiftnbd.store.swift import SwiftStore
from tests.store.contract import NAME, BackDoor, StoreContract
from tests.store.plain_http import SwiftBack
from tests.support.swift_aio import DEFAULT_POLICY, KEY, SECOND_POLICY, USER, RealSwift


@pytest.fixture
async def account(real_swift: RealSwift) -> AsyncIterator[SwiftAccount]:
    account = SwiftAccount(V1Auth(real_swift.auth_url, USER, KEY))
    yield account
    await account.close()


class TestSwift(StoreContract):
    """With retries and proof, as it is used."""

    policy = DEFAULT_POLICY

    @pytest.fixture
    async def fresh(self, account: SwiftAccount, container_name: str) -> AsyncIterator[Store]:
        store = open_swift(account, container_name)
        yield store
        await store.close()

    @pytest.fixture
    async def impatient(self, account: SwiftAccount, container_name: str) -> AsyncIterator[Store]:
        store = open_swift(account, container_name, Patience(deadline_seconds=1))
        yield store
        await store.close()

    @pytest.fixture
    async def store(self, fresh: Store) -> Store:
        await fresh.create_container(policy=self.policy)
        return fresh

    def beside(self, store: Store, *, impatient: bool = False) -> Store:
        assert store.place is not None
        account = store.place.home
        assert isinstance(account, SwiftAccount)
        patience = Patience(deadline_seconds=1) if impatient else None
        return open_swift(account, f"{store.place.container}-other", patience)

    @pytest.fixture
    def back(self, real_swift: RealSwift, container_name: str, store: Store) -> BackDoor:
        return SwiftBack(real_swift, container_name)

    # Nor is a COPY's a source that is missing: who copies has just seen it.
    @pytest.mark.allows_log("WARNING .*outage of .*: COPY .*: 404 Not Found; requests wait")
    async def test_copy_of_an_absent_object_fails(
        self, impatient: Store, store: Store, other: Store, back: BackDoor
    ) -> None:
        await super().test_copy_of_an_absent_object_fails(impatient, store, other, back)

    @pytest.mark.allows_log("WARNING .*outage of .*: COPY .*: 404 Not Found; requests wait")
    async def test_copy_into_no_container_fails(self, store: Store, other: Store) -> None:
        await super().test_copy_into_no_container_fails(store, other)

    # a PUT's 404 is an account out of reach, not a container that is missing
    @pytest.mark.allows_log("WARNING .*outage of .*: PUT .*: 404 Not Found; requests wait")
    async def test_without_a_container_nothing_is_there_and_nothing_is_made(
        self, fresh: Store, impatient: Store
    ) -> None:
        await super().test_without_a_container_nothing_is_there_and_nothing_is_made(
            fresh, impatient
        )

    async def test_policy(self, store: Store) -> None:
        info = await store.info()
        assert info is not None
        assert info.policy == self.policy

    async def test_another_policy_for_an_existing_container_is_refused(self, store: Store) -> None:
        other = SECOND_POLICY if self.policy == DEFAULT_POLICY else DEFAULT_POLICY
        with pytest.raises(StoreError, match=f"another storage policy than '{other}'"):
            await store.create_container(policy=other)
        assert await store.create_container(policy=self.policy) is False

    async def test_with_a_canary(self, store: Store) -> None:
        await store.put("swiftnbd/canary", b"here")
        store.set_canary("swiftnbd/canary")
        assert await store.get(NAME) is None
        assert await store.delete(NAME) is False
        assert await store.renew(NAME, "token") is False
        assert await store.head("swiftnbd/other") is None


class TestSwiftSecondPolicy(TestSwift):
    policy = SECOND_POLICY


async def test_alone_it_takes_a_404_at_its_word(account: SwiftAccount, container_name: str) -> None:
    store = SwiftStore(account, container_name)
    assert await store.get(NAME) is None
    with pytest.raises(StoreUnavailable, match=r"PUT disk\.part/00000042: 404 Not Found"):
        await store.put(NAME, b"x")


@pytest.mark.parametrize(
    "header", ["X-Versions-Location", "X-History-Location", "X-Versions-Enabled"]
)
async def test_versioned_containers_are_told(
    real_swift: RealSwift, account: SwiftAccount, container_name: str, header: str
) -> None:
    store = SwiftStore(account, container_name)
    await store.create_container()
    back = SwiftBack(real_swift, container_name)
    value = "true" if header == "X-Versions-Enabled" else "elsewhere"
    status, _, _ = await back.request("POST", back.path(), headers={header: value})
    assert status in (202, 204)
    info = await store.info()
    assert info is not None
    assert info.versioned


@pytest.mark.parametrize("name", ["with space", "ünïcödé", "per%cent%41", "..", "a?b#c", "x" * 256])
async def test_any_container_name_works(
    real_swift: RealSwift, account: SwiftAccount, name: str
) -> None:
    store = open_swift(account, name)
    assert await store.create_container() is True
    await store.put(NAME, b"data")
    assert await SwiftBack(real_swift, name).read(NAME) == b"data"
    assert [row.name for row in await store.listing()] == [NAME]
    assert await store.delete(NAME) is True
    assert await store.delete_container() is True
    await store.close()


@pytest.mark.parametrize("name", ["", "a/b", "x" * 257, "a\nb"])
async def test_impossible_container_names_are_refused(account: SwiftAccount, name: str) -> None:
    with pytest.raises(StoreError, match="container name"):
        SwiftStore(account, name)
