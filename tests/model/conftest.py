# SPDX-License-Identifier: MIT
"""The model's disks are so small that much would never happen on them."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from swiftnbd.export import changing, disk, disk_cache

T = TypeVar("T")


class Turns:
    """In place of `swiftnbd.api.threads.Threads`: work is done in turns of the event loop.

    So what happens when is decided by the seed, and by no clock.
    """

    def __init__(self, count: int, name: str) -> None:
        pass

    def run(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        loop.call_soon(self._do, future, work, arguments)
        return future

    def stop(self) -> None:
        pass

    def join(self) -> None:
        pass

    @staticmethod
    def _do(future: asyncio.Future[T], work: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        try:
            result = work(*arguments)
        except Exception as error:
            if not future.cancelled():
                future.set_exception(error)
        else:
            if not future.cancelled():
                future.set_result(result)


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor any work on a local disk beside the event loop."""
    monkeypatch.setattr(disk_cache, "Threads", Turns)


@pytest.fixture(autouse=True)
def seed_is_all_there_is_to_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis tries the numbers in the code it finds loaded, too: what ran before would matter.

    No setting of it says so.
    """
    monkeypatch.setattr(providers, "_get_local_constants", Constants)
    providers.CONSTANTS_CACHE.cache.clear()


@pytest.fixture(autouse=True)
def trims_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of TRIM happen: of one object, and of several, which asks for a listing."""
    monkeypatch.setattr(changing, "TRIM_UNLISTED_MAX", 1)


@pytest.fixture(autouse=True)
def reads_are_run_ahead_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an object, which is as much as a quarter of the cache."""
    monkeypatch.setattr(disk, "READ_AHEAD_BYTES_MIN", 1)
