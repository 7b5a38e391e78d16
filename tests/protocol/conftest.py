# SPDX-License-Identifier: MIT
"""Every asyncio test of this folder runs on both event loops."""

import asyncio
import inspect
from asyncio import selector_events
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "uvloop": uvloop.new_event_loop
    }
    if _writelines_has_back_pressure():
        factories["asyncio"] = asyncio.new_event_loop
    return factories


def _writelines_has_back_pressure() -> bool:
    """Not so in 3.12.0 to 3.12.8 and 3.13.0 to 3.13.1 (CVE-2024-12254); the server uses uvloop."""
    transport = selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    own = vars(transport).get("writelines")  # 3.11 has none of its own
    return own is None or "_maybe_pause_protocol" in inspect.getsource(own)
