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


def transferred(size: int, seconds: float, verb: str, already: int) -> str:
    """``1.5 GiB sent in 12.3 s, 125.1 MiB/s``, or how many objects were there already."""
    text = f"{format_size(size)} {verb} in {seconds:.1f} s"
    if already:
        return f"{text}, {already} objects were there already"
    return f"{text}, {format_size(round(size / seconds))}/s" if size and seconds > 0.05 else text
