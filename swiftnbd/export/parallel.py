# SPDX-License-Identifier: MIT
"""Work on many items, a bounded number at a time."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable
from errno import EIO
from typing import TypeVar

from swiftnbd.errors import SwiftnbdError

AT_ONCE_MAX = 64  # blocks one request works on at once: keeps every store connection busy

T = TypeVar("T")


async def for_each(
    items: Iterable[T], work: Callable[[T], Awaitable[None]], *, go_on: bool = False
) -> None:
    """Do ``work`` on each item, `AT_ONCE_MAX` at a time, and raise the first error at the end.

    After an error no further item is begun, unless told to ``go_on``. Then EIO goes before what
    came first: who is told ENOSPC believes that room is all that is missing.
    """
    rest = iter(items)
    first = list(itertools.islice(rest, AT_ONCE_MAX))
    if len(first) == 1:  # the usual case needs no task
        await work(first[0])
        return
    todo = itertools.chain(first, rest)
    errors: list[SwiftnbdError] = []

    async def worker() -> None:
        for item in todo:
            try:
                await work(item)
            except SwiftnbdError as error:
                if not errors or (error.errno == EIO != errors[0].errno):
                    errors[:] = [error]
            if errors and not go_on:
                return

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(worker()) for _ in first]
    if any(each.cancelled() for each in workers):
        raise asyncio.CancelledError  # the group takes it for done; a part of the work is not
    if errors:
        raise errors[0]
