# SPDX-License-Identifier: MIT
"""The proxies behind one name: all its addresses, which of them answer, and connections to each.

Requests go to all addresses in turn. One that refused a connection or did not answer is left out
for a while; when all are, all are asked. Each address has connections of its own, and they are
given up when it fails: an idle connection to a machine that is gone looks well, and would cost
the request that takes it the whole time of a try.
"""

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Sequence

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

ADDRESSES_MAX = 16  # each has connections of its own; one client needs no more
RESOLVED_SECONDS = 30.0  # then the name is looked up again, while the old addresses serve on
LEFT_OUT_SECONDS_FIRST = 5.0  # a proxy that is restarted is away for about so long
LEFT_OUT_SECONDS_MAX = 60.0  # from time to time a request is risked on it

log = logging.getLogger(__name__)

MakeSession = Callable[[aiohttp.BaseConnector], aiohttp.ClientSession]


class Connections:
    """Connections to one address, until they are given up and the last request on them ends."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self._users = 0
        self._is_given_up = False

    def take(self) -> None:
        """A request begins. It calls `done` when it has ended."""
        self._users += 1

    def done(self) -> bool:
        """Whether they must be closed now: they are given up, and that was the last request."""
        self._users -= 1
        return self._is_given_up and not self._users

    async def give_up(self) -> None:
        """No request will begin on them any more."""
        self._is_given_up = True
        if not self._users:
            await self.close()

    async def close(self) -> None:
        """Close them."""
        await self.session.close()


class Proxy:
    """One address, and what was learnt of it."""

    def __init__(self, address: str, make_session: MakeSession) -> None:
        self.address = address
        self.answers = 0
        self.left_out_until = 0.0  # monotonic
        self._left_out_seconds = LEFT_OUT_SECONDS_FIRST
        self._make_session = make_session
        self._connections: Connections | None = None

    @property
    def is_good(self) -> bool:
        """Whether nothing bad is known of it."""
        return self.left_out_until == 0.0 or time.monotonic() >= self.left_out_until

    @property
    def connections(self) -> Connections:
        """To send a request on."""
        if self._connections is None:
            # limit: the engine limits how many at once
            connector = aiohttp.TCPConnector(limit=0, resolver=_Fixed(self.address))
            self._connections = Connections(self._make_session(connector))
        return self._connections

    def answered(self) -> None:
        """It did, whatever the answer."""
        self.answers += 1
        self.left_out_until = 0.0
        self._left_out_seconds = LEFT_OUT_SECONDS_FIRST

    async def failed(self) -> None:
        """It refused a connection, or did not answer."""
        if self.is_good:  # else this is one of many requests that met the same failure
            self.left_out_until = time.monotonic() + self._left_out_seconds
            self._left_out_seconds = min(self._left_out_seconds * 2, LEFT_OUT_SECONDS_MAX)
        await self.drop_connections()

    async def drop_connections(self) -> None:
        """Close those that are idle now, and those in use when they are not any more."""
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.give_up()


class Proxies:
    """Those behind ``host``, all on the same ``port``."""

    def __init__(self, host: str, port: int, make_session: MakeSession) -> None:
        self.host, self.port = host, port
        self._make_session = make_session
        self._proxies: list[Proxy] = []
        self._turn = 0
        self._resolve_at = 0.0
        self._resolving: asyncio.Task[OSError | None] | None = None
        self._is_closed = False

    async def pick(self, tried: Collection[Proxy] = ()) -> Proxy:
        """Whose turn it is, preferably of those not ``tried``. OSError if the name is not found."""
        resolving = self._resolve_if_due()
        if not self._proxies and resolving is not None:
            await asyncio.wait([resolving])  # not itself: one who gives up must not cancel it
            if not resolving.cancelled() and (error := resolving.result()) and not self._proxies:
                self._resolve_at = 0.0
                raise error
        if self._is_closed:  # another login may have led elsewhere meanwhile
            raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
        if len(self._proxies) == 1:
            return self._proxies[0]
        left = [proxy for proxy in self._proxies if proxy not in tried] or self._proxies
        among = [proxy for proxy in left if proxy.is_good] or left
        self._turn += 1
        return among[self._turn % len(among)]

    def _resolve_if_due(self) -> asyncio.Task[OSError | None] | None:
        """The look-up that is under way, or the last one. One at a time: each takes a thread."""
        is_idle = self._resolving is None or self._resolving.done()
        if is_idle and time.monotonic() >= self._resolve_at and not self._is_closed:
            self._resolve_at = time.monotonic() + RESOLVED_SECONDS
            self._resolving = asyncio.create_task(self._resolve())
        return self._resolving

    def has_other(self, tried: Collection[Proxy]) -> bool:
        """Whether there is any that was not ``tried``."""
        return any(proxy not in tried for proxy in self._proxies)

    def has_better(self, proxy: Proxy) -> bool:
        """Whether there is another one, of which nothing bad is known."""
        return any(each is not proxy and each.is_good for each in self._proxies)

    async def close(self) -> None:
        """Close what is not in use, and that when it is not any more. Idempotent."""
        self._is_closed = True
        if self._resolving is not None:
            self._resolving.cancel()
            await asyncio.wait([self._resolving])
        for proxy in self._proxies:
            await proxy.drop_connections()

    async def _resolve(self) -> OSError | None:
        """Look the name up. The error is a result: there may be nobody left who waits for it."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except UnicodeError as error:  # a part of the name is empty or too long
            return socket.gaierror(socket.EAI_NONAME, str(error))
        except OSError as error:
            if self._proxies:
                log.debug("%s: not found now, the old addresses stay: %s", self.host, error)
            return error
        await self._adopt([str(info[4][0]) for info in found])
        return None

    async def _adopt(self, addresses: Sequence[str]) -> None:
        """These are the addresses now. What is known of those that stay is kept."""
        known = {proxy.address: proxy for proxy in self._proxies}
        wanted = list(dict.fromkeys(addresses))[:ADDRESSES_MAX]
        self._proxies = [
            known.pop(address) if address in known else Proxy(address, self._make_session)
            for address in wanted
        ]
        for gone in known.values():
            await gone.drop_connections()


class _Fixed(AbstractResolver):
    """Resolves any name to one address: the name is still what TLS and the Host header say."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        is_v6 = ":" in self._address
        return [
            ResolveResult(
                hostname=host,
                host=self._address,
                port=port,
                family=socket.AF_INET6 if is_v6 else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
        ]

    async def close(self) -> None:
        """Nothing is held."""
