# SPDX-License-Identifier: MIT
"""``swiftnbd-server http https://host/disk.img``

The file is pinned when it is opened: its size, and its ETag or the time of its last change. Every
answer is compared with them, so that what is read is all of one file or an error.
"""

import asyncio
import logging
import os
import re
import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from errno import EIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swiftnbd.api import (
    BOOLEAN,
    PATH,
    SECONDS,
    TEXT,
    Buffer,
    ConfigError,
    Device,
    ExportError,
    Kind,
    Opening,
    Plugin,
    StoreUnavailable,
    integer,
    parameter,
)
from swiftnbd.errors import ExportUnusable

if TYPE_CHECKING:
    import aiohttp

CONNECTIONS_DEFAULT: Final = 16
RETRIES_DEFAULT: Final = 5
TIMEOUT_SECONDS_DEFAULT: Final = 30.0
TOTAL_FACTOR: Final = 10  # of the time-out: one that trickles is given up, too
RETRY_SECONDS: Final = 0.25  # before the first retry, doubled each time
RETRY_SECONDS_MAX: Final = 8.0
REDIRECTS_MAX: Final = 10
SECRET_BYTES_MAX: Final = 64 * 1024
PROBE_BYTES: Final = 512  # BusyBox takes the range 0-0 for all of it
BLOCK_BYTES: Final = 64 * 1024  # what is worth a request

_URL: Final = re.compile(r"(https?)://([^/?#@]+)(/[^?#]*)?(?:[?#]|$)", re.IGNORECASE)
_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})", re.IGNORECASE)
_IN_PASSING: Final = (408, 425, 429, 500, 502, 503, 504)

log = logging.getLogger(__name__)


def shown(url: str) -> str:
    """A URL without its query, which may be secret."""
    match = _URL.match(url)
    return f"{match[1]}://{match[2]}{match[3] or ''}" if match else "..."


URL: Final = Kind("URL", "a URL", str, shown)


@dataclass(frozen=True)
class Http(Plugin):
    """A file of a web server, read-only and in parts.

    The server has to give ranges. Should the file change, what is read fails from then on.
    """

    url: str = parameter(URL, "The file, http:// or https://.", main=True)
    header: tuple[str, ...] = parameter(
        TEXT, "NAME: VALUE, sent with every request.", repeated=True, secret=True
    )
    user: str = parameter(TEXT, "Who logs in (Basic).", default="")
    password: str = parameter(
        TEXT, "The password; +FILE is where it stands.", default="", secret=True
    )
    cainfo: Path | None = parameter(
        PATH, "The certificates of the authorities to trust, PEM.", default=None
    )
    sslverify: bool = parameter(BOOLEAN, "Whether the server has to prove itself.", default=True)
    followlocation: bool = parameter(BOOLEAN, "Whether to follow redirects.", default=True)
    unix_socket_path: Path | None = parameter(PATH, "A Unix socket to connect to.", default=None)
    timeout: float = parameter(
        SECONDS, "How long nothing may come.", default=TIMEOUT_SECONDS_DEFAULT
    )
    retries: int = parameter(
        integer(0, 100), "How often a request that failed in passing is sent again.",
        default=RETRIES_DEFAULT,
    )  # fmt: skip
    connections: int = parameter(
        integer(1, 256), "How many requests are at work at once.", default=CONNECTIONS_DEFAULT
    )

    def __post_init__(self) -> None:
        if _URL.match(self.url) is None:
            raise ConfigError("url: it has to begin with http://HOST/ or https://HOST/, "
                              "and user and password are keys of their own")  # fmt: skip
        if ":" in self.user:
            raise ConfigError("user: there cannot be a colon in it")
        if not self.timeout:
            raise ConfigError("timeout: nothing can be done in no time")
        for header in self.header:
            name, colon, value = header.partition(":")
            if not colon or not re.fullmatch(r"[!#-'*+.^-z|~0-9A-Z-]+", name):
                raise ConfigError("header: it is not NAME: VALUE")
            if not value.isprintable():
                raise ConfigError(f"header: the value of {name} cannot be sent")

    async def open(self, opening: Opening) -> Device:
        session = self._session()
        try:
            return HttpDevice(await _Source.look(self, session), self.retries)
        except BaseException:
            await session.close()
            raise

    def _session(self) -> "aiohttp.ClientSession":
        import aiohttp

        connector: aiohttp.BaseConnector
        if self.unix_socket_path is None:
            connector = aiohttp.TCPConnector(limit=self.connections)
        else:
            connector = aiohttp.UnixConnector(str(self.unix_socket_path), limit=self.connections)
        timeout = aiohttp.ClientTimeout(
            total=self.timeout * TOTAL_FACTOR, sock_connect=self.timeout, sock_read=self.timeout
        )
        pairs = (header.partition(":")[::2] for header in self.header)
        headers = [("Accept-Encoding", "identity"), *((name, text.strip()) for name, text in pairs)]
        if self.user:
            login = f"{self.user}:{self._password()}".encode()
            headers.append(("Authorization", f"Basic {b64encode(login).decode()}"))
        return aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            headers=headers,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def _password(self) -> str:
        if not self.password.startswith("+"):
            return self.password
        with Path(self.password[1:]).expanduser().open("rb") as file:
            return file.read(SECRET_BYTES_MAX).decode("utf-8", "replace").rstrip("\r\n")

    def context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.cainfo)
        except ssl.SSLError:
            raise ConfigError(f"{self.cainfo} holds no certificates in PEM") from None
        if not self.sslverify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


class _Passing(Exception):
    """A try failed in a way that the next one may not."""


@dataclass(frozen=True, slots=True)
class _Pin:
    """Which version of a file it is, as far as the server says."""

    size: int
    etag: str
    changed: str

    @classmethod
    def of(cls, size: int, headers: Mapping[str, str]) -> "_Pin":
        etag = headers.get("ETag", "").strip()
        # a strong one says all; a time has a second for its grain, and may differ between servers
        changed = "" if _is_strong(etag) else headers.get("Last-Modified", "").strip()
        return cls(size, etag, changed)

    @property
    def conditions(self) -> dict[str, str]:
        """Headers by which the server declines to send anything else."""
        if _is_strong(self.etag):
            return {"If-Match": self.etag}
        return {"If-Unmodified-Since": self.changed} if self.changed else {}


def _is_strong(etag: str) -> bool:
    return bool(etag) and not etag.startswith("W/")


class _Source:
    """The file, in single tries."""

    def __init__(self, http: Http, session: "aiohttp.ClientSession") -> None:
        self.session = session
        self.shown = shown(http.url)
        self._url = http.url
        self._options: dict[str, Any] = {
            "allow_redirects": http.followlocation,
            "max_redirects": REDIRECTS_MAX,
            "ssl": http.context(),  # a redirect may lead to https
        }
        self.pin = _Pin(0, "", "")

    @classmethod
    async def look(cls, http: Http, session: "aiohttp.ClientSession") -> "_Source":
        """See what is there, and that its parts can be had."""
        source = cls(http, session)
        try:
            await source._look()
        except _Passing as error:
            raise StoreUnavailable(str(error)) from None
        except ExportError as error:
            raise ExportUnusable(str(error)) from None
        return source

    async def _look(self) -> None:
        try:
            size = await self._head()
        except _Passing:  # some servers can GET only; if it is more than that, GET has it as well
            size = None
        if size == 0:
            return
        async with _Try(self, "GET", {"Range": f"bytes=0-{PROBE_BYTES - 1}"}) as answer:
            pin = self._pin_of(answer, 0, PROBE_BYTES)
        if size is not None and pin.size != size:
            raise ExportError(EIO, f"{self.shown} has {size} bytes or {pin.size}: it says both")
        self.pin = pin
        if not pin.etag and not pin.changed:
            log.warning(
                "%s: the server gives neither ETag nor Last-Modified, so if the file is "
                "replaced by one of the same size, that may not be noticed", self.shown,
            )  # fmt: skip

    async def _head(self) -> int | None:
        """The size, if that is how it can be had: some URLs are for GET only."""
        async with _Try(self, "HEAD", {}) as answer:
            if answer.status != 200:
                return None
            if answer.headers.get("Accept-Ranges", "").strip().lower() == "none":
                raise ExportError(EIO, f"{self.shown}: the server gives no parts of it (ranges)")
            return answer.content_length

    async def read(self, offset: int, length: int) -> bytes:
        """One try."""
        wanted = {"Range": f"bytes={offset}-{offset + length - 1}", **self.pin.conditions}
        async with _Try(self, "GET", wanted) as answer:
            if self._pin_of(answer, offset, length) != self.pin:
                raise self._changed()
            data = await answer.content.readexactly(length)
            if await answer.content.read(1):
                raise ExportError(EIO, f"{self.shown}: more came than {length} bytes")
            return data

    def _pin_of(self, answer: "aiohttp.ClientResponse", offset: int, length: int) -> _Pin:
        """What an answer with this range in it is of."""
        if answer.status == 412:
            raise self._changed()
        if answer.status == 200:
            raise ExportError(EIO, f"{self.shown}: the server gives no parts of it (ranges)")
        if answer.status != 206:
            raise ExportError(EIO, f"{self.shown}: {answer.status} {answer.reason}")
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if found is None or encoding != "identity":
            raise ExportError(EIO, f"{self.shown}: the server gives something else than a range")
        begin, last, size = map(int, found.groups())
        if self.pin.size and size != self.pin.size:
            raise self._changed()
        if (begin, last) != (offset, min(offset + length, size) - 1):
            raise ExportError(EIO, f"{self.shown}: the server gives another range than asked for")
        return _Pin.of(size, answer.headers)

    def _changed(self) -> ExportError:
        return ExportError(EIO, f"{self.shown} has changed since it was opened")

    def request(self, method: str, headers: Mapping[str, str]) -> Any:
        return self.session.request(method, self._url, headers=headers, **self._options)


class _Try:
    """A request and its answer as a context. What goes wrong is `_Passing` or `ExportError`."""

    def __init__(self, source: _Source, method: str, headers: Mapping[str, str]) -> None:
        self._shown = source.shown
        self._request = source.request(method, headers)

    async def __aenter__(self) -> "aiohttp.ClientResponse":
        try:
            answer: aiohttp.ClientResponse = await self._request.__aenter__()
        except Exception as error:
            raise self._meant(error) from error
        if answer.status in _IN_PASSING:
            answer.close()
            raise _Passing(f"{self._shown}: {answer.status} {answer.reason}")
        return answer

    async def __aexit__(self, kind: type[BaseException] | None, error: Any, *_: object) -> None:
        await self._request.__aexit__(kind, error, None)
        if isinstance(error, Exception):
            raise self._meant(error) from error

    def _meant(self, error: Exception) -> Exception:
        import aiohttp

        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return ExportError(EIO, f"{self._shown}: {error.certificate_error}")
        if isinstance(error, (aiohttp.InvalidURL, aiohttp.TooManyRedirects)):
            return ExportError(EIO, f"{self._shown}: {type(error).__name__}")
        if isinstance(error, (aiohttp.ClientError, TimeoutError, OSError, EOFError)):
            return _Passing(f"{self._shown}: {self._reason(error)}")
        return error

    def _reason(self, error: Exception) -> str:
        import aiohttp

        if isinstance(error, TimeoutError):
            return "no answer"
        if isinstance(error, (aiohttp.ClientPayloadError, EOFError)):
            return "it ended early"
        if isinstance(error, aiohttp.ServerDisconnectedError):
            return "the connection was closed"
        number = getattr(error, "errno", None) or 0
        text = os.strerror(number) if number > 0 else getattr(error, "strerror", "")
        return text or type(error).__name__  # its own text may have the bytes that came in it


class HttpDevice(Device):
    """What ``source`` has been found to be."""

    block_size = BLOCK_BYTES

    def __init__(self, source: _Source, retries: int) -> None:
        self.size = source.pin.size
        self._source = source
        self._retries = retries

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        delay = RETRY_SECONDS
        for retry in range(self._retries + 1):
            try:
                return (await self._source.read(offset, length),)
            except _Passing as error:
                if retry == self._retries:
                    raise ExportError(EIO, f"{error}, {retry + 1} times") from None
                log.info("%s; it is tried again in %.2f s", error, delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_SECONDS_MAX)
        raise AssertionError("unreachable")

    async def close(self) -> None:
        await self._source.session.close()
