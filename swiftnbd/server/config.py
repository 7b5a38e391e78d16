# SPDX-License-Identifier: MIT
"""Configuration as frozen values. `swiftnbd.cli` reads it from flags and files, nobody else."""

from dataclasses import dataclass, field
from pathlib import Path

PORT_DEFAULT = 10809  # IANA's port for NBD
CACHE_BYTES_DEFAULT = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Credentials:
    """A login. Never shown: neither half of it belongs in a log."""

    username: str = field(repr=False)
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeystoneConfig:
    """How to log in with Keystone instead of v1 auth."""

    separator: str = "."
    service: str = "object-store"
    endpoint: str = "publicURL"
    region: str | None = None


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """Where the containers are: ``url`` of a login service, or ``directory`` on this machine."""

    url: str = ""
    directory: Path | None = None
    keystone: KeystoneConfig | None = None


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """One container to work on; ``credentials`` are None for the directory store only."""

    name: str
    read_only: bool = False
    credentials: Credentials | None = None


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the server itself needs to know. ``bind_port`` 0 is any free port."""

    bind_address: str = "127.0.0.1"
    bind_port: int = PORT_DEFAULT
    cache_bytes: int = CACHE_BYTES_DEFAULT  # for each export
