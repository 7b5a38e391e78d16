# SPDX-License-Identifier: MIT
"""Logging in to Swift: who we are becomes a storage URL and a token.

An `Auth` knows one way to log in and its secrets. It does not cache and does not retry: the
account that uses it asks again when a token is about to expire or was refused, and `Retrying`
when a login failed.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from swiftnbd.errors import StoreUnavailable
from swiftnbd.store.login import LoginSettings, TlsSettings

LOGIN_SECONDS_MAX = 15.0  # Keystone in trouble needs some seconds; a login is asked for again

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Login:
    """What a login gives. The token is a secret.

    ``lifetime_seconds`` is how long the token is valid from now, None if nobody said. ``user``,
    ``project`` and ``region`` are for people, and '' if the answer did not tell.
    """

    storage_url: str
    token: str = field(repr=False)
    lifetime_seconds: float | None = None
    user: str = ""
    project: str = ""
    region: str = ""


class Auth(Protocol):
    """One way to log in."""

    async def login(self) -> Login:
        """Log in. `AccessRefused` for a wrong user or key, `StoreUnavailable` for an outage."""
        ...


@dataclass(frozen=True, slots=True)
class PluginAuth:
    """Any login that keystoneauth1 has a plugin for."""

    settings: LoginSettings
    seconds_max: float = LOGIN_SECONDS_MAX

    async def login(self) -> Login:
        return await in_thread(self._login, self.seconds_max)

    def _login(self) -> Login:
        # Imported only here: it takes some 300 ms, and the directory store needs none.
        from swiftnbd.store.auth_plugins import log_in

        return log_in(self.settings, self.seconds_max)

    async def works_without_project(self) -> bool | None:
        """After a refusal: whether user and password are right and only the project is wrong.

        None: this way to log in knows no difference. Keystone says the same to both.
        """
        return await in_thread(self._works_without_project, self.seconds_max)

    def _works_without_project(self) -> bool | None:
        from swiftnbd.store.auth_plugins import log_in_unscoped

        return log_in_unscoped(self.settings, self.seconds_max)


@dataclass(frozen=True, slots=True)
class V1Auth:
    """Swift's own version 1 authentication (tempauth and its kin): a user and a key."""

    auth_url: str
    user: str
    key: str = field(repr=False)
    seconds_max: float = LOGIN_SECONDS_MAX
    tls: TlsSettings = field(default_factory=TlsSettings)

    async def login(self) -> Login:
        options = (("auth_url", self.auth_url), ("username", self.user), ("password", self.key))
        settings = LoginSettings("v1password", options, tls=self.tls)
        return await PluginAuth(settings, self.seconds_max).login()


async def in_thread(work: Callable[[], T], seconds_max: float) -> T:
    """Run ``work``, which ends by itself after some ``seconds_max``, in a thread of its own.

    Not in one of the loop's: a login service that hangs would take them all from those who hash
    bodies. And nobody waits for this one when the process ends.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(set_outcome: Callable[[], None]) -> None:
        if not future.done():  # nobody waits any more
            set_outcome()

    def run() -> None:
        outcome: Callable[[], None]
        try:
            result = work()
        except BaseException as error:
            failed = error
            outcome = lambda: future.set_exception(failed)  # noqa: E731
        else:
            outcome = lambda: future.set_result(result)  # noqa: E731
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, outcome)

    threading.Thread(target=run, name="login", daemon=True).start()
    try:
        # a second more, so that it can say itself what took so long
        async with asyncio.timeout(seconds_max + 1):
            return await future
    except TimeoutError:
        raise StoreUnavailable(f"login: no answer in {seconds_max:g} s") from None
