# SPDX-License-Identifier: MIT
"""What the commands of swiftnbd-ctl have in common."""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from swiftnbd.cli import run
from swiftnbd.cli.options import SharedOptions
from swiftnbd.errors import (
    ContainerMissing,
    ExportUnusable,
    Locked,
    StoreError,
    SwiftnbdError,
)
from swiftnbd.export.layout import META_PREFIX, DiskInfo, parse_metadata
from swiftnbd.store.base import ContainerInfo, Store

if TYPE_CHECKING:
    from swiftnbd.export.lock import Lock
    from swiftnbd.export.pace import Pace

PROGRAM = "swiftnbd-ctl"

# A person waits for the answer: long enough for a Swift to get over a lost object server (10 s),
# not the full minute the server grants itself.
STORE_SECONDS_MAX = 15.0
# What runs for an hour should outlast a short outage; less than a lock's term of 90 s.
TRANSFER_SECONDS_MAX = 60.0

IN_FLIGHT_MAX = 16  # more requests at once only add latency, on every Swift measured
BUFFER_BYTES_MAX = 256 * 1024 * 1024  # of objects of up to 64 MiB, several at once

T = TypeVar("T")
Tell = Callable[[str], None]

tell: Tell = partial(run.say, PROGRAM)


def objects_in_flight(object_size: int) -> int:
    """How many objects to transfer at once, so that memory is bounded."""
    return max(1, min(IN_FLIGHT_MAX, BUFFER_BYTES_MAX // object_size))


def on_container(
    options: SharedOptions,
    container: str,
    action: Callable[[Store], Awaitable[T]],
    *,
    seconds: float | None = None,
) -> T:
    """Open the container's store, run ``action`` on it and close it.

    ``seconds`` is how long one operation may take, retries included (`STORE_SECONDS_MAX`).
    """
    return on_containers(options, (container,), lambda stores: action(stores[0]), seconds=seconds)


def on_containers(
    options: SharedOptions,
    containers: Sequence[str],
    action: Callable[[Sequence[Store]], Awaitable[T]],
    *,
    seconds: float | None = None,
) -> T:
    """`on_container` for several at once."""
    auth = options.auth()
    exports = options.exports(auth, containers)

    async def work() -> T:
        from swiftnbd.cli.stores import Stores

        if seconds is not None:  # it moves many objects
            from swiftnbd.cli.heap import settle

            settle()
        async with Stores(auth, seconds=seconds or STORE_SECONDS_MAX) as stores:
            return await action([stores.open(export) for export in exports])

    return run.run_interruptible(PROGRAM, work)


async def read_container(store: Store, name: str, *, count: bool = False) -> ContainerInfo:
    """What the store knows of the container, which must exist; what it holds, if to ``count``."""
    info = await store.info(count=count)
    if info is None:
        raise ContainerMissing(f"{name} doesn't exist")
    return info


def read_disk(info: ContainerInfo, name: str) -> DiskInfo:
    """`parse_metadata` whose errors name the container."""
    try:
        return parse_metadata(info.metadata)
    except ExportUnusable as error:
        raise ExportUnusable(f"{name}: {error}") from None


def holder_of(info: ContainerInfo) -> str:
    """The mark of whoever has it locked, even if the rest of the metadata makes no sense."""
    return info.metadata.get(META_PREFIX + "client", "")


def locked_by(name: str, holder: str) -> Locked:
    """The refusal of a container that somebody holds."""
    from swiftnbd.export.marks import describe_holder

    return Locked(
        f"{name} is locked by {describe_holder(holder)}; "
        f"if that holder is gone, run: swiftnbd-ctl unlock {name}",
        holder,
    )


def mark_of_this_process() -> str:
    """A mark that two commands on one host never share: the process id is its port."""
    from swiftnbd.export.marks import mark_for

    return mark_for(socket.gethostname(), 1 + os.getpid() % 65535)


@dataclass(slots=True)
class Held:
    """A container that is ours for the moment.

    ``store`` changes nothing once the lock is not ours any more. ``changed`` False: the disk is
    what it was, so what the holder before us knew of it stays true.
    """

    lock: "Lock"
    disk: DiskInfo
    store: Store
    changed: bool


@asynccontextmanager
async def held(
    store: Store, name: str, pace: "Pace | None" = None, *, changed: bool = True
) -> AsyncIterator[Held]:
    """Hold the container's lock; whatever happens inside, try to give it back.

    Whoever starts with ``changed`` False says so before the first change (`Held`).
    """
    from swiftnbd.cli.keeping import kept
    from swiftnbd.export.lock import Lock

    lock = Lock(store, mark_of_this_process(), pace)
    disk = await acquire(lock, name)
    holding = Held(lock, disk, store, changed)
    try:
        async with kept(lock, name) as holding.store:
            yield holding
    except BaseException:
        await release_after_failure(lock, name, changed=holding.changed)
        raise
    await _release(lock, name, changed=holding.changed)


@asynccontextmanager
async def locked(
    store: Store, name: str, pace: "Pace | None" = None, *, changed: bool = True
) -> AsyncIterator["tuple[Lock, DiskInfo]"]:
    """`held`, for who changes no objects."""
    async with held(store, name, pace, changed=changed) as holding:
        yield holding.lock, holding.disk


@asynccontextmanager
async def locked_unread(
    store: Store, name: str, info: ContainerInfo, pace: "Pace | None" = None
) -> AsyncIterator[None]:
    """`locked`, of a container that is no disk now, as ``info`` has just shown it."""
    from swiftnbd.export.lock import Lock

    lock = Lock(store, mark_of_this_process(), pace)
    await acquire_unread(lock, name, info)
    try:
        yield
    except BaseException:
        await release_after_failure(lock, name)
        raise
    await _release(lock, name, changed=True)


async def acquire(lock: "Lock", name: str) -> DiskInfo:
    """Take the lock. If that fails half-way or is cancelled, a mark of ours is taken back."""
    return await _acquired(lock, name, lock.acquire())


async def acquire_unread(lock: "Lock", name: str, info: ContainerInfo) -> None:
    """`acquire`, of a container that is no disk now, as ``info`` has just shown it."""
    from swiftnbd.export.holders import NOBODY, Marks

    await _acquired(lock, name, lock.acquire_unread(Marks.of(info.metadata), NOBODY))


async def _acquired(lock: "Lock", name: str, acquiring: Awaitable[T]) -> T:
    try:
        return await acquiring
    except ExportUnusable as error:
        raise ExportUnusable(f"{name}: {error}") from None
    except Locked as error:
        raise locked_by(name, error.holder) from None
    except ContainerMissing:  # and no mark of ours is there
        raise ContainerMissing(f"{name} doesn't exist") from None
    except BaseException:
        await _withdraw(lock, name)
        raise


async def _withdraw(lock: "Lock", name: str) -> None:
    try:
        await lock.release()
    except SwiftnbdError as error:
        tell(_stays_locked(name, error))


async def _release(lock: "Lock", name: str, *, changed: bool) -> None:
    try:
        await lock.release(changed=changed)
    except SwiftnbdError as error:
        raise StoreError(_stays_locked(name, error)) from error
    except BaseException:  # Ctrl-C in the middle of it
        await release_after_failure(lock, name, changed=changed)
        raise


async def release_after_failure(lock: "Lock", name: str, *, changed: bool = True) -> None:
    try:
        await lock.release(changed=changed)
    except ContainerMissing:
        pass  # and its lock with it
    except SwiftnbdError as error:
        tell(_stays_locked(name, error))


def _stays_locked(name: str, error: SwiftnbdError) -> str:
    return f"{name} may stay locked, run: swiftnbd-ctl unlock {name} ({error})"
