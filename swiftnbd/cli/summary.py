# SPDX-License-Identifier: MIT
"""What a long command says at its end: a sentence for people, or JSON for programs."""

from swiftnbd.cli.common import Tell
from swiftnbd.cli.report import print_json
from swiftnbd.cli.sizes import counted, format_size

Summary = dict[str, int | float | str]


def report(summary: Summary, sentence: str, *, as_json: bool, tell: Tell) -> None:
    """Tell the sentence, or put the summary out on stdout."""
    if as_json:
        print_json(summary)
    else:
        tell(sentence)


def transferred(size: int, seconds: float, verb: str, already: int) -> str:
    """``1.5 GiB sent in 12.3 s, 125.1 MiB/s``, or how many objects were there already."""
    text = f"{format_size(size)} {verb} in {seconds:.1f} s"
    if already:
        were = "was" if already == 1 else "were"
        return f"{text}, {counted(already, 'object')} {were} there already"
    return f"{text}, {format_size(round(size / seconds))}/s" if size and seconds > 0.05 else text
