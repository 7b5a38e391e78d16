# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl copy``: one container's disk into another container."""

import logging
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import click

from swiftnbd.cli.common import (
    TRANSFER_SECONDS_MAX,
    Held,
    Tell,
    held,
    on_containers,
    read_container,
    read_disk,
    tell,
)
from swiftnbd.cli.completion import container_argument
from swiftnbd.cli.ctl_setup import SetupRequest, disk_to_write, geometry_for, setup
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.progress import progress
from swiftnbd.cli.report import json_option, quiet_option
from swiftnbd.cli.sizes import counted, exact_size, format_size, size_option
from swiftnbd.cli.summary import Summary, report
from swiftnbd.errors import SwiftnbdError
from swiftnbd.export.layout import META_PREFIX, PART_PREFIX, DiskInfo, is_set_up
from swiftnbd.export.pace import Pace
from swiftnbd.store.base import Store

if TYPE_CHECKING:
    from swiftnbd.cli.copying import Tally

_IMAGE_SIZE = META_PREFIX + "image-size"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """What was asked for: from one container's name to another's."""

    source: str
    target: str
    setup: bool = False
    object_size: int | None = None
    policy: str | None = None
    force: bool = False
    quiet: bool = False
    pace: Pace = field(default_factory=Pace)


@click.command("copy")
@container_argument("source")
@container_argument("destination")
@click.option("--setup", "with_setup", is_flag=True, help="Set DESTINATION up first, if it is not.")
@click.option(
    "--object-size",
    metavar="BYTES",
    callback=size_option,
    help="With --setup: bytes of each object, or 64K, 1M... [default: those of SOURCE]",
)
@click.option("--policy", metavar="NAME", help="With --setup: storage policy of a new container.")
@click.option("-f", "--force", is_flag=True, help="Write over a disk that holds data.")
@quiet_option
@json_option
@click.pass_obj
def copy_command(
    options: SharedOptions,
    *,
    source: str,
    destination: str,
    with_setup: bool,
    object_size: int | None,
    policy: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Copy the disk of a container to another container.

    Within one account, and from objects to objects of the same size, the store copies by itself;
    else the bytes pass through here. What is not stored is not copied, and what DESTINATION holds
    besides will read as zeros. Both are locked meanwhile. After an interruption, the same command
    goes on: what is there already is not copied again.
    """
    if source == destination:
        raise click.UsageError("SOURCE and DESTINATION are the same container")
    if not with_setup and (object_size or policy):
        raise click.UsageError("--object-size and --policy are for --setup")
    request = CopyRequest(
        source, destination, with_setup, object_size, policy, force, quiet, options.pace
    )
    begin = time.monotonic()
    tally, disk = on_containers(
        options,
        (source, destination),
        lambda stores: copy(*stores, request=request, tell=tell),
        seconds=TRANSFER_SECONDS_MAX,
    )
    summary: Summary = {
        "source": source,
        "destination": destination,
        "size": disk.geometry.size,
        "objects_copied": tally.copied,
        "bytes_copied": tally.copied_bytes,
        "objects_already_there": tally.already_there,
        "objects_deleted": tally.deleted,
        "server_side": tally.server_side,
        "seconds": round(time.monotonic() - begin, 3),
    }
    report(summary, _sentence(request, tally), as_json=as_json, tell=tell)


def _sentence(request: CopyRequest, tally: "Tally") -> str:
    how = "by the store itself" if tally.server_side else "through here"
    parts = [f"{counted(tally.copied, 'object')} ({format_size(tally.copied_bytes)}) copied {how}"]
    if tally.already_there:
        were = "was" if tally.already_there == 1 else "were"
        parts.append(f"{tally.already_there} {were} there already")
    return f"Done, {request.target} is a copy of {request.source}: {', '.join(parts)}"


async def copy(
    source: Store, target: Store, *, request: CopyRequest, tell: Tell
) -> "tuple[Tally, DiskInfo]":
    """Make the target's disk what the source's is; what was done, and the source's disk."""
    disk = read_disk(await read_container(source, request.source), request.source)
    if request.setup:
        await _set_up(target, disk, request, tell)
    there = await disk_to_write(target, request.target)
    _check_fits(disk, there, request)
    async with AsyncExitStack() as stack:
        lock_source = partial(_hold, stack, source, request.source, request.pace)
        lock_target = partial(_hold, stack, target, request.target, request.pace)
        # By name, so that of two copies in opposite directions one succeeds
        if request.source < request.target:
            here = await lock_source()
            there_now = await lock_target()
        else:
            there_now = await lock_target()
            here = await lock_source()
        return await _copy_held(here, there_now, request, tell), here.disk


async def _hold(stack: AsyncExitStack, store: Store, name: str, pace: Pace) -> Held:
    return await stack.enter_async_context(held(store, name, pace, changed=False))


async def _set_up(target: Store, disk: DiskInfo, request: CopyRequest, tell: Tell) -> None:
    """Make the target a disk that holds the source's, unless it is one."""
    info = await target.info()
    if info is not None and is_set_up(info.metadata) and not request.object_size:
        return
    object_size = request.object_size or disk.geometry.object_size
    geometry = geometry_for(None, disk.geometry.size, object_size)
    wanted = SetupRequest(geometry, request.policy, exist_ok=True, pace=request.pace)
    await setup(target, name=request.target, request=wanted, tell=tell)


def _check_fits(disk: DiskInfo, there: DiskInfo, request: CopyRequest) -> None:
    size, room = disk.geometry.size, there.geometry.size
    if size > room:
        raise SwiftnbdError(
            f"{request.source} has {exact_size(size)} and does not fit: {request.target} is a disk "
            f"of {exact_size(room)}; run: swiftnbd-ctl resize {request.target} {size}"
        )


async def _copy_held(here: Held, there: Held, request: CopyRequest, tell: Tell) -> "Tally":
    from swiftnbd.cli.copying import Copy
    from swiftnbd.cli.known import known_objects
    from swiftnbd.cli.unfinished import COPY, finish_records, start_record, warn_of_unfinished

    _check_fits(here.disk, there.disk, request)
    await warn_of_unfinished(here, request.source, tell)
    await _check_overwrite(there, request, tell)
    # From now on the target is neither what it was nor what it will be.
    there.changed = True
    await start_record(there.store, COPY, there.lock, request.source)
    await there.store.set_metadata({_IMAGE_SIZE: ""})
    try:
        async with (
            known_objects(here) as sources,
            known_objects(there) as targets,
        ):
            total = there.disk.geometry.size
            title = f"Copying {request.source}"
            with progress(title, total, quiet=request.quiet, tell=tell) as advance:
                copying = Copy(here.store, sources, there.store, targets, advance)
                await copying.run()
    except BaseException:
        tell(f"{request.target} is incomplete; the same command goes on where this one stopped")
        raise
    if here.disk.image_size is not None:
        await there.store.set_metadata({_IMAGE_SIZE: str(here.disk.image_size)})
    await finish_records(there.store)
    return copying.tally


async def _check_overwrite(there: Held, request: CopyRequest, tell: Tell) -> None:
    """Refuse to write over somebody's data, unless told to."""
    from swiftnbd.cli.unfinished import COPY, is_unfinished

    if await is_unfinished(there.store, COPY, there.lock.predecessor, request.source):
        tell(f"{request.target}: going on with a copy that was interrupted")
    elif not request.force and await there.store.listing(prefix=PART_PREFIX, limit=1):
        more = " (of a copy that was cut short)" if await is_unfinished(there.store, COPY) else ""
        raise SwiftnbdError(f"{request.target} holds data{more}; to write over it, use --force")
