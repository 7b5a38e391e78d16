# SPDX-License-Identifier: MIT
"""Times and counts as people read them; sizes are in test_cli_sizes.py."""

import pytest

from swiftnbd.units import counted, format_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.9, "0 s"), (59.9, "59 s"), (60, "1 min"), (725, "12 min 5 s"),
        (3600, "1 h"), (5405, "1 h 30 min"), (86400, "1 d"), (90061, "1 d 1 h"),
        (86400 + 60, "1 d"), (400 * 86400, "400 d"),
    ],
)  # fmt: skip
def test_time_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_one_is_not_plural() -> None:
    assert [counted(n, "object") for n in (0, 1, 2)] == ["0 objects", "1 object", "2 objects"]
