# SPDX-License-Identifier: MIT
"""One client on two descriptors, standard input and output of old.

inetd, libnbd and qemu hand over one socket for both: it is served as it is. Pipes, as a shell or
ssh give them, are bridged to a pair of sockets by two threads: so the rest of the server knows
sockets only, and any kind of descriptor will do, a file too. The kernel does not tell who is at
the other end of a pipe; that client counts as this process.
"""

import asyncio
import os
import socket
import threading
from contextlib import suppress

from swiftnbd.errors import ConfigError
from swiftnbd.server.config import Connection
from swiftnbd.server.daemon import is_same_socket
from swiftnbd.server.listeners import Accept, Accepting
from swiftnbd.server.sockets import CLOSE_SECONDS_MAX

_PIECE_BYTES = 256 * 1024


class StandardClient:
    """A `Connection` while it is served."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sender: threading.Thread | None = None

    async def open(self, accept: Accept) -> None:
        """Give the connection to ``accept``."""
        receive, send = self._connection.receive, self._connection.send
        if is_same_socket(receive, send):
            os.close(send)
            sock = socket.socket(fileno=receive)
            if sock.type != socket.SOCK_STREAM:
                sock.close()
                raise ConfigError("the socket on standard input is no stream of bytes")
        else:
            sock = self._bridge(receive, send)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: Accepting(accept), sock)

    def _bridge(self, receive: int, send: int) -> socket.socket:
        ours, theirs = socket.socketpair()
        for descriptor in (receive, send):
            os.set_blocking(descriptor, True)
        # daemons: one may wait for a client's next byte when there is no need of it any more
        receiver = threading.Thread(target=_receive, args=(receive, theirs.dup()), daemon=True)
        self._sender = threading.Thread(target=_send, args=(theirs, send), daemon=True)
        receiver.start()
        self._sender.start()
        return ours

    async def sent(self) -> None:
        """Wait until all of our bytes have left, though not for ever. Once we have closed."""
        if self._sender is not None:
            await asyncio.to_thread(self._sender.join, CLOSE_SECONDS_MAX)


def _receive(source: int, sock: socket.socket) -> None:
    """From the client to the server, until the client has said all it will."""
    with sock, suppress(OSError):
        with suppress(OSError):
            while piece := os.read(source, _PIECE_BYTES):
                sock.sendall(piece)
        os.close(source)
        sock.shutdown(socket.SHUT_WR)


def _send(sock: socket.socket, target: int) -> None:
    """From the server to the client, until the server has closed or the client has gone."""
    with sock, suppress(OSError):
        with suppress(OSError):
            while piece := sock.recv(_PIECE_BYTES):
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(target, rest) :]
        os.close(target)
        sock.shutdown(socket.SHUT_RDWR)
