# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl lock`` and ``unlock``: holding a container by hand, and freeing it."""

import socket
from functools import partial
from typing import TYPE_CHECKING

import click

from swiftnbd.cli.common import (
    Tell,
    acquire,
    mark_of_this_process,
    on_container,
    read_container,
    tell,
)
from swiftnbd.cli.completion import container_argument
from swiftnbd.cli.exits import Exit
from swiftnbd.cli.options import SharedOptions
from swiftnbd.errors import ExportUnusable, Locked
from swiftnbd.export.layout import is_being_deleted, is_set_up
from swiftnbd.store.base import Store

if TYPE_CHECKING:
    from swiftnbd.export.holders import Sighting
    from swiftnbd.export.pace import Pace, Timing
    from swiftnbd.export.watch import Watch

LOOK_SECONDS = 2.0  # between looks for a sign of life


@click.command("lock")
@container_argument()
@click.pass_obj
def lock_command(options: SharedOptions, *, container: str) -> int:
    """Lock a container, so that no client can use it."""
    return on_container(
        options, container, partial(lock, name=container, tell=tell, pace=options.pace)
    )


@click.command("unlock")
@container_argument()
@click.option(
    "-f", "--force", is_flag=True, help="Unlock at once, though its holder may be at work."
)
@click.pass_obj
def unlock_command(options: SharedOptions, *, container: str, force: bool) -> int:
    """Unlock a container whose holder is gone.

    That is done at once if the holder ran on this machine, if it is swiftnbd 0.11, or if the lock
    was made with "swiftnbd-ctl lock". Any other one must give no sign of life for its lock term
    and half a minute. Be sure that it is gone if you use --force: two writers at once destroy a
    file system.
    """
    return on_container(
        options,
        container,
        partial(unlock, name=container, tell=tell, force=force, pace=options.pace),
    )


async def lock(store: Store, *, name: str, tell: Tell, pace: "Pace | None" = None) -> int:
    """Mark the container as held by this host, with no connection (port 0)."""
    from swiftnbd.export.lock import Lock
    from swiftnbd.export.marks import mark_for

    await read_container(store, name)
    await acquire(Lock(store, mark_for(socket.gethostname(), 0), pace, by_hand=True), name)
    tell(f"Done, {name} is locked")
    return Exit.DONE


async def unlock(
    store: Store,
    *,
    name: str,
    tell: Tell,
    force: bool = False,
    pace: "Pace | None" = None,
    timing: "Timing | None" = None,
) -> int:
    """Take the lock from whoever holds it and is gone, and say who that was."""
    from swiftnbd.export.watch import Watch, break_lock, forget_missing_epochs

    info = await read_container(store, name)
    if force:
        await forget_missing_epochs(store)
    watch = Watch(store, timing)
    left = await watch.look()
    seen = watch.seen
    if not seen.holder:
        if not (is_set_up(info.metadata) or is_being_deleted(info.metadata)):
            raise ExportUnusable(f"{name} hasn't been setup to be used with swiftnbd")
        tell(f"{name} is not locked, nothing to do")
        return Exit.FAILED
    tell(f"{name} lock is: {seen.holder} ({describe(seen)})")
    if left and not force:
        await _wait_for_silence(watch, left, name, tell, timing)
    await break_lock(store, mark_of_this_process(), seen, pace, timing)
    tell(f"Done, {name} is unlocked")
    return Exit.DONE


async def _wait_for_silence(
    watch: "Watch", left: float, name: str, tell: Tell, timing: "Timing | None"
) -> None:
    """Return when the holder has been silent for long enough. Raises `Locked` if it is not."""
    from swiftnbd.export.pace import Timing

    sleep = (timing or Timing()).sleep
    seen = watch.seen
    tell(f"waiting {left:.0f} s for a sign of life of that holder (--force does not wait)")
    while left:
        await sleep(min(left, LOOK_SECONDS))
        left = await watch.look()
        if watch.seen != seen:
            raise Locked(
                f"{name} is in use: its holder, {seen.holder}, is alive; "
                f"stop that, or use --force if you know better",
                seen.holder,
            )


def describe(seen: "Sighting") -> str:
    """Who holds it, since when, and when that was last confirmed."""
    from swiftnbd.export.marks import describe_holder, describe_time

    texts = [describe_holder(seen.holder)]
    for epoch in seen.epochs:
        process = epoch.claim.process
        if process is not None:
            texts.append(f"process {process.pid} on {process.host}")
        if epoch.renewed_at is not None:
            texts.append(f"last renewed {describe_time(epoch.renewed_at)}")
    return ", ".join(texts)
