# SPDX-License-Identifier: MIT
"""Single requests of the Swift store against answers that a healthy Swift never gives."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import md5

import aiohttp
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_writer import StreamWriter

from swiftnbd.errors import (
    AccessRefused,
    CopyUnsupported,
    CorruptObject,
    ObjectExists,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from swiftnbd.metrics import StoreTraffic
from swiftnbd.store.auth import Login
from swiftnbd.store.base import Blob, Place
from swiftnbd.store.http import Timeouts, _read_whole
from swiftnbd.store.swift import SwiftStore
from swiftnbd.store.swift_http import SwiftAccount
from tests.store.fake_swift import FakeSwift, Reply, Seen, reply_with

NAME = "disk.part/00000042"
DATA = b"0123456789" * 10
ETAG = md5(DATA).hexdigest()


@pytest.fixture
async def fake() -> AsyncIterator[FakeSwift]:
    fake = FakeSwift()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def store(fake: FakeSwift) -> AsyncIterator[SwiftStore]:
    account = SwiftAccount(fake, Timeouts(connect_seconds=5, total_seconds=20))
    yield SwiftStore(account, "c")
    await account.close()


# COPY


async def test_copy_names_its_source_and_leaves_its_metadata(
    fake: FakeSwift, store: SwiftStore
) -> None:
    fake.script(Reply(201, {"ETag": ETAG, "X-Copied-From": "s/n"}))
    await store.copy("a b/%", Place(store.place and store.place.home, "ü s"), ETAG)
    seen = fake.seen[-1]
    assert (seen.method, seen.path, seen.body) == ("PUT", "/c/a b/%", b"")
    assert seen.headers["x-copy-from"] == "/%C3%BC%20s/a%20b/%25"
    assert seen.headers["x-fresh-metadata"] == "true"
    assert seen.headers["content-length"] == "0"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(202, {"ETag": ETAG, "X-Copied-From": "s/n"}), StoreBusy),
        (Reply(201, {"ETag": "0" * 32, "X-Copied-From": "s/n"}), CorruptObject),
        (Reply(201, {"X-Copied-From": "s/n"}), CorruptObject),
        (Reply(201, {"ETag": md5(b"").hexdigest()}), CopyUnsupported),  # it knows no COPY
        (Reply(404), StoreUnavailable),
        (Reply(503), StoreUnavailable),
        (Reply(499), StoreBusy),
        (Reply(422), CorruptObject),
        (Reply(413), StoreFull),
        (Reply(403), AccessRefused),
    ],
)
async def test_copy_counts_only_with_201_and_the_etag(
    fake: FakeSwift, store: SwiftStore, reply: Reply, error: type[StoreError]
) -> None:
    fake.script(reply)
    with pytest.raises(error) as caught:
        await store.copy(NAME, Place(None, "s"), ETAG)
    assert type(caught.value) is error


# PUT


async def test_put_on_a_connection_that_closes_at_that_moment_fails_without_a_traceback(
    fake: FakeSwift, store: SwiftStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp sends the body in a task, whose error nobody takes: then it would be in the log."""
    await store.put(NAME, b"before")

    def send_headers(self: StreamWriter) -> None:
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(StreamWriter, "send_headers", send_headers)
    with pytest.raises(StoreUnavailable, match="the connection was closed"):
        await store.put(NAME, DATA)
    monkeypatch.undo()
    assert fake.objects == {NAME: b"before"}
    assert await store.put(NAME, DATA) == ETAG


async def test_put_sends_md5_and_identity(fake: FakeSwift, store: SwiftStore) -> None:
    assert await store.put(NAME, DATA) == ETAG
    seen = fake.seen[-1]
    assert seen.headers["etag"] == ETAG
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["content-length"] == "100"
    assert "if-none-match" not in seen.headers
    assert fake.objects == {NAME: DATA}


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(202, {"ETag": ETAG}), StoreBusy),
        (Reply(200, {"ETag": ETAG}), StoreBusy),
        (Reply(204), StoreBusy),
        (Reply(201, {"ETag": "0" * 32}), CorruptObject),
        (Reply(201), CorruptObject),
        (Reply(404), StoreUnavailable),
        (Reply(408), StoreBusy),
        (Reply(409), StoreBusy),
        (Reply(422), CorruptObject),
        (Reply(429), StoreBusy),
        (Reply(498), StoreBusy),
        (Reply(500), StoreUnavailable),
        (Reply(503), StoreUnavailable),
        (Reply(413), StoreFull),
        (Reply(507), StoreFull),
        (Reply(403), AccessRefused),
        (Reply(400), StoreError),
        (Reply(412), StoreError),
        (Reply(302, {"Location": "/elsewhere"}), StoreError),
        (Reply(no_head=True, then="close"), StoreUnavailable),
        (Reply(no_head=True, then="reset"), StoreUnavailable),
    ],
    ids=lambda value: f"{value.status}{value.then}" if isinstance(value, Reply) else "",
)
async def test_put_is_done_only_on_201_with_our_etag(
    fake: FakeSwift, store: SwiftStore, reply: Reply, error: type[StoreError]
) -> None:
    fake.script(reply)
    with pytest.raises(StoreError, match=r"swift:c: PUT disk\.part/00000042: ") as caught:
        await store.put(NAME, DATA)
    assert type(caught.value) is error
    assert len(fake.seen) == 1  # a single try, and no redirect followed


async def test_put_if_absent(fake: FakeSwift, store: SwiftStore) -> None:
    assert await store.put(NAME, DATA, if_absent=True) == ETAG
    assert fake.seen[-1].headers["if-none-match"] == "*"
    with pytest.raises(ObjectExists):
        await store.put(NAME, DATA, if_absent=True)


@pytest.mark.parametrize(
    ("status", "error"), [(503, StoreUnavailable), (412, ObjectExists), (507, StoreFull)]
)
async def test_an_answer_before_the_body_was_asked_for(
    fake: FakeSwift, store: SwiftStore, status: int, error: type[StoreError]
) -> None:
    fake.refuse_bodies = Reply(status)
    with pytest.raises(error):
        await store.put(NAME, DATA, if_absent=True)
    assert fake.objects == {}


async def test_a_body_can_be_sent_without_being_asked_for(fake: FakeSwift) -> None:
    async def silent(seen: Seen) -> Reply | None:
        assert "expect" not in seen.headers
        return None

    fake.handle = silent
    account = SwiftAccount(fake, expect_continue=False)
    assert await SwiftStore(account, "c").put(NAME, DATA) == ETAG
    await account.close()


async def test_put_of_several_megabytes_arrives(fake: FakeSwift, store: SwiftStore) -> None:
    data = bytearray(range(256)) * (3 * 4096)
    await store.put(NAME, data)
    assert fake.objects[NAME] == data


# GET


async def test_get_of_several_megabytes_arrives(fake: FakeSwift, store: SwiftStore) -> None:
    fake.objects[NAME] = data = bytes(range(256)) * (3 * 4096)
    assert await store.get(NAME, size_max=len(data)) == Blob(data, md5(data).hexdigest())


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(200, {"ETag": ETAG}, DATA[:-1]), CorruptObject),
        (Reply(200, {"ETag": ETAG}, DATA[:-1] + b"x"), CorruptObject),
        (Reply(200, {}, DATA), CorruptObject),
        (Reply(200, {"ETag": "not-an-md5"}, DATA), CorruptObject),
        (Reply(200, {"Content-Type": "text/html"}, b"<html>Log in here</html>"), CorruptObject),
        (Reply(200, {"ETag": ETAG}, DATA, length=200, then="close"), StoreUnavailable),
        (Reply(200, {"ETag": ETAG}, DATA, length=200, then="reset"), StoreUnavailable),
        (Reply(200, {"ETag": ETAG}, DATA, length=10**15, then="hang"), CorruptObject),
        (Reply(200, {"ETag": ETAG}, bytes(2000), chunked=True), CorruptObject),
        (Reply(206, {"ETag": ETAG, "Content-Range": "bytes 0-99/100"}, DATA), StoreError),
        (Reply(204), StoreError),
        (Reply(202), StoreError),
        (Reply(302, {"Location": "/elsewhere"}), StoreError),
        (Reply(416), StoreError),
        (Reply(500), StoreUnavailable),
        (Reply(503, body=b"x" * 10**6), StoreUnavailable),
        (Reply(no_head=True, then="close"), StoreUnavailable),
    ],
)
async def test_get_never_returns_what_is_not_proven(
    fake: FakeSwift, store: SwiftStore, reply: Reply, error: type[StoreError]
) -> None:
    """Acceptance row E31."""
    fake.script(reply)
    with pytest.raises(StoreError, match=r"swift:c: GET disk\.part/00000042: ") as caught:
        await store.get(NAME, size_max=1000)
    assert type(caught.value) is error


async def test_get_in_chunks_without_length(fake: FakeSwift, store: SwiftStore) -> None:
    fake.script(Reply(200, {"ETag": f'"{ETAG.upper()}"'}, DATA, chunked=True))
    assert await store.get(NAME, size_max=100) == Blob(DATA, ETAG)


def part(first: int, last: int, total: int, body: bytes, etag: str = ETAG) -> Reply:
    return Reply(206, {"ETag": etag, "Content-Range": f"bytes {first}-{last}/{total}"}, body)


@pytest.mark.parametrize(
    "reply",
    [
        part(11, 20, 100, DATA[11:21]),
        part(10, 18, 100, DATA[10:19]),
        part(10, 20, 100, DATA[10:21]),
        part(10, 19, 100, DATA[10:19]),
        part(10, 19, 100, DATA[10:21]),
        part(10, 19, 15, DATA[10:20]),
        part(10, 19, 100, DATA[10:20], etag=""),
        Reply(206, {"ETag": ETAG}, DATA[10:20]),
        Reply(206, {"ETag": ETAG, "Content-Range": "bytes */100"}, DATA[10:20]),
        Reply(206, {"ETag": ETAG, "Content-Type": "multipart/byteranges"}, DATA[10:20]),
        Reply(416, {"ETag": ETAG, "Content-Range": "bytes */100"}),
        Reply(416, {"ETag": ETAG}),
        Reply(416, {"Content-Range": "bytes */5"}),
    ],
)
async def test_a_wrong_range_is_corrupt(fake: FakeSwift, store: SwiftStore, reply: Reply) -> None:
    fake.script(reply)
    with pytest.raises(CorruptObject):
        await store.get(NAME, start=10, length=10)


async def test_a_range_is_cut_at_the_end(fake: FakeSwift, store: SwiftStore) -> None:
    fake.script(part(95, 99, 100, DATA[95:]))
    assert await store.get(NAME, start=95, length=10) == Blob(DATA[95:], ETAG)
    assert fake.seen[-1].headers["range"] == "bytes=95-104"


async def test_a_server_without_ranges_answers_the_whole(
    fake: FakeSwift, store: SwiftStore
) -> None:
    fake.objects[NAME] = DATA  # the fake knows nothing of ranges
    assert await store.get(NAME, start=10, length=5, size_max=5) == Blob(DATA[10:15], ETAG)
    fake.script(Reply(200, {"ETag": ETAG}, DATA[:-1] + b"x"))
    with pytest.raises(CorruptObject):
        await store.get(NAME, start=10, length=5)


# HEAD, DELETE, POST, containers


@pytest.mark.parametrize(
    "reply", [Reply(200, {}, DATA), Reply(200, {"ETag": ETAG}, chunked=True), Reply(200)]
)
async def test_head_without_length_or_etag_is_corrupt(
    fake: FakeSwift, store: SwiftStore, reply: Reply
) -> None:
    fake.script(reply)
    with pytest.raises(CorruptObject):
        await store.head(NAME)


@pytest.mark.parametrize("status", [200, 202, 409, 500, 503])
async def test_delete_is_done_only_on_204(fake: FakeSwift, store: SwiftStore, status: int) -> None:
    fake.script(Reply(status))
    with pytest.raises(StoreError, match=f"DELETE {NAME}: {status}"):
        await store.delete(NAME)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"{}x",
        b"[1]",
        b'[{"name": "a"}]',
        b"null",
        b'"text"',
        b'[{"bytes": 1}',
        b'[{"name": "a", "bytes": Infinity}]',
        b"[" * 100_000,
    ],
)
async def test_a_listing_that_is_none_is_corrupt(
    fake: FakeSwift, store: SwiftStore, body: bytes
) -> None:
    fake.script(Reply(200, body=body))
    with pytest.raises(CorruptObject):
        await store.listing()


@pytest.mark.parametrize("text", ["Invalid policy", ""])
async def test_a_400_says_why(fake: FakeSwift, store: SwiftStore, text: str) -> None:
    fake.script(Reply(400, body=text.encode()))
    with pytest.raises(StoreError, match=f"swift:c: PUT: 400 Said So: {text}"):
        await store.create_container()


# Retry-After


@pytest.mark.parametrize("status", [429, 498, 503])
@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), ("0", 0.0), ("99999", 30.0), ("-5", None), ("soon", None), ("", None)],
)
async def test_retry_after_is_parsed_and_clamped(
    fake: FakeSwift, store: SwiftStore, status: int, text: str, seconds: float | None
) -> None:
    fake.script(Reply(status, {"Retry-After": text}))
    with pytest.raises(StoreUnavailable) as caught:
        await store.get(NAME)
    assert caught.value.retry_after == seconds


async def test_retry_after_as_a_date(fake: FakeSwift, store: SwiftStore) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=20), usegmt=True)
    fake.script(Reply(503, {"Retry-After": soon}), Reply(503, {"Retry-After": past}))
    with pytest.raises(StoreUnavailable) as caught:
        await store.get(NAME)
    assert caught.value.retry_after == pytest.approx(20, abs=10)
    with pytest.raises(StoreUnavailable) as caught:
        await store.get(NAME)
    assert caught.value.retry_after == 0


# 401


async def test_an_expired_token_is_renewed_once_for_all(fake: FakeSwift, store: SwiftStore) -> None:
    fake.objects[NAME] = DATA
    assert await store.get(NAME) is not None
    fake.tokens.clear()
    blobs = await asyncio.gather(*(store.get(NAME) for _ in range(50)))
    assert blobs == [Blob(DATA, ETAG)] * 50
    assert fake.logins == 2


async def test_a_401_after_a_fresh_login_is_an_outage(fake: FakeSwift, store: SwiftStore) -> None:
    """Acceptance row E31."""

    async def refuse(seen: Seen) -> Reply:
        return Reply(401)

    fake.handle = refuse
    results = await asyncio.gather(
        *(store.put(f"{NAME}-{n}", DATA) for n in range(20)), return_exceptions=True
    )
    assert {type(result) for result in results} == {StoreUnavailable}
    assert "401 right after a fresh login" in str(results[0])
    assert fake.logins == 2
    assert len(fake.seen) == 40  # each once and once more
    fake.handle = None
    assert await store.put(NAME, DATA) == ETAG


async def test_a_replayed_put_sends_its_body_again(fake: FakeSwift, store: SwiftStore) -> None:
    await store.head(NAME)
    fake.tokens.clear()
    await store.put(NAME, memoryview(DATA))
    assert fake.objects[NAME] == DATA
    assert [seen.body for seen in fake.seen if seen.method == "PUT"] == [DATA, DATA]


async def test_a_failed_login_fails_all_who_wait_and_the_next_tries_again(
    fake: FakeSwift,
) -> None:
    class Flaky:
        logins = 0

        async def login(self) -> Login:
            self.logins += 1
            await asyncio.sleep(0)
            if self.logins == 1:
                raise StoreUnavailable("login: 503")
            return await fake.login()

    flaky = Flaky()
    account = SwiftAccount(flaky)
    store = SwiftStore(account, "c")
    results = await asyncio.gather(*(store.head(NAME) for _ in range(9)), return_exceptions=True)
    assert [str(result) for result in results] == ["login: 503"] * 9
    assert await store.head(NAME) is None
    assert flaky.logins == 2
    await account.close()


async def test_a_login_that_leads_to_another_account_is_refused(fake: FakeSwift) -> None:
    """A project of the same name in another region, say: each disk would go on as another."""

    class Moving:
        async def login(self) -> Login:
            login = await fake.login()
            url = login.storage_url + ("-other" if fake.logins > 1 else "")
            return replace(login, storage_url=url)

    account = SwiftAccount(Moving())
    store = SwiftStore(account, "disk")
    await store.put(NAME, DATA)
    fake.tokens.clear()  # expired
    seen = len(fake.seen)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"leads to another account now: .*-other, no longer"):
            await store.put(NAME, b"never")
    assert {request.headers["x-auth-token"] for request in fake.seen[seen:]} == {"token-1"}
    assert list(fake.objects.values()) == [DATA]
    await account.close()


async def test_one_who_gives_up_does_not_cancel_the_login_of_others(fake: FakeSwift) -> None:
    gate = asyncio.Event()

    class Slow:
        async def login(self) -> Login:
            await gate.wait()
            return await fake.login()

    account = SwiftAccount(Slow())
    store = SwiftStore(account, "c")
    first, second = (asyncio.create_task(store.head(NAME)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    gate.set()
    assert await second is None
    assert first.cancelled()
    assert fake.logins == 1
    await account.close()


# connections


async def test_a_lost_reused_connection_is_not_retried_behind_our_back(
    fake: FakeSwift, store: SwiftStore
) -> None:
    for method in ("put", "delete", "get"):
        await store.put("other", b"")  # now there is a connection to use again
        before = len(fake.seen)
        fake.script(Reply(no_head=True, then="close"))
        with pytest.raises(StoreUnavailable, match="the connection was closed"):
            await (store.put(NAME, DATA) if method == "put" else getattr(store, method)(NAME))
        assert len(fake.seen) == before + 1, method


async def test_a_hang_ends_with_the_time_of_a_try_and_nobody_else_waits(
    fake: FakeSwift,
) -> None:
    account = SwiftAccount(fake, Timeouts(connect_seconds=5, total_seconds=0.5))
    store = SwiftStore(account, "c")
    fake.objects["good"] = DATA
    fake.script(Reply(no_head=True, then="hang"), path=f"/c/{NAME}")
    hanging = asyncio.create_task(store.get(NAME))
    await fake.came.wait()
    assert await store.get("good") == Blob(DATA, ETAG)
    assert not hanging.done()
    with pytest.raises(StoreUnavailable, match="no answer after"):
        await hanging
    await account.close()


async def test_a_connection_lost_before_the_body_is_read_is_noticed() -> None:
    content = aiohttp.StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16)
    content.set_exception(aiohttp.ClientPayloadError("gone"))
    with pytest.raises(aiohttp.ClientPayloadError):
        await asyncio.wait_for(_read_whole(content), 30)


async def test_a_body_that_stops_coming_ends_with_the_time_of_a_try(fake: FakeSwift) -> None:
    account = SwiftAccount(fake, Timeouts(connect_seconds=5, total_seconds=0.3))
    fake.script(Reply(200, {"ETag": ETAG}, DATA, length=101, then="hang"))
    with pytest.raises(StoreUnavailable, match="no answer"):
        await SwiftStore(account, "c").get(NAME)
    await account.close()


async def test_nobody_listens(fake: FakeSwift, store: SwiftStore) -> None:
    await store.head(NAME)
    await fake.stop()
    with pytest.raises(StoreUnavailable, match=f"swift:c: HEAD {NAME}: "):
        await store.head(NAME)
    with pytest.raises(StoreUnavailable, match=r"Connection refused"):
        await store.head(NAME)


async def test_cookies_are_not_kept(fake: FakeSwift, store: SwiftStore) -> None:
    fake.script(Reply(404, {"Set-Cookie": "a=b"}))
    await store.get(NAME)
    await store.get(NAME)
    assert "cookie" not in fake.seen[-1].headers


async def test_a_closed_account_says_so(fake: FakeSwift, store: SwiftStore) -> None:
    await store.head(NAME)
    await store._account.close()
    await store._account.close()
    with pytest.raises(StoreError, match="closed"):
        await store.head(NAME)


async def test_slow_requests_are_logged_with_object_and_time(
    fake: FakeSwift, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fake.objects[NAME] = DATA
    account = SwiftAccount(fake, Timeouts(5, 0.6), traffic=StoreTraffic(slow_seconds=0.6))
    store = SwiftStore(account, "c")
    await store.put("quick", DATA)
    fake.script(Reply(no_head=True, then="hang"), path=f"/c/{NAME}")
    with pytest.raises(StoreUnavailable):
        await store.get(NAME)
    account.traffic.slow_seconds = 0.0
    await store.get(NAME)
    await account.close()
    lines = [record.getMessage() for record in caplog.records if "slow" in record.getMessage()]
    hung, answered = lines
    assert re.fullmatch(rf"slow: .*: GET {NAME}: no answer after 0\.\d\d s", hung)
    assert re.fullmatch(rf"slow: .*: GET {NAME}: 200 after 0\.\d\d s", answered)


async def test_no_secret_is_logged_or_said(
    fake: FakeSwift, store: SwiftStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.script(*[Reply(503)] * 2)
    for _ in range(2):
        with pytest.raises(StoreUnavailable) as caught:
            await store.put(NAME, DATA)
        assert "token" not in f"{caught.value!r} {caught.value}"
    assert "PUT" in caplog.text
    assert "token-" not in caplog.text
    assert "token-" not in repr(await fake.login())


@pytest.mark.parametrize("scheme", ["ftp://x/v1", "nothing", "http://[bad/v1"])
async def test_a_storage_url_that_makes_no_sense(scheme: str) -> None:
    class Odd:
        async def login(self) -> Login:
            return Login(scheme, "token")

    account = SwiftAccount(Odd())
    with pytest.raises(StoreError):
        await SwiftStore(account, "c").head(NAME)
    await account.close()


async def test_reply_with_is_what_the_fake_answers(fake: FakeSwift, store: SwiftStore) -> None:
    fake.script(reply_with(DATA))
    assert await store.get(NAME) == Blob(DATA, ETAG)
