# SPDX-License-Identifier: MIT
"""The manual pages, made from the commands themselves: ``python -m swiftnbd.cli.manpages DIR``.

One page for each program, with all its commands on it. They are kept in docs/man, installed from
there, and a test sees to it that they are what this makes. (click-man makes a page per command,
and loses what is preformatted, such as the exit codes.)
"""

import re
import sys
from pathlib import Path

import click

from swiftnbd import __version__
from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.flags import GroupedOption
from swiftnbd.cli.server import server

PROGRAMS = {"swiftnbd-ctl": ctl, "swiftnbd-server": server}

_SEE_ALSO = {
    "swiftnbd-ctl": ("swiftnbd-server(1)", "nbd-client(8)", "nbdinfo(1)"),
    "swiftnbd-server": ("swiftnbd-ctl(1)", "nbd-client(8)", "nbdcopy(1)", "qemu-nbd(8)"),
}


def page(name: str, command: click.Command) -> str:
    """The page of one program, for man."""
    context = click.Context(command, info_name=name, **command.context_settings)
    summary, *rest = _paragraphs(command.help or "")
    lines = [
        f'.TH {_text(name.upper())} 1 "" "swiftnbd {__version__}" "swiftnbd"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(summary[0].lower() + summary[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        _usage(context),
        ".SH DESCRIPTION",
        *_body([summary, *rest]),
    ]
    lines += _options(context, ".SH")
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for sub_name, sub in command.commands.items():
            lines += _command(click.Context(sub, context, sub_name))
    lines += _epilog(command.epilog or "")
    lines += [".SH SEE ALSO", ", ".join(map(_reference, _SEE_ALSO[name]))]
    return "\n".join(lines) + "\n"


def _command(context: click.Context) -> list[str]:
    name = context.info_name or ""
    return [
        f'.SS "{_text(name)}"',
        _usage(context),
        *_body(_paragraphs(context.command.help or "")),
        *_options(context, None),
    ]


def _usage(context: click.Context) -> str:
    pieces = " ".join(context.command.collect_usage_pieces(context))
    return f"\\fB{_text(context.command_path)}\\fR {_text(pieces)}"


def _options(context: click.Context, heading: str | None) -> list[str]:
    """Every option with its help; under a ``heading``, those of a group together."""
    groups: dict[str, list[str]] = {}
    others: list[str] = []
    for param in context.command.get_params(context):
        record = param.get_help_record(context)
        if record is None:
            continue
        lines = groups.setdefault(param.title, []) if isinstance(param, GroupedOption) else others
        flags, text = record
        lines += [".TP", f"\\fB{_text(flags)}\\fR", _text(" ".join(text.split()))]
    if heading is None:
        return others
    found = [f"{heading} OPTIONS"]
    for title, lines in (groups | {"Other": others}).items():
        found += [f'.SS "{_text(title)}"', *lines]
    return found


def _paragraphs(text: str) -> list[str]:
    text = "\n".join(line.strip() for line in text.strip().splitlines())
    return [" ".join(each.split()) for each in text.split("\n\n")]


def _body(paragraphs: list[str]) -> list[str]:
    lines = []
    for each in paragraphs:
        lines += [".PP", _text(each)]
    return lines


def _epilog(text: str) -> list[str]:
    """The exit codes: a title, and lines of a code and its meaning."""
    title, *rows = [line.strip() for line in text.replace("\b", "").strip().splitlines()]
    lines = [f".SH {_text(title.rstrip(':').upper())}"]
    for row in rows:
        code, meaning = row.split(maxsplit=1)
        lines += [".TP", f"\\fB{_text(code)}\\fR", _text(meaning)]
    return lines


def _reference(text: str) -> str:
    name, section = text.rstrip(")").split("(")
    return f"\\fB{_text(name)}\\fR({section})"


def _text(text: str) -> str:
    """Text in which nothing means anything to roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    text = re.sub("[^\x00-\x7f]", lambda match: f"\\[u{ord(match[0]):04X}]", text)
    return re.sub(r"^(?=[.'])", r"\\&", text)


def write(folder: Path) -> None:
    """Make all pages."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in PROGRAMS.items():
        (folder / f"{name}.1").write_text(page(name, command))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
