# SPDX-License-Identifier: MIT
"""docs/faults.md names a test for every line, and the tests exist."""

from tests.support.pages import defined_tests, named_tests, rows

PAGE = "docs/faults.md"
ROW = r"[WRLMAF]\d+"

KINDS = {"W": 14, "R": 9, "L": 2, "M": 4, "A": 9, "F": 16}


def test_every_row_is_there() -> None:
    expected = [f"{kind}{n}" for kind, count in KINDS.items() for n in range(1, count + 1)]
    assert list(rows(PAGE, ROW)) == expected


def test_every_row_names_tests_that_exist() -> None:
    defined = defined_tests()
    for row, cell in rows(PAGE, ROW).items():
        assert named_tests(cell), row
        assert named_tests(cell) <= defined, (row, named_tests(cell) - defined)
