# SPDX-License-Identifier: MIT
"""The flags both programs share, and what they add up to."""

import functools
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from swiftnbd import __version__
from swiftnbd.cli.completion import complete_file
from swiftnbd.cli.devices import make
from swiftnbd.cli.finding import PLUGINS, close_name
from swiftnbd.cli.flags import flag_group, flags_of
from swiftnbd.cli.login import NO_URL, LoginKeys, check_url
from swiftnbd.cli.login_options import DIRECTORY_SCHEME, LoginFlags, login_options
from swiftnbd.cli.secrets import SECRETS_FILE_DEFAULT, Section, load_secrets
from swiftnbd.cli.sources import has_login, login_of
from swiftnbd.errors import ConfigError, ContainerMissing, StoreError
from swiftnbd.export.pace import Pace
from swiftnbd.server.config import AuthConfig, ExportConfig
from swiftnbd.store.bucket_settings import BucketSettings, is_bucket_url
from swiftnbd.store.checks import check_container_name
from swiftnbd.store.login import LoginSettings

_SETTLE_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class SharedOptions:
    """The shared flags as given. Methods raise ConfigError for what cannot be used."""

    secrets: str | None = None
    verbose: bool = False
    settle: float = Pace().settle_seconds
    login: LoginFlags = field(default_factory=LoginFlags)

    @property
    def pace(self) -> Pace:
        """How to lock."""
        return Pace(settle_seconds=self.settle)

    def auth(self) -> AuthConfig:
        """Where the containers are, checked."""
        url = self.login.auth_url
        if url and self.login.os_cloud:
            raise ConfigError("give either -a or --os-cloud")
        if url.startswith(DIRECTORY_SCHEME):
            return AuthConfig(url, directory=directory_of(url))
        auth = AuthConfig(url)
        if auth.is_bucket:
            self.login_alone()  # raises for what names none
        elif url:
            check_url(url)
        return auth

    def exports(
        self, auth: AuthConfig, names: Sequence[str] = (), *, made: bool = False
    ) -> tuple[ExportConfig, ...]:
        """The containers of these ``names``, or all there are to work on; at least one.

        ``made``: also what plugins make, and with filters; else there are containers only.
        """
        sections = self._sections(auth, needed=not names)
        if names:
            return tuple(self._export(auth, sections, name, made) for name in dict.fromkeys(names))
        if sections is not None:
            found = [each for each in sections.values() if made or each.wanted.plugin is None]
            if not found:
                raise ConfigError("the secrets file names no container, only what plugins make")
            return tuple(self._of_section(auth, section, made) for section in found)
        exports = self._all(auth)
        if not exports:
            folder = auth.directory
            missing = "" if folder is None or folder.exists() else ", which does not exist"
            raise ContainerMissing(
                f"no container is set up under {folder or auth.url}{missing}; "
                f"run: swiftnbd-ctl -a {shlex.quote(auth.url)} setup NAME --size 1G"
            )
        return exports

    def _all(self, auth: AuthConfig) -> tuple[ExportConfig, ...]:
        """All containers where no secrets file tells of them."""
        login = self.login_alone() if auth.is_bucket else None
        if isinstance(login, BucketSettings):
            from swiftnbd.cli.buckets import containers_in

            return tuple(ExportConfig(name, login=login) for name in containers_in(login))
        from swiftnbd.store.directory import containers  # late: --help needs none of it

        assert auth.directory is not None
        return tuple(ExportConfig(name) for name in containers(auth.directory))

    def export(self, auth: AuthConfig, container: str) -> ExportConfig:
        """The one container a command names."""
        return self.exports(auth, (container,))[0]

    @property
    def has_secrets(self) -> bool:
        """Whether there is a secrets file to look at, and it can be read."""
        if self.secrets is None and is_bucket_url(self.login.auth_url):
            return False
        return self.secrets is not None or os.access(SECRETS_FILE_DEFAULT, os.R_OK)

    def knows_containers(self, auth: AuthConfig) -> bool:
        """Whether anything says where containers are."""
        return (
            self.secrets is not None
            or auth.directory is not None
            or auth.is_bucket
            or os.path.exists(SECRETS_FILE_DEFAULT)
            or bool(self._has_login() or self.login.auth_url)
        )

    def login_alone(self) -> LoginSettings | BucketSettings | None:
        """The login of flags and environment, for no container in particular, if there is one."""
        if not self._has_login():
            return None
        return login_of(_nothing("the login"), self.login.keys(), os.environ)

    def _sections(self, auth: AuthConfig, *, needed: bool) -> dict[str, Section] | None:
        """The secrets file by container; None if there is none to look at."""
        path = self.secrets or SECRETS_FILE_DEFAULT
        if self.secrets is None:
            if auth.directory is not None or auth.is_bucket:
                return None
            # one that is another user's business does not keep us from a login that needs none
            if not self.has_secrets and not needed and self._has_login():
                return None
            if not self.knows_containers(auth):
                raise ConfigError(NO_URL)
        return {section.export.name: section for section in load_secrets(path)}

    def _has_login(self) -> bool:
        # who names a file does not mean whatever happens to be in the environment
        return has_login(self.login.keys(), os.environ, ambient=self.secrets is None)

    def is_export(self, auth: AuthConfig, name: str) -> bool:
        """Whether a section, or a container in the folder, has this name."""
        if auth.directory is not None and self.secrets is None:
            from swiftnbd.store.directory import containers

            return name in containers(auth.directory)
        if not self.has_secrets:
            return False
        try:
            sections = load_secrets(self.secrets or SECRETS_FILE_DEFAULT)
        except ConfigError:
            if self.secrets is not None:
                raise
            return False  # a file that nobody named; who needs it will be told
        return any(section.export.name == name for section in sections)

    def _export(
        self, auth: AuthConfig, sections: dict[str, Section] | None, name: str, made: bool
    ) -> ExportConfig:
        try:
            check_container_name(name)
        except StoreError as error:
            raise ConfigError(str(error)) from None
        if sections is not None and name in sections:
            return self._of_section(auth, sections[name], made)
        if auth.directory is None and self._has_login():
            return self._with_login(
                auth, Section(ExportConfig(name), _nothing(f"the login for {name}"))
            )
        if auth.directory is None or sections is not None:
            path = self.secrets or SECRETS_FILE_DEFAULT
            raise ContainerMissing(
                f"{name} not found in {path}: add a section [{name}]{_or_plugin(name, made)}"
            )
        return ExportConfig(name)

    def _of_section(self, auth: AuthConfig, section: Section, made: bool) -> ExportConfig:
        if not made:
            if section.wanted.plugin is not None:
                name = section.export.name
                raise ConfigError(f"{name} is made by a plugin: there is no container")
            return self._with_login(auth, section)
        try:
            plugin, filters = make(section.wanted)
        except ConfigError as error:
            raise ConfigError(f"{section.login.where}: {error}") from None
        export = replace(section.export, plugin=plugin, filters=filters)
        return self._with_login(auth, replace(section, export=export))

    def _with_login(self, auth: AuthConfig, section: Section) -> ExportConfig:
        if auth.directory is not None or section.export.plugin is not None:
            return section.export
        return replace(section.export, login=login_of(section.login, self.login.keys(), os.environ))


_flag = flags_of("Where the containers are")

_shared_options = flag_group(
    "options",
    lambda secrets, settle, verbose: SharedOptions(secrets, verbose, settle),
    click.version_option(__version__, message="%(prog)s %(version)s"),
    _flag(
        "--secrets",
        metavar="FILE",
        shell_complete=complete_file,
        help=f"File with the containers and their logins (default: {SECRETS_FILE_DEFAULT}; "
        "with file:DIR and s3://BUCKET none is needed).",
    ),
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


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags of both programs; it receives them as ``options``."""

    @functools.wraps(command)
    def with_login(*args: Any, options: SharedOptions, login: LoginFlags, **rest: Any) -> Any:
        return command(*args, options=replace(options, login=login), **rest)

    return login_options(_shared_options(with_login))


def _or_plugin(name: str, made: bool) -> str:
    """A hint for who mistyped the name of a plugin."""
    near = close_name(name, PLUGINS) if made else None
    return f"; or is the plugin {near} meant?" if near else ""


def _nothing(where: str) -> LoginKeys:
    return LoginKeys(where=where, without_section=True)


def directory_of(url: str) -> Path:
    """The folder of ``file:DIR`` or ``file:///DIR``, absolute: a daemon changes directory."""
    path = url.removeprefix(DIRECTORY_SCHEME)
    if path.startswith("//"):
        path = "/" + path.lstrip("/") if path.startswith("///") else ""
    if not path:
        raise ConfigError(f"{url!r} names no folder: write file:DIR")
    return Path(path).expanduser().absolute()
