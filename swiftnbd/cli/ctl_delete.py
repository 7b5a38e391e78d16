# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl delete``: the disk, all its objects and the container."""

import logging
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import click

from swiftnbd.cli.common import (
    IN_FLIGHT_MAX,
    Tell,
    acquire,
    mark_of_this_process,
    on_container,
    read_container,
    read_disk,
    release_after_failure,
    tell,
)
from swiftnbd.cli.completion import container_argument
from swiftnbd.cli.exits import Exit
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.sizes import format_size
from swiftnbd.errors import ContainerNotEmpty, SwiftnbdError
from swiftnbd.store.base import Store

if TYPE_CHECKING:
    from swiftnbd.export.pace import Pace

# A listing may lag behind the deletes; a busy Swift catches up within seconds.
TRIES_MAX = 6
RETRY_SECONDS = 0.5  # doubles: 15 s in all

log = logging.getLogger(__name__)


@click.command("delete")
@container_argument()
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.pass_obj
def delete_command(options: SharedOptions, *, container: str, yes: bool) -> int:
    """Delete a container and all objects in it, the disk's and any other."""
    if not yes and sys.stdin.isatty():
        summary = on_container(options, container, partial(summarize, name=container))
        if not click.confirm(f"Delete {summary}?", err=True):
            tell("nothing was deleted")
            return Exit.FAILED
    on_container(options, container, partial(delete, name=container, tell=tell, pace=options.pace))
    return Exit.DONE


async def summarize(store: Store, *, name: str) -> str:
    """What would be lost."""
    info = await read_container(store, name, count=True)
    disk = read_disk(info, name)
    return (
        f"{name}, a disk of {format_size(disk.geometry.size)}, "
        f"with its {info.objects} objects ({format_size(info.bytes_used or 0)})"
    )


async def delete(
    store: Store,
    *,
    name: str,
    tell: Tell,
    pace: "Pace | None" = None,
    retry_seconds: float = RETRY_SECONDS,
) -> None:
    """Lock the container, delete its objects and then itself."""
    from swiftnbd.cli.keeping import kept
    from swiftnbd.export.lock import Lock

    read_disk(await read_container(store, name), name)
    lock = Lock(store, mark_of_this_process(), pace)
    await acquire(lock, name)
    try:
        log.debug("deleting %s", name)
        async with kept(lock, name):
            await _delete_objects(store, lock.epoch_name)
        await _delete_container(store, name, lock.epoch_name, retry_seconds)
    except BaseException:
        await release_after_failure(lock, name)
        raise
    tell(f"Done, {name} has been deleted")


async def _delete_objects(store: Store, epoch: str) -> None:
    """Delete everything but our epoch, which proves until the end that a 404 is an absence."""
    from swiftnbd.cli.parallel import for_each

    async def delete_object(name: str) -> None:
        await store.delete(name)

    after = ""
    while page := await store.listing(after=after):
        names = (row.name for row in page if row.name != epoch)
        await for_each(names, delete_object, in_flight=IN_FLIGHT_MAX)
        after = page[-1].name


async def _delete_container(store: Store, name: str, epoch: str, retry_seconds: float) -> None:
    import asyncio

    for attempt in range(TRIES_MAX):
        if attempt:
            await asyncio.sleep(retry_seconds * 2 ** (attempt - 1))
            await _delete_objects(store, epoch)
        store.set_canary(None)
        await store.delete(epoch)
        with suppress(ContainerNotEmpty):
            await store.delete_container()
            return
    raise SwiftnbdError(
        f"{name} is emptied, but the store still lists objects in it: try again in a minute"
    )
