# SPDX-License-Identifier: MIT
"""A Swift account: one token and one set of connections, shared by all containers of a login."""

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from yarl import URL

from swiftnbd.errors import AccessRefused, StoreError, StoreUnavailable
from swiftnbd.metrics import StoreTraffic
from swiftnbd.store.auth import Auth, Login
from swiftnbd.store.base import Body
from swiftnbd.store.http import ERROR_BYTES_MAX, Http, Timeouts
from swiftnbd.store.login import TlsSettings
from swiftnbd.store.outages import Outages
from swiftnbd.store.swift_answers import Answer

# A token is renewed when a fifth of its life is left, but at most five minutes early: that outlasts
# most outages of the login service.
RENEW_LIFE_PART = 5
RENEW_SECONDS_MAX = 300.0
RENEW_AGAIN_SECONDS = 5.0  # after a renewal that failed, or that gave the same old token
# A wrong password does not become right by asking again, and some services lock the user out.
REFUSED_SECONDS = 10.0
# 401 with a fresh token: Swift cannot ask Keystone. New logins would only make that worse.
REJECTED_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Access:
    """What a login gave. ``expires_at`` is a monotonic time."""

    storage: URL
    token: str
    expires_at: float

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
        tls: TlsSettings | None = None,
        expect_continue: bool = True,
        traffic: StoreTraffic | None = None,
        outages: Outages | None = None,
    ) -> None:
        """``expect_continue`` False is for a proxy in between that cannot: PUTs would hang.

        ``outages``: shared with other accounts of the same Swift; whoever made them closes them.
        """
        self.traffic = StoreTraffic() if traffic is None else traffic
        self.outages = Outages() if outages is None else outages
        self._has_own_outages = outages is None
        self._auth = auth
        self._http = Http(
            timeouts or Timeouts(),
            self.traffic,
            tls=TlsSettings() if tls is None else tls,
            expect_continue=expect_continue,
        )
        self._access: _Access | None = None
        self._logging_in: asyncio.Task[None] | None = None
        self._renew_at = math.inf
        self._refused: tuple[float, str] = (-math.inf, "")  # until when, and why
        self._rejected_until = -math.inf
        self._closed = False

    async def request(
        self,
        what: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        data: Body | None = None,
        body_max: int = ERROR_BYTES_MAX,
    ) -> Answer:
        """Send one request for ``path`` (already percent-encoded, below the account).

        A 401 is answered with a login, shared with everybody else who got one, and the request
        is sent once more. A second 401 is an outage of the authentication behind Swift, and so
        is any for a moment after that. ``what`` begins the message of an error.
        """
        access = await self._current_access(stale=None)
        answer = await self._send(what, access, method, path, query, headers, data, body_max)
        if answer.status == 401 and time.monotonic() >= self._rejected_until:
            access = await self._current_access(stale=access)
            answer = await self._send(what, access, method, path, query, headers, data, body_max)
            if answer.status == 401:
                self._rejected_until = time.monotonic() + REJECTED_SECONDS
        if answer.status == 401:
            raise StoreUnavailable(f"{what}: 401 right after a fresh login")
        return answer

    async def login(self) -> Login:
        """Log in now, whatever is known already, and use that from now on."""
        login = await self._auth.login()
        self._use(login)
        return login

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        if self._logging_in is not None:
            self._logging_in.cancel()
            await asyncio.wait([self._logging_in])
        await self._http.close()
        if self._has_own_outages:
            self.outages.close()

    async def _current_access(self, stale: _Access | None) -> _Access:
        """The access to use, which is not ``stale``; there is at most one login under way."""
        while self._access is None or self._access is stale:
            if self._closed:
                raise StoreError("the Swift account is closed")
            until, why = self._refused
            if time.monotonic() < until:
                raise AccessRefused(why)
            under_way = self._start_login()
            await asyncio.wait([under_way])  # not itself: one who gives up must not cancel it
            if under_way.cancelled():
                raise StoreError("the Swift account is closed")
            under_way.result()
        if time.monotonic() >= self._renew_at and not self._closed:
            self._renew()
        return self._access

    def _start_login(self) -> asyncio.Task[None]:
        if self._logging_in is None:
            self._logging_in = asyncio.create_task(self._log_in())
            self._logging_in.add_done_callback(self._logged_in)
        return self._logging_in

    def _renew(self) -> None:
        """Have a new token fetched while the present one still serves."""
        self._renew_at = time.monotonic() + RENEW_AGAIN_SECONDS
        if self._logging_in is None:
            self._start_login().add_done_callback(self._renewed)

    def _renewed(self, task: asyncio.Task[None]) -> None:
        """A renewal is over. One that failed is not the last; the next waits its turn."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StoreError) and self._access is not None:
            left = max(0.0, self._access.expires_at - time.monotonic())
            level = logging.WARNING if isinstance(error, AccessRefused) else logging.INFO
            log.log(level, "%s; the present token is good for another %.0f s", error, left)

    async def _log_in(self) -> None:
        try:
            self._use(await self._auth.login())
        except AccessRefused as error:
            self._refused = (time.monotonic() + REFUSED_SECONDS, str(error))
            raise

    def _use(self, login: Login) -> None:
        try:
            url = URL(login.storage_url)
        except ValueError:
            url = URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise StoreError(f"the login gave a storage URL that is none: {login.storage_url}")
        if self._access is not None and url.raw_path != self._access.storage.raw_path:
            # every disk would continue as what happens to be there under its name
            raise StoreError(
                f"the login leads to another account now: {url.raw_path}, "
                f"no longer {self._access.storage.raw_path}"
            )
        life = math.inf if login.lifetime_seconds is None else login.lifetime_seconds
        now = time.monotonic()
        early = min(RENEW_SECONDS_MAX, life / RENEW_LIFE_PART)
        self._renew_at = now + max(life - early, RENEW_AGAIN_SECONDS)
        self._access = _Access(url, login.token, now + life)
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
        data: Body | None,
        body_max: int,
    ) -> Answer:
        url = access.url(path, query)
        headers = {**(headers or {}), "X-Auth-Token": access.token}
        return await self._http.send(what, method, access.storage, url, headers, data, body_max)
