# SPDX-License-Identifier: MIT
"""How a captive command is ended. (What it is told, and its exit code: tests/integration.)"""

import asyncio
import os
from pathlib import Path

import pytest

from swiftnbd.server import captive as captive_module
from swiftnbd.server.captive import Captive
from tests.support.foreground import wait_for_end
from tests.support.loopback import until

STUBBORN = "trap '' TERM; sh -c 'echo $$ > child; exec sleep 600'"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("way", ["forced", "too late"])
async def test_command_that_ignores_the_signal_is_killed_with_all_it_has_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    seconds = 600 if way == "forced" else 0.05
    monkeypatch.setattr(captive_module, "END_SECONDS_MAX", seconds)
    stop, force = asyncio.Event(), asyncio.Event()
    run = asyncio.create_task(Captive(STUBBORN, os.environ).run(stop, force))
    said = folder / "child"
    await until(lambda: said.exists() and said.read_text().endswith("\n"))
    stop.set()
    if way == "forced":
        await asyncio.sleep(0)
        force.set()
    assert await asyncio.wait_for(run, 20) == 137
    assert wait_for_end(int(said.read_text()))


async def test_nothing_is_left_open(folder: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert await Captive("exit 3", os.environ).run(asyncio.Event(), asyncio.Event()) == 3
    assert len(os.listdir("/proc/self/fd")) == before


async def test_environment_is_the_one_given(folder: Path) -> None:
    captive = Captive("echo $NAME > said", {"NAME": "value"})
    assert await captive.run(asyncio.Event(), asyncio.Event()) == 0
    assert (folder / "said").read_text() == "value\n"
