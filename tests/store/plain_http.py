# SPDX-License-Identifier: MIT
"""The back door to a Swift, real or fake: plain HTTP with the standard library."""

import asyncio
import http.client
import json
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import quote, urlsplit

from tests.store.contract import BackDoor
from tests.support.swift_aio import KEY, USER


class Swift(Protocol):
    """Whatever has a proxy on loopback."""

    @property
    def ports(self) -> Mapping[str, int]: ...


class SwiftBack(BackDoor):
    """A container of a Swift, by requests of our own making."""

    def __init__(self, swift: Swift, container: str) -> None:
        self.port = swift.ports["proxy"]
        self.container = container
        self.token = ""
        self.root = ""

    async def read(self, name: str) -> bytes | None:
        status, _, body = await self.request("GET", self.path(name))
        assert status in (200, 404)
        return body if status == 200 else None

    async def write(self, name: str, data: bytes) -> None:
        assert (await self.request("PUT", self.path(name), data))[0] == 201

    async def names(self) -> list[str]:
        status, _, body = await self.request("GET", self.path() + "?format=json")
        assert status == 200
        return [row["name"] for row in json.loads(body)]

    async def metadata(self) -> dict[str, str] | None:
        status, headers, _ = await self.request("HEAD", self.path())
        if status == 404:
            return None
        prefix = "x-container-meta-"
        return {
            key.lower()[len(prefix) :]: value
            for key, value in headers
            if key.lower().startswith(prefix)
        }

    def path(self, name: str | None = None) -> str:
        """The path of an object, or of the container, below the account."""
        path = "/" + quote(self.container, safe="")
        return path if name is None else f"{path}/{quote(name)}"

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """One request, on a connection of its own."""
        return await asyncio.to_thread(self._request, method, path, body, headers or {})

    def _request(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        if not self.token:
            self._log_in()
        headers = {**headers, "X-Auth-Token": self.token}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, self.root + path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _log_in(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {"X-Auth-User": USER, "X-Auth-Key": KEY}
            connection.request("GET", "/auth/v1.0", headers=headers)
            answer = connection.getresponse()
            self.token = answer.headers["X-Auth-Token"]
            self.root = urlsplit(answer.headers["X-Storage-Url"]).path
        finally:
            connection.close()


class BucketBack(SwiftBack):
    """A container in a bucket of Swift's S3 API, by Swift's own: there a bucket is a container."""

    def __init__(self, swift: Swift, bucket: str, folder: str) -> None:
        super().__init__(swift, bucket)
        self.folder = f"{folder}/"

    async def names(self) -> list[str]:
        query = f"?format=json&prefix={quote(self.folder)}"
        status, _, body = await self.request("GET", super().path() + query)
        assert status == 200
        names = (row["name"].removeprefix(self.folder) for row in json.loads(body))
        return [each for each in names if not each.startswith(("swiftnbd/m", "swiftnbd/tokens/"))]

    async def metadata(self) -> dict[str, str] | None:
        data = await self.read("swiftnbd/metadata")
        return None if data is None else dict(json.loads(data)["metadata"])

    def path(self, name: str | None = None) -> str:
        return super().path(None if name is None else self.folder + name)
