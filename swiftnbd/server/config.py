# SPDX-License-Identifier: MIT
"""Configuration as frozen values. `swiftnbd.cli` reads it from flags and files, nobody else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from pathlib import Path
from typing import Any

from swiftnbd.api.plugin import FilterPlugin, Plugin
from swiftnbd.export.pace import Pace
from swiftnbd.export.settings import CacheSettings, OutageSettings
from swiftnbd.server.access import Access
from swiftnbd.server.notify import ServiceManager
from swiftnbd.store.bucket_settings import BucketSettings, is_bucket_url
from swiftnbd.store.login import LoginSettings

PORT_DEFAULT = 10809  # IANA's port for NBD
HANDSHAKE_SECONDS_DEFAULT = 10.0  # nobody honest needs one
SLOW_SECONDS_DEFAULT = 1.0  # what a person notices, and a Swift that is well hardly ever takes
CONNECTIONS_DEFAULT = 200  # each may take some memory, see docs/SECURITY.md
CONNECTIONS_PER_ADDRESS_DEFAULT = 100  # so that no single peer takes every place


class OnEnd(Enum):
    """What becomes of requests that come while the server ends."""

    REFUSE = "refuse"  # ESHUTDOWN, so that the client knows why
    CLOSE = "close"  # no answer: a client that connects again sends them again


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """Where the containers are: in ``directory`` on this machine, in the bucket that ``url`` names,
    or on a Swift: then ``url`` is that of the login service, if one was given for all of them."""

    url: str = ""
    directory: Path | None = None

    @property
    def is_bucket(self) -> bool:
        """Whether it is about a bucket."""
        return is_bucket_url(self.url)


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """A plugin that is told what to do, and the name it was found by."""

    name: str
    plugin: Plugin


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """A filter likewise."""

    name: str
    filter: FilterPlugin


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """One container to work on, or what a ``plugin`` makes, behind ``filters``, the first one
    asked first. ``login`` is None for plugins and for the directory store.

    ``cache`` and ``outages`` are the fields of `CacheSettings` and `OutageSettings` in which it
    differs from the server's.
    """

    name: str
    read_only: bool = False
    login: LoginSettings | BucketSettings | None = None
    multi_conn: bool = True
    access: Access = field(default_factory=Access)
    tls_only: bool = False
    cache: Mapping[str, Any] = field(default_factory=dict)
    outages: Mapping[str, Any] = field(default_factory=dict)
    plugin: PluginConfig | None = None
    filters: tuple[FilterConfig, ...] = ()

    def origin(self, auth: AuthConfig) -> str:
        """Where it is: what tells it from other containers of its name. No secret is in it."""
        if auth.directory is not None:
            return str(auth.directory.absolute())
        return "" if self.login is None else self.login.account


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host's name or address, and a port; 0 is any free one."""

    host: str = "127.0.0.1"
    port: int = PORT_DEFAULT


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a Unix socket; None is a socket in a private folder made for it."""

    path: Path | None = None


@dataclass(frozen=True, slots=True)
class InheritedSocket:
    """The descriptor of a socket on which whoever started us listens already."""

    descriptor: int


@dataclass(frozen=True, slots=True)
class Connection:
    """One client that is connected already: what to receive from and what to send to."""

    receive: int  # descriptors
    send: int


ListenAddress = TcpAddress | UnixAddress | InheritedSocket


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """TLS on the NBD side. ``certificates`` is a folder; it or ``psk_file`` has to be there."""

    required: bool = False
    certificates: Path | None = None
    verify_peer: bool = False
    psk_file: Path | None = None


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the server itself needs to know.

    ``listen`` is where clients come in; with a ``connection`` it serves that one, and ends with
    it. ``access`` goes for all exports, ``export_access`` for some of them in addition.
    ``takeover``: from a holder that gives no sign of life. ``cache`` and ``outages`` go for each
    export that does not say otherwise.

    ``http`` is where to serve metrics and the page, None: nowhere. Requests that take
    ``slow_seconds`` are logged, those of clients and those to a Swift. ``manager`` is told how it
    goes.

    ``default_export`` is what the empty name means; None: the only export, if there is but one.
    ``structured_replies`` and ``mask_handshake`` (what is left of the handshake flags) take from
    what clients are offered, to test their fallbacks.
    """

    listen: tuple[ListenAddress, ...] = (TcpAddress(),)
    connection: Connection | None = None
    cache: CacheSettings = field(default_factory=CacheSettings)  # of each export
    handshake_seconds_max: float = HANDSHAKE_SECONDS_DEFAULT
    connections_max: int = CONNECTIONS_DEFAULT
    connections_per_address_max: int = CONNECTIONS_PER_ADDRESS_DEFAULT
    access: Access = field(default_factory=Access)
    export_access: Mapping[str, Access] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    takeover: bool = False
    outages: OutageSettings = field(default_factory=OutageSettings)
    tls: TlsConfig | None = None
    default_export: str | None = None
    list_exports: bool = True
    structured_replies: bool = True
    mask_handshake: int = 0xFFFF
    on_end: OnEnd = OnEnd.REFUSE
    http: TcpAddress | None = None
    slow_seconds: float = inf
    manager: ServiceManager | None = None
