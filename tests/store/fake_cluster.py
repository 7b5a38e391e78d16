# SPDX-License-Identifier: MIT
"""A fake Swift: proxies with clocks of their own before replicas that can be away, and faults.

It does what a healthy Swift does (`tests.store.test_swift` holds it to the same tests as the real
one) and, when told, what a real one does only in bad moments that no test can bring about. ::

    async with FakeCluster(proxies=2) as swift:
        swift.replicas.all[0].is_away = True
        swift.proxies[1].skew = -5.0
        swift.fault(Fault(status=429, headers={"Retry-After": "2"}), method="PUT", times=3)
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote

from aiohttp import web

from swiftnbd.store.auth import Login
from tests.store.fake_answers import (
    CONTAINER_META,
    OBJECT_META,
    Answer,
    change,
    describe,
    listing,
    meta,
    whole_or_part,
)
from tests.store.fake_replicas import (
    Container,
    NewerThere,
    Record,
    Replicas,
    Unavailable,
)

DEFAULT_POLICY, SECOND_POLICY = "Policy-0", "Policy-1"
PREFIX = "/v1/AUTH_test"
USER, KEY = "test:tester", "testing"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request. The default is nothing.

    ``status``: it is refused with that. ``hang``: nothing is answered before the end of the
    cluster. ``lost``: it is carried out, and the connection cut. ``body``: sent in place of the
    right one. ``cut``: so many bytes of it are sent, and the connection cut. ``slow``: so many
    seconds pass between two halves of it. ``etag``: instead of the right one.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False
    lost: bool = False
    body: bytes | None = None
    cut: int | None = None
    slow: float = 0.0
    etag: str = ""


@dataclass
class _Planned:
    fault: Fault
    method: str
    path: str
    times: int


class FakeCluster:
    """One account. ``requests`` are all that came, as "METHOD container/name"."""

    def __init__(self, proxies: int = 1, replicas: int = 3) -> None:
        self.replicas = Replicas(replicas)
        self.containers: dict[str, Container] = {}
        self.account_is_away = False
        self.updates_are_held = False  # rows of listings wait for an updater
        self.tokens: set[str] = set()
        self.logins = 0
        self.refusals = 0  # so many requests get 401, whatever their token
        self.requests: list[str] = []
        self.proxies = [Proxy(self) for _ in range(proxies)]
        self.bodies: asyncio.Barrier | None = None  # for PUTs, after their checks
        self.ended = asyncio.Event()
        self._planned: list[_Planned] = []
        self._held_rows: list[tuple[str, str, int | None]] = []

    async def __aenter__(self) -> Self:
        for proxy in self.proxies:
            await proxy.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.ended.set()
        for proxy in self.proxies:
            await proxy.stop()

    @property
    def ports(self) -> dict[str, int]:
        return {"proxy": self.proxies[0].port}

    @property
    def auth_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['proxy']}/auth/v1.0"

    async def login(self) -> Login:
        """An `Auth` of this Swift that takes no request."""
        return Login(f"http://127.0.0.1:{self.ports['proxy']}{PREFIX}", self.new_token())

    def new_token(self) -> str:
        self.logins += 1
        self.tokens.add(f"token-{self.logins}")
        return f"token-{self.logins}"

    def fault(self, fault: Fault, *, method: str = "", path: str = "", times: int = 1) -> None:
        """Let it happen to the next ``times`` requests of this method below this path."""
        self._planned.append(_Planned(fault, method, path, times))

    def next_fault(self, method: str, path: str) -> Fault:
        for planned in self._planned:
            fits = method.startswith(planned.method) and path.startswith(planned.path)
            if planned.times and fits:
                planned.times -= 1
                return planned.fault
        return Fault()

    def update_row(self, container: str, name: str, size: int | None) -> None:
        """Tell the listing; ``size`` None: it is gone."""
        self._held_rows.append((container, name, size))
        if not self.updates_are_held:
            self.run_updater()

    def run_updater(self) -> None:
        held, self._held_rows = self._held_rows, []
        for container, name, size in held:
            rows = self.containers[container].rows
            rows.pop(name, None)
            if size is not None:
                rows[name] = size


class Proxy:
    """One proxy. ``skew``: its clock, in seconds ahead. It knows containers it has seen.

    ``hangs``: it takes connections and requests, and answers none of them.
    """

    def __init__(self, cluster: FakeCluster) -> None:
        self.skew = 0.0
        self.hangs = False
        self.host, self.port = "127.0.0.1", 0
        self.requests = 0
        self._cluster = cluster
        self._known: set[str] = set()
        self._last = 0.0
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._serve), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Be gone, with all connections; `start` begins anew on the same port."""
        self.forget()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def connections(self) -> int:
        """How many are open."""
        server = None if self._runner is None else self._runner.server
        return 0 if server is None else len(server.connections)

    def forget(self) -> None:
        """Lose what was cached, as a restart does."""
        self._known.clear()

    def _now(self) -> float:
        """The time for a request; no two are the same."""
        self._last = max(self._last + 1e-6, time.time() + self.skew)
        return self._last

    # HTTP

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests += 1
        if self.hangs:
            await self._cluster.ended.wait()
        path, _, query = request.raw_path.partition("?")
        if path == "/auth/v1.0":
            return _response(self._log_in(request), request.method)
        container, slash, name = unquote(path.removeprefix(PREFIX)).lstrip("/").partition("/")
        self._cluster.requests.append(f"{request.method} {container}{slash}{name}")
        fault = self._cluster.next_fault(request.method, f"{container}{slash}{name}")
        if fault.hang:
            await self._cluster.ended.wait()
        if fault.status:
            answer = Answer(fault.status, dict(fault.headers), fault.body or b"")
        else:
            answer = await self._answer(request, container, name, parse_qs(query))
        if fault.etag:
            answer = replace(answer, headers=answer.headers | {"ETag": fault.etag})
        if fault.body is not None:
            answer = replace(answer, body=fault.body)
        if fault.lost or fault.cut is not None or fault.slow:
            return await _send_badly(request, answer, fault)
        return _response(answer, request.method)

    def _log_in(self, request: web.BaseRequest) -> Answer:
        headers = request.headers
        user = headers.get("X-Auth-User") or headers.get("X-Storage-User")
        key = headers.get("X-Auth-Key") or headers.get("X-Storage-Pass")
        if (user, key) != (USER, KEY):
            return Answer(401)
        url = f"http://127.0.0.1:{self.port}{PREFIX}"
        return Answer(200, {"X-Storage-Url": url, "X-Auth-Token": self._cluster.new_token()})

    async def _answer(
        self, request: web.BaseRequest, container: str, name: str, query: dict[str, list[str]]
    ) -> Answer:
        if self._cluster.refusals:
            self._cluster.refusals -= 1
            return Answer(401)
        if request.headers.get("X-Auth-Token") not in self._cluster.tokens:
            return Answer(401)
        if not container:
            return Answer(404 if self._cluster.account_is_away else 204)
        try:
            if not name:
                return self._container(request, container, query)
            return await self._object(request, container, name)
        except Unavailable:
            return Answer(503)

    # Containers

    def _container(
        self, request: web.BaseRequest, name: str, query: dict[str, list[str]]
    ) -> Answer:
        found = self._find(name)
        sent = meta(request, CONTAINER_META)
        match request.method:
            case "PUT":
                return self._put_container(request, name, sent)
            case _ if found is None:
                return Answer(404)
            case "POST":
                change(found.meta, sent)
                return Answer(204)
            case "DELETE":
                if found.rows:
                    return Answer(409)
                del self._cluster.containers[name]
                return Answer(204)
            case "HEAD":
                return Answer(204, describe(found))
            case _:
                return Answer(200, {"Content-Type": "application/json"}, listing(found, query))

    def _put_container(self, request: web.BaseRequest, name: str, sent: dict[str, str]) -> Answer:
        if self._cluster.account_is_away:
            return Answer(404)
        policy = request.headers.get("X-Storage-Policy")
        if policy not in (None, DEFAULT_POLICY, SECOND_POLICY):
            return Answer(400, {}, b"Invalid X-Storage-Policy 'x'")
        found = self._cluster.containers.get(name)
        if found is None:
            found = self._cluster.containers[name] = Container(policy or DEFAULT_POLICY)
            change(found.meta, sent)
            return Answer(201)
        if policy not in (None, found.policy):
            return Answer(409)
        change(found.meta, sent)
        return Answer(202)

    def _find(self, name: str) -> Container | None:
        """What this proxy knows of a container: nothing new while the account is away."""
        found = self._cluster.containers.get(name)
        if self._cluster.account_is_away and name not in self._known:
            return None
        if found is not None:
            self._known.add(name)
        return found

    # Objects

    async def _object(self, request: web.BaseRequest, container: str, name: str) -> Answer:
        known = self._find(container)
        stored = self._cluster.containers.get(container)
        path = f"{container}/{name}"
        if request.method in ("GET", "HEAD"):
            if known is None and (stored is None or stored.policy != DEFAULT_POLICY):
                return Answer(404)  # it looks in the first policy, where this one is not
            newest = request.headers.get("X-Newest") == "true"
            record = self._cluster.replicas.read(path, newest=newest)
            return Answer(404) if record is None else whole_or_part(request, record)
        if known is None:
            return Answer(404)
        if request.method == "PUT" and "X-Copy-From" in request.headers:
            return await self._copy(request, container, name)
        if request.method == "PUT":
            return await self._put(request, container, name)
        if request.method == "POST":
            sent = meta(request, OBJECT_META)
            found = self._cluster.replicas.mark(path, self._now(), sent)
            return Answer(202 if found else 404)
        return self._delete(container, name)

    async def _put(self, request: web.BaseRequest, container: str, name: str) -> Answer:
        replicas, path, now = self._cluster.replicas, f"{container}/{name}", self._now()
        if request.headers.get("If-None-Match") == "*" and replicas.exists_somewhere(path):
            return Answer(412)
        try:
            replicas.check_newest(path, now)
            if request.headers.get("Expect", "").lower() == "100-continue":
                assert request.transport is not None
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if self._cluster.bodies is not None:
                await self._cluster.bodies.wait()
            record = Record(now, await request.content.read(), meta(request, OBJECT_META))
            if request.headers.get("ETag", record.etag) != record.etag:
                return Answer(422)
            replicas.write(path, record)
        except NewerThere:
            return Answer(202)
        assert record.data is not None
        self._cluster.update_row(container, name, len(record.data))
        return Answer(201, {"ETag": record.etag})

    async def _copy(self, request: web.BaseRequest, container: str, name: str) -> Answer:
        """As the middleware does: the newest version, and fresh metadata if so told."""
        replicas, path, now = self._cluster.replicas, f"{container}/{name}", self._now()
        source = unquote(request.headers["X-Copy-From"]).removeprefix("/")
        found = replicas.read(source, newest=True)
        if found is None or found.data is None:
            return Answer(404)
        assert request.headers["X-Fresh-Metadata"] == "true"
        try:
            replicas.check_newest(path, now)
            record = Record(now, found.data, {})
            replicas.write(path, record)
        except NewerThere:
            return Answer(202)
        self._cluster.update_row(container, name, len(found.data))
        return Answer(201, {"ETag": record.etag, "X-Copied-From": source})

    def _delete(self, container: str, name: str) -> Answer:
        path = f"{container}/{name}"
        found = self._cluster.replicas.read(path, newest=True)
        try:
            self._cluster.replicas.write(path, Record(self._now(), None))
        except NewerThere:
            return Answer(409)
        if found is None:
            return Answer(404)
        self._cluster.update_row(container, name, None)
        return Answer(204)


def _response(answer: Answer, method: str) -> web.Response:
    headers = answer.headers
    if method == "HEAD" and answer.status == 200:  # aiohttp would leave out that it is 0
        headers = headers | {"Content-Length": str(len(answer.body))}
    return web.Response(status=answer.status, headers=headers, body=answer.body)


async def _send_badly(request: web.BaseRequest, answer: Answer, fault: Fault) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body)
    assert request.transport is not None
    if not fault.lost:
        await response.prepare(request)
        middle = len(answer.body) // 2 if fault.cut is None else fault.cut
        await response.write(answer.body[:middle])
        await asyncio.sleep(fault.slow)
        if fault.cut is None:
            await response.write(answer.body[middle:])
            return response
    request.transport.close()
    return response
