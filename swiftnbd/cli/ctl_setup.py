# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl setup``: make a container a disk, without ever making bytes unreadable."""

from dataclasses import dataclass, field
from functools import partial

import click

from swiftnbd.cli.common import (
    Tell,
    holder_of,
    locked,
    locked_by,
    locked_unread,
    on_container,
    read_container,
    read_disk,
    tell,
)
from swiftnbd.cli.completion import container_argument
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.sizes import counted, exact_size, format_size, size_option
from swiftnbd.errors import ContainerMissing, ExportUnusable, SwiftnbdError
from swiftnbd.export.layout import (
    META_PREFIX,
    OBJECT_SIZE_DEFAULT,
    OBJECT_SIZE_UNIT,
    OBJECTS_MAX,
    OWN_PREFIX,
    PART_PREFIX,
    DiskInfo,
    Geometry,
    is_being_deleted,
    is_set_up,
    object_index,
    parse_metadata,
    setup_metadata,
)
from swiftnbd.export.pace import Pace
from swiftnbd.store.base import OBJECT_BYTES_MAX, ContainerInfo, Listed, Store, list_all

# Smaller ones make a request per page of memory; disks of 0.11 that have them are still served.
OBJECT_SIZE_NEW_MIN = 4096


@dataclass(frozen=True, slots=True)
class SetupRequest:
    """What was asked for."""

    geometry: Geometry
    policy: str | None = None
    force: bool = False
    exist_ok: bool = False
    pace: Pace = field(default_factory=Pace)


@click.command("setup")
@container_argument()
@click.argument("objects", required=False, type=click.IntRange(min=1))
@click.option(
    "--object-size",
    metavar="BYTES",
    callback=size_option,
    default=str(OBJECT_SIZE_DEFAULT),
    show_default=True,
    help="Bytes of each object, or 64K, 1M...: 4 KiB to 64 MiB, a multiple of 512.",
)
@click.option(
    "--size",
    metavar="SIZE",
    callback=size_option,
    help="Size of the disk, such as 10G, instead of the number of objects.",
)
@click.option("--policy", metavar="NAME", help="Storage policy of the container, if it is new.")
@click.option(
    "-f", "--force", is_flag=True, help="Set up a container again, or one that holds objects."
)
@click.option(
    "--exist-ok", is_flag=True, help="Succeed if the container is set up like this already."
)
@click.pass_obj
def setup_command(
    options: SharedOptions,
    *,
    container: str,
    objects: int | None,
    object_size: int,
    size: int | None,
    policy: str | None,
    force: bool,
    exist_ok: bool,
) -> None:
    """Set up a container to be used by the server, creating it if need be.

    Its disk has OBJECTS objects, or the --size given, rounded up to whole objects.
    """
    geometry = geometry_for(objects, size, object_size)
    if size is not None and geometry.size != size:
        tell(f"the size is rounded up to whole objects: {exact_size(geometry.size)}")
    request = SetupRequest(geometry, policy, force, exist_ok, options.pace)
    on_container(options, container, partial(setup, name=container, request=request, tell=tell))


def geometry_for(objects: int | None, size: int | None, object_size: int) -> Geometry:
    """The geometry asked for; a usage error if there is none such."""
    if (objects is None) == (size is None):
        raise click.UsageError("give either OBJECTS or --size SIZE")
    if object_size % OBJECT_SIZE_UNIT or not OBJECT_SIZE_UNIT <= object_size <= OBJECT_BYTES_MAX:
        raise click.UsageError(
            f"--object-size {object_size} is not a multiple of {OBJECT_SIZE_UNIT} "
            f"between {OBJECT_SIZE_NEW_MIN} and {OBJECT_BYTES_MAX}"
        )
    if objects is None:
        assert size is not None
        objects = -(-size // object_size)
    if objects > OBJECTS_MAX:
        raise click.UsageError(_too_many_objects(objects, object_size))
    return Geometry(objects, object_size)


def _too_many_objects(objects: int, object_size: int) -> str:
    least = -(-objects * object_size // OBJECTS_MAX)
    advice = 1 << (least - 1).bit_length()  # the next power of two
    if advice > OBJECT_BYTES_MAX:
        largest = format_size(OBJECTS_MAX * OBJECT_BYTES_MAX)
        return f"a disk of {format_size(objects * object_size)} is too large, {largest} is the most"
    return (
        f"{objects} objects are more than {OBJECTS_MAX}: "
        f"use a larger --object-size, at least {advice}"
    )


async def setup(store: Store, *, name: str, request: SetupRequest, tell: Tell) -> None:
    """Create the container or write its metadata. Raises if that could lose data."""
    geometry = request.geometry
    info = await store.info()
    if info is None:
        _check_new_object_size(geometry)
        tell(f"{name} doesn't exist, will be created")
        # No empty values: they would wipe the mark of somebody who was faster than us.
        metadata = {key: value for key, value in setup_metadata(geometry).items() if value}
        if await store.create_container(metadata, policy=request.policy):
            await _remember_empty(store, name, request)
    else:
        disk = _parse(info)
        if request.exist_ok and disk is not None and disk.geometry == geometry:
            tell(f"{name} is set up like this already, nothing to do")
            return
        await _set_up_existing(store, name, info, request, tell)
    warn_of_limits(await read_container(store, name), name, geometry, tell)
    tell(f"Done, {name}: {_described(geometry)}")


async def disk_to_write(store: Store, name: str) -> DiskInfo:
    """The disk that a command with ``--setup`` found; if there is none, the error names that."""
    info = await store.info()
    if info is None:
        raise ContainerMissing(f"{name} doesn't exist; to make it, add --setup")
    if not (is_set_up(info.metadata) or is_being_deleted(info.metadata)):
        raise ExportUnusable(f"{name} is not set up; to have that done, add --setup")
    return read_disk(info, name)


def _described(geometry: Geometry) -> str:
    objects = counted(geometry.objects, "object")
    return f"{objects} of {format_size(geometry.object_size)}, {exact_size(geometry.size)}"


async def _remember_empty(store: Store, name: str, request: SetupRequest) -> None:
    """Tell the first client that nothing is stored yet, so that it need not look for it.

    The proof: we created the container, and nobody had locked it before us.
    """
    from swiftnbd.export.objects import store_presence
    from swiftnbd.export.presence import Presence, State

    async with locked(store, name, request.pace) as (lock, _):
        if (
            lock.predecessor.epoch
            or lock.predecessor.last
            or await store.listing(prefix=PART_PREFIX, limit=1)
        ):
            return
        presence = Presence(request.geometry.objects)
        presence.fill(0, request.geometry.objects, State.ABSENT)
        await store_presence(store, presence, lock.tenure.binding)


def _parse(info: ContainerInfo) -> DiskInfo | None:
    try:
        return parse_metadata(info.metadata)
    except ExportUnusable:
        return None


async def _set_up_existing(
    store: Store, name: str, info: ContainerInfo, request: SetupRequest, tell: Tell
) -> None:
    disk = _parse(info)
    is_half = is_being_deleted(info.metadata)  # by somebody who may be at it, or come back
    if disk is None and not is_half and (holder := holder_of(info)):
        raise locked_by(name, holder)  # not even --force sets it up
    if request.policy and request.policy.casefold() != info.policy.casefold():
        raise SwiftnbdError(f"{name} exists with storage policy {info.policy!r}, which is for good")
    if not request.force:
        await _refuse_in_use(store, info, name, request)
    await _refuse_unreadable(store, info, name, request.geometry)
    metadata = setup_metadata(request.geometry)
    kept = {META_PREFIX + key for key in ("client", "last")}  # those belong to the lock
    changed = {key: value for key, value in metadata.items() if key not in kept}
    if is_half:
        async with locked_unread(store, name, info, request.pace):
            await store.set_metadata(changed)
        return
    if disk is None:
        # Without sensible metadata nobody can attach, so there is nobody to lock out.
        await store.set_metadata(metadata)
        return
    async with locked(store, name, request.pace) as (_, disk):
        await store.set_metadata(changed)
    if request.geometry.size < disk.geometry.size:
        tell("the disk is smaller than before: what lies behind its end stays stored, unseen")


async def _refuse_in_use(
    store: Store, info: ContainerInfo, name: str, request: SetupRequest
) -> None:
    if is_set_up(info.metadata):
        disk = _parse(info)
        found = f" with {_described(disk.geometry)}" if disk else ""
        wanted = f", not with {_described(request.geometry)}" if disk and request.exist_ok else ""
        raise SwiftnbdError(
            f"{name} has already been setup{found}{wanted}; to set it up again, use --force"
        )
    if is_being_deleted(info.metadata):
        read_disk(info, name)  # says so
    if await holds_foreign(store):
        raise SwiftnbdError(f"{name} holds objects that are no disk's; to use it, give --force")


async def holds_foreign(store: Store) -> bool:
    """Whether anything is listed that is not ours; what a killed deletion left is."""
    async for row in list_all(store):
        if not row.name.startswith(OWN_PREFIX):
            return True
    return False


async def _refuse_unreadable(
    store: Store, info: ContainerInfo, name: str, geometry: Geometry
) -> None:
    """Not even --force changes the object size of a disk with data: nothing could read it."""
    sizes = await _stored_sizes(store, info)
    if sizes - {geometry.object_size}:
        known = ", ".join(str(size) for size in sorted(sizes))
        raise SwiftnbdError(
            f"{name} holds a disk in objects of {known} bytes, unreadable with --object-size "
            f"{geometry.object_size}: use theirs, or download the disk and delete the container"
        )
    if not sizes:
        _check_new_object_size(geometry)


async def _stored_sizes(store: Store, info: ContainerInfo) -> set[int]:
    """Sizes of the disk's objects, as far as one page and the metadata tell."""
    page: list[Listed] = await store.listing(prefix=PART_PREFIX)
    parts = [row for row in page if object_index(row.name) is not None]
    sizes = {row.size for row in parts}
    disk = _parse(info)
    if parts and disk is not None:
        sizes.add(disk.geometry.object_size)
    return sizes


def _check_new_object_size(geometry: Geometry) -> None:
    if geometry.object_size < OBJECT_SIZE_NEW_MIN:
        raise click.UsageError(
            f"--object-size {geometry.object_size} is less than {OBJECT_SIZE_NEW_MIN}"
        )


def warn_of_limits(info: ContainerInfo, name: str, geometry: Geometry, tell: Tell) -> None:
    """Say what will be in the way of a disk like this one."""
    if info.versioned:
        tell(
            f"WARNING: {name} keeps old versions of its objects: every block written again takes "
            f"its space once more"
        )
    for key, need, unit in (
        ("quota-bytes", geometry.size, "bytes"),
        ("quota-count", geometry.objects, "objects"),
    ):
        quota = info.metadata.get(key, "")
        if quota.isascii() and quota.isdigit() and int(quota) < need:
            tell(
                f"WARNING: {name} has a quota of {quota} {unit}, the disk may need {need}: "
                f"writes will then fail"
            )
