# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl delete``: the disk, all its objects and the container.

The container's metadata say how far it came, so that nobody serves zeros for what is gone::

    a disk --> being deleted ---------> deleted ----------> (no container)
               locked;                  no lock, and
               objects go               nothing left

Killed in any of them, the same command goes on. Only ``setup --force`` makes a disk of it again.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import click

from swiftnbd.cli.common import (
    IN_FLIGHT_MAX,
    TRANSFER_SECONDS_MAX,
    Tell,
    acquire,
    acquire_unread,
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
from swiftnbd.cli.progress import Advance, progress
from swiftnbd.cli.report import json_option, quiet_option
from swiftnbd.cli.sizes import counted, format_size
from swiftnbd.cli.summary import Summary, report
from swiftnbd.errors import ContainerNotEmpty, ExportUnusable, SwiftnbdError
from swiftnbd.export.layout import (
    deleted_metadata,
    deleting_metadata,
    is_being_deleted,
    is_deleted,
)
from swiftnbd.store.base import ContainerInfo, Store, list_all

if TYPE_CHECKING:
    from swiftnbd.export.lock import Lock
    from swiftnbd.export.pace import Pace

# A listing may lag behind the deletes; a busy Swift catches up within seconds.
TRIES_MAX = 6
RETRY_SECONDS = 0.5  # doubles: 15 s in all

Shown = Callable[[int], AbstractContextManager[Advance]]  # progress, given a total

log = logging.getLogger(__name__)


@click.command("delete")
@container_argument()
@click.option("--yes", is_flag=True, help="Don't ask.")
@quiet_option
@json_option
@click.pass_obj
def delete_command(
    options: SharedOptions, *, container: str, yes: bool, quiet: bool, as_json: bool
) -> int:
    """Delete a container and all objects in it, the disk's and any other."""
    if not yes and sys.stdin.isatty():
        what = on_container(options, container, partial(summarize, name=container))
        if not click.confirm(f"Delete {what}?", err=True):
            tell("nothing was deleted")
            return Exit.FAILED
    action = partial(delete, name=container, tell=tell, quiet=quiet, pace=options.pace)
    summary = on_container(options, container, action, seconds=TRANSFER_SECONDS_MAX)
    report(summary, f"Done, {container} has been deleted", as_json=as_json, tell=tell)
    return Exit.DONE


async def summarize(store: Store, *, name: str) -> str:
    """What would be lost."""
    info = await read_container(store, name, count=True)
    stored = f"{counted(info.objects or 0, 'object')} ({format_size(info.bytes_used or 0)})"
    if is_deleted(info.metadata):
        return f"{name}, all of whose objects are deleted already"
    if is_being_deleted(info.metadata):
        return f"{name}, which is deleted in part, with what is left of it, {stored}"
    disk = read_disk(info, name)
    return f"{name}, a disk of {format_size(disk.geometry.size)}, with its {stored}"


async def delete(
    store: Store,
    *,
    name: str,
    tell: Tell,
    quiet: bool = True,
    pace: "Pace | None" = None,
    retry_seconds: float = RETRY_SECONDS,
) -> Summary:
    """Lock the container, delete its objects and then itself."""
    from swiftnbd.cli.ctl_setup import holds_foreign

    begin = time.monotonic()
    info = await read_container(store, name)
    deleted, transfer_seconds = 0, 0.0
    if not is_deleted(info.metadata):
        if not is_being_deleted(info.metadata):
            read_disk(info, name)
        shown = partial(progress, f"Deleting {name}", quiet=quiet, tell=tell, unit="objects")
        deleted, transfer_seconds = await _empty(store, info, name, pace, shown, tell)
    elif await holds_foreign(store):
        raise ExportUnusable(f"{name} is no disk any more, and holds objects that never were one's")
    await _delete_container(store, name, retry_seconds)
    return {
        "container": name,
        "objects_deleted": deleted,
        "transfer_seconds": round(transfer_seconds, 3),
        "seconds": round(time.monotonic() - begin, 3),
    }


async def _empty(
    store: Store, info: ContainerInfo, name: str, pace: "Pace | None", shown: Shown, tell: Tell
) -> tuple[int, float]:
    """Delete all objects, holding the lock. How many there were, and the seconds it took."""
    from swiftnbd.cli.keeping import kept
    from swiftnbd.export.lock import Lock

    lock = Lock(store, mark_of_this_process(), pace)
    if is_being_deleted(info.metadata):
        await acquire_unread(lock, name, info)
    else:
        await acquire(lock, name)
    try:
        log.debug("deleting %s", name)
        begin = time.monotonic()
        async with kept(lock, name) as leased:
            await leased.set_metadata(deleting_metadata())
            # Counted by the store, perhaps a moment ago; a folder would have to look at each.
            with _telling(name, tell), shown(info.objects or 0) as advance:
                deleted = await _delete_objects(leased, lock.epoch_name, advance)
            seconds = time.monotonic() - begin
            await leased.set_metadata(deleted_metadata())
    except BaseException:
        await _let_go(store, lock, name)
        raise
    store.set_canary(None)
    await store.delete(lock.epoch_name)
    return deleted, seconds


async def _let_go(store: Store, lock: "Lock", name: str) -> None:
    """Release the lock, unless it went with the rest of the metadata a moment ago."""
    with suppress(SwiftnbdError):
        info = await store.info()
        if info is None or is_deleted(info.metadata):
            return
    await release_after_failure(lock, name)


@contextmanager
def _telling(name: str, tell: Tell) -> Iterator[None]:
    """Say what is left if it ends here."""
    try:
        yield
    except BaseException:
        tell(f"{name} is deleted in part, and nobody can use it; the same command goes on")
        raise


async def _delete_objects(store: Store, kept: str, advance: Advance) -> int:
    """Delete everything but our epoch, which proves until the end that a 404 is an absence."""
    from swiftnbd.cli.parallel import for_each_of

    deleted = 0

    async def delete_object(name: str) -> None:
        nonlocal deleted
        await store.delete(name)
        deleted += 1
        advance(1)

    names = (row.name async for row in list_all(store) if row.name != kept)
    await for_each_of(names, delete_object, in_flight=IN_FLIGHT_MAX)
    return deleted


async def _delete_container(store: Store, name: str, retry_seconds: float) -> None:
    """Delete the container, and what its listing still shows, as often as it takes."""
    import asyncio

    for attempt in range(TRIES_MAX):
        if attempt:
            await asyncio.sleep(retry_seconds * 2 ** (attempt - 1))
            await _check_still_deleted(store, name)
            await _delete_objects(store, "", _ignore)
        with suppress(ContainerNotEmpty):
            await store.delete_container()
            return
    raise SwiftnbdError(
        f"{name} is emptied, but the store still lists objects in it: try again in a minute"
    )


async def _check_still_deleted(store: Store, name: str) -> None:
    """What is listed is what we have deleted, unless somebody has a use for the container again."""
    info = await store.info()
    if info is not None and not is_deleted(info.metadata):
        raise SwiftnbdError(f"{name} was emptied, and is set up anew since: it is left alone")


def _ignore(_amount: int) -> None:
    pass
