# SPDX-License-Identifier: MIT
"""The monitoring endpoint of a server in this process: what it tells, and to whom."""

import asyncio
import gc
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from errno import EIO
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from swiftnbd.errors import ExportError, LockLost
from swiftnbd.export.block_map import CELLS_MAX
from swiftnbd.server import http
from swiftnbd.server.config import ServerConfig, TcpAddress
from swiftnbd.server.descriptors import WATCHERS
from tests.support import nbd_client as nbd
from tests.support.gated_store import GatedStore
from tests.support.loopback import Serving, exports_of, request_bytes, serving, soon, until

CONFIG = ServerConfig((TcpAddress(port=0),), http=TcpAddress(port=0))
SIZE = 4096  # of an object
HOSTILE = '<img src=x onerror=alert(1)>"\\\n\x07\u202e'


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def port_of(served: Serving) -> int:
    port = urlsplit(served.server.http_url).port
    assert port is not None
    return port


async def exchange(port: int, data: bytes) -> bytes:
    """Send these bytes; all that comes back until the server closes."""
    reader, writer = await soon(asyncio.open_connection("127.0.0.1", port))
    writer.write(data)
    try:
        return await soon(reader.read())
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def ask(
    served: Serving, path: str, *, method: str = "GET", host: str | None = "127.0.0.1"
) -> Answer:
    named = "" if host is None else f"Host: {host}\r\n"
    request = f"{method} {path} HTTP/1.1\r\n{named}\r\n".encode()
    head, _, body = (await exchange(port_of(served), request)).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines)}
    return Answer(int(first.split()[1]), headers, body)


async def values(served: Serving) -> dict[tuple[str, ...], float]:
    """Every sample of a scrape: its name and the values of its labels in order of their names."""
    answer = await ask(served, "/metrics")
    assert answer.status == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


@asynccontextmanager
async def watched(*names: str, config: ServerConfig = CONFIG) -> AsyncIterator[Serving]:
    exports = []
    for name in names or ("disk",):
        store = GatedStore("container", 8, SIZE)
        await store.set_up()
        exports += exports_of(store)
        exports[-1].name = name
    async with serving(*exports, config=config) as served:
        yield served


async def test_everything_is_there_for_reading_only() -> None:
    async with watched() as served:
        for path in ("/", "/metrics", "/healthz", "/status.json", "/history.json?export=disk",
                     "/map.json?export=disk"):  # fmt: skip
            answer = await ask(served, path)
            assert answer.status == 200, path
            assert answer.body
            assert answer.headers["connection"] == "close"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            assert "aiohttp" not in answer.headers["server"]
            head = await ask(served, path, method="HEAD")
            assert (head.status, head.body) == (200, b"")
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
                refused = await ask(served, path, method=method)
                assert (refused.status, refused.headers["allow"]) == (405, "GET,HEAD")
        assert (await ask(served, "/../../etc/passwd")).status == 404
        assert (await ask(served, "/page/page.js")).status == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:9", 200), ("localhost", 200), ("LOCALHOST:80", 200),
        ("[::1]:1", 200), ("192.0.2.7", 200),
        (None, 400), ("", 421), ("evil.example", 421), ("evil.example:80", 421),
        ("127.0.0.1.evil.example", 421), ("localhost.evil.example", 421),
        ("127.0.0.1:80@evil.example", 421), ("[::1].evil.example", 421), ("::1", 421),
        ("1.2.3", 421), ("localhost.", 421),
    ],
)  # fmt: skip
async def test_dns_rebinding_gets_nothing(host: str | None, status: int) -> None:
    async with watched() as served:
        for path in ("/", "/status.json", "/metrics"):
            answer = await ask(served, path, host=host)
            assert answer.status == status
            if status != 200:
                assert b"disk" not in answer.body


async def test_page_is_whole_and_allows_nothing_else() -> None:
    async with watched() as served:
        answer = await ask(served, "/")
        policy = dict(
            part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert policy["style-src"].startswith("'sha256-")
        assert policy["script-src"].startswith("'sha256-")
        assert "unsafe" not in answer.headers["content-security-policy"]
        text = answer.body.decode()
        assert "/*page" not in text
        assert not [
            word
            for word in ("http://", "https://")
            if word in text.replace("http://www.w3.org/2000/svg", "")
        ]
        assert "innerHTML" not in text


@pytest.mark.expects_log("CACHE 0\\+10 .* failed: broken")
async def test_requests_are_counted_as_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(offset: int, length: int) -> None:
        raise ExportError(EIO, "broken")

    async with watched() as served:
        async with await served.attached() as peer:
            await peer.write(0, b"a" * SIZE)
            await peer.flush()
            for _ in range(5):
                await peer.read(0, 100)
            monkeypatch.setattr(served.exports["disk"].device, "prefetch", broken)
            with pytest.raises(nbd.NbdError):
                await peer.ask(nbd.CACHE, 0, 10)
            found = await values(served)
            await peer.disconnect()
        assert found["swiftnbd_connections",] == 1
        assert found["swiftnbd_requests_total", "READ", "disk"] == 5
        assert found["swiftnbd_requests_total", "WRITE", "disk"] == 1
        assert found["swiftnbd_requests_total", "FLUSH", "disk"] == 1
        assert found["swiftnbd_requests_total", "CACHE", "disk"] == 1
        assert found["swiftnbd_request_errors_total", "CACHE", "disk"] == 1
        assert found["swiftnbd_request_errors_total", "READ", "disk"] == 0
        for command, times in (("READ", 5), ("WRITE", 1), ("FLUSH", 1)):
            name = "swiftnbd_request_duration_seconds"
            assert found[f"{name}_count", command, "disk"] == times
            assert found[f"{name}_bucket", command, "disk", "+Inf"] == times
            assert 0 < found[f"{name}_sum", command, "disk"] < 10
        assert found["swiftnbd_read_bytes_total", "disk"] == 500
        assert found["swiftnbd_written_bytes_total", "disk"] == SIZE
        assert found["swiftnbd_store_written_bytes_total", "disk"] == SIZE
        assert found["swiftnbd_cache_hits_total", "disk"] == 5
        assert found["swiftnbd_cache_misses_total", "disk"] == 0
        assert found["swiftnbd_cache_bytes", "disk"] == SIZE
        assert found["swiftnbd_dirty_bytes", "disk"] == 0
        assert found["swiftnbd_export_state", "disk", "attached"] == 1
        assert found["swiftnbd_export_state", "disk", "idle"] == 0
        assert found["swiftnbd_lock_lease_seconds", "disk"] > 0
        assert found["process_resident_memory_bytes",] > 0
        await until(lambda: not served.exports["disk"].attached)
        after = await values(served)
        assert after["swiftnbd_export_state", "disk", "idle"] == 1
        assert ("swiftnbd_lock_lease_seconds", "disk") not in after
        assert after["swiftnbd_read_bytes_total", "disk"] == 500


async def test_hostile_names_stay_names() -> None:
    async with watched("disk", HOSTILE) as served:
        found = await values(served)
        assert found["swiftnbd_export_size_bytes", HOSTILE] == 8 * SIZE
        assert found["swiftnbd_export_size_bytes", "disk"] == 8 * SIZE
        status = (await ask(served, "/status.json")).json
        assert [each["name"] for each in status["exports"]] == ["disk", HOSTILE]
        answer = await ask(served, f"/history.json?export={quote(HOSTILE)}")
        assert answer.json["export"] == HOSTILE
        assert answer.headers["content-type"].startswith("application/json")


async def test_status_tells_of_exports_and_clients() -> None:
    async with watched() as served:
        async with await served.attached() as peer:
            await peer.write(0, b"a" * 10)
            status = (await ask(served, "/status.json")).json
            await peer.disconnect()
        assert status["connections"] == 1
        (client,) = status["clients"]
        assert client["export"] == "disk"
        assert client["client"].startswith("127.0.0.1:")
        assert client["seconds"] >= 0
        (export,) = status["exports"]
        assert export["state"] == "attached"
        assert export["size_bytes"] == 8 * SIZE
        assert export["dirty_bytes"] == SIZE
        assert export["holder"]
        assert status["store"] == {"kind": "directory"}
        assert status["trouble"] == []


async def test_requests_that_wait_are_told_with_their_number_and_age(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swiftnbd.server.history.SAMPLE_SECONDS", 0.02)
    store = GatedStore("disk", 8, SIZE)
    await store.set_up()
    exports = exports_of(store)
    async with serving(*exports, config=CONFIG) as served, await served.attached() as peer:
        gate = store.gate("get disk.part")
        # one of each kind: taken on by the device, and (for its flag) a task
        peer.send(
            request_bytes(nbd.READ, 0, 1, cookie=1),
            request_bytes(nbd.READ, SIZE, 1, cookie=2, flags=nbd.FUA),
        )
        await gate.reached(2)
        begin = time.monotonic()
        last = None
        while not (last and last["at_work"] == 2 and last["oldest_seconds"] > 0.1):
            assert time.monotonic() < begin + 30
            status = (await ask(served, "/status.json")).json
            last = status["exports"][0]["now"]
        (client,) = status["clients"]
        assert client["at_work"] == 2
        assert client["oldest_seconds"] > 0.1
        found = await values(served)
        assert found["swiftnbd_requests_under_way", "disk"] == 2
        assert found["swiftnbd_oldest_request_seconds", "disk"] > 0.1
        gate.open()
        assert {(await peer.reply(1))[0] for _ in range(2)} == {1, 2}
        while last["at_work"]:
            status = (await ask(served, "/status.json")).json
            last = status["exports"][0]["now"]
        assert last["oldest_seconds"] is None
        assert status["clients"][0]["oldest_seconds"] is None
        found = await values(served)
        assert found["swiftnbd_requests_under_way", "disk"] == 0
        assert found["swiftnbd_oldest_request_seconds", "disk"] == 0
        await peer.disconnect()


async def test_history_goes_on_from_where_one_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swiftnbd.server.history.SAMPLE_SECONDS", 0.02)
    async with watched() as served, await served.attached() as peer:
        await peer.read(0, 100)
        first: dict[str, Any] = {"count": 0}
        while first["count"] < 3:
            first = (await ask(served, "/history.json?export=disk")).json
        assert len(first["samples"]["reads"]) == first["count"]
        assert sum(first["samples"]["reads"]) > 0
        assert None in first["samples"]["slow_seconds"]  # nothing was asked in most of them
        count = first["count"]
        later = (await ask(served, f"/history.json?export=disk&since={count}")).json
        assert len(later["samples"]["reads"]) == later["count"] - count
        ahead = (await ask(served, f"/history.json?export=disk&since={10**9}")).json
        assert ahead["samples"]["reads"] == []
        await peer.disconnect()


async def test_map_is_there_while_a_client_is() -> None:
    async with watched() as served:
        assert (await ask(served, "/map.json?export=disk")).json == {"export": "disk", "blocks": 0}
        async with await served.attached() as peer:
            await peer.write(3 * SIZE, b"a" * SIZE)
            drawn = (await ask(served, "/map.json?export=disk&cells=4")).json
            part = (await ask(served, "/map.json?export=disk&first=3&end=99&cells=50")).json
            await peer.disconnect()
        assert (drawn["blocks"], drawn["cells"], drawn["block_size"]) == (8, 4, SIZE)
        assert drawn["counts"]["dirty"] == [0, 1, 0, 0]
        assert (part["first"], part["end"], part["cells"]) == (3, 8, 5)
        assert part["counts"]["dirty"] == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/map.json", 404), ("/map.json?export=other", 404), ("/history.json?export=", 404),
        ("/map.json?export=disk&cells=0", 400),
        (f"/map.json?export=disk&cells={CELLS_MAX + 1}", 400),
        ("/map.json?export=disk&first=8", 400), ("/map.json?export=disk&first=5&end=5", 400),
        ("/map.json?export=disk&first=-1", 400), ("/map.json?export=disk&first=1e3", 400),
        (f"/map.json?export=disk&first={'9' * 17}", 400), ("/map.json?export=disk&end=x", 400),
        ("/history.json?export=disk&since=%00", 400), ("/nothing", 404),
        (f"/{'x' * 9000}", 400),
    ],
)  # fmt: skip
async def test_odd_questions_get_a_sentence(path: str, status: int) -> None:
    async with watched() as served, await served.attached() as peer:
        answer = await ask(served, path)
        assert answer.status == status
        assert answer.body
        assert b"Traceback" not in answer.body
        await peer.disconnect()


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"NBDMAGIC\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
     b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
     b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 10_000 + b"\r\n", bytes(range(256)) * 100],
)  # fmt: skip
async def test_noise_ends_its_connection_alone(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched() as served:
        answer = await exchange(port_of(served), data)
        assert b"200 OK" not in answer
        assert not [record for record in caplog.records if record.levelno > logging.INFO]
        assert (await ask(served, "/healthz")).status == 200


async def test_no_more_connections_than_there_may_be() -> None:
    async with watched() as served, AsyncExitStack() as stack:
        for _ in range(WATCHERS):
            _, writer = await asyncio.open_connection("127.0.0.1", port_of(served))
            stack.callback(writer.close)
        assert (await ask(served, "/healthz")).status == 503
        await served.check_full_service()  # NBD has places of its own
        await stack.aclose()
        async with asyncio.timeout(10):
            while (await ask(served, "/healthz")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_connection_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTION_SECONDS_MAX", 0.1)
    async with watched() as served:
        for data in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n"):
            assert await exchange(port_of(served), data) == b""


async def test_connection_that_is_over_is_forgotten_before_its_time_is_up() -> None:
    """Thousands a second were kept for 30 s each, until 100 MB were."""
    async with watched() as served:
        assert (await ask(served, "/healthz")).status == 200
        await until(lambda: not any(isinstance(each, http._Timed) for each in gc.get_objects()))


async def test_health_fails_only_when_a_restart_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched() as served, await served.attached() as peer:
        export = served.exports["disk"]
        assert (await ask(served, "/healthz")).body == b"ok\n"
        keeper = export._holding.keeper
        assert keeper is not None
        keeper.is_suspended = True
        answer = await ask(served, "/healthz")
        assert (answer.status, answer.body[:3]) == (200, b"ok\n")
        assert b"suspended" in answer.body
        keeper.is_suspended = False
        monkeypatch.setattr(keeper, "lost", LockLost("somebody"))
        answer = await ask(served, "/healthz")
        assert answer.status == 503
        assert b"disk: somebody else took its lock" in answer.body
        monkeypatch.undo()
        await peer.disconnect()


async def test_name_to_listen_on_is_a_name_to_ask_for() -> None:
    config = replace(CONFIG, http=TcpAddress("localhost", 0))
    async with watched(config=config) as served:
        assert (await ask(served, "/healthz", host="localhost")).status == 200
        assert (await ask(served, "/healthz", host=socket.gethostname())).status == 200


async def test_exports_that_come_and_go_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swiftnbd.server.history.SAMPLE_SECONDS", 0.02)
    async with watched("one", "other") as served:
        other = served.exports.pop("other")
        assert (await ask(served, "/history.json?export=other")).status == 404
        names = [each["name"] for each in (await ask(served, "/status.json")).json["exports"]]
        assert names == ["one"]
        other.name = "new"
        served.exports["new"] = other
        found = await values(served)
        assert found["swiftnbd_export_size_bytes", "new"] == 8 * SIZE
        history = {"count": 0}
        while history["count"] < 2:
            history = (await ask(served, "/history.json?export=new")).json
