# SPDX-License-Identifier: MIT
"""One bucket of an object store through obstore: single requests, its errors as ours.

Each call is one try: obstore's own retries are off, as `swiftnbd.store.retrying` knows better when
to try again. Absent is None.

The body of an upload is covered by a SHA-256 that is part of the request's signature (s3), so that
the service refuses one that was changed on the way. ETags are only compared, never understood: they
are the MD5 of the content in some services, in others (with KMS keys, on Azure) they are not.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from swiftnbd.errors import (
    ContainerMissing,
    CorruptObject,
    ObjectExists,
    StoreError,
    StoreUnavailable,
)
from swiftnbd.metrics import Seen, StoreTraffic
from swiftnbd.store.base import Buffer
from swiftnbd.store.bucket_errors import Failure, store_error
from swiftnbd.store.bucket_settings import BucketSettings
from swiftnbd.store.leave import check_leave
from swiftnbd.store.outages import Outages

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

PAGE_NAMES = 1000  # what the services give at once
# More than that are no disks of ours, and would only be a long wait.
FOLDERS_MAX = 10_000
_NO_FOLDER = "swiftnbd-nothing-is-here"
_LAST_CHARACTER = "\U0010ffff"


class BeginsBeyond(Exception):
    """A range begins at or past the end of the object."""


class ConditionFailed(Exception):
    """A conditional request found another object than it is for."""


class ConditionUnsupported(Exception):
    """The service does not do this kind of conditional request."""


@dataclass(frozen=True, slots=True)
class Version:
    """Tells an object from what it was before, in the service's own words.

    ``number`` None: the service keeps no older ones.
    """

    etag: str  # as the service writes it, quotes included
    number: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """An object, or a part of it.

    ``size`` is that of all of it, ``attributes`` are what was stored with it.
    """

    size: int
    version: Version
    changed: datetime
    attributes: Mapping[str, str]
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a listing."""

    key: str
    size: int


class Bucket:
    """A bucket, shared by all its containers. Keys are whole, whatever the settings' prefix.

    ``outages``: shared with other buckets of that service; whoever made them closes them.
    """

    def __init__(
        self,
        settings: BucketSettings,
        *,
        traffic: StoreTraffic | None = None,
        outages: Outages | None = None,
        client: "Client | None" = None,
    ) -> None:
        """``client``: one of obstore's stores to use in place of what the settings say."""
        self.settings = settings
        self.traffic = StoreTraffic() if traffic is None else traffic
        self.outages = Outages() if outages is None else outages
        self._has_own_outages = outages is None
        self._client = client
        self._is_known = False  # it has answered, so it was there

    async def close(self) -> None:
        """Idempotent. Connections end with the last reference."""
        if self._has_own_outages:
            self.outages.close()

    async def get(
        self, what: str, key: str, *, start: int = 0, length: int | None = None, size_max: int
    ) -> Found | None:
        """Read ``length`` bytes (default: all) from ``start``, at least one.

        `BeginsBeyond` if the object ends before, `CorruptObject` if it is more than ``size_max``.
        """
        options: Any = {}
        if length is not None:
            options["range"] = (start, start + length)
        elif start:
            options["range"] = {"offset": start}
        with self._request(what, "GET") as seen:
            try:
                result = await self._obstore.get_async(self._store, key, options=options)
                first, end = result.range
                if end - first > size_max:
                    raise CorruptObject(f"{what}: {end - first} bytes, expected at most {size_max}")
                data = bytes(await result.bytes_async())
            except FileNotFoundError as error:
                seen.status = 404
                self._check_bucket(what, error)
                return None
            seen.status = 200
        size = result.meta["size"]
        wanted = size if length is None else min(start + length, size)
        if (first, end) != (start, wanted) or len(data) != end - first:
            raise CorruptObject(
                f"{what}: asked for bytes {start} to {wanted} of {size}, got {len(data)} bytes "
                f"said to be {first} to {end}"
            )
        return self._found(what, result, data)

    async def head(self, what: str, key: str) -> Found | None:
        """Describe an object."""
        with self._request(what, "HEAD") as seen:
            try:
                result = await self._obstore.get_async(self._store, key, options={"head": True})
            except FileNotFoundError as error:
                seen.status = 404
                self._check_bucket(what, error)
                return None
            seen.status = 200
        return self._found(what, result, b"")

    async def put(
        self,
        what: str,
        key: str,
        data: Buffer,
        attributes: Mapping[str, str] | None = None,
        *,
        if_absent: bool = False,
        if_match: Version | None = None,
    ) -> Version:
        """Replace an object whole.

        `ObjectExists`, or `ConditionFailed` if what is there is another than ``if_match``.
        """
        mode: Any = "create" if if_absent else "overwrite"
        if if_match is not None:
            mode = {"e_tag": if_match.etag}
            if if_match.number is not None:
                mode["version"] = if_match.number
        attributes = dict(attributes or {})
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._request(what, "PUT") as seen:
            try:
                result = await self._obstore.put_async(
                    self._store, key, data, attributes=attributes, mode=mode, use_multipart=False
                )
            except AlreadyExistsError as error:
                seen.status = 412
                raise ObjectExists(f"{what}: it exists") from error
            except PreconditionError as error:
                seen.status = 412
                raise ConditionFailed(what) from error
            except FileNotFoundError as error:
                seen.status = 404
                self._check_bucket(what, error)
                if if_match is None:
                    raise StoreUnavailable(f"{what}: 404, it was not written") from error
                raise ConditionFailed(what) from error
            except self._errors as error:
                if if_match is not None and Failure.of(error).status in (405, 501):
                    raise ConditionUnsupported(what) from error
                raise
            seen.status = 200
        return Version(result["e_tag"] or "", result["version"])

    async def delete(self, what: str, key: str) -> None:
        """Make an object absent, whether or not it is there."""
        with self._request(what, "DELETE") as seen:
            try:
                await self._obstore.delete_async(self._store, key)
            except FileNotFoundError as error:
                seen.status = 404
                self._check_bucket(what, error)
            else:
                seen.status = 204

    async def copy(self, what: str, source: str, key: str) -> None:
        """Replace an object by another of this bucket, with all that is stored with it."""
        with self._request(what, "COPY") as seen:
            try:
                await self._obstore.copy_async(self._store, source, key)
            except FileNotFoundError as error:
                seen.status = 404
                self._check_bucket(what, error)
                raise StoreUnavailable(f"{what}: 404, {source} is not there") from error
            seen.status = 200

    async def rows(self, what: str, folder: str, after: str = "") -> AsyncGenerator[Row, None]:
        """All objects below ``folder`` ('' or without a slash at its end), in the order of keys.

        ``after``: those whose keys come behind it, also of a service that lists all of them.
        """
        stream = self._obstore.list(
            self._store, folder or None, offset=after or None, chunk_size=PAGE_NAMES
        )
        last = ""
        while page := await self._page(what, stream):
            for each in page:
                key = each["path"]
                if key <= last:  # S3's directory buckets do so
                    raise StoreError(f"{what}: the listing is not in the order of names")
                last = key
                if key > after:
                    yield Row(key, each["size"])

    async def folders(self, what: str, folder: str) -> list[str]:
        """The names of the folders in ``folder``, one request for each and each 1000 files."""
        begin = f"{folder}/" if folder else ""
        names: list[str] = []
        after, is_end = "", False
        while not is_end:
            is_end = True
            async with aclosing(self.rows(what, folder, after)) as rows:
                async for row in rows:
                    name, slash, _ = row.key.removeprefix(begin).partition("/")
                    if slash:
                        names.append(name)
                        after, is_end = f"{begin}{name}/{_LAST_CHARACTER}", False
                        break
            if len(names) > FOLDERS_MAX:
                raise StoreError(f"{what}: more than {FOLDERS_MAX} folders: name the containers")
        return names

    async def check(self, what: str) -> None:
        """Raise unless the bucket is there: looks into a folder that is empty, as that is quick."""
        async with aclosing(self.rows(what, _NO_FOLDER)) as rows:
            await anext(rows, None)

    async def _page(self, what: str, stream: Any) -> Any:
        with self._request(what, "GET") as seen:
            try:
                page = await anext(stream, None)
            except FileNotFoundError as error:
                seen.status = 404
                raise self._bucket_missing(what) from error
            seen.status = 200
        return page

    def _check_bucket(self, what: str, error: FileNotFoundError) -> None:
        """Raise if a 404 is the bucket's, and not just an object's."""
        if Failure.of(error).is_of_bucket:
            raise self._bucket_missing(what) from error

    def _bucket_missing(self, what: str) -> StoreError:
        """What it means: the service may only not reach it."""
        if self._is_known:
            return StoreUnavailable(f"{what}: 404, but the bucket was there before")
        return ContainerMissing(f"{what}: there is no bucket {self.settings.bucket}")

    def _found(self, what: str, result: Any, data: bytes) -> Found:
        meta = result.meta
        if not meta["e_tag"]:
            raise CorruptObject(f"{what}: the answer lacks an ETag")
        return Found(
            meta["size"],
            Version(meta["e_tag"], meta["version"]),
            meta["last_modified"],
            dict(result.attributes),
            data,
        )

    @contextmanager
    def _request(self, what: str, method: str) -> Iterator[Seen]:
        """Count a request, and raise what it fails with as one of our errors."""
        if method not in ("GET", "HEAD"):
            check_leave()
        with self.traffic.request(method) as seen:
            try:
                yield seen
            except self._errors as error:
                failure = Failure.of(error)
                seen.status = failure.status
                if _begins_beyond(failure, error):
                    raise BeginsBeyond(what) from error
                if failure.is_of_bucket:
                    raise self._bucket_missing(what) from error
                raise store_error(what, failure) from error
            else:
                self._is_known = True

    @property
    def _obstore(self) -> Any:
        import obstore  # late: --help needs none of it

        return obstore

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        from obstore.exceptions import BaseError

        return (BaseError, ValueError)

    @property
    def _store(self) -> "Client":
        if self._client is None:
            from swiftnbd.store.bucket_client import connect

            self._client = connect(self.settings)
        return self._client


def _begins_beyond(failure: Failure, error: Exception) -> bool:
    return failure.status == 416 or "StartTooLarge" in str(error)
