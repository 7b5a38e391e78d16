# SPDX-License-Identifier: MIT
"""Why a login failed, in a sentence that holds no secret.

The libraries' own texts are never used: they hold URLs, and a URL may hold a password.
"""

import os
import socket
import ssl
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import urljoin, urlsplit

from keystoneauth1 import exceptions
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from swiftnbd.errors import AccessRefused, StoreError, StoreUnavailable
from swiftnbd.store.login import LoginSettings

_PASSING = frozenset({408, 425, 429, 498, 499})
_VERSIONS = {"v1password": "version 1 auth", "v2password": "Keystone's version 2.0"}


@dataclass(frozen=True, slots=True)
class Place:
    """Who logs in where; how each message begins."""

    settings: LoginSettings
    seconds_max: float

    def __str__(self) -> str:
        host = urlsplit(self.auth_url).netloc.rpartition("@")[2]
        return f"login {self._who} at {host}"

    @property
    def auth_url(self) -> str:
        return self.settings.option("auth_url")

    @property
    def user(self) -> str:
        return self.settings.option("username") or self.settings.option("user_id")

    @property
    def _who(self) -> str:
        if "applicationcredential" in self.settings.method:
            option = self.settings.option
            name = option("application_credential_id") or option("application_credential_name")
            return f"with application credential {name}"
        if self.user:
            return f"as {self.user}"
        return "with a token" if "token" in self.settings.method else f"by {self.settings.method}"

    @property
    def wrong(self) -> str:
        """What may be wrong if the login is refused."""
        if self.settings.method == "v1password":
            return "wrong user or key"
        if "applicationcredential" in self.settings.method:
            return "it is unknown, expired or revoked, or the secret is wrong"
        names = ("project_name", "project_id", "tenant_name", "tenant_id")
        project = next(filter(None, map(self.settings.option, names)), "")
        what = "the token is wrong or expired" if "token" in self.settings.method else ""
        access = f", or no role in project {project}" if project else ""
        return f"{what or 'wrong user or password'}{access}"

    def check_url(self) -> None:
        """`StoreError` for what is no URL."""
        try:
            parts = urlsplit(self.auth_url)
            _ = parts.port
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            example = "http://HOST:PORT/auth/v1.0" if self.is_v1 else "https://HOST:5000/v3"
            raise StoreError(f"the authentication URL does not look like {example}")

    @property
    def is_v1(self) -> bool:
        return self.settings.method == "v1password"

    def plain_cause(self, error: BaseException) -> BaseException | None:
        """What may stand in a traceback: the error of a socket, and nothing with a URL in it."""
        first = first_cause(error)
        is_plain = isinstance(first, OSError) and not isinstance(first, RequestException)
        return first if is_plain else None


def failed_login(place: Place, error: Exception) -> StoreError:
    """The error of ours for what one of the libraries raised."""
    if isinstance(error, exceptions.HttpError):
        return _refusal(place, 401 if _is_unknown(place, error) else error.http_status)
    if isinstance(error, exceptions.InvalidResponse):
        return _unusable(place, error.response)
    if isinstance(error, exceptions.DiscoveryFailure):
        return StoreUnavailable(f"{place}: it does not say which versions of Keystone it has")
    if isinstance(error, exceptions.AuthPluginException):
        return StoreError(f"{place}: {error}")  # names of options or of a plugin
    if isinstance(error, exceptions.AuthorizationFailure):
        return StoreError(f"{place}: these options do not go together")
    if isinstance(error, (exceptions.ConnectionError, RequestException, HTTPError, OSError)):
        return StoreUnavailable(f"{place}: {reason(first_cause(error), place.seconds_max)}")
    return StoreError(f"{place}: {type(error).__name__}: the answer or the options make no sense")


def _is_unknown(place: Place, error: exceptions.HttpError) -> bool:
    """Whether Keystone's 404 is about what we show it, and not about the URL."""
    said = str(error.message or "").lower()
    is_token = "token" in place.settings.method and " token " in said
    return "application credential" in said or (is_token and error.http_status == 404)


def _refusal(place: Place, status: int) -> StoreError:
    if status in (401, 403):
        return AccessRefused(f"{place} was refused ({status}): {place.wrong}")
    if status >= 500 or status in _PASSING:
        return StoreUnavailable(f"{place}: {status}")
    version = _VERSIONS.get(place.settings.method, "Keystone's version 3")
    path = urlsplit(place.auth_url).path
    return StoreError(f"{place}: {status}; is {path or '/'} right for {version}?")


def _unusable(place: Place, response: object) -> StoreError:
    status = getattr(response, "status_code", 0)
    if 300 <= status < 400:
        try:
            location = getattr(response, "headers", {}).get("Location", "")
            to = urlsplit(urljoin(place.auth_url, location))  # it may be a path alone
            there = f"{to.scheme}://{to.netloc.rpartition('@')[2]}{to.path}"
        except ValueError:
            there = "nowhere"
        return StoreError(f"{place}: {status}: it wants to be asked at {there} instead")
    if place.is_v1:
        return StoreError(f"{place}: the answer has no storage URL or no token")
    return StoreError(f"{place}: {status}: the answer is not one of Keystone")


def first_cause(error: BaseException) -> BaseException:
    """What the libraries wrapped into `error`: the error of a socket, of TLS or of HTTP."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def reason(error: BaseException, seconds: float) -> str:
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
