# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl download``: a container's disk as a raw image."""

import logging
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from swiftnbd.cli.common import TRANSFER_SECONDS_MAX, Held, Tell, held, on_container, tell
from swiftnbd.cli.completion import container_argument
from swiftnbd.cli.image import STDOUT, Image, ImageFile, open_image
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.progress import progress
from swiftnbd.cli.report import json_option, quiet_option
from swiftnbd.cli.sizes import exact_size
from swiftnbd.cli.summary import Summary, report, transferred
from swiftnbd.errors import ConfigError, SwiftnbdError
from swiftnbd.export.pace import Pace
from swiftnbd.store.base import Buffer, Store

if TYPE_CHECKING:
    from swiftnbd.export.presence import Presence

log = logging.getLogger(__name__)


@click.command("download")
@container_argument()
@click.argument("image", type=click.Path(dir_okay=False, allow_dash=True))
@quiet_option
@click.option("-f", "--force", is_flag=True, help="Replace IMAGE if it exists, or is a device.")
@json_option
@click.pass_obj
def download_command(
    options: SharedOptions, *, container: str, image: str, quiet: bool, force: bool, as_json: bool
) -> None:
    """Download a container as a raw image.

    IMAGE is a file, a block device (with --force), or - for standard output. The container is
    locked meanwhile. A file appears when it is complete; what is zeros takes no space in it.
    After an interruption, the same command goes on: with IMAGE.part, or with what the device
    holds.
    """
    how: dict[str, Any] = {"name": container, "quiet": quiet, "tell": tell, "pace": options.pace}
    if image == STDOUT:
        if as_json:
            raise click.UsageError("--json and an image on standard output do not go together")
        if sys.stdout is None or sys.stdout.isatty():
            raise ConfigError("standard output is no file and no pipe: redirect it, or name a file")
        summary = on_container(
            options, container, partial(put_out, **how), seconds=TRANSFER_SECONDS_MAX
        )
    else:
        with open_image(image, force=force, container=container) as file:
            action = partial(download, file=file, **how)
            summary = on_container(options, container, action, seconds=TRANSFER_SECONDS_MAX)
    report(summary, _sentence(summary, image), as_json=as_json, tell=tell)


async def download(
    store: Store,
    *,
    name: str,
    file: Image,
    quiet: bool,
    tell: Tell,
    pace: Pace | None = None,
) -> Summary:
    """Copy the disk into ``file`` and commit it, holding the container's lock."""
    from swiftnbd.cli.downloading import Download
    from swiftnbd.cli.parallel import in_thread

    begin = time.monotonic()
    async with held(store, name, pace, changed=False) as holding:
        log.debug("downloading %s", name)
        presence = await _presence(holding, name, tell)
        started = time.monotonic()
        try:
            with progress(
                f"Downloading {name}", holding.disk.geometry.size, quiet=quiet, tell=tell
            ) as advance:
                work = Download(store, holding.disk, presence, file, advance)
                await work.run()
            await in_thread(file.commit)
        except BaseException:
            _tell_what_stays(file, tell)
            raise
        transfer_seconds = time.monotonic() - started
    return {
        "container": name,
        "image": str(file.path),
        "bytes": work.size,
        "bytes_fetched": work.fetched_bytes,
        "objects_already_there": work.objects_already_there,
        "transfer_seconds": round(transfer_seconds, 3),
        "seconds": round(time.monotonic() - begin, 3),
    }


async def put_out(
    store: Store, *, name: str, quiet: bool, tell: Tell, pace: Pace | None = None
) -> Summary:
    """Write the disk to standard output, in order, holding the container's lock."""
    from swiftnbd.cli.downloading import Stream, contents, disk_bytes

    begin = time.monotonic()
    async with held(store, name, pace, changed=False) as holding:
        disk = holding.disk
        presence = await _presence(holding, name, tell)
        started = time.monotonic()
        stream = Stream(disk_bytes(disk), _write_to_stdout)
        with progress(f"Downloading {name}", disk.geometry.size, quiet=quiet, tell=tell) as advance:
            await stream.run(contents(store, disk, presence), advance)
        transfer_seconds = time.monotonic() - started
    return {
        "container": name,
        "image": STDOUT,
        "bytes": stream.size,
        "bytes_fetched": stream.fetched_bytes,
        "objects_already_there": 0,
        "transfer_seconds": round(transfer_seconds, 3),
        "seconds": round(time.monotonic() - begin, 3),
    }


async def _presence(holding: Held, name: str, tell: Tell) -> "Presence":
    """Which objects need not be asked for, if that is known."""
    from swiftnbd.cli.unfinished import warn_of_unfinished
    from swiftnbd.cli.uploading import recalled

    await warn_of_unfinished(holding, name, tell)
    binding = holding.lock.predecessor.binding
    return (await recalled(holding.store, holding.disk.geometry, binding)).presence


def _tell_what_stays(file: Image, tell: Tell) -> None:
    if isinstance(file, ImageFile) and file.holds_any():
        tell(f"what was written stays in {file.part}: the same command goes on there")


def _write_to_stdout(data: Buffer) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SwiftnbdError(f"cannot write standard output: {error.strerror}") from None


def _sentence(summary: Summary, image: str) -> str:
    fetched, seconds = int(summary["bytes_fetched"]), float(summary["transfer_seconds"])
    already = int(summary["objects_already_there"])
    done = transferred(fetched, seconds, "fetched", already)
    name = summary["container"]
    what = f"{name} is put out" if image == STDOUT else f"{image} holds {name}"
    return f"Done, {what}, {exact_size(int(summary['bytes']))}: {done}"
