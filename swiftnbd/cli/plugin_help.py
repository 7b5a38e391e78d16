# SPDX-License-Identifier: MIT
"""What there is to know of a plugin or a filter, for people and for programs."""

import inspect
import os
from collections.abc import Iterator, Sequence

import click

from swiftnbd.api.parameters import Parameter, others_of, parameters_of
from swiftnbd.api.plugin import API_VERSION, FilterPlugin, Plugin
from swiftnbd.cli.devices import Kind, Wanted, make, pairs, plugin_of
from swiftnbd.cli.finding import PLUGINS, SWIFT, find_either, find_filter, names
from swiftnbd.cli.flags import GroupedCommand
from swiftnbd.errors import ConfigError

_WIDTH = 100

Kinds = Sequence[tuple[str, Kind]]


class ServerCommand(GroupedCommand):
    """The server's command, whose ``--help`` is that of the plugin and filters that are named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if set(args) & set(self.get_help_option_names(ctx)):
            kinds = self._named(ctx, args)
            if kinds:
                click.echo("\n\n".join(help_of(name, kind) for name, kind in kinds))
                ctx.exit()
        return super().parse_args(ctx, args)

    def _named(self, ctx: click.Context, args: list[str]) -> Kinds:
        """The plugins and filters of a command line that may not be complete yet."""
        try:
            given, _, _ = self.make_parser(ctx).parse_args(list(args))
        except click.UsageError:
            return ()
        words, filters = _list(given.get("arguments")), _list(given.get("filters"))
        first = find_either(words[0]) if words and words[0] != SWIFT else None
        found: list[tuple[str, Kind]] = [(name, find_filter(name)) for name in filters]
        if first is not None:
            found.append((words[0], first))
        return list(dict.fromkeys(found))


def _list(given: object) -> list[str]:
    """What was given to an option or argument; click has a mark of its own for nothing."""
    return list(given) if isinstance(given, list | tuple) else []


def help_of(name: str, kind: Kind) -> str:
    """All about one of them, for people."""
    formatter = click.HelpFormatter(max_width=_WIDTH)
    parameters = list(parameters_of(kind))
    formatter.write_usage("swiftnbd-server", _usage(name, kind, parameters))
    first, _, rest = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
    for text in (first, *rest.split("\n\n")):
        if text:
            formatter.write_paragraph()
            formatter.write_text(" ".join(text.split()))
    rows = [(f"{each.key}={each.kind.metavar}", description(each)) for each in parameters]
    if (others := others_of(kind)) is not None:
        rows.append(("KEY=VALUE", others[1]))
    if rows:
        with formatter.section("What it takes"):
            formatter.write_dl(rows)
    return formatter.getvalue().rstrip("\n")


def description(each: Parameter) -> str:
    """A parameter in words: what it is for, and whether it has to be given."""
    notes = []
    if each.is_main:
        notes.append("a first value without a key is this")
    if each.is_repeated:
        notes.append("may be given again")
    if each.is_required:
        notes.append("required")
    elif each.default_text:
        notes.append(f"default: {each.default_text}")
    return each.help + (f" ({'; '.join(notes)})" if notes else "")


def _usage(name: str, kind: Kind, parameters: Sequence[Parameter]) -> str:
    words = [
        each.kind.metavar if each.is_main else f"{each.key}={each.kind.metavar}"
        for each in parameters
        if each.is_required or each.is_main
    ]
    if len(words) < len(parameters) or others_of(kind) is not None:
        words.append("[KEY=VALUE]...")
    if issubclass(kind, FilterPlugin):
        return " ".join(["[OPTION]... --filter", name, "... PLUGIN or CONTAINER", *words])
    return " ".join(["[OPTION]...", name, *words])


def dump_plugin(words: Sequence[str], filters: Sequence[str]) -> None:
    """``--dump-plugin``: lines of KEY=VALUE for programs, as nbdkit has them.

    Of the plugin that is named, and of what it is told; of the filters if there is none; else the
    names there are.
    """
    click.echo(dumped_plugin(words, filters))
    if len(words) > 1:
        made, _ = make(Wanted(words[0], tuple(filters), pairs(words[1:])))
        assert made is not None
        made.plugin.dump()


def dumped_plugin(words: Sequence[str], filters: Sequence[str]) -> str:
    """What is known of them without telling them anything."""
    if words and words[0] != SWIFT:
        found: Kinds = [(words[0], plugin_of(words[0]))]
    elif words:
        raise ConfigError(f"{SWIFT} is no plugin with parameters: it serves containers")
    else:
        found = [(name, find_filter(name)) for name in filters]
    if not found:
        return "\n".join([f"api_version={API_VERSION}", f"plugins={','.join(names(PLUGINS))}"])
    return "\n".join(line for name, kind in found for line in _dumped(name, kind))


def _dumped(name: str, kind: Kind) -> Iterator[str]:
    yield f"name={name}"
    yield f"path={os.path.abspath(inspect.getfile(kind))}"
    yield f"api_version={kind.api_version}"
    yield f"summary={summary(kind)}"
    yield f"per_connection={'yes' if kind.per_connection else 'no'}"
    if issubclass(kind, Plugin):
        yield f"any_name={'yes' if kind.any_name else 'no'}"
    for each in parameters_of(kind):
        yield f"parameter_{each.key}={each.kind.metavar}"
        if each.is_main:
            yield f"main_parameter={each.key}"


def summary(kind: type) -> str:
    """The first line of what a plugin or filter says of itself."""
    return inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
