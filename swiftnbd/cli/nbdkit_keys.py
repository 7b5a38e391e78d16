# SPDX-License-Identifier: MIT
"""The keys of our plugin for nbdkit: the server's flags, without their dashes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import click

from swiftnbd.cli.cache import CacheOptions, cache_options, check_folder
from swiftnbd.cli.flags import flag_group
from swiftnbd.cli.options import SharedOptions, shared_options
from swiftnbd.cli.outages import OutageOptions, outage_options
from swiftnbd.cli.plan import Plan, outages_of
from swiftnbd.cli.server_options import LockOptions, lock_options
from swiftnbd.errors import ConfigError
from swiftnbd.log import log_for_server
from swiftnbd.scripts.parsing import parse_bool
from swiftnbd.server.config import ServerConfig

_SHORT = {"auth": "auth-url"}


@dataclass(frozen=True, slots=True)
class PluginOptions:
    """What only the plugin has, or what is there of the server's groups."""

    container: str
    read_only: bool
    log_file: str | None
    syslog: bool


_plugin_options = flag_group(
    "plugin",
    PluginOptions,
    click.option("--container", required=True),
    click.option("--read-only", is_flag=True),
    click.option("--log-file"),
    click.option("--syslog", is_flag=True),
)


@click.command()
@shared_options
@cache_options
@lock_options
@outage_options
@_plugin_options
def _command(
    options: SharedOptions,
    caching: CacheOptions,
    locking: LockOptions,
    outage: OutageOptions,
    plugin: PluginOptions,
) -> Plan:
    auth = options.auth()
    if auth.is_bucket:
        # obstore's threads cannot be told to end, and nbdkit ends the interpreter under them
        raise ConfigError("containers in a bucket are served by swiftnbd-server, not in nbdkit")
    export = options.exports(auth, (plugin.container,), made=True)[0]
    if export.plugin is not None:
        raise ConfigError(f"{export.name} is made by a plugin: there is no container")
    export = replace(export, read_only=export.read_only or plugin.read_only)
    outages = outage.settings
    longest = 0.0 if auth.directory else outages_of(export, outages).seconds
    config = ServerConfig(
        cache=caching.settings,
        pace=locking.pace(options.settle, longest),
        takeover=locking.takeover,
        outages=outages,
    )
    plan = Plan(config, auth, (export,))
    folder = plan.cache_of(export).disk_directory
    if folder is not None:
        check_folder(folder)
    log_for_server(verbose=options.verbose, syslog=plugin.syslog, log_file=plugin.log_file)
    return plan


def plan_of(pairs: Sequence[tuple[str, str]]) -> Plan:
    """What the keys say together with the files and the environment; logs as they say.

    The plan has one export. Raises ConfigError and ContainerMissing.
    """
    known = {
        name.removeprefix("--"): option
        for option in _command.params
        for name in option.opts
        if name.startswith("--") and option.name != "version"
    }
    flags: list[str] = []
    for key, text in pairs:
        option = known.get(_SHORT.get(key, key))
        if option is None:
            names = ", ".join(sorted({*known, *_SHORT}))
            raise ConfigError(f"there is no key {key!r}; there are {names}")
        flag = option.opts[-1]
        if getattr(option, "is_flag", False):
            try:
                flags += [flag] if parse_bool(text) else []
            except ValueError:
                raise ConfigError(f"{key}={text!r} is neither true nor false") from None
        else:
            flags += [flag, text]
    if "--container" not in flags:
        raise ConfigError("container=NAME is missing: which one is to be served?")
    try:
        plan = _command.main(flags, prog_name="nbdkit", standalone_mode=False)
    except click.ClickException as error:
        raise ConfigError(error.format_message()) from None
    assert isinstance(plan, Plan)
    return plan
