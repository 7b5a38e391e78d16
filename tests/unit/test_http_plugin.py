# SPDX-License-Identifier: MIT
"""The plugin http, against a web server that does what it is told."""

import asyncio
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from errno import EIO
from pathlib import Path

import pytest
from aiohttp import web

from swiftnbd.api import ConfigError, Device, ExportError, Opening, StoreUnavailable
from swiftnbd.api.parameters import shown_values
from swiftnbd.errors import ExportUnusable
from swiftnbd.plugins import http as plugin
from swiftnbd.plugins.http import Http
from tests.support.certificates import Certificates
from tests.support.log_watch import Announce

DATA = random.Random("http").randbytes(300_000)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """One file, and what was asked. ``faults`` are answers to the next requests instead of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk.img"
        self.path.write_bytes(DATA)
        self.asked: list[web.Request] = []
        self.faults: list[Handler] = []
        self.without: tuple[str, ...] = ()
        self.url = ""
        self.runner = web.AppRunner(web.Application())

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        if self.faults and (request.method == "GET" or self.faults[0].__name__ == "of_all"):
            return await self.faults.pop(0)(request)
        return web.FileResponse(self.path)

    async def strip(self, request: web.Request, response: web.StreamResponse) -> None:
        for name in self.without:
            response.headers.popall(name, None)


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(plugin, "RETRY_SECONDS", 0.001)
    site = Site(tmp_path)
    app = web.Application()
    app.on_response_prepare.append(site.strip)
    app.router.add_route("*", "/{any:.*}", site.handle)
    runner = site.runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    site.url = f"http://{host}:{port}/disk.img"
    yield site
    await runner.cleanup()


async def opened(site: Site, **keys: object) -> Device:
    return await Http(url=site.url, **keys).open(Opening("disk"))  # type: ignore[arg-type]


async def test_parts_are_those_of_the_file(site: Site) -> None:
    device = await opened(site)
    assert (device.size, device.read_only) == (len(DATA), True)
    chance = random.Random(1)
    for _ in range(20):
        offset = chance.randrange(len(DATA))
        length = min(chance.choice((1, 512, 65536, len(DATA))), len(DATA) - offset)
        assert b"".join(await device.read(offset, length)) == DATA[offset : offset + length]
    assert all("If-Match" in each.headers for each in site.asked[2:])
    await device.close()


async def test_several_at_once_are_not_mixed_up(site: Site) -> None:
    device = await opened(site, connections=3)
    found = await asyncio.gather(*(device.read(at, 999) for at in range(0, 90_000, 1000)))
    for at, pieces in zip(range(0, 90_000, 1000), found, strict=True):
        assert b"".join(pieces) == DATA[at : at + 999]
    await device.close()


async def test_cancelled_read_leaves_the_others_alone(site: Site) -> None:
    device = await opened(site, connections=1)
    began, hold = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        began.set()
        await hold.wait()
        return web.FileResponse(site.path)

    site.faults = [slow]
    lost = asyncio.create_task(device.read(0, 1000))
    await began.wait()
    lost.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lost
    hold.set()
    assert b"".join(await device.read(5000, 1000)) == DATA[5000:6000]
    await device.close()


@pytest.mark.parametrize("without", [(), ("ETag",), ("ETag", "Last-Modified")])
async def test_file_that_changes_is_an_error_not_other_bytes(
    site: Site, without: tuple[str, ...], expects_log: Announce
) -> None:
    site.without = without
    if "Last-Modified" in without:
        expects_log("gives neither ETag nor Last-Modified")
    device = await opened(site)
    site.path.write_bytes(DATA[::-1] + b"x" * ("Last-Modified" in without))
    os.utime(site.path, (1, 2_000_000_000))
    with pytest.raises(ExportError, match="has changed since it was opened") as caught:
        await device.read(0, 1000)
    assert caught.value.errno == EIO
    await device.close()


async def test_server_that_ignores_conditions_is_found_out(site: Site) -> None:
    device = await opened(site)

    async def ignorant(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Range": f"bytes 0-9/{len(DATA)}", "ETag": '"other"'}
        return web.Response(status=206, body=b"0123456789", headers=headers)

    site.faults = [ignorant]
    with pytest.raises(ExportError, match="has changed"):
        await device.read(0, 10)
    await device.close()


async def busy(request: web.Request) -> web.StreamResponse:
    return web.Response(status=503)


async def cut(request: web.Request) -> web.StreamResponse:
    """Half of it, and the end of the connection."""
    response = web.StreamResponse(status=206)
    response.headers["Content-Range"] = f"bytes 0-999/{len(DATA)}"
    response.headers["ETag"] = request.headers["If-Match"]
    response.content_length = 1000
    await response.prepare(request)
    await response.write(b"?" * 500)
    assert request.transport is not None
    request.transport.close()
    return response


async def test_what_fails_in_passing_is_tried_again(site: Site) -> None:
    device = await opened(site)
    site.faults = [busy, cut, busy]
    assert b"".join(await device.read(0, 1000)) == DATA[:1000]
    await device.close()


async def test_tries_have_an_end(site: Site) -> None:
    device = await opened(site, retries=2)
    site.faults = [busy] * 3
    with pytest.raises(ExportError, match="503 Service Unavailable, 3 times") as caught:
        await device.read(0, 1000)
    assert caught.value.errno == EIO
    assert not site.faults
    await device.close()


def answer(status: int, **headers: str) -> Handler:
    async def of_all(request: web.Request) -> web.StreamResponse:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=b"x", headers=names)

    return of_all


async def some(request: web.Request) -> web.StreamResponse:
    headers = {"Content-Range": "bytes 5-5/300000"}
    return web.Response(status=206, body=b"x", headers=headers)


async def all_of_it(request: web.Request) -> web.StreamResponse:
    return web.Response(body=DATA)


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        ([answer(404), answer(404)], "disk.img: 404 Not Found"),
        ([answer(200, Accept_Ranges="none")], "gives no parts of it"),
        ([all_of_it], "gives no parts of it"),
        ([some], "gives another range than asked for"),
        ([answer(405), answer(206)], "gives something else than a range"),
        ([answer(405), answer(206, Content_Range="bytes 0-0/1", Content_Encoding="gzip")],
         "gives something else than a range"),
        ([answer(200), answer(206, Content_Range="bytes 0-8/9")], "has 1 bytes or 9"),
        ([answer(302, Location="/disk.img")] * 12, "TooManyRedirects"),
    ],
)  # fmt: skip
async def test_file_that_cannot_be_served_is_refused(
    site: Site, faults: list[Handler], text: str
) -> None:
    site.faults = faults
    with pytest.raises(ExportUnusable, match=text):
        await opened(site)


async def test_server_out_of_reach_is_tried_again_later(site: Site) -> None:
    site.faults = [answer(503)] * 2
    with pytest.raises(StoreUnavailable, match="503"):
        await opened(site)
    with pytest.raises(StoreUnavailable, match="/x: Connection refused"):
        await Http(url="http://127.0.0.1:1/x").open(Opening("disk"))


async def test_url_that_is_for_get_only_and_one_that_is_elsewhere(site: Site) -> None:
    site.faults = [answer(403)]
    await (await opened(site)).close()
    site.faults = [answer(302, Location="/other"), answer(302, Location="/other")]
    device = await opened(site)
    assert b"".join(await device.read(1, 2)) == DATA[1:3]
    await device.close()
    site.faults = [answer(302, Location="/other")] * 2
    with pytest.raises(ExportUnusable, match="302 Found"):
        await opened(site, followlocation=False)


async def test_server_has_to_prove_itself(site: Site, certificates: Certificates) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(
        certificates.server / "server-cert.pem", certificates.server / "server-key.pem"
    )
    tls = web.TCPSite(site.runner, "127.0.0.1", 0, ssl_context=context)
    await tls.start()
    site.url = f"https://127.0.0.1:{site.runner.addresses[1][1]}/disk.img"
    with pytest.raises(ExportUnusable, match="certificate verify failed"):
        await opened(site)
    for keys in ({"cainfo": certificates.client / "ca-cert.pem"}, {"sslverify": False}):
        device = await opened(site, **keys)
        assert b"".join(await device.read(7, 9)) == DATA[7:16]
        await device.close()
    with pytest.raises(ConfigError, match="holds no certificates in PEM"):
        await opened(site, cainfo=certificates.client / "client-key.pem")


async def test_empty_file_is_an_empty_disk(site: Site) -> None:
    site.path.write_bytes(b"")
    device = await opened(site)
    assert device.size == 0
    await device.close()


async def test_who_asks_is_said_and_shown_to_nobody(site: Site, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    keys = {"user": "me", "password": f"+{tmp_path}/password", "header": ("X-Token: abc",)}
    await (await opened(site, **keys)).close()
    for request in site.asked:
        assert request.headers["Authorization"] == "Basic bWU6aHVudGVyMg=="  # me:hunter2
        assert request.headers["X-Token"] == "abc"
    made = Http(url="http://host/disk?signature=abc", header=("X: abc",))
    assert shown_values(made)["url"] == "http://host/disk"
    assert "abc" not in str(shown_values(made))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"url": "ftp://host/"}, "has to begin with http://HOST/"),
        ({"url": "http:///x"}, "has to begin with"),
        ({"url": "http://me:hunter2@host/x"}, "user and password are keys of their own"),
        ({"url": "http://h/", "user": "a:b"}, "cannot be a colon"),
        ({"url": "http://h/", "header": ("X",)}, "header: it is not NAME: VALUE"),
        ({"url": "http://h/", "header": ("X: a\r\nY: b",)}, "the value of X cannot be sent"),
        ({"url": "http://h/", "timeout": 0.0}, "timeout"),
    ],
)
def test_mistake_is_said_in_a_sentence(keys: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Http(**keys)  # type: ignore[arg-type]
