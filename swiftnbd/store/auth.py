# SPDX-License-Identifier: MIT
"""Logging in to Swift: who we are becomes a storage URL and a token.

An `Auth` knows one way to log in and its secrets. It does not cache and does not retry: the
account that uses it asks again when a token has expired, and `Retrying` when a login failed.
"""

import asyncio
import logging
import os
import socket
import ssl
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Protocol
from urllib.parse import urlsplit

from swiftnbd.errors import AccessRefused, StoreError, StoreUnavailable

LOGIN_SECONDS_MAX = 15.0  # Keystone in trouble needs some seconds; a login is asked for again

_PASSING = frozenset({408, 425, 429, 498, 499})


@dataclass(frozen=True, slots=True)
class Login:
    """What a login gives. The token is a secret."""

    storage_url: str
    token: str = field(repr=False)


class Auth(Protocol):
    """One way to log in."""

    async def login(self) -> Login:
        """Log in. `AccessRefused` for a wrong user or key, `StoreUnavailable` for an outage."""
        ...


@dataclass(frozen=True, slots=True)
class V1Auth:
    """Swift's own version 1 authentication (tempauth and its kin): a user and a key."""

    auth_url: str
    user: str
    key: str = field(repr=False)
    seconds_max: float = LOGIN_SECONDS_MAX

    async def login(self) -> Login:
        return await asyncio.to_thread(self._login)

    def _login(self) -> Login:
        # Imported only here: it takes a quarter of a second, and the directory store needs none.
        from requests.exceptions import RequestException
        from swiftclient import client
        from swiftclient.exceptions import ClientException
        from urllib3.exceptions import HTTPError

        _check_url(self.auth_url)
        # At DEBUG it logs the headers, with the first characters of key and token.
        logging.getLogger("swiftclient").setLevel(logging.WARNING)
        try:
            url, token = client.get_auth_1_0(
                self.auth_url, self.user, self.key, timeout=self.seconds_max
            )
        except ClientException as error:
            raise self._refusal(error.http_status, error.http_reason) from None
        except (RequestException, HTTPError, OSError) as error:
            first = _first_cause(error)
            # The texts of the libraries' own errors hold the URL.
            is_plain = isinstance(first, OSError) and not isinstance(first, RequestException)
            reason = _reason(first, self.seconds_max)
            raise StoreUnavailable(f"{self._where}: {reason}") from (first if is_plain else None)
        if not url or not token:
            raise StoreError(f"{self._where}: the answer has no storage URL or no token")
        return Login(url, token)

    @property
    def _where(self) -> str:
        parts = urlsplit(self.auth_url)
        return f"login as {self.user} at {parts.netloc.rpartition('@')[2]}"

    def _refusal(self, status: int | None, reason: str | None) -> StoreError:
        said = f"{self._where}: {status} {reason or ''}".rstrip()
        if status in (401, 403):
            return AccessRefused(f"{self._where} was refused ({status}): wrong user or key")
        if status is None or status >= 500 or status in _PASSING:
            return StoreUnavailable(said)
        return StoreError(f"{said}; is {urlsplit(self.auth_url).path} right for version 1 auth?")


def _first_cause(error: BaseException) -> BaseException:
    """What the libraries wrapped into `error`: the error of a socket, of TLS or of HTTP."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _reason(error: BaseException, seconds: float) -> str:
    """What went wrong, for people, without any text that might hold a URL."""
    if isinstance(error, TimeoutError):
        return f"no answer in {seconds:g} s"
    if isinstance(error, socket.gaierror):
        is_unknown = error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
        return "unknown host" if is_unknown else f"its name is not found: {error.strerror}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its TLS certificate is not valid: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or 'no reason given').replace('_', ' ').lower()}"
    if isinstance(error, ConnectionResetError):
        return "the connection was closed"
    if isinstance(error, HTTPException):
        return "the answer is cut short, or is not HTTP"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return type(error).__name__


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StoreError(f"auth URL {url!r} does not look like http://HOST:PORT/auth/v1.0")
