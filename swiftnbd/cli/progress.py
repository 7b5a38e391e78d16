# SPDX-License-Identifier: MIT
"""How far a long command is: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from swiftnbd.cli.common import Tell

_STEP_PERCENT = 10  # of plain lines: enough to see it live, too few to fill a log

Advance = Callable[[int], None]


@contextmanager
def progress(
    title: str, total: int, *, quiet: bool, tell: Tell, unit: str = "bytes"
) -> Iterator[Advance]:
    """Gives ``advance(amount)``, of ``total`` bytes or of whatever ``unit`` says.

    A total that comes from the store's own counts may be a little off: no more is ever shown.
    """
    if quiet or total == 0:
        yield lambda _amount: None
    elif sys.stderr.isatty():
        with _bar(title, total, unit) as advance:
            yield advance
    else:
        with plain_lines(title, total, tell) as advance:
            yield advance


@contextmanager
def plain_lines(title: str, total: int, tell: Tell) -> Iterator[Advance]:
    """``advance`` tells every tenth, ``Downloading disk [30%]``, and a good end the last."""
    done = told = 0

    def advance(amount: int) -> None:
        nonlocal done, told
        done += amount
        percent = min(100, 100 * done // total)
        if percent >= told + _STEP_PERCENT:
            told = percent - percent % _STEP_PERCENT
            tell(f"{title} [{told}%]")

    yield advance
    advance(total)


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), TextColumn(escape(unit)))
    if unit == "bytes":
        amounts = (DownloadColumn(binary_units=True), TransferSpeedColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *amounts, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(escape(title), total=total)
        (task,) = bar.tasks
        yield lambda amount: bar.advance(task.id, min(amount, total - task.completed))
