# SPDX-License-Identifier: MIT
"""Waiting ends when nothing moves any more, and not before."""

import asyncio

import pytest

from swiftnbd.export.patience import Patience

SECONDS = 0.05


async def test_it_ends_when_nothing_moves() -> None:
    with pytest.raises(TimeoutError):
        async with Patience().within(SECONDS):
            await asyncio.Event().wait()


async def test_sign_of_life_sets_the_end_back() -> None:
    loop, patience = asyncio.get_running_loop(), Patience()
    begin = moved = loop.time()

    def move() -> None:
        nonlocal moved
        patience.moved()
        moved = loop.time()
        if moved < begin + 3 * SECONDS:
            loop.call_later(SECONDS / 10, move)

    move()
    with pytest.raises(TimeoutError):
        async with patience.within(SECONDS):
            await asyncio.Event().wait()
    assert loop.time() >= begin + 4 * SECONDS
    assert loop.time() >= moved + SECONDS


async def test_what_ends_in_time_is_left_alone() -> None:
    async with Patience().within(SECONDS):
        pass
    await asyncio.sleep(2 * SECONDS)


async def test_none_is_for_ever() -> None:
    async with Patience().within(None):
        await asyncio.sleep(SECONDS)
