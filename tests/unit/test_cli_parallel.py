# SPDX-License-Identifier: MIT
import asyncio
import threading
from collections.abc import Iterator

import pytest

from swiftnbd.cli.parallel import for_each, in_thread
from swiftnbd.errors import StoreError


@pytest.mark.parametrize("count", [0, 1, 3, 50])
async def test_every_item_is_worked_on_once_and_so_many_at_a_time(count: int) -> None:
    seen: list[int] = []
    at_work = most = 0

    async def work(item: int) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0)
        seen.append(item)
        at_work -= 1

    await for_each(range(count), work, in_flight=4)
    assert sorted(seen) == list(range(count))
    assert most == min(count, 4)


async def test_first_failure_stops_the_others_and_is_raised() -> None:
    stopped: list[int] = []

    async def work(item: int) -> None:
        if item == 2:
            raise StoreError("two")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append(item)
            raise

    with pytest.raises(StoreError, match="two"):
        await for_each(range(1000), work, in_flight=4)
    assert sorted(stopped) == [0, 1, 3]


async def test_items_are_taken_only_as_needed() -> None:
    taken: list[int] = []
    all_busy = asyncio.Event()

    def items() -> Iterator[int]:
        for item in range(10**9):
            taken.append(item)
            yield item

    async def work(item: int) -> None:
        if item == 3:
            all_busy.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(for_each(items(), work, in_flight=4))
    await all_busy.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert taken == [0, 1, 2, 3]


async def test_cancelled_thread_work_has_ended_when_the_await_has() -> None:
    loop = asyncio.get_running_loop()
    began, go_on, ended = asyncio.Event(), threading.Event(), threading.Event()

    def work() -> None:
        loop.call_soon_threadsafe(began.set)
        go_on.wait(10)
        ended.set()
        raise OSError("nobody asks any more")

    task = asyncio.create_task(in_thread(work))
    await began.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_thread_work_gives_its_result_or_error() -> None:
    def fail() -> None:
        raise StoreError("no")

    assert await in_thread(lambda: 42) == 42
    with pytest.raises(StoreError, match="no"):
        await in_thread(fail)
