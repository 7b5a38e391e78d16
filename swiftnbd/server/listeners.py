# SPDX-License-Identifier: MIT
"""Where clients come in: TCP addresses, Unix sockets, sockets and connections handed to us."""

import asyncio
import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, assert_never, cast
from urllib.parse import quote

from swiftnbd.errors import ConfigError
from swiftnbd.server.config import InheritedSocket, ListenAddress, TcpAddress, UnixAddress
from swiftnbd.server.unix_socket import UnixListener, listen_at, listen_privately

BACKLOG = 100  # connections the kernel keeps for us while we are busy

Accept = Callable[[asyncio.Transport], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the server can be reached: ``host`` and ``port``, or the ``path`` of a socket."""

    host: str = ""
    port: int | None = None
    path: str = ""

    def __str__(self) -> str:
        return f"Unix socket {self.path}" if self.path else f"{self.host} port {self.port}"

    def uri(self, name: str, *, encrypted: bool = False) -> str:
        """The NBD URI of an export here; a wildcard address is named by its loopback address."""
        export = quote(name, safe="")
        scheme = "nbds" if encrypted else "nbd"
        if self.path:
            return f"{scheme}+unix:///{export}?socket={quote(os.fsencode(self.path))}"
        address = ipaddress.ip_address(self.host.partition("%")[0])
        if address.is_unspecified:
            address = ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1")
        shown = f"[{address}]" if address.version == 6 else str(address)
        return f"{scheme}://{shown}:{self.port}/{export}"


class Listeners:
    """Listening sockets; every connection goes to ``accept``."""

    def __init__(self, accept: Accept) -> None:
        self._accept = accept
        self._servers: list[asyncio.AbstractServer] = []
        self._unix: list[UnixListener] = []
        self._places: list[Place] = []

    async def open(self, addresses: Sequence[ListenAddress]) -> list[Place]:
        """Listen on all of these; where that is. ConfigError if one cannot be had."""
        try:
            for address in addresses:
                await self._open(address)
        except BaseException:
            self.close()
            raise
        return self._places

    async def _open(self, address: ListenAddress) -> None:
        match address:
            case TcpAddress(host, port):
                await self._open_tcp(host, port)
            case UnixAddress(path):
                await self._open_unix(path)
            case InheritedSocket(descriptor):
                await self._open_inherited(descriptor)
            case _:
                assert_never(address)

    def close(self) -> None:
        """Listen no more. Connections stay."""
        for listener in self._unix:
            listener.remove()
        for server in self._servers:
            server.close()
        self._unix.clear()
        self._servers.clear()

    async def _open_tcp(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(self._protocol, host, port, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host} port {port}: {reason_of(error)}") from None
        self._servers.append(server)
        for sock in server.sockets:
            self._add_place(sock.getsockname())

    async def _open_unix(self, path: Path | None) -> None:
        listener = listen_privately(BACKLOG) if path is None else listen_at(path, BACKLOG)
        self._unix.append(listener)
        await self._serve_unix(listener.sock)
        self._places.append(Place(path=str(listener.path)))

    async def _open_inherited(self, descriptor: int) -> None:
        sock = inherited_socket(descriptor)
        if sock.family == socket.AF_UNIX:
            await self._serve_unix(sock)
        else:
            loop = asyncio.get_running_loop()
            self._servers.append(
                await loop.create_server(self._protocol, sock=sock, backlog=BACKLOG)
            )
        self._add_place(sock.getsockname())

    async def _serve_unix(self, sock: socket.socket) -> None:
        create = asyncio.get_running_loop().create_unix_server
        if sys.version_info >= (3, 13):
            create = partial(create, cleanup_socket=False)  # what is ours we remove ourselves
        self._servers.append(await create(self._protocol, sock=sock, backlog=BACKLOG))

    def _add_place(self, name: Any) -> None:
        """Add the place with this socket name, which is the path of a Unix socket."""
        is_unix = isinstance(name, str | bytes)
        place = Place(path=os.fsdecode(name)) if is_unix else Place(name[0], name[1])
        self._places.append(place)

    def _protocol(self) -> asyncio.BaseProtocol:
        return Accepting(self._accept)


class Accepting(asyncio.Protocol):
    """Lasts until the handshake takes the transport over, in the same call."""

    def __init__(self, accept: Accept) -> None:
        self._accept = accept

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # not isinstance: uvloop's transports do what asyncio.Transport says without being one
        self._accept(cast(asyncio.Transport, transport))


def inherited_socket(descriptor: int) -> socket.socket:
    """The listening socket somebody gave us. ConfigError if it is none that can be served."""
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"descriptor {descriptor} is no socket: {error.strerror}") from None
    is_stream = sock.type == socket.SOCK_STREAM
    if not is_stream or sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        sock.close()
        raise ConfigError(f"the socket with descriptor {descriptor} is neither TCP nor Unix")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise ConfigError(
            f"the socket with descriptor {descriptor} does not listen: with systemd, set "
            f"Accept=no, or run the server with --single and StandardInput=socket"
        )
    sock.setblocking(False)
    return sock


def reason_of(error: OSError) -> str:
    """Why it failed, without the sentence that the event loop puts around it."""
    if error.errno is not None and error.errno > 0:  # those of name resolution are negative
        return os.strerror(error.errno)
    return error.strerror or str(error)
