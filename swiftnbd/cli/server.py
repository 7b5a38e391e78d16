# SPDX-License-Identifier: MIT
"""``swiftnbd-server``: exports the containers of the secrets file as NBD block devices."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import chdir, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from swiftnbd.cli import run
from swiftnbd.cli.activation import take_handed_over, take_service_manager
from swiftnbd.cli.cache import CacheOptions, cache_options
from swiftnbd.cli.completion import complete_argument
from swiftnbd.cli.dump import dumped
from swiftnbd.cli.exits import EPILOG, Exit
from swiftnbd.cli.options import SharedOptions, shared_options
from swiftnbd.cli.outages import OutageOptions, outage_options
from swiftnbd.cli.plan import Flags, Plan, outages_of
from swiftnbd.cli.plugin_help import ServerCommand, dump_plugin
from swiftnbd.cli.process_options import ProcessOptions, process_options
from swiftnbd.cli.server_options import (
    ExportOptions,
    HandshakeOptions,
    ListenOptions,
    LockOptions,
    export_options,
    handshake_options,
    listen_options,
    lock_options,
)
from swiftnbd.cli.tls import TlsOptions, tls_options
from swiftnbd.errors import ConfigError, SwiftnbdError
from swiftnbd.server.config import ExportConfig, InheritedSocket, ServerConfig, UnixAddress
from swiftnbd.server.daemon import (
    PidFile,
    fill_standard_streams,
    run_detached,
    take_standard_streams,
)
from swiftnbd.server.descriptors import connections_possible, raise_limit
from swiftnbd.server.privileges import Account, become

if TYPE_CHECKING:
    from swiftnbd.export.base import BaseExport
    from swiftnbd.server.captive import Captive
    from swiftnbd.server.listeners import Place
    from swiftnbd.store.base import Store

PROGRAM = "swiftnbd-server"

log = logging.getLogger(__name__)

Detach = Callable[[], None]


@click.command(
    cls=ServerCommand,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@shared_options
@listen_options
@export_options
@cache_options
@tls_options
@lock_options
@outage_options
@handshake_options
@process_options
@click.argument(
    "arguments",
    nargs=-1,
    metavar="[CONTAINER]... | PLUGIN [KEY=VALUE]...",
    shell_complete=complete_argument,
)
def server(
    options: SharedOptions,
    listen: ListenOptions,
    serving: ExportOptions,
    caching: CacheOptions,
    encryption: TlsOptions,
    locking: LockOptions,
    outage: OutageOptions,
    handshake: HandshakeOptions,
    process: ProcessOptions,
    arguments: tuple[str, ...],
) -> int:
    """Export OpenStack Swift containers as NBD block devices: these, or all of the secrets file.

    Or what a PLUGIN makes, a name or a Python file: PLUGIN --help says what it takes.

    Prints the NBD URI of each export when it is ready, and only then detaches.
    """
    if process.dump_plugin:
        dump_plugin(arguments, serving.filters)
        return Exit.DONE
    handed_over = take_handed_over(os.environ)
    manager = take_service_manager(os.environ)
    addresses = listen.addresses(handed_over)
    flags = Flags(
        *(options, listen, serving, caching, encryption, locking, outage, handshake, process),
        arguments,
    )
    is_captive = bool(listen.single or listen.run or handed_over)
    if process.dump_config:
        click.echo(dumped(flags.plan(addresses, is_captive=is_captive)))
        return Exit.DONE
    connection = take_standard_streams() if listen.single else None
    process.log(verbose=options.verbose)

    def plan() -> Plan:
        return flags.plan(addresses, connection, manager, is_captive=is_captive)

    first = plan()
    again = partial(_from_folder, _folder(), plan)

    def work(detach: Detach) -> int:
        try:
            return serve(first, detach, again)
        except SwiftnbdError as error:
            if process.is_logged_elsewhere:  # else the terminal would show it twice
                log.error("%s", error)
            raise

    return work(lambda: None) if process.foreground or is_captive else run_detached(work)


def _folder() -> str:
    """The one we are in, which a daemon leaves: names of files may be relative to it."""
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return "/"


def _from_folder(folder: str, plan: Callable[[], Plan]) -> Plan:
    with chdir(folder):
        return plan()


def serve(plan: Plan, detach: Detach, read: Callable[[], Plan]) -> int:
    """Hold the pid file and run the server to its end; the exit code. ``read`` plans anew."""
    with PidFile(plan.pid_file) if plan.pid_file else nullcontext():
        # Until the server handles signals itself, they end its start in order.
        return run.run_interruptible(PROGRAM, lambda: _serve(plan, detach, read))


async def _serve(plan: Plan, detach: Detach, read: Callable[[], Plan]) -> int:
    from swiftnbd.cli.heap import settle
    from swiftnbd.cli.loading import loaded
    from swiftnbd.cli.reloading import Reloader
    from swiftnbd.cli.stores import Stores
    from swiftnbd.server.server import Server

    def ready(places: "Sequence[Place]") -> None:
        if plan.account is not None:
            give_up_root(plan, plan.account, places)
        if not plan.is_captive:
            uris = [
                place.uri(name, encrypted=plan.is_tls_only(name))
                for name in exports.ready
                for place in places
            ]
            say_where([*uris, server.http_url] if server.http_url else uris)
        detach()

    def make(export: ExportConfig) -> "BaseExport":
        return new_export(plan, export, open_store)

    def open_store(export: ExportConfig) -> "Store":
        return stores.open(export, seconds=outages_of(export, plan.server.outages).seconds)

    async with (
        Stores(plan.auth, slow_seconds=plan.server.slow_seconds) as stores,
        loaded([make(config) for config in plan.exports]) as exports,
    ):
        captive = partial(_captive, plan, tuple(exports.ready)) if plan.command else None
        config = with_room(plan.server, len(plan.exports))
        uses_swift = plan.auth.directory is None and not all(each.plugin for each in plan.exports)
        traffic = stores.traffic if uses_swift else None
        server = Server(exports.ready, config, exports.coming, traffic)
        reloader = Reloader(plan, read, make, exports, server)
        serves_one = plan.command or config.connection  # and ends with it
        settle()
        return await server.run(ready, captive, None if serves_one else reloader.reload)


def new_export(
    plan: Plan, config: ExportConfig, open_store: "Callable[[ExportConfig], Store]"
) -> "BaseExport":
    """An export as the flags and its section say, not loaded yet."""
    from swiftnbd.export.device_export import DeviceExport
    from swiftnbd.export.export import Export
    from swiftnbd.metrics import Counters

    counters = Counters(slow_seconds=plan.server.slow_seconds)
    filters = tuple(each.filter for each in config.filters)
    if config.plugin is not None:
        return DeviceExport(
            config.name,
            config.plugin.plugin,
            filters,
            read_only=config.read_only,
            multi_conn=config.multi_conn,
            tls_only=config.tls_only,
            counters=counters,
        )
    return Export(
        config.name,
        open_store(config),
        config.read_only,
        plan.cache_of(config),
        multi_conn=config.multi_conn,
        tls_only=config.tls_only,
        pace=plan.server.pace,
        takeover=plan.server.takeover,
        outages=outages_of(config, plan.server.outages),
        origin=config.origin(plan.auth),
        filters=filters,
        counters=counters,
    )


def with_room(config: ServerConfig, exports: int) -> ServerConfig:
    """No more connections than this process may have files open for. A WARNING if that is less."""
    files = raise_limit()
    possible = connections_possible(files, exports, watched=config.http is not None)
    if possible >= config.connections_max:
        return config
    log.warning(
        "at most %d connections instead of %d: the limit of open files is %d (ulimit -n)",
        possible,
        config.connections_max,
        files,
    )
    return replace(config, connections_max=possible)


def say_where(uris: Sequence[str]) -> None:
    """Print where the server can be reached. SwiftnbdError if whoever waits for that is gone."""
    try:
        for uri in uris:
            click.echo(uri)
        sys.stdout.flush()
    except OSError as error:
        run.drop_output()
        raise SwiftnbdError(
            f"cannot print where it serves ({error.strerror}), so nobody would know: giving up"
        ) from None


def give_up_root(plan: Plan, account: Account, places: "Sequence[Place]") -> None:
    """Be ``account``. ConfigError if it cannot use what the server needs all the time."""
    listen = plan.server.listen
    sockets = [Path(place.path) for place in places if place.path]
    if any(isinstance(address, InheritedSocket) for address in listen):
        sockets = []  # theirs who made them
    private = [path.parent for path in sockets if UnixAddress(path) not in listen]
    become(account, [*sockets, *private])
    folder = plan.auth.directory
    if folder is not None and not os.access(folder, os.R_OK | os.X_OK):
        raise ConfigError(f"{account.name} cannot read {folder}")


def _captive(plan: Plan, names: Sequence[str], places: "Sequence[Place]") -> "Captive":
    """The command of ``--run``, told where the server is the way nbdkit tells."""
    from swiftnbd.server.captive import Captive

    name = plan.server.default_export or (names[0] if len(names) == 1 else "")
    uri = places[0].uri(name, encrypted=plan.is_tls_only(name))
    environment = {
        "uri": uri,
        "nbd": uri,
        "unixsocket": next((place.path for place in places if place.path), ""),
        "port": next((str(place.port) for place in places if place.port), ""),
        "exportname": name,
    }
    assert plan.command is not None
    return Captive(plan.command, os.environ | environment)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    fill_standard_streams()
    run.leave(run.run(server, PROGRAM, argv))
