# SPDX-License-Identifier: MIT
"""The connections to one export, which are made again when they are lost."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from errno import EIO
from typing import Final

from swiftnbd.errors import ExportError, StoreUnavailable
from swiftnbd.plugins.nbd.connection import Connection, Server, reason
from swiftnbd.protocol.constants import TransmissionFlag
from swiftnbd.protocol.options import ExportInfo

RETRY_SECONDS: Final = 1.0  # between two tries, as nbdkit has it

log = logging.getLogger(__name__)


class Remote:
    """Made by `open`. ``info`` is what all its connections were told."""

    def __init__(self, server: Server, first: Connection, count: int, retries: int) -> None:
        several = TransmissionFlag.CAN_MULTI_CONN in first.info.flags
        self.info: ExportInfo = first.info
        self.has_status = first.context is not None
        self.on_lost: Callable[[], None] = lambda: None
        self.server = server
        self._retries = retries
        self.count = count if several else 1
        self._connections: list[Connection] = []
        self._making: asyncio.Task[None] | None = None
        self._add(first)

    @classmethod
    async def open(cls, server: Server, count: int, retries: int) -> "Remote":
        """``count`` connections, if the server lets them be one client; one tries so often."""
        remote = cls(server, await _connected(server, retries), count, retries)
        try:
            while len(remote._connections) < remote.count:
                remote._add(await Connection.open(server))
        except BaseException:
            await remote.close()
            raise
        return remote

    def _add(self, connection: Connection) -> None:
        connection.on_lost = lambda error: self._lost(connection, error)
        self._connections.append(connection)

    def _lost(self, connection: Connection, error: Exception) -> None:
        self._connections.remove(connection)
        log.warning("%s: the connection is lost: %s", self.server.shown, reason(error))
        self.on_lost()

    async def connection(self) -> Connection:
        """The one with the least to do; made anew if there is none. Raises `ExportError`."""
        if len(self._connections) < self.count:
            if self._making is None or self._making.done():
                self._making = asyncio.get_running_loop().create_task(self._make())
                self._making.add_done_callback(_see)
            making = self._making  # by the time that it is done there may be another
            if not self._connections:
                await asyncio.wait([making])
            if not self._connections:
                error = None if making.cancelled() else making.exception()
                raise ExportError(EIO, str(error or f"{self.server.shown}: it is lost again"))
        return min(self._connections, key=lambda each: each.at_work)

    async def _make(self) -> None:
        """One connection more."""
        connection = await _connected(self.server, self._retries)
        has_status = connection.context is not None
        if (connection.info, has_status) != (self.info, self.has_status):
            await connection.close()
            raise ExportError(
                EIO, f"{self.server.shown}: it came back as something else, "
                f"with {connection.info.size} bytes",
            )  # fmt: skip
        self._add(connection)
        log.info("%s: connected again", self.server.shown)

    async def close(self) -> None:
        if self._making is not None:
            self._making.cancel()
            await asyncio.wait([self._making])
        connections, self._connections = self._connections, []
        await asyncio.gather(*(connection.close() for connection in connections))


def _see(made: asyncio.Task[None]) -> None:
    """Whoever needs a connection is told why there is none; while there are others, nobody is."""
    if not made.cancelled():
        made.exception()


async def _connected(server: Server, retries: int) -> Connection:
    for _ in range(retries):
        with suppress(StoreUnavailable):
            return await Connection.open(server)
        await asyncio.sleep(RETRY_SECONDS)
    return await Connection.open(server)
