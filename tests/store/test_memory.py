# SPDX-License-Identifier: MIT
"""The memory store against the contract."""

import pytest

from swiftnbd.store.base import Store
from swiftnbd.store.memory import MemoryAccount, MemoryObject, MemoryStore
from tests.store.contract import BackDoor, StoreContract, etag_of


class MemoryBack(BackDoor):
    """The dictionaries themselves."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store

    async def read(self, name: str) -> bytes | None:
        found = self.store.account.containers[self.store.name].objects.get(name)
        return None if found is None else found.data

    async def write(self, name: str, data: bytes) -> None:
        container = self.store.account.containers[self.store.name]
        container.objects[name] = MemoryObject(data, etag_of(data))

    async def names(self) -> list[str]:
        return sorted(self.store.account.containers[self.store.name].objects)

    async def metadata(self) -> dict[str, str] | None:
        found = self.store.account.containers.get(self.store.name)
        return None if found is None else found.metadata


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def fresh(self) -> MemoryStore:
        return MemoryStore("disk")

    @pytest.fixture
    async def store(self, fresh: MemoryStore) -> MemoryStore:
        await fresh.create_container()
        return fresh

    def beside(self, store: Store, *, impatient: bool = False) -> Store:
        assert isinstance(store, MemoryStore)
        return MemoryStore("other", store.account)

    @pytest.fixture
    def back(self, store: MemoryStore) -> MemoryBack:
        return MemoryBack(store)


async def test_two_stores_over_one_account_see_each_other() -> None:
    account = MemoryAccount()
    one, two = MemoryStore("disk", account), MemoryStore("disk", account)
    await one.create_container({"key": "value"})
    await one.put("name", b"data")
    blob = await two.get("name")
    assert blob is not None
    assert blob.data == b"data"
    assert await MemoryStore("other", account).info() is None


async def test_data_is_copied() -> None:
    store = MemoryStore("disk")
    await store.create_container()
    data = bytearray(b"before")
    await store.put("name", data)
    data[:] = b"after."
    blob = await store.get("name")
    assert blob is not None
    assert blob.data == b"before"
