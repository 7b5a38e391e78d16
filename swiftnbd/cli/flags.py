# SPDX-License-Identifier: MIT
"""Flags in groups: together in the help, and one argument of the command each."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class GroupedOption(click.Option):
    """An option with the ``title`` it stands under in the help."""

    def __init__(self, *args: Any, title: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.title = title


class GroupedCommand(click.Command):
    """A command whose help shows its options under their titles."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        others: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            group = (
                groups.setdefault(param.title, []) if isinstance(param, GroupedOption) else others
            )
            if record := param.get_help_record(ctx):
                group.append(record)
        groups["Other"] = others
        width = max(len(flag) for records in groups.values() for flag, _ in records)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl([(flag.ljust(width), text) for flag, text in records])


def flags_of(title: str) -> Callable[..., Decorator]:
    """``click.option`` for the flags that stand under this title."""
    return functools.partial(click.option, cls=GroupedOption, title=title)


def flag_group(name: str, make: Callable[..., object], *options: Decorator) -> Decorator:
    """Give a command these options; it receives ``make`` of them as the argument ``name``.

    The parameters of ``make`` are named as the options are.
    """
    own = list(inspect.signature(make).parameters)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_group(**values: Any) -> Any:
            made = make(**{key: values.pop(key) for key in own})
            return command(**values, **{name: made})

        decorated: Callable[..., Any] = with_group
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate
