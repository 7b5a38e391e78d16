# SPDX-License-Identifier: MIT
"""``swiftnbd-server``: exports the containers of the secrets file as NBD block devices."""

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from swiftnbd.cli import run
from swiftnbd.cli.common import locked_by
from swiftnbd.cli.exits import EPILOG, SeveralFailed
from swiftnbd.cli.options import SharedOptions, shared_options
from swiftnbd.errors import SwiftnbdError
from swiftnbd.log import log_for_server
from swiftnbd.server.config import AuthConfig, ExportConfig, ServerConfig, TcpAddress
from swiftnbd.server.daemon import PidFile, run_detached
from swiftnbd.server.descriptors import connections_possible, raise_limit

if TYPE_CHECKING:
    from swiftnbd.export.export import Export
    from swiftnbd.server.listeners import Place
    from swiftnbd.store.base import Store

PROGRAM = "swiftnbd-server"
PID_FILE_DEFAULT = os.path.join(tempfile.gettempdir(), "swiftnbd.pid")

_MEGABYTE = 1024 * 1024  # as swiftnbd 0.11 counted
_CACHE_MEGABYTES_MAX = 1024 * 1024
_LOADS_AT_ONCE_MAX = 16

log = logging.getLogger(__name__)

Detach = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that was read from flags and files."""

    server: ServerConfig
    auth: AuthConfig
    exports: tuple[ExportConfig, ...]
    pid_file: str


def _bind_address(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A click callback: an empty address, as of an unset variable, would be every interface."""
    if not value.strip():
        raise click.BadParameter(
            "no address given; to listen on all interfaces, say 0.0.0.0 or ::", ctx=ctx, param=param
        )
    return value


@click.command(
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@shared_options
@click.option(
    "-b",
    "--bind-address",
    metavar="ADDRESS",
    callback=_bind_address,
    default=TcpAddress().host,
    show_default=True,
    help="Address to listen on, IPv4 or IPv6.",
)
@click.option(
    "-p",
    "--bind-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=TcpAddress().port,
    show_default=True,
    help="Port to listen on; 0 takes any that is free.",
)
@click.option(
    "-c",
    "--cache-limit",
    type=click.IntRange(1, _CACHE_MEGABYTES_MAX),
    metavar="MB",
    default=ServerConfig().cache_bytes // _MEGABYTE,
    show_default=True,
    help="Cache memory limit of each export in MB.",
)
@click.option(
    "-l",
    "--log-file",
    metavar="FILE",
    help="Log into this file. Without it and --syslog a detached server logs nowhere.",
)
@click.option("--syslog", is_flag=True, help="Log to the system logger (local0).")
@click.option(
    "-f", "--foreground", is_flag=True, help="Don't detach from the terminal (foreground mode)."
)
@click.option(
    "--pid-file",
    metavar="FILE",
    default=PID_FILE_DEFAULT,
    show_default=True,
    help="File to store the process id in.",
)
def server(
    options: SharedOptions,
    *,
    bind_address: str,
    bind_port: int,
    cache_limit: int,
    log_file: str | None,
    syslog: bool,
    foreground: bool,
    pid_file: str,
) -> int:
    """Export OpenStack Swift containers as NBD block devices.

    Prints the nbd:// URI of each export when it is ready, and only then detaches.
    """
    log_for_server(verbose=options.verbose, syslog=syslog, log_file=log_file)
    auth = options.auth()
    plan = Plan(
        ServerConfig((TcpAddress(bind_address, bind_port),), cache_bytes=cache_limit * _MEGABYTE),
        auth,
        options.exports(auth),
        pid_file,
    )
    is_logged_elsewhere = syslog or log_file is not None

    def work(detach: Detach) -> int:
        try:
            return serve(plan, detach)
        except SwiftnbdError as error:
            if is_logged_elsewhere:  # else the terminal would show it twice
                log.error("%s", error)
            raise

    return work(lambda: None) if foreground else run_detached(work)


def serve(plan: Plan, detach: Detach) -> int:
    """Hold the pid file and run the server to its end; the exit code."""
    with PidFile(plan.pid_file):
        # Until the server handles signals itself, they end its start in order.
        return run.run_interruptible(PROGRAM, lambda: _serve(plan, detach))


async def _serve(plan: Plan, detach: Detach) -> int:
    from swiftnbd.cli.stores import Stores
    from swiftnbd.server.server import Server

    def ready(places: "Sequence[Place]") -> None:
        for name in exports:
            for place in places:
                click.echo(place.uri(name))
        sys.stdout.flush()
        detach()

    async with Stores(plan.auth) as stores:
        exports = await load_exports(plan, stores.open)
        return await Server(exports, with_room(plan.server, len(exports))).run(ready)


def with_room(config: ServerConfig, exports: int) -> ServerConfig:
    """No more connections than this process may have files open for. A WARNING if that is less."""
    files = raise_limit()
    possible = connections_possible(files, exports)
    if possible >= config.connections_max:
        return config
    log.warning(
        "at most %d connections instead of %d: the limit of open files is %d (ulimit -n)",
        possible,
        config.connections_max,
        files,
    )
    return replace(config, connections_max=possible)


async def load_exports(
    plan: Plan, open_store: "Callable[[ExportConfig], Store]"
) -> "dict[str, Export]":
    """Every container that can be served, by name. One WARNING for each that cannot."""
    import asyncio

    from swiftnbd.export.export import Export

    slots = asyncio.Semaphore(_LOADS_AT_ONCE_MAX)

    async def load(config: ExportConfig) -> Export | SwiftnbdError:
        async with slots:
            store = open_store(config)
            export = Export(
                config.name,
                store,
                config.read_only,
                plan.server.cache_bytes,
                multi_conn=config.multi_conn,
            )
            try:
                await export.load()
            except SwiftnbdError as error:
                return error
            return export

    results = await asyncio.gather(*(load(config) for config in plan.exports))
    failures = []
    exports = {}
    for config, result in zip(plan.exports, results, strict=True):
        if isinstance(result, SwiftnbdError):
            log.warning("%s: %s; skipping", config.name, result)
            failures.append(result)
        else:
            exports[config.name] = result
            if holder := result.info.client:
                log.info("%s", locked_by(config.name, holder))
    if not exports:
        raise SeveralFailed("no container is left to export", failures)
    return exports


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run.leave(run.run(server, PROGRAM, argv))
