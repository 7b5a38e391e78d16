# SPDX-License-Identifier: MIT
"""A Swift account: one token and one set of connections, shared by all containers of a login."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from yarl import URL

from swiftnbd.errors import StoreError, StoreUnavailable
from swiftnbd.metrics import StoreTraffic
from swiftnbd.store.auth import Auth
from swiftnbd.store.base import Buffer
from swiftnbd.store.http import ERROR_BYTES_MAX, Http, Timeouts
from swiftnbd.store.outages import Outages
from swiftnbd.store.swift_answers import Answer

log = logging.getLogger(__name__)


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
        self._http = Http(timeouts or Timeouts(), self.traffic, expect_continue=expect_continue)
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
        await self._http.close()

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
        url = access.url(path, query)
        headers = {**(headers or {}), "X-Auth-Token": access.token}
        return await self._http.send(what, method, url, headers, data, body_max)
