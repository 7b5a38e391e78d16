# SPDX-License-Identifier: MIT
"""A Swift whose name has several addresses: all are used, and who dies or hangs is left out."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from hashlib import md5
from typing import Any

import aiohttp
import pytest

from swiftnbd.errors import StoreUnavailable
from swiftnbd.store import http as http_module
from swiftnbd.store import proxies as proxies_module
from swiftnbd.store.auth import Login
from swiftnbd.store.base import Blob
from swiftnbd.store.http import Timeouts
from swiftnbd.store.proxies import Proxies, Proxy
from swiftnbd.store.swift import SwiftStore
from swiftnbd.store.swift_http import SwiftAccount
from tests.store.fake_cluster import PREFIX, FakeCluster
from tests.support.loopback import until

HOST = "swift.test"
NAME, DATA = "disk.part/00000042", b"data" * 1000
BLOB = Blob(DATA, md5(DATA).hexdigest())
QUICK = Timeouts(5, 10, silent_seconds_among_several=0.2)


class Names:
    """What the name resolves to."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.real = socket.getaddrinfo

    def getaddrinfo(self, host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host != HOST:
            return self.real(host, port, *args, **options)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, 1, 6, "", (each, port))
            for each in self.addresses
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    return names


@pytest.fixture
async def swift(names: Names) -> AsyncIterator[FakeCluster]:
    """Three proxies, on one port of three addresses."""
    swift = FakeCluster(proxies=3)
    for number, proxy in enumerate(swift.proxies, 1):
        proxy.host = f"127.0.0.{number}"
    async with swift:
        for proxy in swift.proxies[1:]:
            await proxy.stop()
            proxy.port = swift.proxies[0].port
            await proxy.start()
        names.addresses = [proxy.host for proxy in swift.proxies]
        yield swift


class Named:
    """An `Auth` whose Swift has a name."""

    def __init__(self, swift: FakeCluster) -> None:
        self.swift = swift

    async def login(self) -> Login:
        port = self.swift.proxies[0].port
        return Login(f"http://{HOST}:{port}{PREFIX}", self.swift.new_token())


@pytest.fixture
async def store(swift: FakeCluster) -> AsyncIterator[SwiftStore]:
    """One that tries once; the container and an object are there."""
    account = SwiftAccount(Named(swift), QUICK)
    store = SwiftStore(account, "c")
    await store.create_container()
    await store.put(NAME, DATA)
    yield store
    await account.close()


async def read(store: SwiftStore, times: int) -> None:
    for _ in range(times):
        assert await store.get(NAME) == BLOB


async def test_all_addresses_are_used(swift: FakeCluster, store: SwiftStore) -> None:
    await read(store, 30)
    assert all(proxy.requests >= 10 for proxy in swift.proxies)


async def test_a_dead_address_costs_no_request(swift: FakeCluster, store: SwiftStore) -> None:
    await swift.proxies[1].stop()
    account = SwiftAccount(Named(swift), QUICK)  # without connections that would break
    fresh = SwiftStore(account, "c")
    for number in range(10):
        await fresh.put(f"disk.part/{number:08}", DATA)
    await read(fresh, 10)
    await account.close()


async def test_a_hanging_address_is_left_for_another_and_not_asked_again(
    swift: FakeCluster, store: SwiftStore
) -> None:
    await read(store, 6)
    swift.proxies[1].hangs = True
    before = swift.proxies[1].requests
    blobs = await asyncio.gather(*(store.get(NAME) for _ in range(12)))
    assert blobs == [BLOB] * 12
    asked = swift.proxies[1].requests
    assert asked > before
    await read(store, 20)
    assert await store.put(NAME, DATA) == BLOB.etag
    assert swift.proxies[1].requests == asked


async def test_a_put_leaves_a_hanging_address_only_with_its_body_unsent(
    swift: FakeCluster, store: SwiftStore
) -> None:
    for proxy in swift.proxies[1:]:
        proxy.hangs = True
    for number in range(3):
        await store.put(f"n{number}", DATA)
    assert {request for request in swift.requests if request.startswith("PUT c/n")} == {
        "PUT c/n0",
        "PUT c/n1",
        "PUT c/n2",
    }


async def test_a_put_whose_body_goes_out_while_it_is_given_up_is_not_sent_to_another(
    swift: FakeCluster, store: SwiftStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two proxies could carry it out; the second would call what the first made somebody else's."""
    look = http_module._Silence._look

    def sent_meanwhile(self: http_module._Silence) -> None:
        look(self)
        assert self._exchange.body is not None
        self._exchange.body.is_begun = True

    monkeypatch.setattr(http_module._Silence, "_look", sent_meanwhile)
    for proxy in swift.proxies:
        proxy.hangs = True
    before = sum(proxy.requests for proxy in swift.proxies)
    with pytest.raises(StoreUnavailable, match="no answer after"):
        await store.put(NAME, DATA)
    assert sum(proxy.requests for proxy in swift.proxies) == before + 1


async def test_a_delete_stays_where_it_was_sent(swift: FakeCluster, store: SwiftStore) -> None:
    account = SwiftAccount(Named(swift), Timeouts(5, 0.5, silent_seconds_among_several=0.1))
    impatient = SwiftStore(account, "c")
    for proxy in swift.proxies:
        proxy.hangs = True
    before = sum(proxy.requests for proxy in swift.proxies)
    with pytest.raises(StoreUnavailable, match="no answer after"):
        await impatient.delete(NAME)
    assert sum(proxy.requests for proxy in swift.proxies) == before + 1
    await account.close()


async def test_an_address_that_failed_is_asked_again_later(
    monkeypatch: pytest.MonkeyPatch, swift: FakeCluster, store: SwiftStore
) -> None:
    monkeypatch.setattr(proxies_module, "LEFT_OUT_SECONDS_FIRST", 0.1)
    monkeypatch.setattr(proxies_module, "LEFT_OUT_SECONDS_MAX", 0.1)
    await swift.proxies[1].stop()
    account = SwiftAccount(Named(swift), QUICK)
    fresh = SwiftStore(account, "c")
    await read(fresh, 6)
    await swift.proxies[1].start()
    before = swift.proxies[1].requests
    async with asyncio.timeout(30):
        while swift.proxies[1].requests == before:
            await read(fresh, 1)
    await account.close()


async def test_idle_connections_to_an_address_that_hangs_are_dropped(
    swift: FakeCluster, store: SwiftStore
) -> None:
    await asyncio.gather(*(store.get(NAME) for _ in range(30)))
    assert swift.proxies[1].connections > 5
    swift.proxies[1].hangs = True
    await asyncio.gather(*(store.get(NAME) for _ in range(3)))
    await until(lambda: swift.proxies[1].connections <= 1)


async def test_an_ipv6_address_without_a_server_is_passed_over(
    swift: FakeCluster, store: SwiftStore, names: Names
) -> None:
    names.addresses = ["::1", "127.0.0.1"]
    account = SwiftAccount(Named(swift), QUICK)
    await read(SwiftStore(account, "c"), 6)
    await account.close()


async def test_a_name_that_is_not_found_is_said_and_asked_for_again(
    swift: FakeCluster, store: SwiftStore, names: Names
) -> None:
    names.addresses, addresses = [], names.addresses
    account = SwiftAccount(Named(swift), QUICK)
    nameless = SwiftStore(account, "c")
    with pytest.raises(StoreUnavailable, match="the name of the server is not found"):
        await nameless.get(NAME)
    names.addresses = addresses
    await read(nameless, 1)
    await account.close()


async def test_a_name_that_moved_is_followed(
    swift: FakeCluster, store: SwiftStore, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxies_module, "RESOLVED_SECONDS", 0.0)
    names.addresses = ["127.0.0.3"]
    account = SwiftAccount(Named(swift), QUICK)
    moving = SwiftStore(account, "c")
    await read(moving, 1)
    names.addresses = ["127.0.0.2"]
    before = swift.proxies[1].requests
    async with asyncio.timeout(30):
        while swift.proxies[1].requests == before:
            await read(moving, 1)
    await account.close()


async def test_many_requests_that_meet_one_failure_leave_an_address_out_no_longer() -> None:
    proxy = Proxy("127.0.0.1", no_session)
    for _ in range(50):
        await proxy.failed()
    left = proxy.left_out_until - time.monotonic()
    assert left <= proxies_module.LEFT_OUT_SECONDS_FIRST


def no_session(_: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    raise AssertionError


async def test_a_name_that_is_not_found_when_nobody_waits_any_more_is_not_complained_of(
    names: Names,
) -> None:
    """asyncio logs an ERROR for a task whose exception nobody asked for."""
    proxies = Proxies(HOST, 80, no_session)
    pick = asyncio.create_task(proxies.pick())
    await asyncio.sleep(0)
    pick.cancel()
    assert proxies._resolving is not None
    await asyncio.wait([pick, proxies._resolving])
    assert proxies._resolving.exception() is None
    await proxies.close()


async def test_no_connection_is_made_to_a_swift_that_was_left(
    swift: FakeCluster, names: Names
) -> None:
    proxies = Proxies(HOST, 80, no_session)
    picking = asyncio.create_task(proxies.pick())
    await asyncio.sleep(0)
    await proxies.close()
    for pick in (picking, proxies.pick()):
        with pytest.raises(OSError, match="shutdown"):
            await pick


@pytest.mark.parametrize("host", ["swift..test", "s" * 64 + ".test"])
async def test_a_name_that_is_none_is_not_found(swift: FakeCluster, host: str) -> None:
    class Misnamed(Named):
        async def login(self) -> Login:
            return Login(f"http://{host}:1{PREFIX}", self.swift.new_token())

    account = SwiftAccount(Misnamed(swift), QUICK)
    with pytest.raises(StoreUnavailable, match="the name of the server is not found"):
        await SwiftStore(account, "c").get(NAME)
    await account.close()
