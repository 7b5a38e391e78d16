# SPDX-License-Identifier: MIT
"""The model's disks are so small that much would never happen on them."""

import pytest

from swiftnbd.export import changing, disk


@pytest.fixture(autouse=True)
def trims_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of TRIM happen: of one object, and of several, which asks for a listing."""
    monkeypatch.setattr(changing, "TRIM_UNLISTED_MAX", 1)


@pytest.fixture(autouse=True)
def reads_are_run_ahead_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an object, which is as much as a quarter of the cache."""
    monkeypatch.setattr(disk, "READ_AHEAD_BYTES_MIN", 1)
