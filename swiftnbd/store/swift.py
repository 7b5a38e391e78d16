# SPDX-License-Identifier: MIT
"""A container of a real Swift, one try per call.

This is the raw word of one answer. Two wrappers make the store contract of it: `Proven` (a 404 is
an absence only with proof) and `Retrying`. Here a 404 of GET, HEAD, DELETE and renew is None or
False, one of a container's own request `ContainerMissing`, and one of a PUT `StoreUnavailable`:
Swift answers so while it does not reach the account.

A PUT is done only on 201 with the ETag we expect; 202 means that some replica had newer data and
nothing was written. Bodies are checked against their headers, against what was asked for, and, if
they are whole objects, against the ETag.
"""

import json
from collections.abc import Mapping
from urllib.parse import quote

from swiftnbd.errors import (
    ContainerMissing,
    ContainerNotEmpty,
    CopyUnsupported,
    CorruptObject,
    ObjectExists,
    StoreBusy,
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
    Unproven,
)
from swiftnbd.store.checks import (
    check_container_name,
    check_metadata,
    check_object_name,
    check_size,
    check_token,
)
from swiftnbd.store.hashing import md5_of
from swiftnbd.store.swift_answers import (
    METADATA_PREFIX,
    TOKEN_HEADER,
    Answer,
    container_info,
    content_range,
    failure,
    number,
    unsatisfied_range,
)
from swiftnbd.store.swift_http import SwiftAccount

# 10,000 rows of 1 KiB names, each byte of them at worst six characters of JSON, and 250 more.
LISTING_BYTES_MAX = LISTING_LIMIT_MAX * (6 * 1024 + 256)


class SwiftStore(Unproven):
    """The container ``container`` of ``account``, which stays open when this is closed."""

    def __init__(self, account: SwiftAccount, container: str) -> None:
        check_container_name(container)
        self.label = f"swift:{container}"
        self._account = account
        self._path = "/" + quote(container, safe="")
        self.place = Place(account, container)

    async def get(
        self,
        name: str,
        *,
        start: int = 0,
        length: int | None = None,
        newest: bool = False,
        size_max: int = OBJECT_BYTES_MAX,
    ) -> Blob | None:
        if length == 0:
            return await self._get_nothing(name, newest)
        headers = {"X-Newest": "true"} if newest else {}
        ranged = start > 0 or length is not None
        if ranged:
            end = "" if length is None else start + length - 1
            headers["Range"] = f"bytes={start}-{end}"
        what, path = self._object("GET", name)
        # An answer may be the whole object although a part was asked for.
        body_max = OBJECT_BYTES_MAX if ranged else size_max
        answer = await self._account.request(what, "GET", path, headers=headers, body_max=body_max)
        if answer.status == 404:
            return None
        if answer.status == 416 and ranged:
            blob = self._beyond(what, answer, start)
        elif answer.status == 206 and ranged:
            blob = self._part(what, answer, start, length)
        elif answer.status == 200:
            whole = await self._whole(what, answer)
            stop = None if length is None else start + length
            size = len(whole.data)
            blob = Blob(whole.data[start:stop], whole.etag, size) if ranged else whole
        else:
            raise failure(what, answer)
        check_size(self.label, name, len(blob.data), size_max)
        return blob

    async def head(self, name: str, *, newest: bool = False) -> ObjectInfo | None:
        what, path = self._object("HEAD", name)
        headers = {"X-Newest": "true"} if newest else {}
        answer = await self._account.request(what, "HEAD", path, headers=headers)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise failure(what, answer)
        size = number(answer.headers, "content-length")
        if size is None or not answer.etag:
            raise CorruptObject(f"{what}: the answer lacks a length or an ETag")
        return ObjectInfo(size, answer.etag, answer.headers.get(TOKEN_HEADER, ""))

    async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
        what, path = self._object("PUT", name)
        etag = await md5_of(data)
        headers = {"ETag": etag}
        if if_absent:
            headers["If-None-Match"] = "*"
        answer = await self._account.request(what, "PUT", path, headers=headers, data=data)
        if answer.status == 412 and if_absent:
            raise ObjectExists(f"{self.label}: {name} exists")
        if 200 <= answer.status < 300 and answer.status != 201:
            raise StoreBusy(f"{what}: {answer.status} {answer.reason}: it was not written")
        if answer.status != 201:
            raise failure(what, answer)
        if answer.etag != etag:
            raise CorruptObject(f"{what}: stored with ETag {answer.etag or '(none)'}, not {etag}")
        return etag

    async def copy(self, name: str, source: Place, etag: str) -> None:
        """Swift reads the newest replica, and stores what has the ETag of that, or nothing."""
        what, path = self._object("COPY", name)
        headers = {
            "X-Copy-From": f"/{quote(source.container, safe='')}/{quote(name, safe='/')}",
            "X-Fresh-Metadata": "true",  # a renew token stays with the object it was given to
        }
        answer = await self._account.request(what, "PUT", path, headers=headers, data=b"")
        if 200 <= answer.status < 300 and answer.status != 201:
            raise StoreBusy(f"{what}: {answer.status} {answer.reason}: it was not written")
        if answer.status != 201:
            raise failure(what, answer)  # a 404 may be either container's, or an outage
        if "x-copied-from" not in answer.headers:
            raise CopyUnsupported(f"{what}: this Swift does not copy; it stored an empty object")
        if answer.etag != etag:
            raise CorruptObject(f"{what}: copied with ETag {answer.etag or '(none)'}, not {etag}")

    async def delete(self, name: str) -> bool:
        what, path = self._object("DELETE", name)
        answer = await self._account.request(what, "DELETE", path)
        if answer.status not in (204, 404):
            raise failure(what, answer)
        return answer.status == 204

    async def renew(self, name: str, token: str) -> bool:
        check_token(token)
        what, path = self._object("POST", name)
        answer = await self._account.request(what, "POST", path, headers={TOKEN_HEADER: token})
        if answer.status not in (202, 404):
            raise failure(what, answer)
        return answer.status == 202

    async def listing(
        self, *, prefix: str = "", after: str = "", before: str = "", limit: int = LISTING_LIMIT_MAX
    ) -> list[Listed]:
        assert 0 < limit <= LISTING_LIMIT_MAX
        what = f"{self.label}: listing"
        query: dict[str, str | int] = {"format": "json", "limit": limit}
        query |= {"prefix": prefix} if prefix else {}
        query |= {"marker": after} if after else {}
        query |= {"end_marker": before} if before else {}
        answer = await self._account.request(
            what, "GET", self._path, query=query, body_max=LISTING_BYTES_MAX
        )
        if answer.status == 204:
            return []
        if answer.status != 200:
            raise self._container_failure(what, answer)
        return _rows(what, answer.body)

    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        what = f"{self.label}: HEAD"
        answer = await self._account.request(what, "HEAD", self._path)
        if answer.status == 404:
            return None
        if answer.status not in (200, 204):
            raise failure(what, answer)
        return container_info(answer.headers)

    async def set_metadata(self, changes: Mapping[str, str]) -> None:
        check_metadata(changes)
        what = f"{self.label}: POST"
        answer = await self._account.request(
            what, "POST", self._path, headers=_metadata_headers(changes)
        )
        if answer.status not in (202, 204):
            raise self._container_failure(what, answer)

    async def create_container(
        self, metadata: Mapping[str, str] | None = None, *, policy: str | None = None
    ) -> bool:
        check_metadata(metadata or {})
        headers = _metadata_headers(metadata or {})
        if policy is not None:
            headers["X-Storage-Policy"] = policy
        what = f"{self.label}: PUT"
        answer = await self._account.request(what, "PUT", self._path, headers=headers)
        if answer.status == 400 and b"X-Storage-Policy" in answer.body:
            raise StoreError(f"{self.label}: there is no storage policy {policy!r}")
        if answer.status == 409 and policy is not None:
            raise StoreError(f"{self.label} exists with another storage policy than {policy!r}")
        if answer.status not in (201, 202):
            raise failure(what, answer)
        return answer.status == 201

    async def delete_container(self) -> bool:
        what = f"{self.label}: DELETE"
        answer = await self._account.request(what, "DELETE", self._path)
        if answer.status == 409:
            raise ContainerNotEmpty(f"{self.label} still holds objects")
        if answer.status not in (204, 404):
            raise failure(what, answer)
        return answer.status == 204

    async def head_account(self) -> None:
        """Raise unless Swift reaches the account."""
        what = f"{self.label}: HEAD account"
        answer = await self._account.request(what, "HEAD", "")
        if answer.status not in (200, 204):
            raise failure(what, answer)

    def _object(self, method: str, name: str) -> tuple[str, str]:
        """How messages name a request for an object, and its path."""
        check_object_name(name)
        return f"{self.label}: {method} {name}", f"{self._path}/{quote(name, safe='/')}"

    def _container_failure(self, what: str, answer: Answer) -> StoreError:
        if answer.status == 404:
            return ContainerMissing(f"{self.label}: the container does not exist")
        return failure(what, answer)

    async def _get_nothing(self, name: str, newest: bool) -> Blob | None:
        """No bytes of an object that exists."""
        info = await self.head(name, newest=newest)
        return None if info is None else Blob(b"", info.etag)

    async def _whole(self, what: str, answer: Answer) -> Blob:
        etag = await md5_of(answer.body)
        if etag != answer.etag:
            raise CorruptObject(
                f"{what}: {len(answer.body)} bytes with MD5 {etag}, "
                f"but the answer's ETag is {answer.etag or '(none)'}"
            )
        return Blob(answer.body, etag)

    def _part(self, what: str, answer: Answer, start: int, length: int | None) -> Blob:
        """A 206: exactly the range that was asked for, cut only at the object's end."""
        got = content_range(answer.headers)
        if got is None or not answer.etag:
            raise CorruptObject(f"{what}: the answer lacks a Content-Range or an ETag")
        first, end, total = got
        wanted_end = total if length is None else min(start + length, total)
        if (first, end) != (start, wanted_end) or len(answer.body) != end - first:
            raise CorruptObject(
                f"{what}: asked for bytes {start} to {wanted_end} of {total}, "
                f"got {len(answer.body)} bytes said to be {first} to {end}"
            )
        return Blob(answer.body, answer.etag, total)

    def _beyond(self, what: str, answer: Answer, start: int) -> Blob:
        """A 416: the range begins at or past the end, and the answer says where that is."""
        total = unsatisfied_range(answer.headers)
        if total is None or total > start or not answer.etag:
            said = answer.headers.get("content-range", "(none)")
            raise CorruptObject(f"{what}: 416 for bytes from {start}, with Content-Range {said}")
        return Blob(b"", answer.etag)


def _metadata_headers(changes: Mapping[str, str]) -> dict[str, str]:
    return {METADATA_PREFIX + key: value for key, value in changes.items()}


async def containers_of(account: SwiftAccount, prefix: str) -> list[str]:
    """The first page of the account's containers whose names begin with ``prefix``. Tried once."""
    what = "swift: listing the account"
    query: dict[str, str | int] = {"format": "json", "limit": LISTING_LIMIT_MAX, "prefix": prefix}
    answer = await account.request(what, "GET", "", query=query, body_max=LISTING_BYTES_MAX)
    if answer.status == 204:
        return []
    if answer.status != 200:
        raise failure(what, answer)
    return [row.name for row in _rows(what, answer.body)]


def _rows(what: str, body: bytes) -> list[Listed]:
    try:
        rows = json.loads(body)
        if not isinstance(rows, list):
            raise ValueError(rows)  # not an empty page: that would be the end of the listing
        return [
            Listed(str(row["name"]), int(row["bytes"]), str(row.get("hash", "")))
            for row in rows
            if "name" in row
        ]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise CorruptObject(f"{what}: the answer is not a listing in JSON") from None
