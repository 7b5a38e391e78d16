# SPDX-License-Identifier: MIT
"""What a fake Swift's proxies say of containers and objects."""

import json
import re
from dataclasses import dataclass, field

from aiohttp import web

from tests.store.fake_replicas import Container, Record

CONTAINER_META, OBJECT_META = "x-container-meta-", "x-object-meta-"


@dataclass(frozen=True)
class Answer:
    """Before it is made HTTP."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def meta(request: web.BaseRequest, prefix: str) -> dict[str, str]:
    """Metadata headers; those with an underscore are dropped, as eventlet does."""
    return {
        key.lower()[len(prefix) :]: value
        for key, value in request.headers.items()
        if key.lower().startswith(prefix) and "_" not in key
    }


def change(meta: dict[str, str], changes: dict[str, str]) -> None:
    """Change metadata key by key; an empty value deletes."""
    for key, value in changes.items():
        meta.pop(key, None)
        if value:
            meta[key] = value


def describe(container: Container) -> dict[str, str]:
    """The headers of a container."""
    return {CONTAINER_META + key: value for key, value in container.meta.items()} | {
        "X-Container-Object-Count": str(len(container.rows)),
        "X-Container-Bytes-Used": str(sum(container.rows.values())),
        "X-Storage-Policy": container.policy,
    }


def listing(container: Container, query: dict[str, list[str]]) -> bytes:
    """One page, in JSON."""

    def given(key: str) -> bytes:
        return query.get(key, [""])[0].encode()

    after, before, prefix = given("marker"), given("end_marker"), given("prefix")
    limit = int(query.get("limit", ["10000"])[0])
    names = sorted(container.rows, key=str.encode)
    shown = [
        {"name": name, "bytes": container.rows[name]}
        for name in names
        if name.encode() > after
        and (not before or name.encode() < before)
        and name.encode().startswith(prefix)
    ]
    return json.dumps(shown[:limit]).encode()


def whole_or_part(request: web.BaseRequest, record: Record) -> Answer:
    """The answer to a GET, with or without a range."""
    assert record.data is not None
    size = len(record.data)
    headers = {"ETag": record.etag}
    headers |= {OBJECT_META + key: value for key, value in record.meta.items()}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if wanted is None:
        return Answer(200, headers, record.data)
    first, last = int(wanted[1]), int(wanted[2] or size)
    if first >= size:
        return Answer(416, headers | {"Content-Range": f"bytes */{size}"})
    end = min(last + 1, size)
    headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
    return Answer(206, headers, record.data[first:end])
