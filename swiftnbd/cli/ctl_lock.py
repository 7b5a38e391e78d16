# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl lock`` and ``unlock``: the mark in the container's metadata, by hand."""

import socket
from functools import partial

import click

from swiftnbd.cli.common import (
    Tell,
    acquire,
    holder_of,
    locked_by,
    on_container,
    read_container,
    tell,
)
from swiftnbd.cli.exits import Exit
from swiftnbd.cli.options import SharedOptions
from swiftnbd.errors import ExportUnusable
from swiftnbd.export.layout import is_set_up
from swiftnbd.store.base import Store


@click.command("lock")
@click.argument("container")
@click.pass_obj
def lock_command(options: SharedOptions, *, container: str) -> int:
    """Lock a container, so that no client can use it."""
    return on_container(options, container, partial(lock, name=container, tell=tell))


@click.command("unlock")
@click.argument("container")
@click.pass_obj
def unlock_command(options: SharedOptions, *, container: str) -> int:
    """Unlock a container, whoever holds it.

    Be sure that its holder is gone: two writers at once destroy a file system.
    """
    return on_container(options, container, partial(unlock, name=container, tell=tell))


async def lock(store: Store, *, name: str, tell: Tell) -> int:
    """Mark the container as held by this host, with no connection (port 0)."""
    from swiftnbd.export.lock import Lock, mark_for

    info = await read_container(store, name)
    if holder := holder_of(info):
        raise locked_by(name, holder)
    await acquire(Lock(store, mark_for(socket.gethostname(), 0)), name)
    tell(f"Done, {name} is locked")
    return Exit.DONE


async def unlock(store: Store, *, name: str, tell: Tell) -> int:
    """Take away whatever mark is there, and say whose it was."""
    from swiftnbd.export.lock import break_lock, describe_holder

    info = await read_container(store, name)
    holder = holder_of(info)
    if not holder:
        if not is_set_up(info.metadata):
            raise ExportUnusable(f"{name} hasn't been setup to be used with swiftnbd")
        tell(f"{name} is not locked, nothing to do")
        return Exit.FAILED
    tell(f"{name} lock is: {holder} ({describe_holder(holder)})")
    await break_lock(store, holder)
    tell(f"Done, {name} is unlocked")
    return Exit.DONE
