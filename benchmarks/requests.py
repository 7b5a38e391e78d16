# SPDX-License-Identifier: MIT
"""What a request for an object costs this process, layer by layer, in microseconds of CPU time.

The layers are those of the Swift store, from a plain HTTP client to the whole of it, against a
server in another process that keeps nothing. CPU time hardly depends on what else the machine
does, and the layers are measured in turns.
"""

import asyncio
import itertools
import re
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import uvloop

from benchmarks.options import KIB, MIB, Options
from benchmarks.processes import Process
from benchmarks.rawload import IN_FLIGHT
from benchmarks.results import Results
from swiftnbd.store.auth import Login
from swiftnbd.store.base import Store
from swiftnbd.store.open import open_swift
from swiftnbd.store.swift import SwiftStore
from swiftnbd.store.swift_http import SwiftAccount

PART = "requests"
SIZES = (64 * KIB, MIB)
WARM_UP_REQUESTS = 2 * IN_FLIGHT
_URL = re.compile(r"^http://\S+$", re.MULTILINE)

Request = Callable[[str, bytes], Awaitable[object]]


@dataclass(frozen=True)
class Layer:
    """How one of them does a PUT and a GET of an object, given its name and bytes."""

    name: str
    put: Request
    get: Request | None


@dataclass(frozen=True)
class Known:
    """An `Auth` that knows already."""

    url: str

    async def login(self) -> Login:
        return Login(self.url, "token")


def measure(options: Options, results: Results, workdir: Path) -> None:
    """All layers, sizes and methods, in turns."""
    command = [sys.executable, "-m", "benchmarks.small_swift"]
    with Process(command, workdir) as server:
        server.wait_for(lambda: _URL.search(server.said()) is not None)
        match = _URL.search(server.said())
        assert match is not None
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_measure(options, results, match[0]))


async def _measure(options: Options, results: Results, url: str) -> None:
    async with AsyncExitStack() as stack:
        layers = await _layers(url, stack)
        for size, method in itertools.product(SIZES, ("PUT", "GET")):
            body = options.random_bytes(size)
            ways = {
                layer.name: way
                for layer in layers
                if (way := layer.put if method == "PUT" else layer.get) is not None
            }
            what = f"{method} {size // KIB} KiB"
            figures = {name: results.figure(PART, f"{what}, {name}", "us") for name in ways}
            count = max(IN_FLIGHT, options.request_bytes // size)
            for way in ways.values():
                await _cpu_seconds(way, size, body, WARM_UP_REQUESTS)
            for _ in range(options.request_rounds):
                for name, way in ways.items():
                    took = await _cpu_seconds(way, size, body, count)
                    figures[name].values.append(took / count * 1e6)
            least = (f"{name} {min(figure.values):.0f}" for name, figure in figures.items())
            options.say(f"{what}: {', '.join(least)}")


async def _layers(url: str, stack: AsyncExitStack) -> list[Layer]:
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"X-Auth-Token": "token", "Accept-Encoding": "identity"}
    session = aiohttp.ClientSession(connector=connector, headers=headers, auto_decompress=False)
    await stack.enter_async_context(session)
    account = SwiftAccount(Known(url))
    stack.push_async_callback(account.close)
    whole = open_swift(account, "c")
    stack.push_async_callback(whole.close)
    return [
        _plain("aiohttp", session, url, expect=False),
        _plain("aiohttp, expect", session, url, expect=True),
        _account("account", account),
        _store("SwiftStore", SwiftStore(account, "c")),
        _store("whole", whole),
    ]


def _plain(name: str, session: aiohttp.ClientSession, url: str, *, expect: bool) -> Layer:
    async def put(path: str, body: bytes) -> None:
        async with session.put(f"{url}/c/{path}", data=body, expect100=expect) as answer:
            assert answer.status == 201

    async def get(path: str, body: bytes) -> None:
        async with session.get(f"{url}/c/{path}") as answer:
            assert len(await answer.read()) == len(body)

    return Layer(name, put, None if expect else get)


def _account(name: str, account: SwiftAccount) -> Layer:
    async def put(path: str, body: bytes) -> None:
        answer = await account.request("PUT", "PUT", f"/c/{path}", data=body)
        assert answer.status == 201

    async def get(path: str, body: bytes) -> None:
        answer = await account.request("GET", "GET", f"/c/{path}", body_max=len(body))
        assert len(answer.body) == len(body)

    return Layer(name, put, get)


def _store(name: str, store: Store) -> Layer:
    async def get(path: str, body: bytes) -> None:
        assert await store.get(path, size_max=len(body)) is not None

    return Layer(name, store.put, get)


async def _cpu_seconds(way: Request, size: int, body: bytes, count: int) -> float:
    numbers = itertools.chain(range(count))  # one iterator that all workers draw from

    async def worker() -> None:
        for number in numbers:
            await way(f"{size}/{number:08}", body)

    begin = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(worker())
    return time.process_time() - begin
