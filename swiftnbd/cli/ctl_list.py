# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl list``: all containers and their disks."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from swiftnbd.cli import run
from swiftnbd.cli.common import (
    IN_FLIGHT_MAX,
    PROGRAM,
    STORE_SECONDS_MAX,
    read_container,
    read_disk,
    tell,
)
from swiftnbd.cli.ctl_info import mark_document
from swiftnbd.cli.exits import common_exit_code
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.sizes import format_size
from swiftnbd.errors import AccessRefused, SwiftnbdError
from swiftnbd.export.layout import VERSION, DiskInfo
from swiftnbd.server.config import AuthConfig, ExportConfig
from swiftnbd.store.base import ContainerInfo, Store


@dataclass(frozen=True, slots=True)
class Row:
    """One container that could be read."""

    name: str
    info: ContainerInfo
    disk: DiskInfo
    lock: str = ""  # who holds it, in words; '' is nobody, or not asked for


@click.command("list")
@click.option(
    "-s", "--simple-output", "simple", is_flag=True, help="One plain line per container on stdout."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout.")
@click.argument("containers", nargs=-1, metavar="[CONTAINER]...")
@click.pass_obj
def list_command(
    options: SharedOptions, *, simple: bool, as_json: bool, containers: tuple[str, ...]
) -> int:
    """List these containers, or all of the secrets file, and their information."""
    if simple and as_json:
        raise click.UsageError("--simple-output and --json do not go together")
    auth = options.auth()
    exports = options.exports(auth, containers)
    table = sys.stdout.isatty() and not simple and not as_json
    full = table or as_json
    results = run.run_interruptible(PROGRAM, lambda: _describe_all(auth, exports, count=full))
    rows = [result for result in results if isinstance(result, Row)]
    failures = [result for result in results if not isinstance(result, Row)]
    if as_json:
        click.echo(json.dumps([_document(row) for row in rows], indent=2))
    elif table and rows:
        _print_table(rows)
    else:
        for row in rows:
            click.echo(simple_line(row.name, row.disk))
    for failure in failures:
        tell(str(failure))
    return common_exit_code(failures)


async def _describe_all(
    auth: AuthConfig, exports: Sequence[ExportConfig], *, count: bool
) -> list[Row | SwiftnbdError]:
    import asyncio

    from swiftnbd.cli.stores import Stores

    slots = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def describe_one(stores: Stores, export: ExportConfig) -> Row | SwiftnbdError:
        async with slots:
            try:
                return await describe(stores.open(export), export.name, count=count)
            except AccessRefused as error:
                return AccessRefused(f"{export.name}: {error}")  # a login names no container
            except SwiftnbdError as error:
                return error

    async with Stores(auth, seconds=STORE_SECONDS_MAX) as stores:
        return await asyncio.gather(*(describe_one(stores, export) for export in exports))


async def describe(store: Store, name: str, *, count: bool = False) -> Row:
    """Read one container's row; with ``count``, all that the table shows."""
    info = await read_container(store, name, count=count)
    disk = read_disk(info, name)
    return Row(name, info, disk, await _describe_lock(store) if count else "")


async def _describe_lock(store: Store) -> str:
    from swiftnbd.cli.ctl_lock import describe
    from swiftnbd.export.watch import sight

    seen = await sight(store)
    return describe(seen) if seen.holder else ""


def simple_line(name: str, disk: DiskInfo) -> str:
    """The line of swiftnbd 0.11, which scripts parse."""
    lock = f"locked by {disk.client}" if disk.client else "unlocked"
    geometry = f"objects={disk.geometry.objects} size={disk.geometry.object_size}"
    return f"{name} {geometry} (version={VERSION}, {lock})"


def _document(row: Row) -> dict[str, object]:
    """For programs; the names are those of ``info --json``."""
    geometry = row.disk.geometry
    return {
        "container": row.name,
        "size": geometry.size,
        "objects": geometry.objects,
        "object_size": geometry.object_size,
        "stored_objects": row.info.objects,
        "stored_bytes": row.info.bytes_used,
        "lock": mark_document(row.disk.client),
    }


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Container")
    for heading in ("Disk", "Objects", "Object size", "Stored"):
        table.add_column(heading, justify="right")
    table.add_column("Lock")
    for row in rows:
        geometry = row.disk.geometry
        cells = (
            row.name,
            format_size(geometry.size),
            str(geometry.objects),
            format_size(geometry.object_size),
            format_size(row.info.bytes_used or 0),
            f"locked by {row.lock}" if row.lock else "unlocked",
        )
        table.add_row(*(Text(cell) for cell in cells))  # Text: a name is never markup
    Console().print(table)
