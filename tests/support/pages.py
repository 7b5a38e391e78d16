# SPDX-License-Identifier: MIT
"""Tables of the documentation that name tests."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def rows(page: str, row: str) -> dict[str, str]:
    """The ids that match ``row`` in the tables of a page, each with the last cell of its line."""
    text = (ROOT / page).read_text()
    found = re.findall(rf"^\| ({row}) \| .* \| (.*) \|$", text, re.MULTILINE)
    assert len(found) == len(dict(found)), "a row stands there twice"
    return dict(found)


def named_tests(cell: str) -> set[str]:
    """The tests that a cell names."""
    return set(re.findall(r"`(test_\w+)`", cell))


def defined_tests() -> set[str]:
    """The names of all tests there are."""
    files = [*(ROOT / "tests").rglob("test_*.py"), ROOT / "tests/store/contract.py"]
    pattern = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)
    return {name for file in files for name in pattern.findall(file.read_text())}
