# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl resize``: make a disk larger, or smaller.

What lies behind the new end is deleted before the metadata say that the disk ends there. So a
crash leaves the disk with its old size, and in the worst case without some of what was to be
given up; and nothing that was given up comes back when the disk is made larger again. What an
earlier ``setup -f`` left behind the end is deleted, too, before the disk grows over it.
"""

import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import click

from swiftnbd.cli.common import (
    IN_FLIGHT_MAX,
    TRANSFER_SECONDS_MAX,
    Tell,
    held,
    on_container,
    read_container,
    read_disk,
    tell,
)
from swiftnbd.cli.completion import container_argument
from swiftnbd.cli.ctl_setup import warn_of_limits
from swiftnbd.cli.exits import Exit
from swiftnbd.cli.options import SharedOptions
from swiftnbd.cli.progress import Advance, progress
from swiftnbd.cli.report import json_option, quiet_option
from swiftnbd.cli.sizes import counted, exact_size, format_size, size_option
from swiftnbd.cli.summary import Summary, report
from swiftnbd.errors import SwiftnbdError
from swiftnbd.export.layout import (
    META_PREFIX,
    OBJECTS_MAX,
    PART_PREFIX,
    Geometry,
    is_zeros,
    object_index,
    object_name,
)
from swiftnbd.export.pace import Pace
from swiftnbd.store.base import Store

if TYPE_CHECKING:
    from swiftnbd.export.objects import DiskObjects

# An object that no listing shows may exist all the same. So many that are not known to be absent
# are deleted on suspicion, which takes some minutes; of more, the listing has to be believed.
SUSPECTS_MAX = 65_536

Shown = Callable[[int], AbstractContextManager[Advance]]  # progress, given a total

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """From ``before`` to ``after``; ``size`` bytes were asked for.

    ``stored`` objects are listed behind the new end. ``has_tail``: so are bytes in the last one.
    """

    before: Geometry
    after: Geometry
    size: int
    stored: int = 0
    has_tail: bool = False

    @property
    def shrinks(self) -> bool:
        return self.after.objects < self.before.objects

    @property
    def kept_of_last(self) -> int:
        """How many bytes of the last object are kept when it shrinks; 0 is all of them."""
        return self.size % self.after.object_size if self.shrinks else 0

    @property
    def loss(self) -> str:
        """What is lost, in words."""
        if not self.stored:
            return "the last object's end" if self.has_tail else "nothing that is stored"
        size = format_size(self.stored * self.after.object_size)
        more = " and more" if self.has_tail else ""
        return f"{counted(self.stored, 'stored object')} ({size}){more}"


@click.command("resize")
@container_argument()
@click.argument("size", callback=size_option)
@click.option("--yes", is_flag=True, help="Make it smaller without asking.")
@quiet_option
@json_option
@click.pass_obj
def resize_command(
    options: SharedOptions, *, container: str, size: int, yes: bool, quiet: bool, as_json: bool
) -> int:
    """Make the disk of a container SIZE bytes large, rounded up to whole objects.

    SIZE is written as 10G or 512M. Shrink the file system first: what lies behind the new end is
    deleted, once that is confirmed. A server shows the new size to the next client.
    """
    plan = on_container(options, container, partial(make_plan, name=container, size=size))
    if plan.after == plan.before:
        deleted, done = 0, f"{container} has {exact_size(plan.before.size)} already, nothing to do"
    elif plan.shrinks and not yes and not _confirm(container, plan):
        tell("nothing was changed")
        return Exit.FAILED
    else:
        action = partial(
            resize, name=container, plan=plan, quiet=quiet, tell=tell, pace=options.pace
        )
        deleted = on_container(options, container, action, seconds=TRANSFER_SECONDS_MAX)
        done = f"Done, {container} has {exact_size(plan.after.size)} now"
    sizes = {"size_before": plan.before.size, "size": plan.after.size}
    summary: Summary = {"container": container, **sizes, "objects_deleted": deleted}
    report(summary, done, as_json=as_json, tell=tell)
    return Exit.DONE


def _confirm(name: str, plan: Plan) -> bool:
    """Ask, if somebody is there to answer; else refuse."""
    change = f"from {format_size(plan.before.size)} to {format_size(plan.after.size)}"
    if not sys.stdin.isatty():
        raise SwiftnbdError(
            f"{name} would become smaller, {change}, and lose {plan.loss}; to do that, give --yes"
        )
    return click.confirm(f"Make {name} smaller, {change}, and lose {plan.loss}?", err=True)


async def make_plan(store: Store, *, name: str, size: int) -> Plan:
    """What is to be done, and what it would cost. Nothing is changed or locked."""
    from swiftnbd.cli.downloading import read_object

    disk = read_disk(await read_container(store, name), name)
    before = disk.geometry
    objects = -(-size // before.object_size)
    if objects > OBJECTS_MAX:
        raise SwiftnbdError(
            f"{format_size(size)} in objects of {format_size(before.object_size)} are more than "
            f"{OBJECTS_MAX} objects: copy {name} to a container with larger ones"
        )
    plan = Plan(before, Geometry(objects, before.object_size), size)
    if not plan.shrinks:
        return plan
    stored = await _count_listed(store, objects)
    last = await read_object(store, objects - 1, before.object_size) if plan.kept_of_last else None
    has_tail = last is not None and not is_zeros(last[plan.kept_of_last :])
    return replace(plan, stored=stored, has_tail=has_tail)


async def resize(
    store: Store, *, name: str, plan: Plan, quiet: bool, tell: Tell, pace: Pace | None = None
) -> int:
    """Carry it out, holding the container's lock. How many objects were deleted."""
    from swiftnbd.cli.known import known_objects

    shown = partial(progress, f"Shrinking {name}", quiet=quiet, tell=tell)
    if plan.after.objects > plan.before.objects:
        warn_of_limits(await read_container(store, name), name, plan.after, tell)
    async with held(store, name, pace, changed=False) as holding:
        if holding.disk.geometry != plan.before:
            raise SwiftnbdError(f"{name} was set up anew meanwhile: nothing was changed")
        holding.changed = True
        try:
            async with known_objects(holding) as known:
                deleted = await _carry_out(holding.store, known, plan, shown)
        except BaseException:
            if plan.shrinks:
                tell(_half_done(name, plan))
            raise
    return deleted


async def _carry_out(store: Store, known: "DiskObjects", plan: Plan, shown: Shown) -> int:
    from swiftnbd.cli.known import resized

    objects = plan.after.objects
    end = min(objects, plan.before.objects)
    suspects = _suspects(known, end, plan)
    total = max(plan.stored, suspects if suspects <= SUSPECTS_MAX else 0)
    with shown(total * plan.after.object_size) as advance:
        deleted = await _delete_behind(store, known, end, plan, advance)
    if plan.kept_of_last:
        await _zero_tail(store, known, objects - 1, plan)
    # An image may be shorter than its disk. Whoever gives the disk another size uses all
    # of it, and a download that ends where the image did would lose what came since.
    await store.set_metadata(
        {META_PREFIX + "objects": str(objects), META_PREFIX + "image-size": ""}
    )
    known.presence = resized(known.presence, objects)
    return deleted


def _half_done(name: str, plan: Plan) -> str:
    return (
        f"{name} has {exact_size(plan.before.size)} still, but what lay behind "
        f"{exact_size(plan.after.size)} may be lost in part; the same command goes on"
    )


def _suspects(known: "DiskObjects", end: int, plan: Plan) -> int:
    """How many objects from number ``end`` on may exist."""
    from swiftnbd.cli.known import not_absent

    return sum(1 for _ in not_absent(known.presence, end, plan.before.objects))


async def _delete_behind(
    store: Store, known: "DiskObjects", end: int, plan: Plan, advance: Advance
) -> int:
    """Delete every object from number ``end`` on. How many there were."""
    from swiftnbd.cli.known import not_absent
    from swiftnbd.cli.parallel import for_each

    deleted = 0

    async def delete(index: int) -> None:
        nonlocal deleted
        if index < plan.before.objects:
            existed = await known.delete(index)
        else:  # of a disk that was larger once
            existed = await store.delete(object_name(index))
        deleted += existed
        advance(plan.after.object_size)

    async for page in known.listed(end, OBJECTS_MAX):
        await for_each(page, delete, in_flight=IN_FLIGHT_MAX)
    suspects = _suspects(known, end, plan)
    if suspects <= SUSPECTS_MAX:
        rest = not_absent(known.presence, end, plan.before.objects)
        await for_each(rest, delete, in_flight=IN_FLIGHT_MAX)
    else:
        log.debug("%d objects that are not listed are taken for absent", suspects)
    return deleted


async def _zero_tail(store: Store, known: "DiskObjects", index: int, plan: Plan) -> None:
    """Nothing is left of what the last object holds behind the new end."""
    from swiftnbd.cli.downloading import read_object

    if known.is_absent(index):
        return
    data = await read_object(store, index, known.size)
    if data is None or is_zeros(data[plan.kept_of_last :]):
        return
    kept = data[: plan.kept_of_last]
    if is_zeros(kept):
        await known.delete(index)
    else:
        await known.put(index, kept + bytes(known.size - len(kept)))


async def _count_listed(store: Store, first: int) -> int:
    """How many objects from number ``first`` on a listing shows."""
    count, after = 0, object_name(first - 1)
    while page := await store.listing(prefix=PART_PREFIX, after=after):
        count += sum(object_index(row.name) is not None for row in page)
        after = page[-1].name
    return count
