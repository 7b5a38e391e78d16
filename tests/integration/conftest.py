# SPDX-License-Identifier: MIT
"""Containers for the commands of swiftnbd-ctl, on the stores that need nothing else."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from swiftnbd.cli.ctl_setup import SetupRequest, setup
from swiftnbd.export import lock as lock_module
from swiftnbd.export.layout import Geometry
from swiftnbd.export.process import Process, current_process
from swiftnbd.store.base import Store
from swiftnbd.store.directory import DirectoryStore
from swiftnbd.store.memory import MemoryStore

NAME = "disk"
OBJECT_SIZE = 4096
HOLDER = "host:7@1700000000"
HELD = (
    "disk is locked by host:7 since 2023-11-14 22:13:20 UTC; "
    "if that holder is gone, run: swiftnbd-ctl unlock disk"
)


class Told(list[str]):
    """What a command said."""

    def __call__(self, message: str) -> None:
        self.append(message)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(params=["memory", "directory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """A container that does not exist yet."""
    store: Store
    if request.param == "memory":
        store = MemoryStore(NAME)
    else:
        store = DirectoryStore(tmp_path / "store", NAME)
    yield store
    await store.close()


@pytest.fixture
async def disk(store: Store) -> Store:
    """A container set up with eight objects of 4 KiB."""
    await setup(store, name=NAME, request=SetupRequest(Geometry(8, OBJECT_SIZE)), tell=Told())
    return store


async def metadata(store: Store) -> dict[str, str]:
    """The container's metadata without its prefix."""
    info = await store.info()
    assert info is not None
    return {key.removeprefix("swiftnbd-"): value for key, value in info.metadata.items()}


def dead_process() -> Process | None:
    """One that was on this machine and is not any more."""
    process = current_process()
    return None if process is None else replace(process, started=process.started + 1)


async def held_by_the_dead(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locked by a process of this machine that was killed."""
    with monkeypatch.context() as patch:
        patch.setattr(lock_module, "current_process", dead_process)
        await lock_module.Lock(store, HOLDER).acquire()
