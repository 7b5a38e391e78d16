# SPDX-License-Identifier: MIT
"""Logins that no real server here can answer: Keystone's version 2.0, HTTPS, and odd answers."""

import json
import logging
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from swiftnbd.errors import AccessRefused, StoreError, StoreUnavailable
from swiftnbd.store import auth_plugins
from swiftnbd.store.auth import PluginAuth, V1Auth
from swiftnbd.store.login import LoginSettings, TlsSettings
from swiftnbd.store.open import SwiftAccount
from tests.support.certificates import CLIENT, Certificates

SECRET = "a-very-secret-key-of-mine"
TOKEN = "0123456789abcdef0123456789abcdef"


class Handler(BaseHTTPRequestHandler):
    """Version 2.0 as its specification has it, version 1, and a Swift of one empty account."""

    protocol_version = "HTTP/1.1"
    server: "Service"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body))
        if self.server.answer is not None:
            self._answer(*self.server.answer)
            return
        who = body["auth"].get("passwordCredentials", {})
        right = {"username": "user", "password": SECRET}
        if self.path != "/v2.0/tokens":
            self._answer(404, {"error": {"code": 404, "message": "Not Found"}})
        elif who != right or body["auth"].get("tenantName", "tenant") != "tenant":
            self._answer(401, {"error": {"code": 401, "message": f"not {who}"}})
        else:
            self._answer(200, self._access())

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        if self.server.answer is not None:
            self._answer(*self.server.answer)
            return
        storage = f"{self.server.url}/v1/AUTH_x"
        self._answer(200, {}, {"X-Storage-Url": storage, "X-Auth-Token": TOKEN})

    def do_HEAD(self) -> None:
        self._answer(204 if self.headers["X-Auth-Token"] == TOKEN else 401, None)

    def _access(self) -> dict[str, Any]:
        urls = {kind: f"http://{kind}.example.com/v1/AUTH_1" for kind in ("public", "internal")}
        endpoints = [
            {"region": region, **{f"{kind}URL": f"{url}-{region}" for kind, url in urls.items()}}
            for region in ("one", "two")
        ]
        token = {
            "id": TOKEN,
            "issued_at": "2026-01-01T00:00:00.000000Z",
            "expires": "2026-01-01T01:00:00Z",
            "tenant": {"id": "1", "name": "tenant", "enabled": True},
        }
        catalog = [{"type": "object-store", "name": "swift", "endpoints": endpoints}]
        user = {"id": "7", "name": "user", "username": "user", "roles": []}
        return {"access": {"token": token, "serviceCatalog": catalog, "user": user}}

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status != 204:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class Service(ThreadingHTTPServer):
    """`seen` is what was asked; `answer`, if set, is what everybody gets."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, Any]] = []
        self.answer: tuple[int, Any, dict[str, str]] | None = None
        self.scheme = "http" if context is None else "https"
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is no news."""


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Service]:
    service = Service(context)
    thread = threading.Thread(target=service.serve_forever, args=(0.01,))
    thread.start()
    yield service
    service.shutdown()
    thread.join()
    service.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as service:
        yield service


def v2(service: Service, region: str | None = "two", **options: str) -> LoginSettings:
    keys = {"username": "user", "password": SECRET, "tenant_name": "tenant"} | options
    url = f"{service.url}/v2.0"
    return LoginSettings("v2password", (("auth_url", url), *keys.items()), region=region)


def v3(service: Service) -> LoginSettings:
    keys = {"auth_url": f"{service.url}/v3", "username": "u", "password": SECRET}
    keys["user_domain_id"] = "default"
    return LoginSettings("v3password", tuple(keys.items()))


async def test_version_2_gives_token_endpoint_and_lifetime(service: Service) -> None:
    login = await PluginAuth(v2(service)).login()
    assert login.storage_url == "http://public.example.com/v1/AUTH_1-two"
    assert (login.token, login.lifetime_seconds) == (TOKEN, 3600.0)
    assert (login.user, login.project, login.region) == ("user", "tenant", "two")
    credentials = {"username": "user", "password": SECRET}
    body = {"auth": {"tenantName": "tenant", "passwordCredentials": credentials}}
    assert service.seen == [("/v2.0/tokens", body)]


async def test_version_2_with_several_regions_wants_one_named(service: Service) -> None:
    with pytest.raises(StoreError, match=r"in several regions \(one, two\): name one"):
        await PluginAuth(v2(service, region=None)).login()


@pytest.mark.parametrize(
    ("options", "works"), [({"tenant_name": "other"}, True), ({"password": "wr0ng"}, False)]
)
async def test_version_2_refused(service: Service, options: dict[str, str], works: bool) -> None:
    auth = PluginAuth(v2(service, **options))
    with pytest.raises(AccessRefused, match=r"was refused \(401\): wrong user or password, or no"):
        await auth.login()
    assert await auth.works_without_project() is works


@pytest.mark.parametrize(
    ("status", "body", "error", "sentence"),
    [
        (200, b"<html>", StoreError, "200: the answer is not one of Keystone"),
        (200, {"odd": 1}, StoreError, "200: the answer is not one of Keystone"),
        (200, b"[", StoreError, "200: the answer is not one of Keystone"),
        (200, b"[]", StoreError, "200: the answer is not one of Keystone"),
        (201, {"token": {}}, StoreError, "make no sense"),
        (404, {}, StoreError, "404; is /v3 right for Keystone's version 3?"),
        (429, {}, StoreUnavailable, ": 429"),
        (500, b"<html>", StoreUnavailable, ": 500"),
        (503, {}, StoreUnavailable, ": 503"),
        (403, {}, AccessRefused, "was refused (403)"),
    ],
)
async def test_odd_answers_are_one_sentence(
    service: Service, status: int, body: Any, error: type[StoreError], sentence: str
) -> None:
    service.answer = (status, body, {})
    with pytest.raises(StoreError) as caught:
        await PluginAuth(v3(service)).login()
    assert type(caught.value) is error
    assert sentence in str(caught.value)
    assert SECRET not in repr(caught.value)


async def test_redirects_are_not_followed_with_the_password(service: Service) -> None:
    with serving() as elsewhere:
        for auth in (PluginAuth(v3(service)), V1Auth(f"{service.url}/auth", "u", SECRET)):
            there = {"Location": f"{elsewhere.url}/there?key={SECRET}"}
            service.answer = (307, b"", there)
            with pytest.raises(StoreError) as caught:
                await auth.login()
            assert f"wants to be asked at {elsewhere.url}/there instead" in str(caught.value)
            assert SECRET not in str(caught.value)
        assert not elsewhere.seen


async def test_redirect_to_a_path_is_told_as_a_whole_url(service: Service) -> None:
    service.answer = (302, b"", {"Location": f"/there?key={SECRET}"})
    for auth in (PluginAuth(v3(service)), V1Auth(f"{service.url}/auth", "u", SECRET)):
        with pytest.raises(StoreError, match=f"wants to be asked at {service.url}/there instead$"):
            await auth.login()


async def test_answer_without_end_is_not_taken(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_plugins, "ANSWER_BYTES_MAX", 1000)
    service.answer = (200, bytes(2000), {})
    with pytest.raises(StoreError, match="more than 1000 bytes"):
        await PluginAuth(v3(service)).login()


async def test_user_and_key_of_version_1_are_utf8(service: Service) -> None:
    await V1Auth(f"{service.url}/auth", "jürgen", "日本").login()
    (_, headers), *_ = service.seen
    sent = {key.lower(): value.encode("latin-1").decode() for key, value in headers.items()}
    assert (sent["x-auth-user"], sent["x-auth-key"]) == ("jürgen", "日本")


async def test_nothing_secret_is_logged_at_any_level(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    login = await PluginAuth(v2(service)).login()
    assert TOKEN not in repr(login)
    with pytest.raises(AccessRefused) as caught:
        await PluginAuth(v2(service, password=f"{SECRET}!")).login()
    assert SECRET not in f"{caught.value!r} {v2(service)!r}"
    assert SECRET not in caplog.text
    assert TOKEN not in caplog.text


# HTTPS


@pytest.fixture
def secured(certificates: Certificates) -> Iterator[Service]:
    """A Swift with version 1, which wants to see a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = certificates.server
    context.load_cert_chain(folder / "server-cert.pem", folder / "server-key.pem")
    context.load_verify_locations(folder / "ca-cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with serving(context) as service:
        yield service


def tls_of(certificates: Certificates, **changes: Any) -> TlsSettings:
    found = {
        "ca_file": str(certificates.client / "ca-cert.pem"),
        "certificate": str(certificates.client / "client-cert.pem"),
        "key": str(certificates.client / "client-key.pem"),
    }
    return TlsSettings(**{**found, **changes})


@pytest.mark.parametrize("insecure", [False, True])
async def test_own_authority_and_client_certificate_for_login_and_data(
    secured: Service, certificates: Certificates, insecure: bool
) -> None:
    changes = {"ca_file": None, "insecure": True} if insecure else {}
    tls = tls_of(certificates, **changes)
    account = SwiftAccount(V1Auth(f"{secured.url}/auth", "u", SECRET, tls=tls), tls=tls)
    assert (await account.request("HEAD", "HEAD", "")).status == 204
    await account.close()


async def test_unknown_authority_is_refused_for_login_and_data(
    secured: Service, certificates: Certificates
) -> None:
    unknown = tls_of(certificates, ca_file=None)
    with pytest.raises(StoreUnavailable, match="its TLS certificate is not valid"):
        await V1Auth(f"{secured.url}/auth", "u", SECRET, tls=unknown).login()
    known = V1Auth(f"{secured.url}/auth", "u", SECRET, tls=tls_of(certificates))
    account = SwiftAccount(known, tls=unknown)
    with pytest.raises(StoreError, match="certificate"):
        await account.request("HEAD", "HEAD", "")
    await account.close()


def test_key_with_a_password_is_refused_and_asks_nobody(certificates: Certificates) -> None:
    pair = certificates.authority.issue("client", CLIENT)
    pair.write(certificates.client, "locked")
    path = certificates.client / "locked-key.pem"
    path.write_bytes(pair.key_bytes(b"secret"))
    certificate = str(certificates.client / "locked-cert.pem")
    with pytest.raises(Exception, match="the key has a password") as caught:
        tls_of(certificates, certificate=certificate, key=str(path)).context()
    assert type(caught.value).__name__ == "ConfigError"
