# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl bench``: how fast a store is, and which object size suits it."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from swiftnbd.cli import run
from swiftnbd.cli.common import PROGRAM, STORE_SECONDS_MAX, tell
from swiftnbd.cli.completion import container_argument
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.report import json_option, print_json, quiet_option
from swiftnbd.cli.secrets import SECRETS_FILE_DEFAULT
from swiftnbd.cli.sizes import format_size, parse_size, size_option
from swiftnbd.export.layout import OBJECT_SIZE_UNIT
from swiftnbd.server.config import AuthConfig, ExportConfig
from swiftnbd.store.base import OBJECT_BYTES_MAX

if TYPE_CHECKING:
    from swiftnbd.cli.benching import Choice, Limits, Measured, Step

SECONDS_DEFAULT = 60
SECONDS_MAX = 3600
BYTES_DEFAULT = "2G"
SIZES_DEFAULT = ("64K", "256K", "1M", "4M")
CONNECTIONS_DEFAULT = (1, 4, 16)
CONNECTIONS_MAX = 64
STEPS_MAX = 200  # a tenth of a second each would say nothing

_BAR = 16  # characters of the plot's longest bar; 80 columns hold it, and six numbers before
_NAMES = {"put": "PUT", "get": "GET", "part": "GET part"}  # of 64 KiB


def _sizes_option(
    ctx: click.Context, param: click.Parameter, value: Sequence[str]
) -> tuple[int, ...]:
    try:
        sizes = tuple(parse_size(text) for text in value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx=ctx, param=param) from None
    for size in sizes:
        if size % OBJECT_SIZE_UNIT or size > OBJECT_BYTES_MAX:
            raise click.BadParameter(
                f"{size} is not a multiple of {OBJECT_SIZE_UNIT} up to {OBJECT_BYTES_MAX}",
                ctx=ctx,
                param=param,
            )
    return tuple(sorted(set(sizes)))


@click.command("bench")
@container_argument(required=False)
@click.option(
    "--seconds",
    type=click.IntRange(1, SECONDS_MAX),
    default=SECONDS_DEFAULT,
    show_default=True,
    help="How long all of it may take, apart from the clean-up.",
)
@click.option(
    "--bytes",
    "bytes_max",
    metavar="SIZE",
    callback=size_option,
    default=BYTES_DEFAULT,
    show_default=True,
    help="How much may be transferred in all.",
)
@click.option(
    "--object-size",
    "sizes",
    metavar="SIZE",
    multiple=True,
    callback=_sizes_option,
    default=SIZES_DEFAULT,
    show_default=True,
    help="Size of objects to measure. May be given several times.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, CONNECTIONS_MAX),
    multiple=True,
    default=CONNECTIONS_DEFAULT,
    show_default=True,
    help="How many requests at once. May be given several times.",
)
@click.option("--policy", metavar="NAME", help="Storage policy to measure [default: CONTAINER's].")
@quiet_option
@json_option
@click.pass_obj
def bench_command(
    options: SharedOptions,
    *,
    container: str | None,
    seconds: int,
    bytes_max: int,
    sizes: tuple[int, ...],
    connections: tuple[int, ...],
    policy: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure a store, and say which object size to choose for it.

    PUTs and GETs are measured in a scratch container, with the login of CONTAINER (by default the
    first one of the secrets file), which itself is left alone. The scratch container is removed
    at the end, also after Ctrl-C; if this is killed, by the first one that is begun a day later.
    Run it where the server will run, and with nothing else to do.
    """
    from swiftnbd.cli.benching import Limits, steps

    plan = steps(sizes, sorted(set(connections)))
    if len(plan) > STEPS_MAX:
        raise click.UsageError(f"these are {len(plan)} measurements, more than {STEPS_MAX}")
    auth = options.auth()
    export = _login(options, auth, container)
    limits = Limits(seconds, bytes_max)
    show = quiet or as_json
    file = (options.secrets or str(SECRETS_FILE_DEFAULT)) if options.has_secrets else ""
    found = run.run_interruptible(
        PROGRAM, lambda: _bench(auth, export, policy, plan, limits, secrets=file, quiet=show)
    )
    if as_json:
        print_json(document(found))
    else:
        print_found(found)


def _login(options: SharedOptions, auth: AuthConfig, container: str | None) -> ExportConfig:
    if container is not None:
        return options.export(auth, container)
    if auth.directory is not None and options.secrets is None:
        return ExportConfig("bench")
    if not options.has_secrets and (login := options.login_alone()) is not None:
        return ExportConfig("bench", login=login)
    return options.exports(auth)[0]


async def _bench(
    auth: AuthConfig,
    export: ExportConfig,
    policy: str | None,
    plan: "Sequence[Step]",
    limits: "Limits",
    *,
    secrets: str,
    quiet: bool,
) -> "list[Measured]":
    """``secrets``: the file that has the login, if there is one."""
    from swiftnbd.cli.benching import Bench
    from swiftnbd.cli.scratch import new_name, remove_old, scratch
    from swiftnbd.cli.stores import Stores

    name = new_name()
    async with Stores(auth, seconds=STORE_SECONDS_MAX) as stores:
        if policy is None:
            info = await stores.open(export).info()
            policy = (info.policy or None) if info else None
        await remove_old(stores, export, tell)
        found = []
        rescue = f"a later bench removes it, after a day, or now: {_advice(name, secrets)}"
        if not quiet:
            tell(f"measuring in {name}; should this be killed, {rescue}")
        store = stores.open(replace(export, name=name))
        async with scratch(store, name, policy, tell, rescue):
            with _status(len(plan), quiet=quiet) as begins:
                async for measured in Bench(store, limits).run(plan, begins):
                    found.append(measured)
                    if not quiet and not sys.stdout.isatty():
                        click.echo(line(measured))
    return found


def _advice(name: str, secrets: str) -> str:
    """What to run to have the scratch container removed."""
    section = f"give it a section in {secrets} and " if secrets else ""
    return f"{section}run, with the options of this one: swiftnbd-ctl delete {name}"


@contextmanager
def _status(total: int, *, quiet: bool) -> "Iterator[Callable[[Step], None]]":
    """Says on a terminal what is being measured."""
    if quiet or not sys.stderr.isatty():
        yield lambda _step: None
        return
    from rich.console import Console

    number = 0
    with Console(stderr=True).status("Measuring") as status:

        def begins(step: "Step") -> None:
            nonlocal number
            number += 1
            status.update(f"Measuring, {number} of {total}: {_title(step)}")

        yield begins


def _title(step: "Step") -> str:
    return f"{_NAMES[step.operation]}, {format_size(step.size)}, {step.connections} at once"


def line(measured: "Measured") -> str:
    """One measurement in a pipe."""
    return (
        f"{_title(measured.step)}: {measured.rate:.1f}/s, {_mib(measured.throughput)} MiB/s, "
        f"median {_ms(measured.latency(0.5))} ms, 95 % within {_ms(measured.latency(0.95))} ms"
    )


def _mib(bytes_per_second: float) -> str:
    return f"{bytes_per_second / (1 << 20):.1f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}" if seconds < 0.1 else f"{seconds * 1000:.0f}"


def print_found(found: "Sequence[Measured]") -> None:
    """A table with a plot on a terminal (elsewhere the lines were printed), and the advice."""
    if sys.stdout.isatty():
        _print_table(found)
    for text in advice(found):
        click.echo(text)


def _print_table(found: "Sequence[Measured]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Request", no_wrap=True)
    for heading in ("Objects", "At once", "per s", "MiB/s", "median ms", "95 % ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("MiB/s", no_wrap=True)
    best = max(each.throughput for each in found)
    for name in _NAMES:
        rows = [each for each in found if each.step.operation == name]
        for number, each in enumerate(rows):
            table.add_row(
                _NAMES[name] if not number else "",
                format_size(each.step.size),
                str(each.step.connections),
                f"{each.rate:.1f}",
                _mib(each.throughput),
                _ms(each.latency(0.5)),
                _ms(each.latency(0.95)),
                bar(each.throughput / best),
                end_section=number == len(rows) - 1,
            )
    Console().print(table)


def bar(share: float) -> str:
    """A bar of blocks, in eighths of a character."""
    eighths = round(share * _BAR * 8)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8] or "▏"


def advice(found: "Sequence[Measured]") -> list[str]:
    """Which object size to choose, in sentences."""
    from swiftnbd.cli.benching import choose_random, choose_sequential

    large, small = choose_sequential(found), choose_random(found)
    return [
        f"For sequential work (images, backups, large files): --object-size "
        f"{short_size(large.object_size)}: {_mib(large.written)} MiB/s written, "
        f"{_mib(large.read)} MiB/s read.",
        f"For random work (file systems, databases): --object-size "
        f"{short_size(small.object_size)}: {small.written:.0f} writes/s, {small.read:.0f} reads/s.",
    ]


def short_size(size: int) -> str:
    """A size as it is written on a command line."""
    for power, unit in ((20, "M"), (10, "K")):
        if size % (1 << power) == 0:
            return f"{size >> power}{unit}"
    return str(size)


def document(found: "Sequence[Measured]") -> dict[str, object]:
    """For programs: seconds, and bytes."""
    from swiftnbd.cli.benching import choose_random, choose_sequential

    return {
        "measurements": [
            {
                "operation": each.step.operation,
                "object_size": each.step.size,
                "bytes": each.step.length,
                "connections": each.step.connections,
                "requests": len(each.latencies),
                "seconds": each.seconds,
                "requests_per_second": each.rate,
                "bytes_per_second": each.throughput,
                "latency_median": each.latency(0.5),
                "latency_95": each.latency(0.95),
                "latency_max": each.latencies[-1],
            }
            for each in found
        ],
        "sequential": _choice_document(choose_sequential(found)),
        "random": _choice_document(choose_random(found)),
    }


def _choice_document(choice: "Choice") -> dict[str, object]:
    return {
        "object_size": choice.object_size,
        "connections": choice.connections,
        "written_per_second": choice.written,
        "read_per_second": choice.read,
    }
