# SPDX-License-Identifier: MIT
"""From the server's flags, and the files that they name, to all that it is to do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from swiftnbd.cli.accounts import account_of
from swiftnbd.cli.cache import CacheOptions, check_folder
from swiftnbd.cli.devices import Wanted, is_pair, make, pairs, warn_of_secrets
from swiftnbd.cli.finding import PLUGINS, SWIFT, find_plugin, no_such, plugin_name
from swiftnbd.cli.login import NO_URL
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.outages import OutageOptions
from swiftnbd.cli.process_options import PID_FILE_DEFAULT, ProcessOptions
from swiftnbd.cli.server_options import ExportOptions, HandshakeOptions, ListenOptions, LockOptions
from swiftnbd.cli.tls import TlsOptions
from swiftnbd.errors import ConfigError
from swiftnbd.export.settings import CacheSettings, OutageSettings
from swiftnbd.server.config import (
    AuthConfig,
    Connection,
    ExportConfig,
    ListenAddress,
    OnEnd,
    ServerConfig,
)
from swiftnbd.server.notify import ServiceManager
from swiftnbd.server.privileges import Account


@dataclass(frozen=True, slots=True)
class Plan:
    """All that was read from flags and files."""

    server: ServerConfig
    auth: AuthConfig
    exports: tuple[ExportConfig, ...]
    pid_file: str | None = None
    command: str | None = None  # to run meanwhile
    account: Account | None = None  # whom to run as
    is_captive: bool = False  # whoever has started it in such a way waits for it

    def cache_of(self, export: ExportConfig) -> CacheSettings:
        """How one of the exports is cached."""
        return replace(self.server.cache, **export.cache)

    def is_tls_only(self, name: str) -> bool:
        """Whether clients need TLS for the export ``name``."""
        if self.server.tls is not None and self.server.tls.required:
            return True
        return any(export.tls_only for export in self.exports if export.name == name)


@dataclass(frozen=True, slots=True)
class Flags:
    """The command line."""

    options: SharedOptions
    listen: ListenOptions
    serving: ExportOptions
    caching: CacheOptions
    encryption: TlsOptions
    locking: LockOptions
    outage: OutageOptions
    handshake: HandshakeOptions
    process: ProcessOptions
    arguments: tuple[str, ...]

    def plan(
        self,
        addresses: tuple[ListenAddress, ...],
        connection: Connection | None = None,
        manager: ServiceManager | None = None,
        *,
        is_captive: bool = False,
    ) -> Plan:
        """What they say together with the files and the environment, as these are now.

        Raises ConfigError and ContainerMissing.
        """
        auth = self.options.auth()
        exports = self.serving.exports(self._exports(auth))
        longest = max(
            (outages_of(each, self.outage.settings).seconds for each in exports if not each.plugin),
            default=0.0,
        )
        plan = Plan(
            ServerConfig(
                addresses,
                connection,
                cache=self.caching.settings,
                handshake_seconds_max=self.handshake.handshake_timeout,
                connections_max=self.serving.max_connections,
                connections_per_address_max=self.serving.max_connections_per_address,
                access=self.serving.access,
                export_access={export.name: export.access for export in exports},
                tls=self.encryption.config(exports),
                default_export=self.serving.default_export,
                list_exports=not self.serving.no_list,
                structured_replies=not self.handshake.no_sr,
                on_end=OnEnd(self.handshake.on_end),
                mask_handshake=self.handshake.mask_handshake,
                pace=self.locking.pace(
                    self.options.settle, longest if auth.directory is None else 0.0
                ),
                takeover=self.locking.takeover,
                outages=self.outage.settings,
                http=self.process.http,
                slow_seconds=self.process.slow,
                manager=manager,
            ),
            auth,
            exports,
            self.process.pid_file or (None if is_captive else PID_FILE_DEFAULT),
            self.listen.run,
            account_of(self.process.user, self.process.group),
            is_captive=is_captive,
        )
        for folder in {plan.cache_of(export).disk_directory for export in exports}:
            if folder is not None:
                check_folder(folder)
        return plan

    def _exports(self, auth: AuthConfig) -> tuple[ExportConfig, ...]:
        """What the arguments name: a plugin and what it is told, or containers."""
        words, filters = list(self.arguments), self.serving.filters
        if words and self._names_plugin(auth, words):
            plugin, *rest = words
            made, above = make(Wanted(plugin, filters, pairs(rest)))
            warn_of_secrets(pairs(rest), made, above)
            name = self.serving.default_export or plugin_name(plugin)
            return (ExportConfig(name, plugin=made, filters=above),)
        if words[:1] == [SWIFT] and not self.options.is_export(auth, SWIFT):
            del words[0]
        elif words and (not filters or not is_pair(words[0])):
            self._check_no_plugin_was_meant(auth, words)
        said = [word for word in words if is_pair(word)] if filters else []
        names = [word for word in words if word not in said]
        exports = self.options.exports(auth, names, made=True)
        _, above = make(Wanted(None, filters, pairs(said)))
        warn_of_secrets(pairs(said), None, above)
        return tuple(replace(each, filters=above + each.filters) for each in exports)

    def _check_no_plugin_was_meant(self, auth: AuthConfig, words: Sequence[str]) -> None:
        """`ConfigError` if the first word, which names no plugin, can hardly be a container's."""
        name, *others = words
        if self.options.is_export(auth, name):
            return
        if not self.options.knows_containers(auth):
            otherwise = f"For a container of this name there is {NO_URL}"
        elif any(map(is_pair, others)) and not self.serving.filters:
            otherwise = f"A container of this name is served by: swift {name}"
        else:
            return
        raise ConfigError(no_such(name, PLUGINS, otherwise))

    def _names_plugin(self, auth: AuthConfig, words: Sequence[str]) -> bool:
        """Whether a plugin is meant. If all words are names of containers, these are meant."""
        if self.serving.filters and is_pair(words[0]):  # for a filter, though it may hold a slash
            return False
        if words[0] == SWIFT or find_plugin(words[0]) is None:
            return False
        return not all(self.options.is_export(auth, word) for word in words)


def outages_of(export: ExportConfig, settings: OutageSettings) -> OutageSettings:
    """How an export meets outages, given how the others do."""
    return replace(settings, **export.outages)
