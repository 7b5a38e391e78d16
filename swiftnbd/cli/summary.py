# SPDX-License-Identifier: MIT
"""What a long command says at its end: a sentence for people, or JSON for programs."""

import json

import click

from swiftnbd.cli.common import Tell
from swiftnbd.cli.sizes import format_size

Summary = dict[str, int | float | str]

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Don't show the progress.")
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Put out a summary in JSON when it is done."
)


def report(summary: Summary, sentence: str, *, as_json: bool, tell: Tell) -> None:
    """Tell the sentence, or put the summary out on stdout."""
    if as_json:
        click.echo(json.dumps(summary))
    else:
        tell(sentence)


def rate(size: int, seconds: float) -> str:
    """`` in 12.3 s, 83.2 MiB/s``; nothing if that would say nothing."""
    if not size or seconds < 0.05:
        return ""
    return f" in {seconds:.1f} s, {format_size(round(size / seconds))}/s"
