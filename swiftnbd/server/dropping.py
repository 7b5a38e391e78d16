# SPDX-License-Identifier: MIT
"""Dropping a connection, for what serves it and knows nothing of connections."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swiftnbd.server.transmission import Transmission


class Dropping:
    """`swiftnbd.api.client.Client.disconnect` of one connection. May be called in any thread.

    ``transmission`` is set when there is one.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transmission: Transmission | None = None
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def __call__(self, force: bool) -> None:
        with suppress(RuntimeError):  # the loop is closed, and so is the connection
            self._loop.call_soon_threadsafe(self._drop, force)

    def _drop(self, force: bool) -> None:
        if force or self.transmission is None:
            self._transport.abort()
        else:
            self.transmission.shut_down()
