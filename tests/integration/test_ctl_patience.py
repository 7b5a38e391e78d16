# SPDX-License-Identifier: MIT
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.cli import stores
from swiftnbd.cli.common import STORE_SECONDS_MAX, TRANSFER_SECONDS_MAX
from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.run import run
from swiftnbd.server.config import AuthConfig


@pytest.mark.parametrize(
    ("seconds", "command"),
    [
        (TRANSFER_SECONDS_MAX, ["upload", "-q", "image", "disk"]),
        (TRANSFER_SECONDS_MAX, ["download", "-q", "disk", "other"]),
        (TRANSFER_SECONDS_MAX, ["copy", "-q", "--setup", "disk", "other"]),
        (TRANSFER_SECONDS_MAX, ["resize", "-q", "disk", "1M"]),
        (TRANSFER_SECONDS_MAX, ["trim", "-q", "disk"]),
        (TRANSFER_SECONDS_MAX, ["check", "-q", "disk"]),
        (TRANSFER_SECONDS_MAX, ["delete", "-q", "--yes", "disk"]),
        (STORE_SECONDS_MAX, ["info", "disk"]),
        (STORE_SECONDS_MAX, ["list"]),
    ],
)
def test_what_takes_long_outlasts_a_short_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, command: list[str]
) -> None:
    asked: list[float | None] = []

    class Watched(stores.Stores):
        def __init__(self, auth: AuthConfig, *, seconds: float | None = None, **how: Any) -> None:
            asked.append(seconds)
            super().__init__(auth, seconds=seconds, **how)

    monkeypatch.chdir(tmp_path)
    Path("image").write_bytes(b"x" * 1000)
    assert run(ctl, "swiftnbd-ctl", ["-a", "file:store", "setup", "disk", "1"]) == 0
    monkeypatch.setattr(stores, "Stores", Watched)
    assert run(ctl, "swiftnbd-ctl", ["-a", "file:store", *command]) == 0
    assert asked[-1] == seconds
