# SPDX-License-Identifier: MIT
"""The container that a measurement is made in: made for it, and removed with all that is in it.

If a process is killed it stays, and a later one that has the same login removes it. Its name says
when it was made::

    swiftnbd-bench-TTTTTTTTRRRRRRRR     Unix time and a random number, in hex

From the start it is marked as one that is being deleted: ``swiftnbd-ctl delete`` removes it, too.
"""

import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from swiftnbd.cli.benching import OBJECTS_PREFIX
from swiftnbd.cli.common import IN_FLIGHT_MAX, Tell
from swiftnbd.cli.stores import Stores
from swiftnbd.errors import ContainerMissing, ContainerNotEmpty, StoreError, SwiftnbdError
from swiftnbd.export.layout import deleted_metadata, is_deleted
from swiftnbd.server.config import ExportConfig
from swiftnbd.store.base import Store, list_all

PREFIX = "swiftnbd-bench-"
OLD_SECONDS = 24 * 3600  # a measurement takes an hour at most
OLD_MAX = 16  # removed by one process; the next one goes on

# A listing may lag behind the deletes; a busy Swift catches up within seconds.
CLEAN_TRIES_MAX = 6
CLEAN_RETRY_SECONDS = 0.5  # doubles: 15 s in all

_NAME = re.compile(re.escape(PREFIX) + "(?P<time>[0-9a-f]{8})[0-9a-f]{8}")


def new_name() -> str:
    """The name of a container that nobody uses."""
    return f"{PREFIX}{int(time.time()):08x}{secrets.token_hex(4)}"


def is_old(name: str, now: float) -> bool:
    """Whether it is the name of one that nobody can be measuring in any more."""
    match = _NAME.fullmatch(name)
    return match is not None and int(match["time"], 16) + OLD_SECONDS < now


@asynccontextmanager
async def scratch(
    store: Store,
    name: str,
    policy: str | None,
    tell: Tell,
    rescue: str = "",
    retry_seconds: float | None = None,
) -> AsyncIterator[Store]:
    """A new container, removed with all that is in it, whatever happens inside.

    ``rescue`` is what to do if that fails.
    """
    marks = {key: value for key, value in deleted_metadata().items() if value}
    try:
        await store.create_container(marks, policy=policy)
        yield store
    finally:
        try:
            await _remove(store, CLEAN_RETRY_SECONDS if retry_seconds is None else retry_seconds)
        except SwiftnbdError as error:
            tell(f"{name}, a scratch container, is left ({error}); {rescue}")


async def remove_old(stores: Stores, export: ExportConfig, tell: Tell) -> None:
    """Remove what killed ones left beside that container, if it is nothing else.

    Nobody has asked for it: if it fails, the next one tries.
    """
    try:
        names = await stores.names_beside(export, PREFIX)
    except SwiftnbdError:  # not everybody may list an account
        return
    old = [name for name in names if is_old(name, time.time())]
    for name in old[:OLD_MAX]:
        store = stores.open(replace(export, name=name))
        try:
            if await _is_scratch(store):
                await _remove(store, CLEAN_RETRY_SECONDS)
                tell(f"{name}, left by a bench that was killed, is removed")
        except SwiftnbdError as error:
            tell(f"{name}, left by a bench that was killed, could not be removed: {error}")


async def _is_scratch(store: Store) -> bool:
    """Whether it is marked like one, and nothing is in it that a measurement does not make."""
    info = await store.info()
    if info is None or not is_deleted(info.metadata):
        return False
    async for row in list_all(store):
        if not row.name.startswith(OBJECTS_PREFIX):
            return False
    return True


async def _remove(store: Store, retry_seconds: float) -> None:
    """Delete it with what measurements make; if anything else is in it, it stays."""
    import asyncio

    from swiftnbd.cli.parallel import for_each

    async def delete(object_name: str) -> None:
        await store.delete(object_name)

    for attempt in range(CLEAN_TRIES_MAX):
        if attempt:
            await asyncio.sleep(retry_seconds * 2 ** (attempt - 1))
        try:
            after = ""
            while page := await store.listing(prefix=OBJECTS_PREFIX, after=after):
                await for_each([row.name for row in page], delete, in_flight=IN_FLIGHT_MAX)
                after = page[-1].name
            await store.delete_container()
        except ContainerNotEmpty:
            continue
        except ContainerMissing:
            pass
        return
    raise StoreError("it is listed as not empty")
