# SPDX-License-Identifier: MIT
"""docs/protocol.md names a test, or a reason, for every acceptance row, and the tests exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

ROWS = (
    *(f"A1.{number}" for number in range(1, 13)),
    *(f"A2.{number}" for number in range(1, 26)),
    "A3", "A4", "A5",
    *(f"A6.{number}" for number in range(1, 28)),
    *(f"A7.{number}" for number in range(1, 12)),
    "A8", "A10", "A11", "A12",
)  # fmt: skip


def rows() -> dict[str, str]:
    """Row id to the last cell of its line."""
    text = (ROOT / "docs/protocol.md").read_text()
    found = re.findall(r"^\| (A\d[\d.]*) \| .* \| (.*) \|$", text, re.MULTILINE)
    assert len(found) == len(dict(found)), "a row stands there twice"
    return dict(found)


def defined_tests() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    pattern = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)
    return {name for file in files for name in pattern.findall(file.read_text())}


def test_every_row_is_there() -> None:
    assert tuple(rows()) == ROWS


def test_every_row_names_tests_that_exist_or_says_why_it_is_left_out() -> None:
    defined = defined_tests()
    for row, cell in rows().items():
        named = re.findall(r"`(test_\w+)`", cell)
        assert named or cell.startswith("left out: "), row
        assert set(named) <= defined, (row, set(named) - defined)
