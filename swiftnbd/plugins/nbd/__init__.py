# SPDX-License-Identifier: MIT
"""``swiftnbd-server nbd nbd://host/export``"""

import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from swiftnbd.api import (
    BOOLEAN,
    PATH,
    SECONDS,
    TEXT,
    ConfigError,
    Device,
    Opening,
    Plugin,
    choice,
    integer,
    parameter,
)
from swiftnbd.plugins.nbd.connection import Server, TlsMode
from swiftnbd.plugins.nbd.device import NbdDevice
from swiftnbd.plugins.nbd.remote import Remote

PORT_DEFAULT: Final = 10809
CONNECTIONS_DEFAULT: Final = 4
RETRIES_DEFAULT: Final = 5
TIMEOUT_SECONDS_DEFAULT: Final = 120.0  # twice what a server of ours tries its store for

_UNIX: Final = ("nbd+unix", "nbds+unix")
_SCHEMES: Final = ("nbd", "nbds", *_UNIX)


@dataclass(frozen=True)
class Nbd(Plugin):
    """An export of another NBD server, to put filters, TLS or access rules in front of it.

    All clients share its connections. A connection that is lost is made again; if that happened
    before all was flushed, everything fails until the clients have left.
    """

    uri: str = parameter(TEXT, "Where it is: nbd://HOST/EXPORT, nbds:// and nbd+unix://.",
                         default="", main=True)  # fmt: skip
    hostname: str = parameter(TEXT, "Or its host.", default="")
    port: str = parameter(TEXT, "The port there.", default=str(PORT_DEFAULT))
    socket: Path | None = parameter(PATH, "Or its Unix socket.", default=None)
    export: str = parameter(TEXT, "The name of the export there, without a URI.", default="")
    retry: int = parameter(
        integer(0, 1_000_000), "How often to try again to connect, once a second.",
        default=RETRIES_DEFAULT,
    )  # fmt: skip
    timeout: float = parameter(
        SECONDS, "How long a request may go without an answer; 0: for ever.",
        default=TIMEOUT_SECONDS_DEFAULT,
    )  # fmt: skip
    connections: int = parameter(
        integer(1, 16), "How many connections, where the server has multi-conn.",
        default=CONNECTIONS_DEFAULT,
    )  # fmt: skip
    tls: TlsMode | None = parameter(
        choice(TlsMode), "Encrypt: never, if the server can, or always.", default=None
    )
    tls_certificates: Path | None = parameter(
        PATH, "A folder with ca-cert.pem, and with client-cert.pem and client-key.pem.",
        default=None,
    )  # fmt: skip
    tls_verify: bool = parameter(BOOLEAN, "Whether the server has to prove itself.", default=True)

    def __post_init__(self) -> None:
        self._server()

    def _server(self) -> Server:
        """Where it is, all but the certificates. Raises `ConfigError`."""
        ways = [bool(self.uri), bool(self.hostname), self.socket is not None]
        if sum(ways) != 1:
            raise ConfigError("give just one of uri, hostname and socket")
        tls = self.tls
        if self.uri:
            host, port, path, export, encrypted = _parsed(self.uri)
            if encrypted:
                if tls not in (None, TlsMode.REQUIRE):
                    raise ConfigError(f"tls={tls.value} does not go with a URI of nbds")
                tls = TlsMode.REQUIRE
            if self.export:
                raise ConfigError("the export is part of the URI")
        else:
            host, port, path, export = self.hostname, self.port, str(self.socket or ""), self.export
        if tls is None:  # as nbdkit has it
            tls = TlsMode.OFF if self.tls_certificates is None else TlsMode.ON
        shown = f"nbd server {path or f'{host}:{port}'}"
        return Server(host, port, path, export, tls, None, shown, self.timeout)

    async def open(self, opening: Opening) -> Device:
        where = self._server()
        context = None if where.tls is TlsMode.OFF else self._context(where)
        server = replace(where, context=context)
        remote = await Remote.open(server, self.connections, self.retry)
        return NbdDevice(remote, read_only=opening.read_only)

    def _context(self, server: Server) -> ssl.SSLContext:
        folder = self.tls_certificates
        try:
            if folder is None:
                context = ssl.create_default_context()
            else:
                context = ssl.create_default_context(cafile=folder / "ca-cert.pem")
                certificate, key = folder / "client-cert.pem", folder / "client-key.pem"
                if certificate.exists():
                    # no password, so an encrypted key does not ask on the terminal
                    context.load_cert_chain(certificate, key, password="")
        except ssl.SSLError as error:
            reason = (error.reason or "no PEM file").replace("_", " ").lower()
            raise ConfigError(f"the certificates in {folder} cannot be used: {reason}") from None
        if server.path or not self.tls_verify:
            context.check_hostname = False  # a socket has no name
        if not self.tls_verify:
            context.verify_mode = ssl.CERT_NONE
        return context


def _parsed(uri: str) -> tuple[str, int | str, str, str, bool]:
    """Host, port, path of a socket, export, and whether it has to be encrypted."""
    try:
        parts = urlsplit(uri)
        port = parts.port or PORT_DEFAULT
        query = parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise ConfigError(f"uri: {error}") from None
    export = unquote(parts.path.removeprefix("/"))
    encrypted = parts.scheme.startswith("nbds")
    if parts.scheme in _UNIX:
        sockets = query.pop("socket", [])
        if len(sockets) == 1 and not query and not parts.netloc:
            return "", 0, sockets[0], export, encrypted
    elif parts.scheme in _SCHEMES and parts.hostname and not query and parts.username is None:
        return parts.hostname, port, "", export, encrypted
    raise ConfigError(
        "uri: write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, and nbds for TLS"
    )
