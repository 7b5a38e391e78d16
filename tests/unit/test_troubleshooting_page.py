# SPDX-License-Identifier: MIT
"""docs/troubleshooting.md has every message that a user can meet, and none that there is not."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import swiftnbd
from tests.support.pages import ROOT

CODE = Path(swiftnbd.__file__).parent
TEXT = (ROOT / "docs/troubleshooting.md").read_text()
CELLS = re.findall(r"^\| (`.*?`) \| ", TEXT, re.MULTILINE)
LISTED = [message for cell in CELLS for message in re.findall(r"`([^`]+)`", cell)]

GAP = "…"
WORDS_MIN = 8  # a shorter piece of a message could be any
FOR_USERS = {
    "BadParameter", "ConfigError", "ContainerMissing", "ExportUnusable", "Locked", "SeveralFailed",
    "SwiftnbdError", "UsageError",
}  # fmt: skip
LEVELS = {"warning", "error"}
# Raised where a bug of ours, or of a store's, would show; there is nothing that a user can do.
OF_NO_USE = {"loading an export failed", "an upload failed"}


def template(node: ast.expr) -> str:
    """A message as the code has it, with gaps for what differs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-.\d]*[a-z]", GAP, node.value)
    if isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
        return "".join(str(part) for part in parts)
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return GAP


def messages() -> Iterator[tuple[str, str]]:
    """Where it is said, and what: the errors for users, and the log from WARNING up."""
    for path in sorted(CODE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            of = node.func
            name = of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")
            is_log = isinstance(of, ast.Attribute) and name in LEVELS and "log" in ast.unparse(of)
            # an ExportError begins with its errno, a Locked ends with its holder
            if name in FOR_USERS or is_log:
                yield f"{path.relative_to(CODE)}:{node.lineno}", template(node.args[0])


MESSAGES = list(messages())


def pieces(text: str) -> list[str]:
    return [piece.strip(" :;,()[].'") for piece in text.split(GAP)]


@functools.cache
def all_constants() -> str:
    """Every text of the code, one after the other."""
    found = []
    for path in CODE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Constant, ast.JoinedStr)):
                found.append(template(node))
    return "\n".join(found)


def test_messages_are_found() -> None:
    assert len(MESSAGES) > 120
    assert len(LISTED) > 120


@pytest.mark.parametrize(("place", "message"), MESSAGES, ids=[place for place, _ in MESSAGES])
def test_message_is_listed(place: str, message: str) -> None:
    longest = max(pieces(message), key=len)
    if len(longest) < WORDS_MIN or message in OF_NO_USE:
        return
    assert any(longest in listed for listed in LISTED), message


@pytest.mark.parametrize("listed", LISTED)
def test_what_is_listed_is_said(listed: str) -> None:
    code = all_constants()
    for piece in pieces(listed):
        assert len(piece) < WORDS_MIN or piece in code, piece
