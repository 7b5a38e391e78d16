# SPDX-License-Identifier: MIT
"""The directory store: `swiftnbd.store.folder` in threads, its errors as sentences.

A call has ended when it returns, also when it was cancelled: otherwise an abandoned put could land
later, over a newer one.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from errno import (
    EACCES,
    EAGAIN,
    EDQUOT,
    EINTR,
    EMFILE,
    ENFILE,
    ENOMEM,
    ENOSPC,
    EPERM,
    EROFS,
    ESTALE,
)
from functools import partial
from pathlib import Path
from typing import TypeVar

from swiftnbd.errors import (
    AccessRefused,
    StoreError,
    StoreFull,
    StoreUnavailable,
    SwiftnbdError,
)
from swiftnbd.store.base import (
    LISTING_LIMIT_MAX,
    OBJECT_BYTES_MAX,
    Blob,
    Body,
    ContainerInfo,
    Listed,
    ObjectInfo,
    Place,
    Store,
)
from swiftnbd.store.checks import (
    check_container_name,
    check_metadata,
    check_object_name,
    check_token,
)
from swiftnbd.store.folder import POLICY, Folder, containers

__all__ = ["DirectoryStore", "containers"]

# Each thread mostly waits in fsync, and file systems join the syncs of several into one; past
# eight there is nothing to gain, and more would only fight for the interpreter.
THREADS = 8

_FULL = (ENOSPC, EDQUOT)
_REFUSED = (EACCES, EPERM, EROFS)
_PASSING = (EMFILE, ENFILE, ENOMEM, EAGAIN, EINTR, ESTALE)

T = TypeVar("T")


class DirectoryStore(Store):
    """The container ``container`` in the directory ``root``."""

    admits_one_creator = True  # link(2) does

    def __init__(self, root: Path, container: str) -> None:
        check_container_name(container)
        self._folder = Folder(root, container)
        self.label = self._folder.label
        self.place: Place = Place(root.absolute(), container)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=self.label)

    async def get(
        self,
        name: str,
        *,
        start: int = 0,
        length: int | None = None,
        newest: bool = False,
        size_max: int = OBJECT_BYTES_MAX,
    ) -> Blob | None:
        check_object_name(name)
        return await self._run(
            f"GET {name}", partial(self._folder.get, name, start, length, size_max)
        )

    async def head(self, name: str, *, newest: bool = False) -> ObjectInfo | None:
        check_object_name(name)
        return await self._run(f"HEAD {name}", partial(self._folder.head, name))

    async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
        check_object_name(name)
        return await self._run(f"PUT {name}", partial(self._folder.put, name, data, if_absent))

    async def copy(self, name: str, source: Place, etag: str) -> None:
        check_object_name(name)
        there = Folder(self._folder.root, source.container)
        await self._run(f"COPY {name}", partial(self._folder.copy, name, there, etag))

    async def delete(self, name: str) -> bool:
        check_object_name(name)
        return await self._run(f"DELETE {name}", partial(self._folder.delete, name))

    async def renew(self, name: str, token: str) -> bool:
        check_object_name(name)
        check_token(token)
        return await self._run(f"renew {name}", partial(self._folder.renew, name, token))

    async def listing(
        self, *, prefix: str = "", after: str = "", before: str = "", limit: int = LISTING_LIMIT_MAX
    ) -> list[Listed]:
        assert 0 < limit <= LISTING_LIMIT_MAX
        return await self._run(
            "listing", partial(self._folder.listing, prefix, after, before, limit)
        )

    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        return await self._run("info", partial(self._folder.info, count))

    async def set_metadata(self, changes: Mapping[str, str]) -> None:
        check_metadata(changes)
        await self._run("set metadata", partial(self._folder.set_metadata, changes))

    async def create_container(
        self, metadata: Mapping[str, str] | None = None, *, policy: str | None = None
    ) -> bool:
        check_metadata(metadata or {})
        if policy not in (None, POLICY):
            raise StoreError(f"{self.label}: there is no storage policy {policy!r}")
        return await self._run("create", partial(self._folder.create, metadata or {}))

    async def delete_container(self) -> bool:
        return await self._run("delete container", self._folder.remove)

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)

    async def _run(self, what: str, work: Callable[[], T]) -> T:
        """Do ``work`` in a thread; when cancelled, only once it has ended."""
        try:
            job = self._threads.submit(copy_context().run, work)  # with the leave to change
        except RuntimeError:
            raise StoreError(f"{self.label}: {what}: the store is closed") from None
        future = asyncio.wrap_future(job)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                if job.cancel():  # it had not begun
                    raise
                cancelled = error
        try:
            result = future.result()
        except OSError as error:
            if cancelled is None:
                raise _store_error(f"{self.label}: {what}", error) from error
        except SwiftnbdError:
            if cancelled is None:
                raise
        if cancelled is not None:
            raise cancelled
        return result


def _store_error(what: str, error: OSError) -> StoreError:
    message = f"{what}: {error.strerror or error}"
    if error.errno in _FULL:
        return StoreFull(message)
    if error.errno in _REFUSED:
        return AccessRefused(message)
    if error.errno in _PASSING:
        return StoreUnavailable(message)
    return StoreError(message)
