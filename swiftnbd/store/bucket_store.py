# SPDX-License-Identifier: MIT
"""A container in a bucket of an object store, one try per call; docs/object-stores.md for users.

It is a folder of the bucket, laid out as `swiftnbd.store.bucket_objects` says. Like `SwiftStore`
this is the word of single answers: `Proven` makes the store contract of it. S3 itself answers 404
only if there is nothing, but one that is Swift inside has Swift's weak ones; and its DELETE answers
204 also where it found nothing, wrongly or not.

**The container's metadata** are one object. Where the service does conditional puts a change is
put on condition that nobody else made one (If-Match). Where it does not, as Swift, whoever has
changed it reads it back until it sees that, so that of two who do it in step none is lost; a PUT
that arrives after the other has looked takes that one's change back all the same.

**Renew tokens** lie in objects of their own. A rewrite of the object itself, the other way to give
it one, would not be safe everywhere: a late one could replace what somebody else has put there, or
bring back what was deleted. Each names the upload that it was given to, as a later put clears it.

**What the service does** is tried, not believed, when a container is made: a second creation, and a
change on a wrong condition, which must both be refused. Only if it passes, `admits_one_creator`.
"""

from collections.abc import Mapping
from contextlib import aclosing, suppress

from swiftnbd.buffers import in_one
from swiftnbd.errors import (
    ContainerMissing,
    ContainerNotEmpty,
    CorruptObject,
    ObjectExists,
    StoreBusy,
    StoreError,
    StoreUnavailable,
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
    Unproven,
)
from swiftnbd.store.bucket import (
    BeginsBeyond,
    Bucket,
    ConditionFailed,
    ConditionUnsupported,
    Found,
    Version,
)
from swiftnbd.store.bucket_objects import (
    DOCUMENT_BYTES_MAX,
    METADATA,
    TOKEN_BYTES_MAX,
    TOKENS,
    Document,
    Stamp,
    Token,
    check_container,
    check_name,
    is_own,
)
from swiftnbd.store.checks import check_metadata, check_token
from swiftnbd.store.hashing import md5_of

CHANGES_MAX = 8  # tries to change the metadata while others do; each needs somebody who was first
_NO_VERSION = Version('"00000000000000000000000000000000"', "1")  # no object has it


class BucketStore(Unproven):
    """The container ``container`` of ``bucket``, which stays open when this is closed."""

    deletes_blindly = True

    def __init__(self, bucket: Bucket, container: str) -> None:
        self._folder = folder_of(bucket, container)
        check_container(container, self._folder)
        self.label = f"{bucket.settings.scheme}:{container}"
        self.place = Place(bucket.settings, container)
        self._bucket = bucket
        self._exists = False  # it did when last looked at
        self._is_conditional = False

    @property
    def admits_one_creator(self) -> bool:
        return self._is_conditional

    # Objects

    async def get(
        self,
        name: str,
        *,
        start: int = 0,
        length: int | None = None,
        newest: bool = False,
        size_max: int = OBJECT_BYTES_MAX,
    ) -> Blob | None:
        what, key = self._object("GET", name)
        if length == 0:
            return await self._get_nothing(what, key)
        try:
            found = await self._bucket.get(what, key, start=start, length=length, size_max=size_max)
        except BeginsBeyond:
            return await self._get_nothing(what, key, start)
        if found is None:
            return None
        stamp = Stamp.of(found)
        if len(found.data) == found.size:
            return Blob(found.data, await _checked(what, found.data, stamp))
        return Blob(found.data, stamp.md5, found.size)

    async def head(self, name: str, *, newest: bool = False) -> ObjectInfo | None:
        what, key = self._object("HEAD", name)
        found = await self._bucket.head(what, key)
        if found is None:
            return None
        stamp = Stamp.of(found)
        token = await self._token(name, stamp)
        return ObjectInfo(found.size, stamp.md5, token)

    async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
        what, key = self._object("PUT", name)
        if not self._exists:
            await self._look(what)
        stamp = Stamp.new(await md5_of(data))
        try:
            await self._bucket.put(what, key, in_one(data), stamp.attributes, if_absent=if_absent)
        except ObjectExists:
            raise ObjectExists(f"{self.label}: {name} exists") from None
        return stamp.md5

    async def copy(self, name: str, source: Place, etag: str) -> None:
        what, key = self._object("COPY", name)
        if not self._exists:
            await self._look(what)
        there = folder_of(self._bucket, source.container)
        await self._bucket.copy(what, f"{there}/{name}", key)
        found = await self._bucket.head(what, key)
        copied = "(none)" if found is None else Stamp.of(found).md5
        if copied != etag:
            raise CorruptObject(f"{what}: copied with ETag {copied}, not {etag}")

    async def delete(self, name: str) -> bool:
        what, key = self._object("DELETE", name)
        if await self._bucket.head(what, key) is None:
            return False
        await self._bucket.delete(what, key)
        await self._bucket.delete(what, self._key(TOKENS + name))
        return True

    async def renew(self, name: str, token: str) -> bool:
        check_token(token)
        what, key = self._object("renew", name)
        found = await self._bucket.head(what, key)
        if found is None:
            return False
        given = Token(token, Stamp.of(found).upload)
        await self._bucket.put(what, self._key(TOKENS + name), given.to_bytes())
        return True

    async def listing(
        self, *, prefix: str = "", after: str = "", before: str = "", limit: int = LISTING_LIMIT_MAX
    ) -> list[Listed]:
        assert 0 < limit <= LISTING_LIMIT_MAX
        if await self.info() is None:
            raise self._missing()
        found: list[Listed] = []
        folder = f"{self._folder}/{prefix}".rpartition("/")[0]
        begin = self._key(after) if after else ""
        what = f"{self.label}: listing"
        async with aclosing(self._bucket.rows(what, folder, begin)) as rows:
            async for row in rows:
                name = row.key.removeprefix(self._key(""))
                if (before and name >= before) or len(found) == limit:
                    break
                if name.startswith(prefix) and not is_own(name):
                    found.append(Listed(name, row.size))
                elif name > prefix and not name.startswith(prefix):
                    break
        return found

    # The container

    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        read = await self._read()
        if read is None:
            return None
        document, found = read
        keeps_all = self._bucket.settings.scheme != "gs" and found.version.number is not None
        info = ContainerInfo(
            document.metadata, policy=self._bucket.settings.scheme, versioned=keeps_all
        )
        if not count:
            return info
        objects = size = 0
        what = f"{self.label}: listing"
        async with aclosing(self._bucket.rows(what, self._folder)) as rows:
            async for row in rows:
                if not is_own(row.key.removeprefix(self._key(""))):
                    objects, size = objects + 1, size + row.size
        return ContainerInfo(info.metadata, objects, size, info.policy, info.versioned)

    async def set_metadata(self, changes: Mapping[str, str]) -> None:
        check_metadata(changes)
        for _ in range(CHANGES_MAX):
            read = await self._read()
            if read is None:
                raise self._missing()
            document, found = read
            if document.changed(changes) == document:
                return
            try:
                await self._write(document.changed(changes), found.version)
            except ConditionFailed:
                continue
            if self._is_conditional:
                return
        raise StoreBusy(f"{self.label}: others change its metadata all the time")

    async def create_container(
        self, metadata: Mapping[str, str] | None = None, *, policy: str | None = None
    ) -> bool:
        check_metadata(metadata or {})
        if policy not in (None, self._bucket.settings.scheme):
            raise StoreError(f"{self.label}: there is no storage policy {policy!r}")
        what, key = f"{self.label}: create", self._key(METADATA)
        document = Document().changed(metadata or {})
        data = document.to_bytes(what)
        try:
            version = await self._bucket.put(what, key, data, if_absent=True)
        except ObjectExists:
            await self.set_metadata(metadata or {})
            return False
        await self._try_conditions(document, version)
        return True

    async def delete_container(self) -> bool:
        if await self.info() is None:
            return False
        if page := await self.listing(limit=1):
            raise ContainerNotEmpty(f"{self.label} still holds objects, such as {page[0].name}")
        what = f"{self.label}: delete container"
        async with aclosing(self._bucket.rows(what, self._key(TOKENS).rstrip("/"))) as rows:
            leftover = [row.key async for row in rows]
        for key in [*leftover, self._key(METADATA)]:
            await self._bucket.delete(what, key)
        self._exists = False
        return True

    async def head_account(self) -> None:
        await self._bucket.check(f"{self.label}: {self._bucket.settings.url}")

    # Inside

    def _key(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _object(self, method: str, name: str) -> tuple[str, str]:
        """How messages name a request for an object, and its key."""
        check_name(name)
        return f"{self.label}: {method} {name}", self._key(name)

    def _missing(self) -> ContainerMissing:
        return ContainerMissing(f"{self.label}: the container does not exist")

    async def _look(self, what: str) -> None:
        """Nothing is put where there is no container: it would lie there unseen."""
        if await self._read() is None:
            raise StoreUnavailable(f"{what}: 404, the container's metadata are not there")

    async def _read(self) -> tuple[Document, Found] | None:
        what = f"{self.label}: GET {METADATA}"
        found = await self._bucket.get(what, self._key(METADATA), size_max=DOCUMENT_BYTES_MAX)
        self._exists = found is not None
        if found is None:
            return None
        document = Document.from_bytes(what, found.data)
        self._is_conditional = document.conditional_at == self._bucket.settings.service
        return document, found

    async def _write(self, document: Document, version: Version) -> None:
        what = f"{self.label}: PUT {METADATA}"
        await self._bucket.put(
            what,
            self._key(METADATA),
            document.to_bytes(what),
            if_match=version if self._is_conditional else None,
        )

    async def _try_conditions(self, document: Document, version: Version) -> None:
        """See whether the service refuses what it must, and note that."""
        what, key = f"{self.label}: create", self._key(METADATA)
        data = document.to_bytes(what)
        try:
            await self._bucket.put(what, key, data, if_absent=True)
        except ObjectExists:
            pass
        else:
            await self._bucket.delete(what, key)
            raise StoreError(
                f"{self.label}: {self._bucket.settings.service} creates objects that exist "
                "(it ignores If-None-Match), so nothing could be locked there"
            )
        try:
            await self._bucket.put(what, key, data, if_match=_NO_VERSION)
        except ConditionUnsupported:
            return
        except ConditionFailed:
            self._is_conditional = True
            service = self._bucket.settings.service
            with suppress(ConditionFailed):  # somebody has changed it since, and found no note
                await self._write(Document(document.metadata, service), version)

    async def _get_nothing(self, what: str, key: str, start: int = 0) -> Blob | None:
        """No bytes, of an object that exists and ends before."""
        found = await self._bucket.head(what, key)
        if found is None:
            return None
        if found.size > start > 0:
            raise CorruptObject(f"{what}: 416 for bytes from {start} of {found.size}")
        return Blob(b"", Stamp.of(found).md5)

    async def _token(self, name: str, stamp: Stamp) -> str:
        what = f"{self.label}: HEAD {name}"
        found = await self._bucket.get(what, self._key(TOKENS + name), size_max=TOKEN_BYTES_MAX)
        if found is None:
            return ""
        given = Token.from_bytes(what, found.data)
        return given.token if given.upload == stamp.upload else ""


def folder_of(bucket: Bucket, container: str) -> str:
    """Where a container lies, without a slash at its end."""
    return f"{bucket.settings.prefix}/{container}".removeprefix("/")


async def _checked(what: str, data: bytes, stamp: Stamp) -> str:
    """The MD5 of a whole object, which must be what was stored with it."""
    etag = await md5_of(data)
    if stamp.is_md5 and etag != stamp.md5:
        raise CorruptObject(f"{what}: {len(data)} bytes with MD5 {etag}, stored as {stamp.md5}")
    return etag
