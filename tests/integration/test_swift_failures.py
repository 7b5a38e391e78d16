# SPDX-License-Identifier: MIT
"""What docs/faults.md says of servers that hang, die or lose their disk, on a real Swift.

Its proxy waits one second for a server that hangs, where ten are usual.
"""

import asyncio
import http.client
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from hashlib import md5
from typing import TypeVar

import pytest

from swiftnbd.errors import StoreError
from swiftnbd.store.base import Blob, Store
from swiftnbd.store.open import Patience, SwiftAccount, V1Auth, open_swift
from tests.store.plain_http import SwiftBack
from tests.support.swift_aio import KEY, USER, RealSwift

NAME = "disk.part/00000042"
DATA = b"precious" * 1000
BLOB = Blob(DATA, md5(DATA).hexdigest())
ERRORS_LIMIT, LIMITED_SECONDS = 3, 2
T = TypeVar("T")

LARGE = 32 * 1024 * 1024  # more than all buffers on the way hold

pytestmark = [
    pytest.mark.allows_log("WARNING .*outage of .*; requests wait, and it is asked again"),
    pytest.mark.timeout(120),
]


def swift_that_waits_a_second(**more: str | int) -> RealSwift:
    options = {"node_timeout": 1, "recoverable_node_timeout": 1, **more}
    updates = {"container_update_timeout": 0.3}  # which the object server waits for in a PUT
    return RealSwift(
        fsync=False,
        extra={
            "proxy": {"app:proxy-server": options},
            "object": {"app:object-server": updates},
        },
        error_limit="error_suppression_limit" in more,
    )


@pytest.fixture(scope="module")
def frail_swift() -> Iterator[RealSwift]:
    """For all tests here, which leave it well."""
    with swift_that_waits_a_second() as swift:
        yield swift


@asynccontextmanager
async def opened(swift: RealSwift, container: str, seconds: float = 60) -> AsyncIterator[Store]:
    """A container with an object ``NAME``."""
    account = SwiftAccount(V1Auth(swift.auth_url, USER, KEY))
    store = open_swift(account, container, Patience(seconds))
    try:
        await store.create_container()
        await store.put(NAME, DATA)
        yield store
    finally:
        await store.close()
        await account.close()


@pytest.fixture
async def store(frail_swift: RealSwift, container_name: str) -> AsyncIterator[Store]:
    async with opened(frail_swift, container_name) as store:
        yield store


@pytest.fixture
def back(frail_swift: RealSwift, container_name: str) -> SwiftBack:
    return SwiftBack(frail_swift, container_name)


@contextmanager
def stopped(swift: RealSwift, role: str) -> Iterator[None]:
    """It hangs meanwhile."""
    swift.signal(role, signal.SIGSTOP)
    try:
        yield
    finally:
        swift.signal(role, signal.SIGCONT)


@contextmanager
def dead(swift: RealSwift, *roles: str) -> Iterator[None]:
    """They are killed, and started again."""
    for role in roles:
        swift.kill(role)
    try:
        yield
    finally:
        for role in roles:
            swift.restart(role)


async def unanswered(task: asyncio.Task[T]) -> asyncio.Task[T]:
    """Give it time for a try or two, which must fail."""
    await asyncio.wait([task], timeout=0.5)
    assert not task.done()
    return task


async def status(back: SwiftBack, method: str, name: str | None = None) -> int:
    body = DATA if method == "PUT" else None
    return (await back.request(method, back.path(name), body))[0]


async def test_an_object_server_that_hangs_is_503_and_waited_for(
    frail_swift: RealSwift, store: Store, back: SwiftBack
) -> None:
    with stopped(frail_swift, "object"):
        assert await status(back, "GET", NAME) == 503
        assert await status(back, "GET", "none") == 503  # and not 404
        assert await status(back, "PUT", "new") == 503
        get = await unanswered(asyncio.create_task(store.get(NAME)))
        none = await unanswered(asyncio.create_task(store.get("none")))
    assert await get == BLOB
    assert await none is None


async def test_a_container_server_that_hangs_delays_listings_and_no_objects(
    frail_swift: RealSwift, store: Store, back: SwiftBack
) -> None:
    await back.write("warm", b"")
    with stopped(frail_swift, "container"):
        assert await status(back, "PUT", NAME) == 201
        assert await status(back, "GET", NAME) == 200
        assert await store.put(NAME, DATA) == BLOB.etag
        assert await status(back, "GET") == 503
        listing = await unanswered(asyncio.create_task(store.listing()))
    assert NAME in [row.name for row in await listing]


async def test_a_container_server_away_and_a_cold_cache_are_503_to_everything(
    frail_swift: RealSwift, store: Store, back: SwiftBack
) -> None:
    await back.write("warm", b"")
    with dead(frail_swift, "container"):
        frail_swift.kill("proxy")  # and with it the cache
        frail_swift.restart("proxy")
        for method in ("GET", "PUT", "DELETE"):
            assert await status(back, method, NAME) == 503, method
        assert await status(back, "GET") == 503
        get = await unanswered(asyncio.create_task(store.get(NAME)))
    assert await get == BLOB


async def test_a_put_while_the_container_server_is_away_is_missing_from_the_listing(
    frail_swift: RealSwift, store: Store, back: SwiftBack
) -> None:
    await back.write("warm", b"")
    with dead(frail_swift, "container"):
        assert await status(back, "PUT", "unlisted") == 201
        assert await status(back, "DELETE", NAME) == 204
    assert await back.read("unlisted") == DATA
    names = await back.names()
    assert "unlisted" not in names  # until an updater runs; none does here
    assert NAME in names  # although it is gone
    assert await store.get("unlisted") == BLOB
    assert await store.get(NAME) is None


async def test_a_device_that_is_gone_is_503_and_comes_back_with_its_objects(
    frail_swift: RealSwift, store: Store, back: SwiftBack
) -> None:
    device = frail_swift.root / "srv" / "d1"
    hidden = device.rename(device.with_name("hidden"))
    for method in ("GET", "PUT", "DELETE"):
        assert await status(back, method, NAME) == 503
    get = await unanswered(asyncio.create_task(store.get(NAME)))
    hidden.rename(device)
    assert await get == BLOB


async def test_an_object_server_that_dies_in_a_put_leaves_nothing(
    frail_swift: RealSwift, store: Store, back: SwiftBack
) -> None:
    await back.names()  # logs in
    connection = http.client.HTTPConnection("127.0.0.1", back.port, timeout=60)
    connection.putrequest("PUT", back.root + back.path("new"))
    connection.putheader("X-Auth-Token", back.token)
    connection.putheader("Content-Length", str(len(DATA)))
    connection.endheaders()
    connection.send(DATA[:4000])
    with dead(frail_swift, "object"):
        connection.send(DATA[4000:])
        assert (await asyncio.to_thread(connection.getresponse)).status in (499, 503)
        connection.close()
    assert await store.get("new") is None


async def test_an_object_server_that_dies_in_a_get_makes_its_body_short(
    frail_swift: RealSwift, store: Store, back: SwiftBack
) -> None:
    await store.put("large", bytes(LARGE))
    connection = http.client.HTTPConnection("127.0.0.1", back.port, timeout=60)
    await back.names()
    headers = {"X-Auth-Token": back.token}
    connection.request("GET", back.root + back.path("large"), headers=headers)
    answer = await asyncio.to_thread(connection.getresponse)
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(LARGE))
    assert len(await asyncio.to_thread(answer.read, 1000)) == 1000
    with (
        dead(frail_swift, "object"),
        pytest.raises((http.client.IncompleteRead, ConnectionError)),
    ):
        await asyncio.to_thread(answer.read)
    connection.close()
    assert await store.delete("large") is True


async def test_error_limiting_outlasts_the_failure_and_is_waited_out(container_name: str) -> None:
    limits = {
        "error_suppression_limit": ERRORS_LIMIT,
        "error_suppression_interval": LIMITED_SECONDS,
    }
    with swift_that_waits_a_second(**limits) as swift:
        async with opened(swift, container_name) as store:
            back = SwiftBack(swift, container_name)
            with dead(swift, "object"):
                for _ in range(ERRORS_LIMIT + 2):
                    assert await status(back, "GET", NAME) == 503
            assert await status(back, "GET", NAME) == 503  # although it is back
            assert await store.get(NAME) == BLOB


async def test_operations_end_at_their_deadline_while_the_object_server_hangs(
    frail_swift: RealSwift, container_name: str
) -> None:
    async with opened(frail_swift, container_name, 1.5) as store:
        with stopped(frail_swift, "object"):
            for operation in (store.get(NAME), store.put(NAME, DATA)):
                with pytest.raises(StoreError, match=r"gave up after .* in [12] s"):
                    await operation
        assert await store.get(NAME) == BLOB
