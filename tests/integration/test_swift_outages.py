# SPDX-License-Identifier: MIT
"""The Swift store while parts of a real Swift are killed, stopped and restarted."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from hashlib import md5
from urllib.parse import urlsplit

import pytest

from swiftnbd.errors import StoreError, StoreUnavailable
from swiftnbd.store.auth import Login
from swiftnbd.store.base import Blob
from swiftnbd.store.open import Patience, SwiftAccount, Timeouts, V1Auth, open_swift
from swiftnbd.store.proven import Proven
from swiftnbd.store.retrying import Pacing, Retrying
from swiftnbd.store.swift import SwiftStore
from tests.support.swift_aio import KEY, SECOND_POLICY, USER, RealSwift

CANARY = "swiftnbd/canary"
NAME = "disk.part/00000042"
DATA = b"precious" * 1000
BLOB = Blob(DATA, md5(DATA).hexdigest())

pytestmark = pytest.mark.allows_log("WARNING .*outage of .*; requests wait, and it is asked again")


@pytest.fixture
async def account(own_swift: RealSwift) -> AsyncIterator[SwiftAccount]:
    account = SwiftAccount(V1Auth(own_swift.auth_url, USER, KEY))
    yield account
    await account.close()


async def fill(account: SwiftAccount, container: str, policy: str) -> None:
    store = open_swift(account, container)
    await store.create_container(policy=policy)
    await store.put(CANARY, b"here")
    await store.put(NAME, DATA)
    await store.close()


class Moment:
    """A pacing whose first sleep is when something is done to the Swift."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.go_on = asyncio.Event()
        self.pacing = Pacing(sleep=self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.first.set()
        await self.go_on.wait()
        await asyncio.sleep(seconds)


async def test_an_object_server_that_comes_back_within_the_deadline(
    own_swift: RealSwift, account: SwiftAccount
) -> None:
    await fill(account, "c", SECOND_POLICY)
    moments = [Moment(), Moment(), Moment()]
    reader, writer, looker = (
        Retrying(Proven(SwiftStore(account, "c")), deadline_seconds=30, pacing=moment.pacing)
        for moment in moments
    )
    own_swift.kill("object")
    get = asyncio.create_task(reader.get(NAME))
    put = asyncio.create_task(writer.put("disk.part/new", DATA))
    absent = asyncio.create_task(looker.get("disk.part/none"))
    for moment in moments:
        await moment.first.wait()  # each has failed at least once
    await asyncio.to_thread(own_swift.restart, "object")
    for moment in moments:
        moment.go_on.set()
    assert await get == BLOB
    assert await put == BLOB.etag
    assert await absent is None
    assert await reader.get("disk.part/new") == BLOB
    for store in (reader, writer, looker):
        await store.close()


async def test_an_object_server_that_dies_in_the_middle_of_a_put_leaves_the_old_object(
    own_swift: RealSwift, account: SwiftAccount
) -> None:
    """Swift has asked for the body, and got half of it. The PUT that is sent again is whole."""
    await fill(account, "c", SECOND_POLICY)
    new = bytes(reversed(DATA)) * 100
    begun = await _begin_put(own_swift, f"/c/{NAME}", new)
    own_swift.kill("object")
    assert await begun(new[len(new) // 2 :]) >= 500
    moment = Moment()
    store = Retrying(Proven(SwiftStore(account, "c")), deadline_seconds=30, pacing=moment.pacing)
    again = asyncio.create_task(store.put(NAME, new))
    await moment.first.wait()
    await asyncio.to_thread(own_swift.restart, "object")
    assert await SwiftStore(account, "c").get(NAME, newest=True) == BLOB
    moment.go_on.set()
    assert await again == md5(new).hexdigest()
    assert await store.get(NAME) == Blob(new, md5(new).hexdigest())
    await store.close()


async def _begin_put(
    swift: RealSwift, path: str, data: bytes
) -> Callable[[bytes], Coroutine[None, None, int]]:
    """Send half of a body, after Swift has asked for it; what sends the rest: the status."""
    login = await V1Auth(swift.auth_url, USER, KEY).login()
    url = urlsplit(login.storage_url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    head = (
        f"PUT {url.path}{path} HTTP/1.1",
        f"Host: {url.netloc}",
        f"X-Auth-Token: {login.token}",
        f"Content-Length: {len(data)}",
        "Expect: 100-continue",
        "\r\n",
    )
    writer.write("\r\n".join(head).encode())
    assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
    writer.write(data[: len(data) // 2])
    await writer.drain()

    async def go_on(rest: bytes) -> int:
        with suppress(ConnectionError):
            writer.write(rest)
            await writer.drain()
        status = int((await reader.readline()).split()[1])
        writer.close()
        return status

    return go_on


@pytest.mark.parametrize("canary", [CANARY, None])
async def test_a_dead_account_server_and_a_cold_cache_make_nothing_absent(
    own_swift: RealSwift, account: SwiftAccount, canary: str | None
) -> None:
    await fill(account, "c", SECOND_POLICY)
    raw = SwiftStore(account, "c")
    own_swift.kill("account")
    own_swift.kill("proxy")  # and with it the cache
    own_swift.restart("proxy")
    with pytest.raises(StoreUnavailable):
        await raw.get(NAME)  # the connection was the old proxy's
    assert await raw.get(NAME) is None  # this is the lie
    store = open_swift(account, "c", Patience(deadline_seconds=1))
    store.set_canary(canary)
    for operation in (
        store.get(NAME),
        store.get(NAME, newest=True),
        store.get("disk.part/none"),
        store.head(NAME),
        store.delete(NAME),
        store.put("disk.part/new", DATA),
        store.renew(NAME, "token"),
        store.info(),
        store.listing(),
        store.set_metadata({"key": "value"}),
        store.create_container(),
    ):
        with pytest.raises(StoreError, match=r"gave up after \d+ tr\w+ in [0-9] s") as caught:
            await operation
        assert type(caught.value) is StoreError
    own_swift.restart("account")
    patient = open_swift(account, "c")
    patient.set_canary(canary)
    assert await patient.get(NAME) == BLOB
    assert await patient.get("disk.part/none") is None
    await patient.close()
    await store.close()


async def test_a_stopped_proxy_delays_only_its_own_clients_and_not_past_the_deadline(
    own_swift: RealSwift, real_swift: RealSwift, account: SwiftAccount, container_name: str
) -> None:
    other_account = SwiftAccount(V1Auth(real_swift.auth_url, USER, KEY))
    await fill(account, "c", SECOND_POLICY)
    await fill(other_account, container_name, SECOND_POLICY)
    stopped = open_swift(account, "c", Patience(deadline_seconds=1.5))
    healthy = open_swift(other_account, container_name)
    own_swift.signal("proxy", signal.SIGSTOP)
    began = asyncio.get_running_loop().time()
    get = asyncio.create_task(stopped.get(NAME))
    for _ in range(10):
        assert await healthy.get(NAME) == BLOB
    assert not get.done()
    with pytest.raises(StoreError, match="no answer"):
        await get
    assert asyncio.get_running_loop().time() - began < 5
    own_swift.signal("proxy", signal.SIGCONT)
    assert await stopped.get(NAME) == BLOB
    for store in (stopped, healthy):
        await store.close()
    await other_account.close()


async def test_a_put_that_was_given_up_does_not_land_when_the_proxy_wakes_up(
    own_swift: RealSwift, account: SwiftAccount
) -> None:
    await fill(account, "c", SECOND_POLICY)
    auth = V1Auth(own_swift.auth_url, USER, KEY)
    careful = SwiftAccount(auth, Timeouts(total_seconds=1.5))
    careless = SwiftAccount(auth, Timeouts(total_seconds=1.5), expect_continue=False)
    stores = [SwiftStore(careful, "c"), SwiftStore(careless, "c")]
    for store in stores:
        await store.info()  # so that there is a token
    own_swift.signal("proxy", signal.SIGSTOP)
    for store, name in zip(stores, ("careful", "careless"), strict=True):
        with pytest.raises(StoreUnavailable, match="no answer"):
            await store.put(name, DATA)
    own_swift.signal("proxy", signal.SIGCONT)
    patient = SwiftStore(account, "c")
    while await patient.head("careless") is None:  # it was sent after the other one, and it lands
        pass
    assert await patient.head("careful") is None
    await careful.close()
    await careless.close()


async def test_a_dead_proxy_is_refused_and_comes_back(
    own_swift: RealSwift, account: SwiftAccount
) -> None:
    await fill(account, "c", SECOND_POLICY)
    store = open_swift(account, "c", Patience(deadline_seconds=2))
    own_swift.kill("proxy")
    with pytest.raises(
        StoreError, match=f"swift:c: GET {NAME}: Connection refused .*gave up after"
    ):
        await store.get(NAME)
    own_swift.restart("proxy")
    assert await store.get(NAME) == BLOB
    await store.close()


async def test_a_token_unknown_to_swift_is_replaced(real_swift: RealSwift) -> None:
    class Forgetful:
        logins = 0

        async def login(self) -> Login:
            self.logins += 1
            login = await V1Auth(real_swift.auth_url, USER, KEY).login()
            return Login(login.storage_url, "AUTH_tkbad") if self.logins == 1 else login

    forgetful = Forgetful()
    account = SwiftAccount(forgetful)
    store = SwiftStore(account, "c")
    assert await asyncio.gather(*(store.get(f"no-{n}") for n in range(10))) == [None] * 10
    assert forgetful.logins == 2
    await account.close()


async def test_a_foreign_account_is_refused_at_once(real_swift: RealSwift) -> None:
    class Elsewhere:
        async def login(self) -> Login:
            login = await V1Auth(real_swift.auth_url, USER, KEY).login()
            return Login(login.storage_url.replace("AUTH_test", "AUTH_test2"), login.token)

    account = SwiftAccount(Elsewhere())
    store = open_swift(account, "c")
    with pytest.raises(StoreError, match="403 Forbidden: this login may not do that"):
        await store.get(NAME)
    await store.close()
    await account.close()


async def test_a_container_quota_is_full(real_swift: RealSwift, container_name: str) -> None:
    account = SwiftAccount(V1Auth(real_swift.auth_url, USER, KEY))
    store = open_swift(account, container_name)
    await store.create_container({"quota-bytes": "1000"})
    with pytest.raises(StoreError, match="413") as caught:
        await store.put(NAME, DATA)
    assert caught.value.errno == 28
    await store.close()
    await account.close()
