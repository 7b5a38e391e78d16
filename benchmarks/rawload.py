# SPDX-License-Identifier: MIT
"""What a Swift gives to a plain HTTP client: parallel PUTs and GETs, nothing around them.

It shares no code with the Swift store: no retries, no checksums, no cache. It is the yardstick.
"""

import asyncio
import itertools
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import md5
from typing import Self

import aiohttp
import uvloop

IN_FLIGHT = 16  # saturates a small Swift; more only adds latency


@dataclass(frozen=True)
class RawSwift:
    """An account: where, and the token."""

    url: str
    token: str

    @classmethod
    def log_in(cls, auth_url: str, user: str, key: str) -> Self:
        """v1 authentication."""
        headers = {"X-Storage-User": user, "X-Storage-Pass": key}
        request = urllib.request.Request(auth_url, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return cls(answer.headers["X-Storage-Url"], answer.headers["X-Auth-Token"])

    def create(self, container: str) -> None:
        """Make an empty container."""
        request = urllib.request.Request(
            f"{self.url}/{container}", method="PUT", headers={"X-Auth-Token": self.token}
        )
        urllib.request.urlopen(request, timeout=60).close()

    def put_all(
        self,
        container: str,
        image: bytes,
        object_size: int,
        in_flight: int | None = None,
        *,
        checked: bool = False,
        rounds: int = 1,
    ) -> float:
        """Store the image in objects of one size, named like a disk's; the seconds it took.

        ``checked``: with the MD5 of each body, which Swift compares. ``rounds``: so many times,
        each over the one before.
        """
        view, objects = memoryview(image), len(image) // object_size

        async def put(session: aiohttp.ClientSession, turn: int) -> None:
            number = turn % objects
            body = bytes(view[number * object_size : (number + 1) * object_size])
            etag = {"ETag": await _md5(body)} if checked else None
            url = self._object(container, number)
            async with session.put(url, data=body, headers=etag) as answer:
                assert answer.status == 201, answer.status

        return self._run(rounds * objects, put, in_flight or IN_FLIGHT)

    def fill(self, container: str, image: bytes, object_size: int) -> float:
        """`put_all` behind the back of a disk, which must not go on believing that it is empty."""
        request = urllib.request.Request(
            f"{self.url}/{container}/swiftnbd/presence",
            method="DELETE",
            headers={"X-Auth-Token": self.token},
        )
        urllib.request.urlopen(request, timeout=60).close()
        return self.put_all(container, image, object_size)

    def get_all(
        self, container: str, objects: int, object_size: int, *, checked: bool = False
    ) -> float:
        """Read every object of a container; the seconds it took. ``checked``: and their MD5."""

        async def get(session: aiohttp.ClientSession, number: int) -> None:
            async with session.get(self._object(container, number)) as answer:
                assert answer.status == 200, answer.status
                body = await answer.read()
                assert len(body) == object_size
                assert not checked or await _md5(body) == answer.headers["ETag"]

        return self._run(objects, get)

    def delete_all(self, container: str, objects: int) -> float:
        """Delete every object of a container; the seconds it took."""

        async def delete(session: aiohttp.ClientSession, number: int) -> None:
            async with session.delete(self._object(container, number)) as answer:
                assert answer.status == 204, answer.status

        return self._run(objects, delete)

    def image(self, container: str, objects: int) -> bytes:
        """What a disk's container holds, to compare; every object must be there."""
        parts: dict[int, bytes] = {}

        async def get(session: aiohttp.ClientSession, number: int) -> None:
            async with session.get(self._object(container, number)) as answer:
                assert answer.status == 200, answer.status
                parts[number] = await answer.read()

        self._run(objects, get)
        return b"".join(parts[number] for number in range(objects))

    def _object(self, container: str, number: int) -> str:
        return f"{self.url}/{container}/disk.part/{number:08}"

    def _run(
        self,
        count: int,
        work: Callable[[aiohttp.ClientSession, int], Awaitable[None]],
        in_flight: int = IN_FLIGHT,
    ) -> float:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._each(count, work, in_flight))

    async def _each(
        self,
        count: int,
        work: Callable[[aiohttp.ClientSession, int], Awaitable[None]],
        in_flight: int,
    ) -> float:
        numbers = itertools.chain(range(count))  # one iterator that all workers draw from

        async def worker(session: aiohttp.ClientSession) -> None:
            for number in numbers:
                await work(session, number)

        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=in_flight),
            headers={"X-Auth-Token": self.token, "Accept-Encoding": "identity"},
            auto_decompress=False,
        ) as session:
            begin = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(worker(session))
            return time.perf_counter() - begin


async def _md5(body: bytes) -> str:
    """In hex; of a large body in a thread, as a client with a loop to look after does it."""
    if len(body) <= 256 * 1024:
        return md5(body).hexdigest()
    return await asyncio.to_thread(lambda: md5(body).hexdigest())
