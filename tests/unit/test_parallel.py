# SPDX-License-Identifier: MIT
"""Work on many items, a bounded number at a time."""

import asyncio
from collections.abc import Iterator

import pytest

from swiftnbd.errors import StoreError, StoreFull, StoreUnavailable
from swiftnbd.export.parallel import AT_ONCE_MAX, for_each
from tests.support.disks import begun, turns


@pytest.mark.parametrize("count", [0, 1, 2, AT_ONCE_MAX, AT_ONCE_MAX + 1, 1000])
async def test_each_item_is_worked_on_once(count: int) -> None:
    seen = []

    async def work(item: int) -> None:
        await asyncio.sleep(0)
        seen.append(item)

    await for_each(iter(range(count)), work)
    assert sorted(seen) == list(range(count))


async def test_no_more_than_the_limit_are_worked_on_at_once() -> None:
    at_once, most, opened = 0, 0, asyncio.Event()

    async def work(item: int) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await opened.wait()
        at_once -= 1

    task = await begun(for_each(range(1000), work))
    assert at_once == AT_ONCE_MAX
    opened.set()
    await task
    assert most == AT_ONCE_MAX


async def test_endless_items_are_taken_one_by_one() -> None:
    def items() -> Iterator[int]:
        yield from range(AT_ONCE_MAX)
        raise AssertionError("taken before there was a worker for it")

    opened = asyncio.Event()

    async def work(item: int) -> None:
        await opened.wait()

    task = await begun(for_each(items(), work))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


@pytest.mark.parametrize("go_on", [False, True])
async def test_first_error_is_raised_at_the_end(go_on: bool) -> None:
    seen = []

    async def work(item: int) -> None:
        seen.append(item)
        await asyncio.sleep(0)
        if item == 1:
            raise StoreUnavailable("first")
        if item == 2:
            raise StoreFull("second")

    with pytest.raises(StoreUnavailable, match="first"):
        await for_each(range(1000), work, go_on=go_on)
    assert len(seen) == 1000 if go_on else len(seen) < 2 * AT_ONCE_MAX


async def test_single_item_raises_its_error() -> None:
    async def work(item: int) -> None:
        raise StoreFull("only")

    with pytest.raises(StoreFull):
        await for_each([1], work)


@pytest.mark.parametrize("count", [1, 2])
async def test_worker_that_ends_cancelled_is_not_taken_for_done(count: int) -> None:
    """A task group takes it for that, and the request would be acknowledged."""

    async def work(item: int) -> None:
        raise asyncio.CancelledError

    task = await begun(for_each(range(count), work))
    assert task.cancelled()


async def test_cancelled_from_outside_it_leaves_no_worker_behind() -> None:
    before = asyncio.all_tasks()

    async def work(item: int) -> None:
        await asyncio.Event().wait()

    task = await begun(for_each(range(1000), work))
    task.cancel()
    await turns()
    assert task.cancelled()
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("order", [(StoreFull, StoreUnavailable), (StoreUnavailable, StoreFull)])
async def test_error_that_room_would_not_mend_goes_before_one_that_it_would(
    order: tuple[type[StoreError], ...],
) -> None:
    async def work(number: int) -> None:
        raise order[number]("faulty")

    with pytest.raises(StoreUnavailable):
        await for_each(range(2), work, go_on=True)
