# SPDX-License-Identifier: MIT
"""Version 1 authentication, against a real Swift and against odd answers."""

import asyncio
import logging
import re
import socket
import ssl
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swiftnbd.errors import AccessRefused, StoreError, StoreUnavailable
from swiftnbd.store.auth import V1Auth
from tests.support.clients import run
from tests.support.swift_aio import KEY, USER, RealSwift

SECRET = "a-very-secret-key-of-mine"


@pytest.fixture(autouse=True)
def any_level() -> None:
    logging.getLogger("swiftclient").setLevel(logging.NOTSET)


async def test_login(real_swift: RealSwift) -> None:
    login = await V1Auth(real_swift.auth_url, USER, KEY).login()
    assert login.storage_url == f"{real_swift.base_url}/v1/AUTH_test"
    assert login.token
    assert login.token not in repr(login)


async def test_a_wrong_key_is_refused_with_user_and_host_but_not_the_key(
    real_swift: RealSwift,
) -> None:
    auth = V1Auth(real_swift.auth_url, USER, SECRET)
    with pytest.raises(AccessRefused) as caught:
        await auth.login()
    host = f"127.0.0.1:{real_swift.ports['proxy']}"
    assert str(caught.value) == f"login as {USER} at {host} was refused (401): wrong user or key"
    assert SECRET not in repr(auth)


async def test_nothing_secret_is_logged_at_debug(
    real_swift: RealSwift, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    login = await V1Auth(real_swift.auth_url, USER, KEY).login()
    with pytest.raises(AccessRefused):
        await V1Auth(real_swift.auth_url, USER, SECRET).login()
    for secret in (SECRET[:3], login.token[:8], f"{KEY[:1]}..."):
        assert secret not in caplog.text


@pytest.fixture
async def odd() -> AsyncIterator["Odd"]:
    odd = Odd()
    server = await asyncio.start_server(odd.serve, "127.0.0.1", 0)
    odd.port = server.sockets[0].getsockname()[1]
    yield odd
    odd.release.set()
    server.close()
    await server.wait_closed()


class Odd:
    """Answers every request with `answer`; hangs if there is none, hangs up if it is blank."""

    answer = b""
    port = 0

    def __init__(self) -> None:
        self.release = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://somebody:{SECRET}@127.0.0.1:{self.port}/auth/v1.0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if self.answer.strip():
            writer.write(self.answer)
        elif not self.answer:
            await self.release.wait()
        writer.close()


def answer(status: int, headers: str = "", body: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n"
    return f"HTTP/1.1 {status} Said So\r\n{length}{headers}\r\n{body}".encode()


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (answer(401), AccessRefused),
        (answer(403), AccessRefused),
        (answer(404), StoreError),
        (answer(400), StoreError),
        (answer(429), StoreUnavailable),
        (answer(498), StoreUnavailable),
        (answer(500), StoreUnavailable),
        (answer(503), StoreUnavailable),
        (answer(200), StoreError),
        (answer(200, body="<html>Log in here</html>"), StoreError),
        (answer(200, "X-Storage-Url: http://x/v1\r\n"), StoreError),
        (b"garbage\r\n\r\n", StoreUnavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", StoreUnavailable),
        (b"", StoreUnavailable),
    ],
)
async def test_odd_answers(odd: Odd, reply: bytes, error: type[StoreError]) -> None:
    odd.answer = reply
    with pytest.raises(StoreError) as caught:
        await V1Auth(odd.url, USER, SECRET, seconds_max=0.5).login()
    assert type(caught.value) is error
    assert f"login as {USER} at 127.0.0.1:{odd.port}" in str(caught.value)
    assert SECRET not in f"{caught.value!r}"


async def failure(auth: V1Auth) -> StoreUnavailable:
    """Log in, which must fail in passing and tell no secret, not even in a traceback."""
    with pytest.raises(StoreUnavailable) as caught:
        await auth.login()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return caught.value


async def test_nobody_listens_is_connection_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        url = f"http://me:{SECRET}@{host}/auth?key={SECRET}"
        error = await failure(V1Auth(url, USER, SECRET))
    assert str(error) == f"login as {USER} at {host}: connection refused"
    assert isinstance(error.__cause__, ConnectionRefusedError)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (socket.EAI_NONAME, "unknown host"),
        (socket.EAI_NODATA, "unknown host"),
        (socket.EAI_AGAIN, "its name is not found: try later"),
    ],
)
async def test_host_without_address_is_an_unknown_host(
    monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(code, "try later")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    error = await failure(V1Auth(f"http://me:{SECRET}@swift.invalid/auth", USER, SECRET))
    assert str(error) == f"login as {USER} at swift.invalid: {reason}"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "no answer in 0.5 s"),
        (b"garbage\r\n\r\n", "the answer is cut short, or is not HTTP"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
            "the answer is cut short, or is not HTTP",
        ),
        (b"\n", "the connection was closed"),
    ],
)
async def test_login_without_an_answer_says_why(odd: Odd, reply: bytes, reason: str) -> None:
    odd.answer = reply
    error = await failure(V1Auth(odd.url, USER, SECRET, seconds_max=0.5))
    assert str(error) == f"login as {USER} at 127.0.0.1:{odd.port}: {reason}"


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    """TLS with a certificate that nobody knows."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    words = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost")
    run("openssl", *words, "-keyout", key, "-out", certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


async def test_unknown_certificate_is_a_tls_problem(odd: Odd, self_signed: ssl.SSLContext) -> None:
    server = await asyncio.start_server(odd.serve, "127.0.0.1", 0, ssl=self_signed)
    port = server.sockets[0].getsockname()[1]
    error = await failure(V1Auth(f"https://me:{SECRET}@127.0.0.1:{port}/auth", USER, SECRET))
    server.close()
    await server.wait_closed()
    assert re.fullmatch(
        f"login as {USER} at 127.0.0.1:{port}: its TLS certificate is not valid: "
        "self.signed certificate",
        str(error),
    )


async def test_plain_http_behind_https_is_a_tls_problem() -> None:
    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    error = await failure(V1Auth(f"https://127.0.0.1:{port}/auth", USER, SECRET))
    server.close()
    await server.wait_closed()
    assert str(error) == f"login as {USER} at 127.0.0.1:{port}: TLS failed: wrong version number"


async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(answer(400))
    writer.close()


@pytest.mark.parametrize("url", ["ftp://host/auth", "nonsense", "", "http://[bad"])
async def test_an_auth_url_that_makes_no_sense(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        await V1Auth(url, USER, SECRET).login()
    assert SECRET not in str(caught.value)


def test_swiftclient_is_imported_only_at_login() -> None:
    code = "import sys, swiftnbd.store.open; sys.exit('swiftclient' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
