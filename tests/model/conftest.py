# SPDX-License-Identifier: MIT
"""The model's disks are so small that every TRIM would count as short."""

import pytest

from swiftnbd.export import disk


@pytest.fixture(autouse=True)
def trims_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of TRIM happen: of one object, and of several, which asks for a listing."""
    monkeypatch.setattr(disk, "TRIM_UNLISTED_MAX", 1)
