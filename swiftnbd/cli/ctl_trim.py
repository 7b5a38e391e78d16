# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl trim``: delete the objects that hold nothing but zeros."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import md5
from typing import TYPE_CHECKING

import click

from swiftnbd.cli.common import (
    IN_FLIGHT_MAX,
    TRANSFER_SECONDS_MAX,
    Held,
    Tell,
    held,
    on_container,
    read_container,
    read_disk,
    tell,
)
from swiftnbd.cli.completion import container_argument
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.progress import Advance, progress
from swiftnbd.cli.report import json_option, quiet_option
from swiftnbd.cli.sizes import counted, format_size
from swiftnbd.cli.summary import Summary, report
from swiftnbd.export.layout import PART_PREFIX, Geometry, object_index, object_name
from swiftnbd.export.pace import Pace
from swiftnbd.store.base import Listed, Store

if TYPE_CHECKING:
    from swiftnbd.export.objects import DiskObjects

ZEROS_BYTES_AT_ONCE = 1 << 20  # of an object of up to 64 MiB, to hash it without holding it

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Trimmed:
    """How many objects of the disk are stored, and how many of them were zeros."""

    stored: int = 0
    zeros: int = 0


@click.command("trim")
@container_argument()
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be freed.")
@quiet_option
@json_option
@click.pass_obj
def trim_command(
    options: SharedOptions, *, container: str, dry_run: bool, quiet: bool, as_json: bool
) -> None:
    """Find and delete objects that are all zeros.

    They read the same when they are gone, and take no space. What a client has reserved by
    writing zeros is given up, too.
    """
    action = partial(
        trim, name=container, dry_run=dry_run, quiet=quiet, tell=tell, pace=options.pace
    )
    geometry, found = on_container(options, container, action, seconds=TRANSFER_SECONDS_MAX)
    freed = found.zeros * geometry.object_size
    counts = {"stored_objects": found.stored, "zero_objects": found.zeros, "bytes": freed}
    one, more = ("is", "are") if dry_run else ("was", "were")
    sentence = (
        f"{'Nothing was changed' if dry_run else 'Done'}, {found.zeros} of "
        f"{counted(found.stored, 'stored object')} {one if found.zeros == 1 else more} zeros: "
        f"{format_size(freed)} "
        f"{'would be ' if dry_run else ''}freed"
    )
    summary: Summary = {"container": container, **counts, "dry_run": dry_run}
    report(summary, sentence, as_json=as_json, tell=tell)


async def trim(
    store: Store, *, name: str, dry_run: bool, quiet: bool, tell: Tell, pace: Pace | None = None
) -> tuple[Geometry, Trimmed]:
    """Delete them, holding the container's lock; ``dry_run`` takes none and changes nothing."""
    from swiftnbd.cli.known import known_objects

    info = await read_container(store, name, count=True)
    geometry = read_disk(info, name).geometry
    async with AsyncExitStack() as stack:
        delete = None
        if not dry_run:
            holding = await stack.enter_async_context(held(store, name, pace, changed=False))
            store, geometry = holding.store, holding.disk.geometry
            known = await stack.enter_async_context(known_objects(holding))
            delete = partial(_delete, holding, known)
        title = f"Trimming {name}"
        count = info.objects or 0
        with progress(title, count, quiet=quiet, tell=tell, unit="objects") as advance:
            return geometry, await _trim(store, geometry, delete, advance)


async def _delete(holding: Held, known: "DiskObjects", index: int) -> None:
    holding.changed = True
    await known.delete(index)


async def _trim(
    store: Store,
    geometry: Geometry,
    delete: Callable[[int], Awaitable[None]] | None,
    advance: Advance,
) -> Trimmed:
    from swiftnbd.cli.parallel import for_each, in_thread

    zeros = await in_thread(partial(etag_of_zeros, geometry.object_size))
    found = Trimmed()

    async def look(row: Listed) -> None:
        index = object_index(row.name)
        assert index is not None
        # A listing is only a hint, but a wrong one costs no more than an object not found.
        if row.etag in ("", zeros) and await _is_zeros(store, row.name, geometry, zeros):
            found.zeros += 1
            if delete is not None:
                await delete(index)
        advance(1)

    async for rows in _stored(store, geometry.objects):
        found.stored += len(rows)
        await for_each(rows, look, in_flight=IN_FLIGHT_MAX)
    return found


async def _is_zeros(store: Store, name: str, geometry: Geometry, zeros: str) -> bool:
    info = await store.head(name, newest=True)
    return info is not None and (info.size, info.etag) == (geometry.object_size, zeros)


async def _stored(store: Store, objects: int) -> AsyncIterator[list[Listed]]:
    """The rows of the disk's objects, page by page."""
    after, before = PART_PREFIX, object_name(objects)
    while page := await store.listing(prefix=PART_PREFIX, after=after, before=before):
        yield [row for row in page if object_index(row.name) is not None]
        after = page[-1].name


def etag_of_zeros(size: int) -> str:
    """The MD5 of so many zeros."""
    digest = md5()
    whole, rest = divmod(size, ZEROS_BYTES_AT_ONCE)
    block = bytes(ZEROS_BYTES_AT_ONCE)
    for _ in range(whole):
        digest.update(block)
    digest.update(block[:rest])
    return digest.hexdigest()
