# SPDX-License-Identifier: MIT
import io
import re
import sys
from contextlib import suppress

import pytest

from swiftnbd.cli.progress import plain_lines, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_every_tenth() -> None:
    lines: list[str] = []
    with plain_lines("Downloading d", 1000, lines.append) as advance:
        for _ in range(100):
            advance(10)
    assert lines == [f"Downloading d [{tenth}0%]" for tenth in range(1, 11)]


def test_large_steps_skip_lines() -> None:
    lines: list[str] = []
    with plain_lines("D", 4, lines.append) as advance:
        for _ in range(4):
            advance(1)
    assert lines == ["D [20%]", "D [50%]", "D [70%]", "D [100%]"]


@pytest.mark.parametrize("steps", [7, 25])
def test_total_that_is_a_little_off_ends_at_all_of_it(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    with plain_lines("D", 10, lines.append) as advance:
        for _ in range(steps):
            advance(1)
    assert lines[-1] == "D [100%]"
    assert len(lines) == len(set(lines)) <= 10
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress("D", 10, quiet=False, tell=lines.append, unit="objects") as advance:
        for _ in range(steps):
            advance(1)
    assert f"{min(steps, 10)}/10" in screen.getvalue()
    assert "11/10" not in screen.getvalue()


def test_failure_is_not_all_of_it() -> None:
    lines: list[str] = []
    with suppress(ZeroDivisionError), plain_lines("D", 10, lines.append) as advance:
        advance(5)
        raise ZeroDivisionError
    assert lines == ["D [50%]"]


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


def shown_on(
    columns: int, title: str, total: int, done: int, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The lines that a bar draws on a terminal so wide, without colours."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    with progress(title, total, quiet=False, tell=lambda _line: None) as advance:
        advance(done)
    plain = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", screen.getvalue())
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", ["vm", "a" * 63, "n" * 256])
def test_bar_leaves_room_for_what_ctrl_c_echoes(
    columns: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown_on(columns, f"Downloading {name}", 1 << 30, 300 << 20, monkeypatch)
    assert lines
    assert max(len(line) for line in lines) <= columns - len("^C^C")
    assert "300 MiB of 1 GiB" in lines[-1]


def test_bar_has_the_units_of_the_last_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(shown_on(80, "Uploading vm", 1 << 30, 112 << 20, monkeypatch))
    assert "112 MiB of 1 GiB" in text
    assert " 11%" in text
    assert "MB" not in text
