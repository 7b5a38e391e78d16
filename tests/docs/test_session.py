# SPDX-License-Identifier: MIT
"""The recorded session of README.md is what the commands do today."""

import re
from html import unescape
from pathlib import Path

from tests.docs.session import COMMANDS, record
from tests.support.clients import find
from tests.support.pages import ROOT

ADVICE = "run: python -m tests.docs.session docs/session.svg"


def words(file: Path) -> str:
    """The text of a drawing, line by line; numbers, hosts and speed differ each time."""
    shown = unescape(" ".join(re.findall(r"<text [^>]*>(.*?)</text>", file.read_text())))
    shown = re.sub(r"(locked by|last) +\S+", r"\1", shown.replace("\xa0", " "))
    shown = re.sub(r"fetched in +\S+ +s(, +\S+ +\S+/s)?", "fetched", shown)
    return re.sub(r"\d+", "0", re.sub(r" +", " ", shown))


def test_session_is_what_the_commands_say(tmp_path: Path) -> None:
    for program in ("nbdcopy", "mke2fs"):
        find(program)
    record(tmp_path / "session.svg")
    recorded = words(ROOT / "docs/session.svg")
    assert recorded == words(tmp_path / "session.svg"), ADVICE
    for command in COMMANDS:
        assert re.sub(r"\d+", "0", command) in recorded


def test_drawing_needs_nothing_from_elsewhere() -> None:
    text = (ROOT / "docs/session.svg").read_text()
    assert re.findall(r"(?:href|url|src)\W+https?:", text) == []
