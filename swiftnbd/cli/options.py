# SPDX-License-Identifier: MIT
"""The flags both programs share, and what they add up to."""

from dataclasses import dataclass
from pathlib import Path

import click

from swiftnbd import __version__
from swiftnbd.cli.flags import flag_group, flags_of
from swiftnbd.cli.secrets import SECRETS_FILE_DEFAULT, load_secrets
from swiftnbd.errors import ConfigError, ContainerMissing, StoreError
from swiftnbd.export.pace import Pace
from swiftnbd.server.config import AuthConfig, ExportConfig, KeystoneConfig
from swiftnbd.store.checks import check_container_name

DIRECTORY_SCHEME = "file:"

_KEYSTONE = KeystoneConfig()

_SETTLE_SECONDS_MAX = 60.0

_flag = flags_of("Where the containers are")

_SHARED = (
    click.version_option(__version__, message="%(prog)s %(version)s"),
    _flag(
        "--secrets",
        metavar="FILE",
        help=f"File with the containers and their logins (default: {SECRETS_FILE_DEFAULT}; "
        "with file:DIR none is needed).",
    ),
    _flag(
        "-a",
        "--auth-url",
        metavar="URL",
        default="",
        help="Where to log in: the v1 authentication URL of a Swift, or file:DIR for containers "
        "kept as folders under DIR. There is no default (that of swiftnbd 0.11 is gone).",
    ),
    _flag(
        "-k",
        "--keystone-auth",
        is_flag=True,
        help="Log in with Keystone (not supported in this version yet).",
    ),
    _flag(
        "--keystone-separator",
        metavar="CHAR",
        default=_KEYSTONE.separator,
        show_default=True,
        help="What stands between tenant and user in the username.",
    ),
    _flag(
        "--keystone-service",
        metavar="TYPE",
        default=_KEYSTONE.service,
        show_default=True,
        help="Type of the service to look up.",
    ),
    _flag(
        "--keystone-endpoint",
        metavar="TYPE",
        default=_KEYSTONE.endpoint,
        show_default=True,
        help="Type of the endpoint to look up.",
    ),
    _flag("--keystone-region", metavar="NAME", help="Region to look up (optional)."),
    _flag(
        "--settle",
        type=click.FloatRange(0.1, _SETTLE_SECONDS_MAX),
        metavar="SECONDS",
        default=Pace().settle_seconds,
        show_default=True,
        help="How long locking on a Swift waits for others who try at the same moment; a PUT must "
        "take less than half of it. The same for all who use a container.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Log what is being done, in detail."),
)


@dataclass(frozen=True, slots=True)
class SharedOptions:
    """The shared flags as given. Methods raise ConfigError for what cannot be used."""

    secrets: str | None
    auth_url: str
    keystone: KeystoneConfig | None
    verbose: bool
    settle: float = Pace().settle_seconds

    @property
    def pace(self) -> Pace:
        """How to lock."""
        return Pace(settle_seconds=self.settle)

    def auth(self) -> AuthConfig:
        """Where to log in, checked."""
        if self.keystone is not None:
            raise ConfigError(
                "Keystone login (-k) is not supported in this version yet: "
                "use the v1 authentication URL of the Swift"
            )
        if not self.auth_url:
            raise ConfigError(
                "no authentication URL: give -a URL for a Swift (such as "
                "https://swift.example.com/auth/v1.0), or -a file:DIR for a local folder"
            )
        if self.auth_url.startswith(DIRECTORY_SCHEME):
            return AuthConfig(self.auth_url, directory=_directory(self.auth_url))
        if not self.auth_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"authentication URL {self.auth_url!r} begins with none of https://, http://, file:"
            )
        return AuthConfig(self.auth_url)

    def exports(self, auth: AuthConfig) -> tuple[ExportConfig, ...]:
        """All containers there are to work on, at least one."""
        if auth.directory is None:
            return load_secrets(self.secrets or SECRETS_FILE_DEFAULT)
        if self.secrets is not None:
            return load_secrets(self.secrets, need_login=False)
        from swiftnbd.store.directory import containers  # late: --help needs none of it

        exports = tuple(ExportConfig(name) for name in containers(auth.directory))
        if not exports:
            missing = "" if auth.directory.exists() else ", which does not exist"
            raise ContainerMissing(
                f"no container is set up under {auth.directory}{missing}; "
                f"run: swiftnbd-ctl -a {auth.url} setup NAME --size 1G"
            )
        return exports

    def export(self, auth: AuthConfig, container: str) -> ExportConfig:
        """The one container a command names."""
        try:
            check_container_name(container)
        except StoreError as error:
            raise ConfigError(str(error)) from None
        if auth.directory is not None and self.secrets is None:
            return ExportConfig(container)
        for export in self.exports(auth):
            if export.name == container:
                return export
        path = self.secrets or SECRETS_FILE_DEFAULT
        raise ContainerMissing(f"{container} not found in {path}: add a section [{container}]")


def _shared(
    secrets: str | None,
    auth_url: str,
    keystone_auth: bool,
    keystone_separator: str,
    keystone_service: str,
    keystone_endpoint: str,
    keystone_region: str | None,
    settle: float,
    verbose: bool,
) -> SharedOptions:
    keystone = KeystoneConfig(
        keystone_separator, keystone_service, keystone_endpoint, keystone_region
    )
    return SharedOptions(secrets, auth_url, keystone if keystone_auth else None, verbose, settle)


shared_options = flag_group("options", _shared, *_SHARED)


def _directory(url: str) -> Path:
    """The folder of ``file:DIR`` or ``file:///DIR``, absolute: a daemon changes directory."""
    path = url.removeprefix(DIRECTORY_SCHEME)
    if path.startswith("//"):
        path = "/" + path.lstrip("/") if path.startswith("///") else ""
    if not path:
        raise ConfigError(f"{url!r} names no folder: write file:DIR")
    return Path(path).expanduser().absolute()
