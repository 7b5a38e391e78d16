# SPDX-License-Identifier: MIT
import io
import sys

import pytest

from swiftnbd.cli.progress import plain_lines, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_every_tenth() -> None:
    lines: list[str] = []
    advance = plain_lines("Downloading d", 1000, lines.append)
    for _ in range(100):
        advance(10)
    assert lines == [f"Downloading d [{tenth}0%]" for tenth in range(1, 11)]


def test_large_steps_skip_lines() -> None:
    lines: list[str] = []
    advance = plain_lines("D", 4, lines.append)
    for _ in range(4):
        advance(1)
    assert lines == ["D [20%]", "D [50%]", "D [70%]", "D [100%]"]


@pytest.mark.parametrize(("quiet", "total"), [(True, 10), (False, 0)])
def test_quiet_or_empty_says_nothing(
    monkeypatch: pytest.MonkeyPatch, quiet: bool, total: int
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    lines: list[str] = []
    with progress("D", total, quiet=quiet, tell=lines.append) as advance:
        advance(10)
    assert (lines, screen.getvalue()) == ([], "")


def test_terminal_gets_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    lines: list[str] = []
    with progress("Downloading [red]", 10, quiet=False, tell=lines.append) as advance:
        advance(10)
    assert lines == []
    assert "Downloading [red]" in screen.getvalue()  # a name is no markup
