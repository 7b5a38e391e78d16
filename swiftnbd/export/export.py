# SPDX-License-Identifier: MIT
"""An export: a container under a name, and who uses it now.

::

              attach (lock, open)               last detach (write back, unlock)
    DETACHED ---------------------> ATTACHED ------------------------------------> DETACHED
                                     ^    |
                 attach: no new lock |    | write-back or unlock failed
                                     |    v
                                    KEPT --- tried again until it succeeds --> DETACHED

    ATTACHED, KEPT --- the lock is lost ---> LOST, until the server ends

NBD knows no clients, only connections. Those with the same `Client.identity` are one client and
share the attachment, its cache and its lock; anybody else is refused while it lasts. A read-only
export takes no lock and is shared by all.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from errno import ESHUTDOWN
from typing import NoReturn, Self

from swiftnbd.api.client import Client as Client
from swiftnbd.api.device import Device
from swiftnbd.api.plugin import FilterPlugin, Opening
from swiftnbd.api.profile import Profile
from swiftnbd.errors import (
    ContainerMissing,
    ExportError,
    ExportUnusable,
    Locked,
    SwiftnbdError,
)
from swiftnbd.export.base import BaseExport
from swiftnbd.export.disk import ObjectDevice, profile_of
from swiftnbd.export.disk_cache import DiskCache
from swiftnbd.export.handover import recall, remember
from swiftnbd.export.holding import Holding
from swiftnbd.export.layers import Kept, Layers, called, close
from swiftnbd.export.layout import DiskInfo, parse_metadata
from swiftnbd.export.lease import Leased
from swiftnbd.export.marks import describe_holder
from swiftnbd.export.pace import Pace
from swiftnbd.export.settings import CacheSettings, OnOutage, OutageSettings
from swiftnbd.export.status import CacheStatus, ExportFacts, ExportState, ExportStatus
from swiftnbd.export.turns import Turns
from swiftnbd.export.unfinished import warn_if_unfinished
from swiftnbd.metrics import Counters
from swiftnbd.store.base import Store

TURN_SECONDS = 5.0  # a store says why it gives up; many may wait behind it
KEPT_RETRY_SECONDS = 5.0  # between tries to let go of a container whose store failed

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Export(BaseExport):
    """One container, as served. Open it with `load` before anything else."""

    name: str
    store: Store
    read_only: bool = False
    cache: CacheSettings = field(default_factory=CacheSettings)
    pace: Pace = field(default_factory=Pace)
    outages: OutageSettings = field(default_factory=OutageSettings)
    takeover: bool = False  # from a holder that gives no sign of life
    multi_conn: bool = True  # else one connection is the whole client
    tls_only: bool = False  # only clients whose connection is encrypted may know of it
    origin: str = ""  # with the name it tells the container from any other, for its disk cache
    filters: tuple[FilterPlugin, ...] = ()  # the first one is asked first
    counters: Counters = field(default_factory=Counters)
    info: DiskInfo = field(init=False)
    device: ObjectDevice | None = field(init=False, default=None)
    _layers: Layers = field(init=False)
    _top: Device | None = field(init=False, default=None)  # the device behind its shared filters
    _disk_cache: DiskCache | None = field(init=False, default=None)
    _is_disk_usable: bool = field(init=False, default=True)  # until it fails or hangs
    _closing: asyncio.Task[None] | None = field(init=False, default=None)
    _client: Client | None = field(init=False, default=None)
    _holding: Holding = field(init=False)
    _connections: int = field(init=False, default=0)
    turns: Turns = field(init=False)
    _retry: asyncio.Task[None] | None = field(init=False, default=None)
    _is_retired: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._holding = self._new_holding()
        self._layers = Layers(self.filters)
        self.turns = Turns(self._is_idle)

    def _new_holding(self) -> Holding:
        return Holding(
            self.name,
            self.store,
            self.pace,
            takeover=self.takeover,
            adopt=self._adopt,
            user=self,
        )

    async def load(self) -> None:
        """Read what the container says of its disk, and who holds it if we are to take over.

        Raises `ContainerMissing`, `ExportUnusable` or `StoreError`.
        """
        container = await self.store.info()
        if container is None:
            raise ContainerMissing("the container does not exist")
        self._adopt(parse_metadata(container.metadata))
        await self._layers.start()
        if self.takeover and not self.read_only:
            await self._holding.look()

    async def look(self, name: str) -> Profile:
        opening = Opening(self.name, self.read_only)
        if not self._layers:
            return profile_of(self.store, self.info.geometry, read_only=self.read_only)
        async with self.turns:
            if self._top is not None:
                return await self._layers.profile(self._top, opening)
            device = self._device(self.store, exclusive=False)
            try:
                return await self._layers.look(device, opening)
            finally:
                await device.close()

    def _adopt(self, info: DiskInfo) -> None:
        self.cache.check(info.geometry)
        self.info = info

    @property
    def connections(self) -> int:
        return self._connections

    @property
    def attached(self) -> bool:
        return self.device is not None or self._holding.lock is not None

    @property
    def status(self) -> ExportStatus:
        return ExportStatus(
            state=self._state,
            connections=self._connections,
            holder=self._holding.mark,
            lease_seconds=self._holding.lease_seconds,
            cache=self.device.cache_status if self.device else CacheStatus(),
        )

    @property
    def _state(self) -> ExportState:
        if self.is_lost:
            return ExportState.LOST
        if self._holding.is_suspended:
            return ExportState.SUSPENDED
        if self._connections:
            return ExportState.ATTACHED
        if self._retry is not None and not self._retry.done():
            return ExportState.KEPT
        return ExportState.CHANGING if self.attached else ExportState.IDLE

    @property
    def is_lost(self) -> bool:
        return self._holding.lost is not None

    async def attach(self, client: Client, name: str = "") -> Device:
        if self._client is not None and not self.read_only:
            self._check_same(client, self._client)  # at once, not after the turn of others
        async with self.turns:
            try:
                await self._stop_retrying()
                device = await self._admit(client)
            except BaseException:  # cancelled, too: nobody else would let go of it
                if not self._connections:
                    self._retry_later()
                raise
            self._client = self._client or client
            self._connections += 1
            return device

    async def _admit(self, client: Client) -> Device:
        """What one more connection of ``client`` uses, if it may have one."""
        self._check_not_lost()
        if self._is_retired:
            raise ContainerMissing(f"{self.name} is not exported any more")
        if self._connections and not self.read_only:
            assert self._client is not None
            self._check_same(client, self._client)
            if not self.multi_conn:
                self._refuse(self._client)
        return await self._connect(client)

    async def _connect(self, client: Client) -> Device:
        if not self._connections:
            await self._take(client)
        if self._top is None:
            assert self.device is not None
            kept = Kept(self.device) if self._layers else self.device
            self._top = await self._layers.share(kept, Opening(self.name, self.read_only))
        return await self._layers.connect(self._top, Opening(self.name, self.read_only, client))

    def _check_same(self, client: Client, holder: Client) -> None:
        if client.identity != holder.identity:
            self._refuse(holder)

    def _refuse(self, holder: Client) -> NoReturn:
        mark = self._holding.mark or str(holder)
        raise Locked(f"{self.name} is in use by {describe_holder(mark)}", mark)

    async def _take(self, client: Client) -> None:
        """Be ready for a first connection: locked unless read-only, with a device."""
        if self.device is not None:
            log.info("%s: %s goes on where the last client stopped", self.name, client)
            return
        waits = self.outages.policy is OnOutage.WAIT
        store = self.store.waiting() if waits else self.store
        await self._let_go()
        if self.read_only:
            await self.load()
        else:
            store = Leased(store, await self._holding.take(client))
        self.device = self._device(store, exclusive=not self.read_only)
        if self._holding.is_suspended:
            self.device.suspend()  # the lease was over before there was a device to tell
        await recall(self.device, self._holding.lock, self.name, self.outages.seconds)
        await self._open_disk_cache()
        # nobody waits for it, and it ends with the device
        self.device.beside(warn_if_unfinished(store, self.name, self.outages.seconds))

    def _device(self, store: Store, *, exclusive: bool) -> ObjectDevice:
        seconds = self.outages.request_seconds
        device = ObjectDevice(
            store,
            self.info.geometry,
            self.cache,
            counters=self.counters,
            exclusive=exclusive,
            flush_seconds=seconds,
            close_seconds=self.outages.seconds,
            request_seconds=None if seconds is None else seconds + TURN_SECONDS,
        )
        device.read_only = self.read_only
        return device

    async def _open_disk_cache(self) -> None:
        """Use the blocks that a local disk keeps, if one is to: those of the last holder, too."""
        directory = self.cache.disk_directory
        if self.device is None or directory is None or not self._is_disk_usable:
            return
        geometry, lock = self.info.geometry, self._holding.lock
        try:
            self._disk_cache = await DiskCache.open(
                directory,
                f"{self.origin}\n{self.name}",
                label=self.name,
                object_size=geometry.object_size,
                block_size=self.cache.block_size(geometry),
                limit_bytes=self.cache.disk_bytes,
                binding=(lock.predecessor.binding or None) if lock else None,
            )
        except ExportUnusable as error:
            log.warning("%s: going on without the disk cache: %s", self.name, error)
            return
        if self.is_lost:
            await self._close_disk_cache(None)
        else:
            self.device.use_disk_cache(self._disk_cache)

    async def _close_disk_cache(self, binding: str | None) -> None:
        """Let go of it; ``binding`` as for `DiskCache.close`."""
        cache = self._disk_cache
        if cache is not None:
            await cache.close(binding)
            self._disk_cache, self._is_disk_usable = None, not cache.failed

    def _check_not_lost(self) -> None:
        if lost := self._holding.lost:
            raise ExportError(ESHUTDOWN, f"{lost}; to use it again, restart the server")

    @property
    def facts(self) -> ExportFacts:
        geometry = self.info.geometry
        return ExportFacts(geometry.size, geometry.object_size, self.info.client)

    @property
    def shares_device(self) -> bool:
        return self._layers.are_one_disk

    @property
    def cache_bytes_max(self) -> int:
        return self.cache.cache_bytes

    @property
    def patience_seconds(self) -> float:
        return self.outages.seconds

    @property
    def check_lock(self) -> Callable[[], None]:
        return self._holding.check

    # swiftnbd.export.lease.Suspendable

    def suspend(self) -> None:
        if self.device is not None:
            self.device.suspend()

    def resume(self) -> None:
        if self.device is not None:
            self.device.resume()

    def fail(self, reason: str) -> None:
        dirty = 0 if self.device is None else self.device.dirty_bytes
        log.error("%s: %s; %d bytes were not written back", self.name, reason, dirty)
        if self.device is not None:
            self.device.fail(reason)
        # whoever has the container now may have a use for the file
        self._closing = asyncio.get_running_loop().create_task(self._close_disk_cache(None))

    # Changing what is exported, and how

    def change(self, new: Self) -> None:
        assert self._is_idle()
        for each in fields(self):
            if each.init and each.name not in ("name", "counters"):
                setattr(self, each.name, getattr(new, each.name))
        self._holding, self._is_disk_usable = self._new_holding(), True
        self._layers.become(self.filters)

    def retire(self) -> None:
        self._is_retired = True

    async def look_again(self) -> None:
        async with self.turns:
            if self._is_idle():
                await self.load()

    def _is_idle(self) -> bool:
        return not self._connections and not self.attached

    # Letting go

    async def detach(self, device: Device | None = None) -> None:
        """The last one writes back and unlocks; failing that, keeps both."""
        async with self.turns:
            if device not in (None, self._top):
                await close(device, self.name)
            self._connections -= 1
            if self._connections:
                return
            self._client = None
            if self.is_lost:
                return
            try:
                await self._let_go()
            except SwiftnbdError as error:
                log.error("%s: kept locked, trying again: %s", self.name, error)
                self._retry_later()
            except BaseException:  # cancelled, or a mistake of ours
                self._retry_later()
                raise

    async def shut_down(self) -> None:
        async with self.turns:
            await self._stop_retrying()
            if not self.is_lost:
                await self._let_go()
            await self._layers.stop()

    async def abandon(self) -> None:
        await self._holding.abandon()

    async def _let_go(self) -> None:
        if self._top not in (None, self.device):
            await called(f"{self.name}: closing its filters", self._top.close)
        self._top = None
        if self.device is not None:
            await self.device.close()
            # What is kept for the next holder is true only if nobody changes the disk any more
            # under this lock: should we be cut short, whoever comes now needs another one.
            device, self.device = self.device, None
            await remember(device, self._holding.lock, self.name, self.outages.seconds)
        lock = self._holding.lock
        await self._close_disk_cache(lock.tenure.binding if lock else None)
        await self._holding.release()

    def _retry_later(self) -> None:
        if self.attached and not self.is_lost:
            self._retry = asyncio.get_running_loop().create_task(self._retry_let_go())

    async def _retry_let_go(self) -> None:
        while True:
            await asyncio.sleep(KEPT_RETRY_SECONDS)
            async with self.turns:
                if self.is_lost:
                    return
                try:
                    await self._let_go()
                except SwiftnbdError as error:
                    log.debug("%s: still kept: %s", self.name, error)
                except Exception:
                    log.exception("%s: still kept", self.name)
                else:
                    log.info("%s: let go after all", self.name)
                    return

    async def _stop_retrying(self) -> None:
        """Called in our turn, so the task is asleep or waits for its own: nothing is cut short."""
        if self._retry is not None:
            self._retry.cancel()
            await asyncio.gather(self._retry, return_exceptions=True)
            self._retry = None
