# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl download``: a container's disk as a raw image file."""

import logging
from functools import partial

import click

from swiftnbd.cli.common import IN_FLIGHT_MAX, Tell, locked, on_container, tell
from swiftnbd.cli.completion import container_argument
from swiftnbd.cli.image import ImageFile
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.progress import Advance, progress
from swiftnbd.errors import CorruptObject
from swiftnbd.export.layout import DiskInfo, object_name
from swiftnbd.export.pace import Pace
from swiftnbd.store.base import Store

BUFFER_BYTES_MAX = 256 * 1024 * 1024  # objects of up to 64 MiB, several at once

log = logging.getLogger(__name__)


@click.command("download")
@container_argument()
@click.argument("image", type=click.Path(dir_okay=False))
@click.option("-q", "--quiet", is_flag=True, help="Don't show the progress.")
@click.option("-f", "--force", is_flag=True, help="Replace IMAGE if it exists.")
@click.pass_obj
def download_command(
    options: SharedOptions, *, container: str, image: str, quiet: bool, force: bool
) -> None:
    """Download a container as a raw image.

    The container is locked meanwhile. IMAGE appears when it is complete; what is zeros takes
    no space in it.
    """
    with ImageFile(image, force=force) as file:
        on_container(
            options,
            container,
            partial(download, name=container, file=file, quiet=quiet, tell=tell, pace=options.pace),
        )


async def download(
    store: Store,
    *,
    name: str,
    file: ImageFile,
    quiet: bool,
    tell: Tell,
    pace: Pace | None = None,
) -> None:
    """Copy the disk into ``file`` and commit it, holding the container's lock."""
    from swiftnbd.cli.parallel import in_thread

    async with locked(store, name, pace, changed=False) as (_, disk):
        log.debug("downloading %s", name)
        size = disk_bytes(disk)
        file.set_size(size)
        with progress(f"Downloading {name}", size, quiet=quiet, tell=tell) as advance:
            await _copy(store, disk, file, advance)
        await in_thread(file.commit)
    tell(f"Done, {size} bytes written")


def disk_bytes(disk: DiskInfo) -> int:
    """Bytes of the image: those that were uploaded, if the disk is larger than that."""
    return disk.geometry.size if disk.image_size is None else disk.image_size


async def _copy(store: Store, disk: DiskInfo, file: ImageFile, advance: Advance) -> None:
    from swiftnbd.cli.parallel import for_each, in_thread

    object_size = disk.geometry.object_size
    size = disk_bytes(disk)

    async def copy_object(index: int) -> None:
        start = index * object_size
        length = min(object_size, size - start)
        data = await read_object(store, index, object_size)
        if data is not None:
            await in_thread(partial(file.write, start, data[:length]))
        advance(length)

    in_flight = max(1, min(IN_FLIGHT_MAX, BUFFER_BYTES_MAX // object_size))
    await for_each(range(-(-size // object_size)), copy_object, in_flight=in_flight)


async def read_object(store: Store, index: int, object_size: int) -> bytes | None:
    """One object of the disk, whole and of the latest version; None if it is absent."""
    name = object_name(index)
    blob = await store.get(name, newest=True, size_max=object_size)
    if blob is None:
        return None
    if len(blob.data) != object_size:
        raise CorruptObject(
            f"{store.label}: {name} has {len(blob.data)} bytes, expected {object_size}"
        )
    return blob.data
