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
from swiftnbd.export.base import BaseExport, no_lock
from swiftnbd.export.disk import ObjectDevice, profile_of
from swiftnbd.export.disk_cache import DiskCache
from swiftnbd.export.handover import recall, remember
from swiftnbd.export.holders import NOBODY, Sighting
from swiftnbd.export.layers import Kept, Layers, called, close
from swiftnbd.export.layout import DiskInfo, parse_metadata
from swiftnbd.export.lease import Keeper, Leased
from swiftnbd.export.lock import Lock
from swiftnbd.export.marks import describe_holder, holder_host, mark_for
from swiftnbd.export.pace import Pace
from swiftnbd.export.settings import CacheSettings, OnOutage, OutageSettings
from swiftnbd.export.status import CacheStatus, ExportFacts, ExportState, ExportStatus
from swiftnbd.export.turns import Turns
from swiftnbd.export.watch import Watch
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
    _lock: Lock | None = field(init=False, default=None)
    _keeper: Keeper | None = field(init=False, default=None)
    _watch: Watch = field(init=False)
    _connections: int = field(init=False, default=0)
    turns: Turns = field(init=False)
    _retry: asyncio.Task[None] | None = field(init=False, default=None)
    _is_retired: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._watch = Watch(self.store)
        self._layers = Layers(self.filters)
        self.turns = Turns(self._is_idle)

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
            await self._watch.look()

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
        return self.device is not None or self._lock is not None

    @property
    def status(self) -> ExportStatus:
        keeper, device = self._keeper, self.device
        return ExportStatus(
            state=self._state,
            connections=self._connections,
            holder=self._lock.mark if self._lock else "",
            lease_seconds=keeper.lease_seconds if keeper else None,
            cache=device.cache_status if device else CacheStatus(),
        )

    @property
    def _state(self) -> ExportState:
        if self.is_lost:
            return ExportState.LOST
        if self._keeper is not None and self._keeper.is_suspended:
            return ExportState.SUSPENDED
        if self._connections:
            return ExportState.ATTACHED
        if self._retry is not None and not self._retry.done():
            return ExportState.KEPT
        return ExportState.CHANGING if self.attached else ExportState.IDLE

    @property
    def is_lost(self) -> bool:
        return self._keeper is not None and self._keeper.lost is not None

    async def attach(self, client: Client, name: str = "") -> Device:
        if self._client is not None and not self.read_only:
            self._check_same(client, self._client)  # at once, not after the turn of others
        async with self.turns:
            await self._stop_retrying()
            self._check_not_lost()
            if self._is_retired:
                raise ContainerMissing(f"{self.name} is not exported any more")
            if self._connections and not self.read_only:
                assert self._client is not None
                self._check_same(client, self._client)
                if not self.multi_conn:
                    self._refuse(self._client)
            try:
                device = await self._connect(client)
            except SwiftnbdError:
                if not self._connections:
                    self._retry_later()
                raise
            self._client = self._client or client
            self._connections += 1
            return device

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
        mark = self._lock.mark if self._lock else str(holder)
        raise Locked(f"{self.name} is in use by {describe_holder(mark)}", mark)

    async def _take(self, client: Client) -> None:
        """Be ready for a first connection: locked unless read-only, with a device."""
        if self.device is not None:
            log.info("%s: %s goes on where the last client stopped", self.name, client)
            return
        waits = self.outages.policy is OnOutage.WAIT
        store = self.store.waiting() if waits else self.store
        if self.read_only:
            await self.load()
        else:
            await self._let_go()
            store = Leased(store, await self._acquire(client))
        self.device = self._device(store, exclusive=not self.read_only)
        if self._keeper is not None and self._keeper.is_suspended:
            self.device.suspend()  # the lease was over before there was a device to tell
        await recall(self.device, self._lock, self.name, self.outages.seconds)
        await self._open_disk_cache()

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
        geometry = self.info.geometry
        try:
            self._disk_cache = await DiskCache.open(
                directory,
                f"{self.origin}\n{self.name}",
                label=self.name,
                object_size=geometry.object_size,
                block_size=self.cache.block_size(geometry),
                limit_bytes=self.cache.disk_bytes,
                binding=(self._lock.predecessor.binding or None) if self._lock else None,
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
        cache, self._disk_cache = self._disk_cache, None
        if cache is not None:
            await cache.close(binding)
            self._is_disk_usable = not cache.failed

    def _check_not_lost(self) -> None:
        if self._keeper is not None and self._keeper.lost is not None:
            raise ExportError(
                ESHUTDOWN, f"{self._keeper.lost}; to use it again, restart the server"
            )

    async def _acquire(self, client: Client) -> Keeper:
        try:
            await self._lock_for(client, NOBODY)
        except Locked as locked:
            over = await self._find_gone(locked)
            await self._lock_for(client, over)
            if over.holder:  # else it let go while we looked
                log.warning("%s: taken over from %s", self.name, describe_holder(over.holder))
        assert self._lock is not None
        log.info("%s: locked by %s", self.name, self._lock.mark)
        self._keeper = Keeper(self._lock, self)
        self._keeper.start()
        return self._keeper

    async def _lock_for(self, client: Client, over: Sighting) -> None:
        """Have the lock, with the container's metadata adopted. ``over`` may be superseded."""
        lock = Lock(self.store, mark_for(holder_host(client.host), client.port), self.pace)
        try:
            info = await lock.acquire(over)
        except (Locked, ExportUnusable, ContainerMissing):
            raise
        except BaseException:
            if lock.marking:
                self._lock = lock  # who knows
            raise
        self._lock = lock
        try:
            self._adopt(info)
        except SwiftnbdError:
            await self._unlock()
            raise

    async def _find_gone(self, locked: Locked) -> Sighting:
        """Who may be superseded, being silent for long enough; ``locked`` if nobody may."""
        left = await self._watch.look()
        seen = self._watch.seen
        if seen.client and not (self.takeover and seen.renews):
            raise locked
        if left > 0:
            raise Locked(
                f"{locked}; it is taken over if that is not heard of for {left:.0f} s more",
                locked.holder,
            )
        return seen

    @property
    def facts(self) -> ExportFacts:
        geometry = self.info.geometry
        return ExportFacts(geometry.size, geometry.object_size, self.info.client)

    @property
    def cache_bytes_max(self) -> int:
        return self.cache.cache_bytes

    @property
    def patience_seconds(self) -> float:
        return self.outages.seconds

    @property
    def check_lock(self) -> Callable[[], None]:
        """Suspends the device if the lease is over and the timer that says so has not come yet."""
        return no_lock if self._keeper is None else self._keeper.check

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
        self._watch, self._is_disk_usable = Watch(self.store), True
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

    async def shut_down(self) -> None:
        async with self.turns:
            await self._stop_retrying()
            if not self.is_lost:
                await self._let_go()
            await self._layers.stop()

    async def abandon(self) -> None:
        if self._keeper is not None:
            await self._keeper.stop()

    async def _let_go(self) -> None:
        if self._top not in (None, self.device):
            await called(self._top.close(), f"{self.name}: closing its filters")
        self._top = None
        if self.device is not None:
            await self.device.close()
            await remember(self.device, self._lock, self.name, self.outages.seconds)
            await self._close_disk_cache(self._lock.tenure.binding if self._lock else None)
            self.device = None
        if self._lock is not None:
            await self._unlock()

    async def _unlock(self) -> None:
        assert self._lock is not None
        if self._keeper is not None:
            await self._keeper.stop()  # or it would undo the release
            self._keeper = None
        await self._lock.release()
        log.info("%s: unlocked", self.name)
        self._lock = None

    def _retry_later(self) -> None:
        if self.attached:
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
                else:
                    log.info("%s: let go after all", self.name)
                    return

    async def _stop_retrying(self) -> None:
        """Called in our turn, so the task is asleep or waits for its own: nothing is cut short."""
        if self._retry is not None:
            self._retry.cancel()
            await asyncio.gather(self._retry, return_exceptions=True)
            self._retry = None
