# SPDX-License-Identifier: MIT
"""Every asyncio test of this folder runs on both event loops."""

import asyncio
import gc
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> None:
    """The log watch collects garbage after each test: spare it all that was imported."""
    gc.collect()
    gc.freeze()
