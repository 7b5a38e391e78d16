# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl locate``: which object holds a byte of the disk, and which bytes an object."""

import re
from dataclasses import dataclass
from functools import partial

import click

from swiftnbd.cli.common import on_container, read_container, read_disk
from swiftnbd.cli.completion import container_argument
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.report import json_option, print_fields, print_json
from swiftnbd.cli.sizes import exact_size, format_size, parse_size
from swiftnbd.errors import ConfigError, SwiftnbdError
from swiftnbd.export.layout import PART_PREFIX, Geometry, object_index, object_name
from swiftnbd.store.base import ObjectInfo, Store


@dataclass(frozen=True, slots=True)
class Location:
    """Object ``index`` of a disk, the byte ``at`` in it that was asked for, and what is stored."""

    geometry: Geometry
    index: int
    at: int
    stored: ObjectInfo | None

    @property
    def start(self) -> int:
        """Where the object's first byte lies on the disk."""
        return self.index * self.geometry.object_size


@click.command("locate")
@container_argument()
@click.argument("place", metavar="OBJECT|OFFSET")
@json_option
@click.pass_obj
def locate_command(options: SharedOptions, *, container: str, place: str, as_json: bool) -> None:
    """Find the object that holds a byte of the disk, or the bytes that an object holds.

    OFFSET is a byte's place on the disk: 0, 1048576, 0x100000 or 1M. OBJECT is an object's name,
    such as disk.part/00000042.
    """
    index, offset = parse_place(place)
    action = partial(locate, name=container, index=index, offset=offset)
    location = on_container(options, container, action)
    if as_json:
        print_json({"container": container} | document(location))
    else:
        print_fields(fields(location))


def parse_place(text: str) -> tuple[int | None, int]:
    """An object's index, or None and a byte's offset."""
    if text.startswith(PART_PREFIX):
        index = object_index(text)
        if index is None:
            raise ConfigError(f"{text!r} is no object of a disk: those are {object_name(42)} etc.")
        return index, 0
    if re.fullmatch(r"0x[0-9a-f]{1,16}", text, re.IGNORECASE | re.ASCII):
        return None, int(text, 16)
    if re.fullmatch(r"0{1,19}", text, re.ASCII):
        return None, 0
    try:
        return None, parse_size(text)
    except ValueError:
        raise ConfigError(
            f"{text!r} is neither an offset (0, 1048576, 0x100000, 1M) nor an object's name "
            f"({object_name(42)})"
        ) from None


async def locate(store: Store, *, name: str, index: int | None, offset: int) -> Location:
    """Where it is, and whether it is stored. It must be on the disk."""
    geometry = read_disk(await read_container(store, name), name).geometry
    if index is None:
        if offset >= geometry.size:
            raise SwiftnbdError(
                f"byte {offset} is beyond the end of {name}, which has {exact_size(geometry.size)}"
            )
        index, at = divmod(offset, geometry.object_size)
    else:
        if index >= geometry.objects:
            raise SwiftnbdError(
                f"{object_name(index)} is beyond the end of {name}, "
                f"whose last object is {object_name(geometry.objects - 1)}"
            )
        at = 0
    stored = await store.head(object_name(index), newest=True)
    return Location(geometry, index, at, stored)


def fields(location: Location) -> list[tuple[str, str]]:
    """For people."""
    start, size, stored = location.start, location.geometry.object_size, location.stored
    return [
        ("Object", f"{object_name(location.index)} (of {location.geometry.objects})"),
        ("Bytes", f"{start} to {start + size - 1} ({format_size(size)} from {format_size(start)})"),
        ("Byte in it", str(location.at)),
        ("Stored", "no: it reads as zeros" if stored is None else f"yes, with MD5 {stored.etag}"),
    ]


def document(location: Location) -> dict[str, object]:
    """For programs: ``end`` is the first byte behind it."""
    stored = location.stored
    return {
        "object": object_name(location.index),
        "index": location.index,
        "start": location.start,
        "end": location.start + location.geometry.object_size,
        "offset": location.start + location.at,
        "offset_in_object": location.at,
        "stored": stored is not None,
        "etag": None if stored is None else stored.etag,
    }
