# SPDX-License-Identifier: MIT
"""docs/protocol.md names a test, or a reason, for every acceptance row, and the tests exist."""

from tests.support.pages import defined_tests, named_tests, rows

PAGE = "docs/protocol.md"
ROW = r"A\d[\d.]*"

ROWS = (
    *(f"A1.{number}" for number in range(1, 13)),
    *(f"A2.{number}" for number in range(1, 26)),
    "A3", "A4", "A5",
    *(f"A6.{number}" for number in range(1, 28)),
    *(f"A7.{number}" for number in range(1, 12)),
    "A8", "A10", "A11", "A12",
)  # fmt: skip


def test_every_row_is_there() -> None:
    assert tuple(rows(PAGE, ROW)) == ROWS


def test_every_row_names_tests_that_exist_or_says_why_it_is_left_out() -> None:
    defined = defined_tests()
    for row, cell in rows(PAGE, ROW).items():
        named = named_tests(cell)
        assert named or cell.startswith("left out: "), row
        assert named <= defined, (row, named - defined)
