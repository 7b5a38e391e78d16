# SPDX-License-Identifier: MIT
"""A store in dictionaries: for tests, and the plainest reading of the contract.

Several `MemoryStore` objects over one `MemoryAccount` see the same containers, the way two
servers see the same Swift.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import md5

from swiftnbd.errors import (
    ContainerMissing,
    ContainerNotEmpty,
    CorruptObject,
    ObjectExists,
    StoreError,
)
from swiftnbd.store.base import (
    LISTING_LIMIT_MAX,
    OBJECT_BYTES_MAX,
    Blob,
    Body,
    ContainerInfo,
    Listed,
    ObjectInfo,
    Place,
    Store,
)
from swiftnbd.store.checks import (
    check_container_name,
    check_metadata,
    check_object_name,
    check_size,
    check_token,
)

POLICY = "memory"  # the only storage policy there is


@dataclass(slots=True)
class MemoryObject:
    """One stored object."""

    data: bytes
    etag: str
    token: str = ""


@dataclass(slots=True)
class MemoryContainer:
    """One container."""

    objects: dict[str, MemoryObject] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def change_metadata(self, changes: Mapping[str, str]) -> None:
        for key, value in changes.items():
            if value:
                self.metadata[key] = value
            else:
                self.metadata.pop(key, None)


@dataclass(slots=True, eq=False)
class MemoryAccount:
    """The containers that several stores share. Equal to itself alone."""

    containers: dict[str, MemoryContainer] = field(default_factory=dict)


class MemoryStore(Store):
    """The container ``name`` of an account in memory. No method ever gives up the event loop."""

    admits_one_creator = True

    def __init__(self, name: str, account: MemoryAccount | None = None) -> None:
        check_container_name(name)
        self.name = name
        self.label = f"memory:{name}"
        self.account = MemoryAccount() if account is None else account
        self.place: Place = Place(self.account, name)

    async def get(
        self,
        name: str,
        *,
        start: int = 0,
        length: int | None = None,
        newest: bool = False,
        size_max: int = OBJECT_BYTES_MAX,
    ) -> Blob | None:
        found = self._find(name)
        if found is None:
            return None
        end = None if length is None else start + length
        data = found.data[start:end]
        check_size(self.label, name, len(data), size_max)
        whole = len(found.data)
        return Blob(data, found.etag, whole if len(data) < whole else None)

    async def head(self, name: str, *, newest: bool = False) -> ObjectInfo | None:
        found = self._find(name)
        if found is None:
            return None
        return ObjectInfo(len(found.data), found.etag, found.token)

    async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
        if self._find(name) is not None and if_absent:
            raise ObjectExists(f"{self.label}: {name} exists")
        copy = bytes(data)
        etag = md5(copy).hexdigest()
        self._container().objects[name] = MemoryObject(copy, etag)
        return etag

    async def copy(self, name: str, source: Place, etag: str) -> None:
        check_object_name(name)
        there = self.account.containers.get(source.container, MemoryContainer())
        found = there.objects.get(name)
        if found is None:
            raise StoreError(f"{self.label}: COPY {name}: {source.container} has no such object")
        self._container().objects[name] = MemoryObject(found.data, found.etag)
        if found.etag != etag:
            raise CorruptObject(f"{self.label}: COPY {name}: got ETag {found.etag}, not {etag}")

    async def delete(self, name: str) -> bool:
        check_object_name(name)
        return self._container().objects.pop(name, None) is not None

    async def renew(self, name: str, token: str) -> bool:
        check_token(token)
        found = self._find(name)
        if found is None:
            return False
        found.token = token
        return True

    async def listing(
        self, *, prefix: str = "", after: str = "", before: str = "", limit: int = LISTING_LIMIT_MAX
    ) -> list[Listed]:
        assert 0 < limit <= LISTING_LIMIT_MAX
        # Comparing str is comparing code points, and that is the byte order of UTF-8.
        objects = self._container().objects
        names = sorted(
            name
            for name in objects
            if name.startswith(prefix) and name > after and (not before or name < before)
        )
        found = ((name, objects[name]) for name in names[:limit])
        return [Listed(name, len(each.data), each.etag) for name, each in found]

    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        container = self.account.containers.get(self.name)
        if container is None:
            return None
        return ContainerInfo(
            metadata=dict(container.metadata),
            objects=len(container.objects),
            bytes_used=sum(len(each.data) for each in container.objects.values()),
            policy=POLICY,
        )

    async def set_metadata(self, changes: Mapping[str, str]) -> None:
        check_metadata(changes)
        self._container().change_metadata(changes)

    async def create_container(
        self, metadata: Mapping[str, str] | None = None, *, policy: str | None = None
    ) -> bool:
        check_metadata(metadata or {})
        if policy not in (None, POLICY):
            raise StoreError(f"{self.label}: there is no storage policy {policy!r}")
        created = self.name not in self.account.containers
        container = self.account.containers.setdefault(self.name, MemoryContainer())
        container.change_metadata(metadata or {})
        return created

    async def delete_container(self) -> bool:
        container = self.account.containers.get(self.name)
        if container is None:
            return False
        if container.objects:
            raise ContainerNotEmpty(f"{self.label} still holds {len(container.objects)} objects")
        del self.account.containers[self.name]
        return True

    def _container(self) -> MemoryContainer:
        try:
            return self.account.containers[self.name]
        except KeyError:
            raise ContainerMissing(f"{self.label}: the container does not exist") from None

    def _find(self, name: str) -> MemoryObject | None:
        check_object_name(name)
        return self._container().objects.get(name)
