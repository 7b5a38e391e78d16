# SPDX-License-Identifier: MIT
"""The monitoring endpoint: metrics, health, status and a page over HTTP, for reading only.

It has no password. So it listens on loopback unless told otherwise, shows no data and no secret,
changes nothing, and answers only to names that a foreign web site cannot take for its own: a page
whose name is made to resolve to this machine (DNS rebinding) still sends its own name as Host.

Each connection carries one request and ends with it, or with its time. So they need no other
limits than their number, and what aiohttp reads of a request's head.
"""

import asyncio
import ipaddress
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from aiohttp import web

from swiftnbd.errors import ConfigError
from swiftnbd.server.config import TcpAddress
from swiftnbd.server.descriptors import WATCHERS
from swiftnbd.server.http_page import Page
from swiftnbd.server.listeners import BACKLOG, reason_of
from swiftnbd.server.monitor import Monitor, NoSuchRange

CONNECTION_SECONDS_MAX = 30.0  # for one request and its answer
NUMBER_DIGITS_MAX = 16
CELLS_DEFAULT = 1024
CLOSE_SECONDS_MAX = 1.0  # for answers under way when the server ends

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(:[0-9]{1,5})?")
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "swiftnbd",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpEndpoint:
    """Serves what a ``monitor`` sees, on ``address``."""

    def __init__(self, monitor: Monitor, address: TcpAddress) -> None:
        self.monitor = monitor
        self._address = address
        self._page = Page.load()
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            logger=_Quiet(log),
        )
        self._server: asyncio.AbstractServer | None = None
        self._recording: asyncio.Task[None] | None = None

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard])
        for path, handler in {
            "/": self._get_page,
            "/healthz": self._get_health,
            "/metrics": self._get_metrics,
            "/status.json": self._get_status,
            "/history.json": self._get_history,
            "/map.json": self._get_map,
        }.items():
            application.router.add_get(path, handler)  # and HEAD
        return application

    async def open(self) -> str:
        """Listen; the URL. ConfigError if the address cannot be had."""
        host, port = self._address.host, self._address.port
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, host, port, backlog=BACKLOG)
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"--http: cannot listen on {host} port {port}: {reason_of(error)}"
            ) from None
        self._recording = loop.create_task(self.monitor.recorder.record_forever())
        found = self._server.sockets[0].getsockname()
        shown = f"[{found[0]}]" if ":" in found[0] else found[0]
        return f"http://{shown}:{found[1]}/"

    async def close(self) -> None:
        """Listen no more, and end all connections."""
        if self._recording is not None:
            self._recording.cancel()
            await asyncio.wait([self._recording])
        if self._server is not None:
            self._server.close()
        if self._runner.server is not None:
            await self._runner.server.shutdown(CLOSE_SECONDS_MAX)
        await self._runner.cleanup()

    # Connections

    def _accept(self) -> asyncio.BaseProtocol:
        assert self._runner.server is not None
        if len(self._runner.server.connections) >= WATCHERS:
            return _Refusing()
        return _Timed(self._runner.server())

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if not self._is_own_name(request.headers.get("Host", "")):
                raise web.HTTPMisdirectedRequest(
                    text="this server is not known by that name; use its address\n"
                )
            response = await handler(request)
        except web.HTTPException as error:
            response = web.Response(text=error.text, status=error.status)
            if allow := error.headers.get("Allow"):  # "MUST", with 405
                response.headers["Allow"] = allow
        except Exception:
            log.exception("%s failed", request.path)
            response = web.Response(text="failed; the server's log says why\n", status=500)
        response.headers.update(_HEADERS)
        response.force_close()
        return response

    def _is_own_name(self, host: str) -> bool:
        """Whether the Host header of a request is one that only we can be meant by."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match["name"].strip("[]").lower()
        if name in ("localhost", self._address.host.lower(), socket.gethostname().lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    # What there is

    async def _get_page(self, request: web.Request) -> web.Response:
        policy = {"Content-Security-Policy": self._page.policy}
        return web.Response(text=self._page.text, content_type="text/html", headers=policy)

    async def _get_health(self, request: web.Request) -> web.Response:
        lines = ["ok" if self.monitor.is_healthy else "failed", *self.monitor.trouble]
        return web.Response(
            text="\n".join([*lines, ""]), status=200 if self.monitor.is_healthy else 503
        )

    async def _get_metrics(self, request: web.Request) -> web.Response:
        from swiftnbd.server.http_metrics import CONTENT_TYPE, exposition

        body = await exposition(self.monitor)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _get_status(self, request: web.Request) -> web.Response:
        return web.json_response(await self.monitor.status())

    async def _get_history(self, request: web.Request) -> web.Response:
        since = _number(request.query, "since", 0)
        with _NotFound():
            return web.json_response(self.monitor.history(request.query.get("export", ""), since))

    async def _get_map(self, request: web.Request) -> web.Response:
        query = request.query
        first, cells = _number(query, "first", 0), _number(query, "cells", CELLS_DEFAULT)
        end = _number(query, "end", 0) if "end" in query else None
        with _NotFound():
            drawn = await self.monitor.block_map(query.get("export", ""), first, end, cells)
        return web.json_response(drawn)


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """What aiohttp has to say of requests that make no sense fills no log."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        self.logger.debug(msg, *args)


class _Timed(asyncio.Protocol):
    """``protocol`` on a connection that is ended when its time is up.

    It stays between the two: a timer that nobody stops keeps what is long gone in memory.
    """

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        end = cast(asyncio.Transport, transport).abort  # uvloop's are none by their class
        self._timer = asyncio.get_running_loop().call_later(CONNECTION_SECONDS_MAX, end)
        self._protocol.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._protocol.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


class _Refusing(asyncio.Protocol):
    """For one connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(_BUSY)
        transport.close()


class _NotFound:
    """Turns what a monitor raises into answers."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, KeyError):
            raise web.HTTPNotFound(text="there is no such export\n")
        if isinstance(error, NoSuchRange):
            raise web.HTTPBadRequest(text=f"{error}\n")


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS_MAX):
        raise web.HTTPBadRequest(text=f"{name} is a number\n")
    return int(text)
