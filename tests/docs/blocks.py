# SPDX-License-Identifier: MIT
"""The fenced blocks of a page, and the commands in them."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.pages import ROOT

_FENCE = re.compile(r"^( *)```(\w*)$")
_HERE_DOCUMENT = re.compile(r"<< *'?(\w+)'?")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its ``language``, its first line's number in the page, its text.

    ``section`` is the number of the chapter it stands in.
    """

    page: str
    line: int
    section: int
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """What a shell takes as one: a line with its continuations and here-documents."""

    page: str
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> Iterator[Block]:
    """All fenced blocks of a page, in order."""
    lines = (ROOT / page).read_text().splitlines()
    start, language, section = 0, "", 0
    for number, line in enumerate(lines, 1):
        if not start and line.startswith("## "):
            section += 1
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if not start:
            start, language = number, fence[2]
            continue
        text = textwrap.dedent("\n".join(lines[start : number - 1]))
        yield Block(page, start + 1, section, language, text)
        start = 0
    assert not start, f"{page}:{start}: a block without an end"


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block of the language ``sh``; comments of whole lines are none."""
    lines = enumerate(block.text.splitlines(), block.line)
    for number, line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        text = line
        while text.endswith("\\"):
            text += "\n" + next(lines)[1]
        if end := _HERE_DOCUMENT.search(line):
            while text.rpartition("\n")[2] != end[1]:
                text += "\n" + next(lines)[1]
        yield Command(block.page, number, text)
