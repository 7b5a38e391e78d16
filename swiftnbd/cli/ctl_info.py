# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl info``: all that is known of one container."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

from swiftnbd.cli.common import on_container, read_container, read_disk
from swiftnbd.cli.completion import container_argument
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.report import json_option, print_fields, print_json
from swiftnbd.cli.sizes import counted, format_size
from swiftnbd.export.layout import VERSION, DiskInfo
from swiftnbd.export.marks import describe_holder, describe_time, split_mark
from swiftnbd.store.base import ContainerInfo, Store

if TYPE_CHECKING:
    from swiftnbd.export.holders import Sighting


@dataclass(frozen=True, slots=True)
class Details:
    """A container, its disk, who holds it, and how many objects are in which state.

    ``presence`` is None if nobody has kept track of which objects exist.
    """

    name: str
    info: ContainerInfo
    disk: DiskInfo
    seen: "Sighting"
    presence: dict[str, int] | None


@click.command("info")
@container_argument()
@json_option
@click.pass_obj
def info_command(options: SharedOptions, *, container: str, as_json: bool) -> None:
    """Show all that is known of a container and its disk."""
    details = on_container(options, container, partial(examine, name=container))
    if as_json:
        print_json(document(details))
    else:
        print_fields(fields(details))


async def examine(store: Store, *, name: str) -> Details:
    """Look at the container, without taking its lock."""
    from swiftnbd.export.watch import sight

    info = await read_container(store, name, count=True)
    disk = read_disk(info, name)
    return Details(name, info, disk, await sight(store), await _count_states(store, disk))


async def _count_states(store: Store, disk: DiskInfo) -> dict[str, int] | None:
    from swiftnbd.export.objects import load_presence
    from swiftnbd.export.presence import State
    from swiftnbd.export.watch import last_tenure

    objects = disk.geometry.objects
    tenure = await last_tenure(store)
    presence = await load_presence(store, objects, tenure.binding)
    if presence is None:
        return None
    counts: Counter[State] = Counter()
    for length, state in presence.runs(0, objects):
        counts[state] += length
    return {state.name.lower(): counts[state] for state in State}


def fields(details: Details) -> list[tuple[str, str]]:
    """For people."""
    info, disk, geometry = details.info, details.disk, details.disk.geometry
    rows = [
        ("Container", details.name),
        ("Disk", f"{format_size(geometry.size)} ({geometry.size} bytes)"),
        ("Objects", f"{geometry.objects} of {format_size(geometry.object_size)}"),
        ("Stored", f"{counted(info.objects or 0, 'object')}, {format_size(info.bytes_used or 0)}"),
    ]
    if disk.image_size is not None:
        rows.append(("Image", f"{format_size(disk.image_size)} ({disk.image_size} bytes)"))
    rows += [
        ("Format", f"version {VERSION}"),
        ("Policy", info.policy or "unknown"),
        ("Created", "unknown" if info.created is None else describe_time(int(info.created))),
        ("Lock", _describe_lock(details.seen)),
        ("Last client", describe_holder(disk.last) if disk.last else "none"),
        ("Presence", _describe_presence(details)),
    ]
    if info.versioned:
        rows.append(("Versions", "kept: every block written again takes its space once more"))
    return rows


def _describe_lock(seen: "Sighting") -> str:
    from swiftnbd.cli.ctl_lock import describe

    return f"held by {describe(seen)}" if seen.holder else "unlocked"


def _describe_presence(details: Details) -> str:
    if details.presence is not None:
        return ", ".join(f"{count} {state}" for state, count in details.presence.items() if count)
    if details.seen.holder:
        return "known to its holder alone"
    return "unknown: the next client finds out which objects exist"


def document(details: Details) -> dict[str, object]:
    """For programs: bytes, Unix times; null is unknown, or nobody."""
    info, disk, geometry = details.info, details.disk, details.disk.geometry
    return {
        "container": details.name,
        "format": int(VERSION),
        "size": geometry.size,
        "objects": geometry.objects,
        "object_size": geometry.object_size,
        "image_size": disk.image_size,
        "stored_objects": info.objects,
        "stored_bytes": info.bytes_used,
        "policy": info.policy or None,
        "versioned": info.versioned,
        "created": info.created,
        "lock": _lock_document(details.seen),
        "last_client": mark_document(disk.last),
        "presence": details.presence,
    }


def _lock_document(seen: "Sighting") -> dict[str, object] | None:
    found = mark_document(seen.holder)
    if found is None:
        return None
    epoch = seen.epochs[-1] if seen.epochs else None
    process = None if epoch is None else epoch.claim.process
    return found | {
        "pid": None if process is None else process.pid,
        "machine": None if process is None else process.host,
        "renewed": None if epoch is None else epoch.renewed_at,
    }


def mark_document(mark: str) -> dict[str, object] | None:
    """Who holds a container, or held it, for programs."""
    if not mark:
        return None
    who, since = split_mark(mark)
    return {"mark": mark, "client": who, "since": since}
