# SPDX-License-Identifier: MIT
"""An HTTP server that answers as a test tells it to, and otherwise like a very small Swift."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import md5
from urllib.parse import unquote

from swiftnbd.store.auth import Login

ACCOUNT = "/v1/AUTH_test"


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    path: str  # unquoted, below the account
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What to answer, and what to do to the connection then."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None  # another Content-Length than the body's
    chunked: bool = False  # no Content-Length, in chunks
    then: str = ""  # "close", "reset" or "hang" when the body is sent
    no_head: bool = False  # nothing at all is sent before `then`


Handler = Callable[[Seen], Awaitable[Reply | None]]


class FakeSwift:
    """Requests are in `seen`; `handle`, if set, answers first, and None leaves it to the store."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.handle: Handler | None = None
        self.objects: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.logins = 0
        self.refuse_bodies: Reply | None = None  # the answer to "Expect: 100-continue", if not 100
        self.came = asyncio.Event()  # set by the first request
        self.release = asyncio.Event()  # ends every "hang"
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self.release.set()
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}{ACCOUNT}"

    async def login(self) -> Login:
        """The `Auth` of this Swift: a new token each time, and only that one is good."""
        self.logins += 1
        await asyncio.sleep(0)
        self.tokens = {f"token-{self.logins}"}
        return Login(self.url, f"token-{self.logins}")

    def script(self, *replies: Reply, method: str = "", path: str = "") -> None:
        """Answer the next requests with these, then like a Swift again."""
        rest = list(replies)

        async def handle(seen: Seen) -> Reply | None:
            if not rest or not seen.method.startswith(method) or not seen.path.startswith(path):
                return None
            return rest.pop(0)

        self.handle = handle

    def count(self, method: str, path: str = "") -> int:
        """How many such requests came."""
        return sum(each.method == method and each.path.startswith(path) for each in self.seen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while (seen := await self._read_request(reader, writer)) is not None:
                self.seen.append(seen)
                self.came.set()
                reply = await self.handle(seen) if self.handle else None
                if not await self._send(writer, seen, reply or self._answer(seen)):
                    break
        writer.close()
        self._writers.discard(writer)

    async def _read_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Seen | None:
        line = await reader.readline()
        if not line:
            return None
        method, target, _ = line.decode().split(" ", 2)
        headers: dict[str, str] = {}
        while (line := await reader.readline()) not in (b"\r\n", b""):
            key, _, value = line.decode().partition(":")
            headers[key.strip().lower()] = value.strip()
        path = unquote(target.partition("?")[0]).removeprefix(ACCOUNT)
        if "expect" in headers:
            if self.refuse_bodies is not None:
                writer.write(_head(self.refuse_bodies, method))
                await self.release.wait()
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Seen(method, path, headers, body)

    async def _send(self, writer: asyncio.StreamWriter, seen: Seen, reply: Reply) -> bool:
        if not reply.no_head:
            writer.write(_head(reply, seen.method))
            if seen.method != "HEAD":
                writer.write(_chunks(reply.body) if reply.chunked else reply.body)
            await writer.drain()
        if reply.then == "hang":
            await self.release.wait()
        if reply.then == "reset":
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        return not reply.then

    def _answer(self, seen: Seen) -> Reply:
        if seen.headers.get("x-auth-token") not in self.tokens:
            return Reply(401)
        parts = seen.path.split("/", 2)  # "", container, object
        if len(parts) < 3:
            return Reply(204, {"X-Storage-Policy": "fake"})
        name = parts[2]
        if seen.method == "PUT":
            return self._put(name, seen)
        if name not in self.objects:
            return Reply(404, body=b"<html>not found</html>")
        if seen.method == "DELETE":
            del self.objects[name]
            return Reply(204)
        if seen.method == "POST":
            return Reply(202)
        return reply_with(self.objects[name])

    def _put(self, name: str, seen: Seen) -> Reply:
        if seen.headers.get("if-none-match") and name in self.objects:
            return Reply(412)
        self.objects[name] = seen.body
        return Reply(201, {"ETag": md5(seen.body).hexdigest()})


def reply_with(data: bytes) -> Reply:
    """The right answer to a GET."""
    return Reply(200, {"ETag": md5(data).hexdigest()}, data)


def _head(reply: Reply, method: str) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} Said So"]
    lines += [f"{key}: {value}" for key, value in reply.headers.items()]
    if reply.chunked:
        lines.append("Transfer-Encoding: chunked")
    elif reply.length is not None or reply.status != 204:
        length = len(reply.body) if reply.length is None else reply.length
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _chunks(body: bytes) -> bytes:
    cut = len(body) // 2
    parts = [part for part in (body[:cut], body[cut:]) if part]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
