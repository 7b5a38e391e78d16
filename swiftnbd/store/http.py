# SPDX-License-Identifier: MIT
"""HTTP with a Swift: single requests, on any of its addresses.

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
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.connector import Connection
from yarl import URL

import swiftnbd
from swiftnbd.buffers import Body, pieces_of
from swiftnbd.errors import CorruptObject, StoreError, StoreUnavailable
from swiftnbd.log import SLOW
from swiftnbd.metrics import Seen, StoreTraffic
from swiftnbd.store.leave import check_leave
from swiftnbd.store.login import TlsSettings
from swiftnbd.store.proxies import Proxies, Proxy
from swiftnbd.store.swift_answers import Answer

CONNECT_SECONDS_MAX = 5.0  # a lost SYN is sent again after 1 and 3 s
# The slowest good answers: 20 to 30 s, when Swift itself waits for a server that hangs. A try
# that takes longer is better begun anew on another connection.
REQUEST_SECONDS_MAX = 30.0
# Of several addresses: a connection is tried for less, and one that has not answered anything for
# so long is asked no more while there is another. (Should it only have waited for a server of its
# own that hangs, 10 s, so will the others, and then each is given its full time.)
CONNECT_SECONDS_AMONG_SEVERAL = 2.0
SILENT_SECONDS_AMONG_SEVERAL = 5.0
ERROR_BYTES_MAX = 64 * 1024  # of an error's body; Swift's are below 1 KiB
UNCHANGING = ("GET", "HEAD")
SEND_BYTES_MAX = 256 * 1024  # handed to the transport at once, between checks of its high water

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a single request may take."""

    connect_seconds: float = CONNECT_SECONDS_MAX
    total_seconds: float = REQUEST_SECONDS_MAX
    connect_seconds_among_several: float = CONNECT_SECONDS_AMONG_SEVERAL
    silent_seconds_among_several: float = SILENT_SECONDS_AMONG_SEVERAL


class Http:
    """Requests to one Swift, whose addresses they share. Close it in the end."""

    def __init__(
        self,
        timeouts: Timeouts,
        traffic: StoreTraffic,
        *,
        tls: TlsSettings,
        expect_continue: bool = True,
    ) -> None:
        """``expect_continue`` False is for a proxy in between that cannot: PUTs would hang."""
        self._timeouts = timeouts
        self._traffic = traffic
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._expect_continue = expect_continue
        self._storage = URL()
        self._proxies: Proxies | None = None  # those of the storage URL's host
        self._closed = False

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        if self._proxies is not None:
            await self._proxies.close()

    async def send(
        self,
        what: str,
        method: str,
        storage: URL,
        url: URL,
        headers: Mapping[str, str],
        data: Body | None,
        body_max: int,
    ) -> Answer:
        """One try, on one of the addresses of Swift; on the next if that one did nothing of it.

        ``what`` begins the message of an error. ``url`` is below ``storage``, whose host it is. A
        body in the answer may have ``body_max`` bytes.
        """
        body = None if data is None else _Body(data)
        options: dict[str, Any] = {
            "headers": headers,
            "read_bufsize": max(body_max, ERROR_BYTES_MAX),
            "allow_redirects": False,
        }
        if url.scheme == "https":
            self._context = self._context or self._tls.context()
            options["ssl"] = self._context
        if body is not None:
            options["data"] = body
            options["expect100"] = self._expect_continue and len(data or b"") > 0
        exchange = _Exchange(what, method, url, options, body, body_max)
        proxies = await self._proxies_at(storage)
        begin, tried = time.monotonic(), list[Proxy]()
        while True:
            try:
                proxy = await proxies.pick(tried)
                tried.append(proxy)
                answer = await self._ask(proxies, proxy, exchange)
            except aiohttp.ClientConnectorCertificateError as error:
                raise StoreError(f"{what}: {error.certificate_error}") from None
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if isinstance(error, _UNDONE) and proxies.has_other(tried):
                    log.debug("%s: %s: %s", what, proxy.address, _reason(error))
                    continue
                took = time.monotonic() - begin
                self._tell_slow(what, "no answer", begin)
                raise StoreUnavailable(f"{what}: {_reason(error)} after {took:.1f} s") from error
            log.debug("%s: %d in %.0f ms", what, answer.status, (time.monotonic() - begin) * 1000)
            self._tell_slow(what, answer.status, begin)
            return answer

    def _tell_slow(self, what: str, outcome: int | str, begin: float) -> None:
        took = time.monotonic() - begin
        if took >= self._traffic.slow_seconds:
            log.info("slow: %s: %s after %.2f s", what, outcome, took, extra=SLOW)

    async def _ask(self, proxies: Proxies, proxy: Proxy, exchange: "_Exchange") -> Answer:
        """Send a request to one address."""
        timeouts = self._timeouts
        among_several = proxies.has_better(proxy)
        connect = timeouts.connect_seconds
        if among_several:
            connect = min(connect, timeouts.connect_seconds_among_several)
        connections = proxy.connections
        connections.take()
        patience = asyncio.timeout(timeouts.total_seconds)
        silence = _Silence(
            proxies, proxy, exchange, patience, timeouts.silent_seconds_among_several
        )
        try:
            with self._traffic.request(exchange.method) as seen, silence:
                async with patience:
                    return await exchange.carry_out(connections.session, connect, proxy, seen)
        except (aiohttp.ClientConnectorError, TimeoutError):
            await proxy.failed()
            # asked again: the body may have been asked for, and sent, since the silence was noticed
            if silence.was_long and exchange.is_harmless:
                raise _SilentError from None
            raise
        except (aiohttp.ClientError, OSError):
            await proxy.drop_connections()  # the others may have ended with this one
            raise
        finally:
            if connections.done():
                await connections.close()

    async def _proxies_at(self, storage: URL) -> Proxies:
        """Those behind the host of the storage URL, which another login may have changed."""
        if self._closed:
            raise StoreError("the Swift account is closed")
        if self._proxies is None or storage is not self._storage:
            await self._move_to(storage)
        assert self._proxies is not None
        return self._proxies

    async def _move_to(self, storage: URL) -> None:
        host, port = storage.host, storage.port
        assert host is not None
        assert port is not None
        self._storage, old = storage, self._proxies
        if old is None or (old.host, old.port) != (host, port):
            self._proxies = Proxies(host, port, self._new_session)
            if old is not None:
                await old.close()

    def _new_session(self, connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession(
            connector=connector,
            headers={
                "Accept-Encoding": "identity",
                "User-Agent": f"swiftnbd/{swiftnbd.__version__}",
            },
            auto_decompress=False,
            request_class=_Request,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        # There is no public switch. A test sees to it that this one goes on working.
        session._retry_connection = False
        return session


class _SilentError(TimeoutError):
    """An address was left as it had not answered anything for a while. Our body it has not."""


# With these the server has done nothing that counts: another may be asked.
_UNDONE = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, _SilentError)


@dataclass(frozen=True, slots=True, eq=False)
class _Exchange:
    """A request, and what its answer may be like."""

    what: str
    method: str
    url: URL
    options: Mapping[str, Any]
    body: "_Body | None"
    body_max: int

    @property
    def is_harmless(self) -> bool:
        """Whether it changes nothing if it is carried out later, after we went elsewhere."""
        if self.method == "PUT" and self.body is not None:
            return bool(self.options["expect100"]) and not self.body.is_begun
        return self.method in UNCHANGING

    async def carry_out(
        self, session: aiohttp.ClientSession, connect: float, proxy: Proxy, seen: Seen
    ) -> Answer:
        """Send it to this proxy; connecting may take ``connect`` seconds."""
        async with session.request(
            self.method,
            self.url,
            timeout=_connect_timeout(connect),
            **self.options,
        ) as response:
            proxy.answered()
            seen.status = response.status
            is_head = self.method == "HEAD"
            body = b"" if is_head else await _read(self.what, response, self.body_max)
            return Answer(response.status, response.reason or "", response.headers, body)


class _Silence:
    """Ends a request on an address that answers nobody, if there is another to ask.

    While this is a context, ``patience`` is made to end at once after so many silent ``seconds``.
    """

    def __init__(
        self,
        proxies: Proxies,
        proxy: Proxy,
        exchange: _Exchange,
        patience: asyncio.Timeout,
        seconds: float,
    ) -> None:
        self.was_long = False
        self._proxies, self._proxy, self._exchange = proxies, proxy, exchange
        self._answers = proxy.answers
        self._patience, self._seconds = patience, seconds
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._proxies.has_other([self._proxy]):  # mostly there is none, and no timer to pay for
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._look)

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        is_silent = self._proxy.answers == self._answers
        if is_silent and self._exchange.is_harmless and self._proxies.has_better(self._proxy):
            self.was_long = True
            self._patience.reschedule(asyncio.get_running_loop().time())


class _Request(aiohttp.ClientRequest):
    """A request whose body is sent by a task that does not fail on its own.

    If the connection closes while the head of a PUT is sent, the request fails, and nobody asks
    aiohttp's task why: what it has to say would be an ERROR with a traceback in the log.
    """

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        if self.method not in UNCHANGING:
            check_leave()  # not sooner: connecting may have taken long
        response = await super().send(conn)
        if conn.protocol is None:  # from Python 3.12 on that task has begun by now, and may be over
            response.close()
            raise aiohttp.ServerDisconnectedError
        return response

    async def write_bytes(
        self, writer: AbstractStreamWriter, conn: Connection, *rest: Any, **named: Any
    ) -> None:
        try:
            await super().write_bytes(writer, conn, *rest, **named)
        except OSError:
            conn.close()  # whoever waits for the answer learns of it so


class _Body(aiohttp.Payload):
    """A body in the caller's buffers, sent in parts and without a copy."""

    def __init__(self, data: Body) -> None:
        super().__init__(data, content_type="application/octet-stream")
        self.is_begun = False  # some of it was sent
        self._data = data
        self._size = len(data)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._data).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        check_leave()  # again: it may have taken the server long to ask for it
        self.is_begun = True
        for piece in pieces_of(self._data):
            view = memoryview(piece)
            for start in range(0, len(view), SEND_BYTES_MAX):
                await writer.write(view[start : start + SEND_BYTES_MAX])


@cache
def _connect_timeout(seconds: float) -> aiohttp.ClientTimeout:
    """For connecting only: a total would not cover how a body is read here."""
    return aiohttp.ClientTimeout(total=None, sock_connect=seconds)


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
    if isinstance(error, socket.gaierror):
        return "the name of the server is not found"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the body ended early"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__
