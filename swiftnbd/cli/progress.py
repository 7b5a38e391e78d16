# SPDX-License-Identifier: MIT
"""How far a long command is: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from swiftnbd.cli.common import Tell
from swiftnbd.cli.sizes import format_size

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

_STEP_PERCENT = 10  # of plain lines: enough to see it live, too few to fill a log
_ECHO_COLUMNS = 4  # ^C, twice
_TITLE_LENGTH_MAX = 24  # of a bar: 80 columns hold that, a short bar, amounts, speed and time

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
    from rich.console import Console, RenderableType
    from rich.constrain import Constrain
    from rich.progress import BarColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)

    class Narrower(Progress):
        """It leaves the last columns of the terminal alone.

        Ctrl-C is echoed as ^C behind the bar. If that began a new line, it is the new line that
        would be cleared at the end, and the bar would stay.
        """

        def get_renderables(self) -> Iterator[RenderableType]:
            width = max(1, console.width - _ECHO_COLUMNS)
            yield Constrain(self.make_tasks_table(self.tasks), width)

    amounts = _bytes_columns() if unit == "bytes" else _count_columns(unit)
    columns = (_text("{task.description}"), BarColumn(), *amounts, TimeRemainingColumn())
    with Narrower(*columns, console=console, transient=True) as bar:
        bar.add_task(_shortened(title), total=total)
        (task,) = bar.tasks
        yield lambda amount: bar.advance(task.id, min(amount, total - task.completed))


def _text(form: str) -> "ProgressColumn":
    """A column that never wraps: it is the bar that gets shorter on a narrow terminal."""
    from rich.progress import TextColumn
    from rich.table import Column

    return TextColumn(form, table_column=Column(no_wrap=True))


def _shortened(title: str) -> str:
    """As markup, and with room left for the rest of the line."""
    from rich.markup import escape

    short = title if len(title) <= _TITLE_LENGTH_MAX else title[: _TITLE_LENGTH_MAX - 1] + "…"
    return escape(short)


def _bytes_columns() -> "tuple[ProgressColumn, ...]":
    """How much is done, and how fast, in the units of everything else that is told."""
    from rich.progress import ProgressColumn, Task
    from rich.table import Column

    class Amount(ProgressColumn):
        def render(self, task: Task) -> str:
            return f"{format_size(int(task.completed))} of {format_size(int(task.total or 0))}"

    class Speed(ProgressColumn):
        def render(self, task: Task) -> str:
            speed = task.finished_speed or task.speed
            return "" if speed is None else f"{format_size(int(speed))}/s"

    plain = Column(no_wrap=True), Column(no_wrap=True)
    return Amount(plain[0]), _text("{task.percentage:>3.0f}%"), Speed(plain[1])


def _count_columns(unit: str) -> "tuple[ProgressColumn, ...]":
    from rich.markup import escape
    from rich.progress import MofNCompleteColumn
    from rich.table import Column

    return MofNCompleteColumn(table_column=Column(no_wrap=True)), _text(escape(unit))
