# SPDX-License-Identifier: MIT
"""The fake Swift with replicas and several proxies is one, as far as the store's contract goes."""

from collections.abc import AsyncIterator

import pytest

from swiftnbd.store.base import Store
from swiftnbd.store.open import SwiftAccount, V1Auth
from tests.store import test_swift
from tests.store.contract import BackDoor
from tests.store.fake_cluster import KEY, SECOND_POLICY, USER, FakeCluster
from tests.store.plain_http import SwiftBack


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster() as cluster:
        yield cluster


class TestFakeCluster(test_swift.TestSwift):
    """All that the real Swift is tested for."""

    @pytest.fixture
    async def account(self, cluster: FakeCluster) -> AsyncIterator[SwiftAccount]:
        account = SwiftAccount(V1Auth(cluster.auth_url, USER, KEY))
        yield account
        await account.close()

    @pytest.fixture
    def back(self, cluster: FakeCluster, container_name: str, store: Store) -> BackDoor:
        return SwiftBack(cluster, container_name)


class TestFakeClusterSecondPolicy(TestFakeCluster):
    policy = SECOND_POLICY
