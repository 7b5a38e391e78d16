# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl check``: whether a disk is whole, and what is wrong with it."""

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from swiftnbd.cli.common import (
    TRANSFER_SECONDS_MAX,
    Tell,
    on_container,
    read_container,
    read_disk,
    tell,
)
from swiftnbd.cli.completion import container_argument
from swiftnbd.cli.exits import Exit
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.progress import progress
from swiftnbd.cli.report import json_option, print_json, quiet_option
from swiftnbd.cli.sizes import counted
from swiftnbd.errors import ExportUnusable
from swiftnbd.export.layout import META_PREFIX, Geometry, is_set_up, object_name, parse_metadata
from swiftnbd.store.base import ContainerInfo, Store

if TYPE_CHECKING:
    from swiftnbd.cli.checking import Found
    from swiftnbd.export.holders import Tenure

SHOWN_MAX = 100  # lines of one kind; --json has them all

_KEYS = {
    "version", "objects", "object-size", "object_size", "client", "last", "epoch", "image-size",
}  # fmt: skip


@click.command("check")
@container_argument()
@click.option("--fast", is_flag=True, help="Look at sizes only, do not read what is stored.")
@json_option
@quiet_option
@click.pass_obj
def check_command(
    options: SharedOptions, *, container: str, fast: bool, as_json: bool, quiet: bool
) -> int:
    """Check that a disk is whole.

    Reads every object that is stored, with its checksum, and changes nothing. What is wrong is
    put out with the bytes of the disk it concerns; then the exit code is 7. A disk may be in use
    meanwhile, but only at rest can be seen what is missing.
    """
    action = partial(check, name=container, fast=fast, quiet=quiet, tell=tell)
    result = on_container(options, container, action, seconds=TRANSFER_SECONDS_MAX)
    if as_json:
        print_json(result)
    else:
        _print(result)
        tell(_sentence(result))
    return Exit.DONE if result["good"] else Exit.DAMAGED


async def check(store: Store, *, name: str, fast: bool, quiet: bool, tell: Tell) -> dict[str, Any]:
    """What is wrong with the container, as values for JSON."""
    from swiftnbd.cli.checking import Check, Found

    begin = time.monotonic()
    info = await read_container(store, name)
    found = Found()
    geometry = _check_metadata(info, name, found)
    tenure = await _tenure_at_rest(store)
    if tenure is None:
        found.notes.append("it is in use: what changes meanwhile may look wrong")
    if geometry is not None:
        presence = await _presence(store, geometry, tenure, found)
        with progress(f"Checking {name}", geometry.size, quiet=quiet, tell=tell) as advance:
            await Check(store, geometry, presence, found, fast=fast, advance=advance).run()
        if tenure is not None and await _tenure_at_rest(store) != tenure:
            found.notes.append("it was used meanwhile: check it again at rest")
    return _as_values(name, geometry, found, fast=fast, seconds=time.monotonic() - begin)


async def _tenure_at_rest(store: Store) -> "Tenure | None":
    """The last holder's; None if somebody has the container now, or seems to."""
    from swiftnbd.export.watch import last_tenure, sight

    return None if (await sight(store)).holder else await last_tenure(store)


def _check_metadata(info: ContainerInfo, name: str, found: "Found") -> Geometry | None:
    if not is_set_up(info.metadata):
        read_disk(info, name)  # says what it is instead
    keys = {key.removeprefix(META_PREFIX) for key in info.metadata if key.startswith(META_PREFIX)}
    found.notes += [f"metadata key {META_PREFIX}{key} is unknown" for key in sorted(keys - _KEYS)]
    try:
        return parse_metadata(info.metadata).geometry
    except ExportUnusable as error:
        found.problems.append(str(error))
        return None


async def _presence(
    store: Store, geometry: Geometry, tenure: "Tenure | None", found: "Found"
) -> "Any":
    """The map of what exists; None while somebody is at work."""
    from swiftnbd.cli.unfinished import COPY, UPLOAD, is_unfinished
    from swiftnbd.cli.uploading import recalled

    if tenure is None:
        return None
    for record, what in ((UPLOAD, "an upload"), (COPY, "a copy")):
        if await is_unfinished(store, record):
            found.problems.append(f"{what} did not come to its end: a part of the disk is missing")
    return (await recalled(store, geometry, tenure.binding)).presence


def _as_values(
    name: str, geometry: Geometry | None, found: "Found", *, fast: bool, seconds: float
) -> dict[str, Any]:
    size = geometry.object_size if geometry is not None else 0
    damaged = [
        {
            "start": run.first * size,
            "end": run.end * size,
            "first_object": object_name(run.first),
            "objects": run.end - run.first,
            "what": run.what,
        }
        for run in found.damage()
    ]
    return {
        "container": name,
        "good": found.is_good,
        "fast": fast,
        "objects_checked": found.checked,
        "objects_damaged": len(found.damaged),
        "damaged": damaged,
        "problems": found.problems,
        "notes": found.notes,
        "seconds": round(seconds, 3),
    }


def _print(result: dict[str, Any]) -> None:
    lines = [f"WRONG: {text}" for text in result["problems"]]
    for each in result["damaged"][:SHOWN_MAX]:
        more = f" and {each['objects'] - 1} more" if each["objects"] > 1 else ""
        where = f"bytes {each['start']} to {each['end'] - 1}"
        lines.append(f"WRONG: {where}: {each['first_object']}{more}: {each['what']}")
    lines += [f"note: {text}" for text in result["notes"][:SHOWN_MAX]]
    for key in ("damaged", "notes"):
        if (left := len(result[key]) - SHOWN_MAX) > 0:
            lines.append(f"... and {left} more; --json has them all")
    for line in lines:
        click.echo(line)


def _sentence(result: dict[str, Any]) -> str:
    name, checked = result["container"], counted(result["objects_checked"], "object")
    bad = result["objects_damaged"]
    how = "looked at" if result["fast"] else "read"
    if result["good"]:
        return f"Done, {name} is good: {checked} {how} in {result['seconds']:.1f} s"
    if bad:
        return f"{name} is damaged: {bad} of the {checked} {how} {'is' if bad == 1 else 'are'}"
    return f"{name} is not whole, though nothing is wrong with the {checked} {how}"
