# SPDX-License-Identifier: MIT
"""What a command found out: fields for a person, or one JSON document for a program."""

import json
import sys
from collections.abc import Mapping, Sequence

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Don't show the progress.")


def print_json(document: Mapping[str, object]) -> None:
    """One document on stdout, in ASCII, as whatever reads it may not expect UTF-8."""
    click.echo(json.dumps(document, indent=2))


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """A line for each field; in two columns on a terminal."""
    if not sys.stdout.isatty():
        for label, text in fields:
            click.echo(f"{label}: {printable(text)}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in fields:
        table.add_row(label, Text(printable(text)))  # Text: a name is never markup
    Console().print(table)


def printable(text: str) -> str:
    """``text`` on one line and without control characters, wherever it came from."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
