# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl upload``: a raw image into a container's disk."""

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

from swiftnbd.cli.common import (
    TRANSFER_SECONDS_MAX,
    Held,
    Tell,
    held,
    on_container,
    tell,
)
from swiftnbd.cli.completion import container_argument
from swiftnbd.cli.ctl_setup import SetupRequest, disk_to_write, geometry_for, setup
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.progress import progress
from swiftnbd.cli.report import json_option, quiet_option
from swiftnbd.cli.sizes import exact_size, size_option
from swiftnbd.cli.summary import Summary, report, transferred
from swiftnbd.errors import SwiftnbdError
from swiftnbd.export.layout import META_PREFIX, OBJECT_SIZE_DEFAULT, PART_PREFIX, DiskInfo
from swiftnbd.export.pace import Pace
from swiftnbd.store.base import Store

if TYPE_CHECKING:
    from swiftnbd.cli.source import Source
    from swiftnbd.cli.uploading import Tally
    from swiftnbd.export.objects import DiskObjects

_IMAGE_SIZE = META_PREFIX + "image-size"


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """What was asked for. ``setup`` is how to set the container up first, if that is wanted."""

    setup: SetupRequest | None
    force: bool
    quiet: bool
    pace: Pace


@click.command("upload")
@click.argument("image", type=click.Path())
@container_argument()
@click.option("--setup", "with_setup", is_flag=True, help="Set the container up first, if need be.")
@click.option(
    "--size",
    metavar="SIZE",
    callback=size_option,
    help="With --setup: size of the disk, if it is to be larger than the image.",
)
@click.option(
    "--object-size",
    metavar="BYTES",
    callback=size_option,
    help=f"With --setup: bytes of each object, or 64K, 1M... [default: {OBJECT_SIZE_DEFAULT}]",
)
@click.option("--policy", metavar="NAME", help="With --setup: storage policy of a new container.")
@click.option("-f", "--force", is_flag=True, help="Write over a disk that holds data.")
@quiet_option
@json_option
@click.pass_obj
def upload_command(
    options: SharedOptions,
    *,
    image: str,
    container: str,
    with_setup: bool,
    size: int | None,
    object_size: int | None,
    policy: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Upload a raw image to a container's disk.

    IMAGE is a file, a block device, or - for standard input. What is zeros in it is not stored,
    and what lies behind its end on a larger disk will read as zeros. After an interruption, the
    same command goes on: what is there already is not sent again.
    """
    from swiftnbd.cli.source import Source

    if not with_setup and (size or object_size or policy):
        raise click.UsageError("--size, --object-size and --policy are for --setup")
    with Source(image) as source:
        wanted = None
        if with_setup:
            wanted = _setup_request(source, size, object_size, policy, options.pace)
        request = UploadRequest(wanted, force, quiet, options.pace)
        summary = on_container(
            options,
            container,
            partial(upload, name=container, source=source, request=request, tell=tell),
            seconds=TRANSFER_SECONDS_MAX,
        )
    report(summary, _sentence(summary), as_json=as_json, tell=tell)


def _setup_request(
    source: "Source", size: int | None, object_size: int | None, policy: str | None, pace: Pace
) -> SetupRequest:
    size = size or source.size_known
    if not size:
        what = "is empty" if size == 0 else "does not say its size"
        raise click.UsageError(f"{source.name} {what}: give the disk's --size, or set it up before")
    if source.size_known and source.size > size:
        sizes = f"{exact_size(source.size)}, more than --size {exact_size(size)}"
        raise click.UsageError(f"{source.name} has {sizes}")
    geometry = geometry_for(None, size, object_size or OBJECT_SIZE_DEFAULT)
    return SetupRequest(geometry, policy, exist_ok=True, pace=pace)


async def upload(
    store: Store, *, name: str, source: "Source", request: UploadRequest, tell: Tell
) -> Summary:
    """Bring the disk to the content of ``source``; what was done, for `report`."""
    begin = time.monotonic()
    if request.setup is not None:
        await setup(store, name=name, request=request.setup, tell=tell)
    _check_size(source, await disk_to_write(store, name), name)
    async with held(store, name, request.pace, changed=False) as holding:
        tally, seconds = await _upload_held(holding, name, source, request, tell)
    return {
        "container": name,
        "image": source.name,
        "bytes": source.size,
        "objects_sent": tally.sent,
        "bytes_sent": tally.sent_bytes,
        "objects_already_there": tally.already_there,
        "objects_deleted": tally.deleted,
        "transfer_seconds": round(seconds, 3),
        "seconds": round(time.monotonic() - begin, 3),
    }


def _check_size(source: "Source", disk: DiskInfo, name: str) -> None:
    size = source.size_known
    if size is not None and size > disk.geometry.size:
        raise SwiftnbdError(
            f"{source.name} has {exact_size(size)} and does not fit: {name} is a disk of "
            f"{exact_size(disk.geometry.size)}"
        )


async def _upload_held(
    holding: Held, name: str, source: "Source", request: UploadRequest, tell: Tell
) -> "tuple[Tally, float]":
    from swiftnbd.cli.unfinished import UPLOAD, finish_records, start_record
    from swiftnbd.cli.uploading import Upload, recalled, try_to_remember

    store, lock = holding.store, holding.lock
    _check_size(source, holding.disk, name)  # it may be another since we looked
    objects = await recalled(store, holding.disk.geometry, lock.predecessor.binding)
    await _check_overwrite(holding, objects, name, request, tell)
    holding.changed = True
    await start_record(store, UPLOAD, lock, source.name)
    begin = time.monotonic()
    total = holding.disk.geometry.size
    try:
        with progress(f"Uploading {name}", total, quiet=request.quiet, tell=tell) as advance:
            upload = Upload(store, objects, source, advance)
            await upload.run()
    except BaseException:
        await try_to_remember(objects, lock.tenure.binding)
        tell(f"{name} is incomplete; the same command goes on where this one stopped")
        raise
    seconds = time.monotonic() - begin
    await _set_image_size(store, holding.disk, source.size)
    await objects.remember(lock.tenure.binding)
    await finish_records(store)
    return upload.tally, seconds


async def _check_overwrite(
    holding: Held, objects: "DiskObjects", name: str, request: UploadRequest, tell: Tell
) -> None:
    """Refuse to write over somebody's data, unless told to."""
    from swiftnbd.cli.unfinished import UPLOAD, is_unfinished

    store = holding.store
    if await is_unfinished(store, UPLOAD, holding.lock.predecessor):
        tell(f"{name}: going on with an upload that was interrupted")
        return
    if request.force:
        return
    if objects.holds_any() or await store.listing(prefix=PART_PREFIX, limit=1):
        more = ""
        if await is_unfinished(store, UPLOAD):
            more = " (an upload into it was interrupted, and somebody has held it since)"
        raise SwiftnbdError(f"{name} holds data{more}; to write over it, use --force")


async def _set_image_size(store: Store, disk: DiskInfo, size: int) -> None:
    """Let `download` give back an image that fills the last object only in part."""
    geometry = disk.geometry
    is_short = geometry.size - geometry.object_size < size < geometry.size
    wanted = size if is_short else None
    if wanted != disk.image_size:
        await store.set_metadata({_IMAGE_SIZE: str(wanted or "")})


def _sentence(summary: Summary) -> str:
    sent, seconds = int(summary["bytes_sent"]), float(summary["transfer_seconds"])
    already = int(summary["objects_already_there"])
    done = transferred(sent, seconds, "sent", already)
    what = f"{summary['container']} holds {summary['image']}"
    return f"Done, {what}, {exact_size(int(summary['bytes']))}: {done}"
