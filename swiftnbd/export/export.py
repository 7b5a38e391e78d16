# SPDX-License-Identifier: MIT
"""An export: a container under a name, and who uses it now.

::

              attach (lock, open)               last detach (write back, unlock)
    DETACHED ---------------------> ATTACHED ------------------------------------> DETACHED
                                     ^    |
                 attach: no new lock |    | write-back or unlock failed
                                     |    v
                                    KEPT --- tried again until it succeeds --> DETACHED

NBD knows no clients, only connections. Those with the same `Client.identity` are one client and
share the attachment, its cache and its lock; anybody else is refused while it lasts. A read-only
export takes no lock and is shared by all.
"""

import asyncio
import logging
import socket
from dataclasses import dataclass, field
from errno import EIO
from typing import NoReturn

from swiftnbd.errors import (
    ContainerMissing,
    ExportError,
    ExportUnusable,
    Locked,
    SwiftnbdError,
)
from swiftnbd.export.device import Device
from swiftnbd.export.disk import ObjectDevice, check_cache
from swiftnbd.export.layout import DiskInfo, parse_metadata
from swiftnbd.export.lock import SETTLE_SECONDS_DEFAULT, Lock, describe_holder, mark_for
from swiftnbd.metrics import Counters
from swiftnbd.store.base import Store

KEPT_RETRY_SECONDS = 5.0  # between tries to let go of a container whose store failed

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Client:
    """Whoever is at the other end: connections with one ``identity`` are one client.

    ``host`` and ``port`` are for the mark in the container, ``shown`` is for messages.
    """

    identity: str
    host: str
    port: int
    shown: str = ""

    def __str__(self) -> str:
        return self.shown or f"{self.host}:{self.port}"


@dataclass(slots=True)
class Export:
    """One container, as served. Open it with `load` before anything else."""

    name: str
    store: Store
    read_only: bool = False
    cache_bytes: int = 64 * 1024 * 1024
    settle_seconds: float = SETTLE_SECONDS_DEFAULT
    multi_conn: bool = True  # else one connection is the whole client
    tls_only: bool = False  # only clients whose connection is encrypted may know of it
    counters: Counters = field(default_factory=Counters)
    info: DiskInfo = field(init=False)
    device: ObjectDevice | None = field(init=False, default=None)
    _client: Client | None = field(init=False, default=None)
    _lock: Lock | None = field(init=False, default=None)
    _connections: int = field(init=False, default=0)
    _turn: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)
    _retry: asyncio.Task[None] | None = field(init=False, default=None)

    async def load(self) -> None:
        """Read what the container says of its disk.

        Raises `ContainerMissing`, `ExportUnusable` or `StoreError`.
        """
        container = await self.store.info()
        if container is None:
            raise ContainerMissing("the container does not exist")
        self._adopt(parse_metadata(container.metadata))

    def _adopt(self, info: DiskInfo) -> None:
        check_cache(info.geometry, self.cache_bytes)
        self.info = info

    @property
    def connections(self) -> int:
        """How many connections use it now."""
        return self._connections

    @property
    def attached(self) -> bool:
        """Whether a lock is held or a device is open."""
        return self.device is not None or self._lock is not None

    async def attach(self, client: Client) -> Device:
        """One more connection of ``client``. Give it back with `detach`.

        Raises `Locked` if somebody else uses it, `StoreError` or `ExportUnusable`.
        """
        if self._client is not None and not self.read_only:
            self._check_same(client, self._client)  # at once, not after the turn of others
        async with self._turn:
            await self._stop_retrying()
            if self._connections and not self.read_only:
                assert self._client is not None
                self._check_same(client, self._client)
                if not self.multi_conn:
                    self._refuse(self._client)
            if not self._connections:
                try:
                    await self._take(client)
                except SwiftnbdError:
                    self._retry_later()
                    raise
                self._client = client
            self._connections += 1
            assert self.device is not None
            return self.device

    def _check_same(self, client: Client, holder: Client) -> None:
        if client.identity != holder.identity:
            self._refuse(holder)

    def _refuse(self, holder: Client) -> NoReturn:
        mark = self._lock.mark if self._lock else str(holder)
        raise Locked(f"{self.name} is in use by {describe_holder(mark)}", mark)

    async def _take(self, client: Client) -> None:
        """Be ready for a first connection: locked unless read-only, with a device."""
        await self._check_kept()
        if self.device is not None:
            log.info("%s: %s goes on where the last client stopped", self.name, client)
            return
        if self.read_only:
            await self.load()
        else:
            await self._let_go()
            await self._acquire(client)
        self.device = ObjectDevice(
            self.store, self.info.geometry, cache_bytes=self.cache_bytes, counters=self.counters
        )

    async def _check_kept(self) -> None:
        """See that what was kept is still ours, before anything of it is used or stored.

        Raises `ExportError` if the lock was broken: writing now could harm another holder.
        """
        if self._lock is None or await self._lock.held():
            return
        if self.device is not None:
            raise ExportError(
                EIO,
                f"{self.name}: the lock was broken while {self.device.dirty_bytes} bytes "
                f"were not written back; restart the server to give them up",
            )
        self._lock = None  # the unlock that seemed to fail did not, or the lock never was

    async def _acquire(self, client: Client) -> None:
        mark = mark_for(_holder_host(client), client.port)
        lock = Lock(self.store, mark, self.settle_seconds)
        try:
            info = await lock.acquire()
        except (Locked, ExportUnusable, ContainerMissing):
            raise
        except BaseException:
            if lock.marking:
                self._lock = lock  # who knows
            raise
        self._lock = lock
        log.info("%s: locked by %s", self.name, mark)
        try:
            self._adopt(info)
        except SwiftnbdError:
            await self._unlock()
            raise

    async def detach(self) -> None:
        """One connection less. The last one writes back and unlocks; failing that, keeps both."""
        async with self._turn:
            self._connections -= 1
            if self._connections:
                return
            self._client = None
            try:
                await self._let_go()
            except SwiftnbdError as error:
                log.error("%s: kept locked, trying again: %s", self.name, error)
                self._retry_later()

    async def shut_down(self) -> None:
        """The server ends: let go of the container. Raises `SwiftnbdError` saying what is lost."""
        async with self._turn:
            await self._stop_retrying()
            await self._check_kept()
            await self._let_go()

    async def _let_go(self) -> None:
        if self.device is not None:
            await self.device.close()
            self.device = None
        if self._lock is not None:
            await self._unlock()

    async def _unlock(self) -> None:
        assert self._lock is not None
        await self._lock.release()
        log.info("%s: unlocked", self.name)
        self._lock = None

    def _retry_later(self) -> None:
        if self.attached:
            self._retry = asyncio.get_running_loop().create_task(self._retry_let_go())

    async def _retry_let_go(self) -> None:
        while True:
            await asyncio.sleep(KEPT_RETRY_SECONDS)
            async with self._turn:
                try:
                    await self._check_kept()
                    await self._let_go()
                except SwiftnbdError as error:
                    log.debug("%s: still kept: %s", self.name, error)
                else:
                    log.info("%s: let go after all", self.name)
                    return

    async def _stop_retrying(self) -> None:
        """Called in our turn, so the task is asleep or waits for its own: nothing is cut short."""
        if self._retry is not None:
            self._retry.cancel()
            await asyncio.gather(self._retry, return_exceptions=True)
            self._retry = None


def _holder_host(client: Client) -> str:
    """The host in our mark: a loopback address would mean nothing to others."""
    if client.host == "localhost" or client.host.startswith("127.") or client.host == "::1":
        return socket.gethostname()
    return client.host
