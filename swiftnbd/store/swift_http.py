# SPDX-License-Identifier: MIT
"""HTTP with a Swift account: one session and one token, shared by all containers of a login.

A request here is a single try. aiohttp would quietly send it again after a lost connection; that
is switched off, because a caller must know that a request may have been done twice.

A body is sent only after the server has asked for it (``Expect: 100-continue``). A request that we
gave up is not gone: a proxy that hung can wake up, find it whole in its socket, stamp it with the
present time and carry it out, over everything that was written since. Without its body it cannot.
(A late DELETE has no body to withhold.) What the extra round trip costs is lost in the noise.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

import swiftnbd
from swiftnbd.errors import CorruptObject, StoreError, StoreUnavailable
from swiftnbd.metrics import StoreTraffic
from swiftnbd.store.auth import Auth
from swiftnbd.store.base import Buffer
from swiftnbd.store.outages import Outages
from swiftnbd.store.swift_answers import Answer

CONNECT_SECONDS_MAX = 5.0  # a lost SYN is sent again after 1 and 3 s
# The slowest good answers: 20 to 30 s, when Swift itself waits for a server that hangs. A try
# that takes longer is better begun anew on another connection.
REQUEST_SECONDS_MAX = 30.0
ERROR_BYTES_MAX = 64 * 1024  # of an error's body; Swift's are below 1 KiB
SEND_BYTES_MAX = 256 * 1024  # handed to the transport at once, between checks of its high water

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a single request may take."""

    connect_seconds: float = CONNECT_SECONDS_MAX
    total_seconds: float = REQUEST_SECONDS_MAX


@dataclass(frozen=True, slots=True, eq=False)
class _Access:
    """What a login gave."""

    storage: URL
    token: str

    def url(self, path: str, query: Mapping[str, str | int] | None) -> URL:
        """Where to find ``path``. `URL.with_path` costs half of what parsing it all would."""
        # encoded: or yarl would quote and normalise once more
        url = self.storage.with_path(self.storage.raw_path.rstrip("/") + path, encoded=True)
        return URL(f"{url}?{urlencode(query)}", encoded=True) if query else url


class SwiftAccount:
    """The account that a login gives. Close it after the last of its stores."""

    def __init__(
        self,
        auth: Auth,
        timeouts: Timeouts | None = None,
        *,
        expect_continue: bool = True,
        traffic: StoreTraffic | None = None,
        outages: Outages | None = None,
    ) -> None:
        """``expect_continue`` False is for a proxy in between that cannot: PUTs would hang.

        ``outages``: shared with other accounts of the same Swift.
        """
        self.traffic = StoreTraffic() if traffic is None else traffic
        self.outages = Outages() if outages is None else outages
        self._auth = auth
        self._expect_continue = expect_continue
        self._timeouts = Timeouts() if timeouts is None else timeouts
        self._session: aiohttp.ClientSession | None = None
        self._access: _Access | None = None
        self._logging_in: asyncio.Task[None] | None = None
        self._closed = False

    async def request(
        self,
        what: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        data: Buffer | None = None,
        body_max: int = ERROR_BYTES_MAX,
    ) -> Answer:
        """Send one request for ``path`` (already percent-encoded, below the account).

        A 401 is answered with a login, shared with everybody else who got one, and the request
        is sent once more. A second 401 is an outage of the authentication behind Swift.
        ``what`` begins the message of an error.
        """
        access = await self._current_access(stale=None)
        answer = await self._send(what, access, method, path, query, headers, data, body_max)
        if answer.status == 401:
            access = await self._current_access(stale=access)
            answer = await self._send(what, access, method, path, query, headers, data, body_max)
        if answer.status == 401:
            raise StoreUnavailable(f"{what}: 401 right after a fresh login")
        return answer

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        self.outages.close()
        if self._logging_in is not None:
            self._logging_in.cancel()
            await asyncio.wait([self._logging_in])
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _current_access(self, stale: _Access | None) -> _Access:
        """The access to use, which is not ``stale``; there is at most one login under way."""
        while self._access is None or self._access is stale:
            if self._closed:
                raise StoreError("the Swift account is closed")
            if self._logging_in is None:
                self._logging_in = asyncio.create_task(self._log_in())
                self._logging_in.add_done_callback(self._logged_in)
            under_way = self._logging_in
            await asyncio.wait([under_way])  # not itself: one who gives up must not cancel it
            if under_way.cancelled():
                raise StoreError("the Swift account is closed")
            under_way.result()
        return self._access

    async def _log_in(self) -> None:
        login = await self._auth.login()
        try:
            url = URL(login.storage_url)
        except ValueError:
            url = URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise StoreError(f"the login gave a storage URL that is none: {login.storage_url}")
        self._access = _Access(url, login.token)
        log.debug("logged in, storage at %s", url.host)

    def _logged_in(self, task: asyncio.Task[None]) -> None:
        self._logging_in = None
        if not task.cancelled():
            task.exception()  # seen: those who waited for it get it, and there may be none left

    async def _send(
        self,
        what: str,
        access: _Access,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None,
        headers: Mapping[str, str] | None,
        data: Buffer | None,
        body_max: int,
    ) -> Answer:
        options: dict[str, Any] = {}
        if data is not None:
            options["data"] = _Body(data)
            options["expect100"] = self._expect_continue and len(data) > 0
        begin = time.monotonic()
        try:
            with self.traffic.request(method) as seen:
                async with (
                    asyncio.timeout(self._timeouts.total_seconds),
                    self._open_session().request(
                        method,
                        access.url(path, query),
                        headers={**(headers or {}), "X-Auth-Token": access.token},
                        allow_redirects=False,
                        read_bufsize=max(body_max, ERROR_BYTES_MAX),
                        **options,
                    ) as response,
                ):
                    seen.status = response.status
                    body = b"" if method == "HEAD" else await _read(what, response, body_max)
                answer = Answer(response.status, response.reason or "", response.headers, body)
        except aiohttp.ClientConnectorCertificateError as error:
            raise StoreError(f"{what}: {error.certificate_error}") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            took = time.monotonic() - begin
            raise StoreUnavailable(f"{what}: {_reason(error)} after {took:.1f} s") from error
        log.debug("%s: %d in %.0f ms", what, answer.status, (time.monotonic() - begin) * 1000)
        return answer

    def _open_session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise StoreError("the Swift account is closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the engine limits how many at once
                timeout=aiohttp.ClientTimeout(
                    total=None,  # it would not cover how a body is read here
                    sock_connect=self._timeouts.connect_seconds,
                ),
                headers={
                    "Accept-Encoding": "identity",
                    "User-Agent": f"swiftnbd/{swiftnbd.__version__}",
                },
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
            # There is no public switch. A test sees to it that this one goes on working.
            self._session._retry_connection = False
        return self._session


class _Body(aiohttp.Payload):
    """A body in the caller's buffer, sent in parts and without a copy."""

    def __init__(self, data: Buffer) -> None:
        super().__init__(data, content_type="application/octet-stream")
        self._view = memoryview(data).cast("B")
        self._size = len(self._view)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return str(self._view, encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        for start in range(0, len(self._view), SEND_BYTES_MAX):
            await writer.write(self._view[start : start + SEND_BYTES_MAX])


async def _read(what: str, response: aiohttp.ClientResponse, body_max: int) -> bytes:
    """The whole body, if it is not longer than it may be."""
    if not 200 <= response.status < 300:
        return await response.content.read(ERROR_BYTES_MAX)
    length = response.content_length
    if length is not None and length <= body_max:
        return await _read_whole(response.content)
    parts, size = [], 0
    while length is None and (part := await response.content.readany()):
        parts.append(part)
        size += len(part)
        if size > body_max:
            break
    if length is not None or size > body_max:
        response.close()  # with the rest of it
        much = f"at least {size}" if length is None else str(length)
        raise CorruptObject(f"{what}: a body of {much} bytes, expected at most {body_max}")
    return b"".join(parts)


async def _read_whole(content: aiohttp.StreamReader) -> bytes:
    """A body of known length; aiohttp takes no byte more, and fails if one is missing.

    This wakes up once, when all of it is there, not for each piece. aiohttp would stop reading
    at twice the ``read_bufsize`` of the request, which must be more than the length.
    """
    if content.exception() is None:
        await content.wait_eof()
    return content.read_nowait()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the body ended early"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__
