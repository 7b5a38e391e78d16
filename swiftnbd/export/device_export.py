# SPDX-License-Identifier: MIT
"""An export that a plugin makes. Nobody is kept out of it, and it has no lock and no cache.

Its devices are made when it is loaded, and closed at the end; or for each name that clients ask
for; or for each connection. See `swiftnbd.api.plugin.Plugin`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from swiftnbd.api.client import Client
from swiftnbd.api.device import Device
from swiftnbd.api.plugin import FilterPlugin, Opening, Plugin
from swiftnbd.api.profile import Profile
from swiftnbd.errors import ContainerMissing, ExportUnusable, Locked, SwiftnbdError
from swiftnbd.export.base import BaseExport
from swiftnbd.export.checked import checked
from swiftnbd.export.layers import Layers, ReadOnly, called, close
from swiftnbd.export.status import ExportFacts, ExportState, ExportStatus
from swiftnbd.export.turns import Turns
from swiftnbd.metrics import Counters

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Shared:
    """A device, and how many connections use it. ``stays``: also when there are none."""

    name: str
    device: Device
    connections: int = 0
    stays: bool = False


@dataclass(frozen=True, slots=True)
class _Own:
    """A connection's own device, and the shared one that it is above, if it is."""

    device: Device
    above: _Shared | None


class DeviceExport(BaseExport):
    """The devices of ``plugin`` behind ``filters``, under a name."""

    left_as: ClassVar[str] = "could not be closed"

    def __init__(
        self,
        name: str,
        plugin: Plugin,
        filters: Sequence[FilterPlugin] = (),
        *,
        read_only: bool = False,
        multi_conn: bool = True,
        tls_only: bool = False,
        counters: Counters | None = None,
    ) -> None:
        self.name = name
        self.counters = Counters() if counters is None else counters
        self.turns = Turns(self._is_idle)
        self._connections = 0
        self._shared: dict[str, _Shared] = {}  # by name
        self._own: dict[int, _Own] = {}  # by the device's id
        self._layers = Layers(())
        self._started: Plugin | None = None
        self._size = 0
        self._is_retired = False
        self._is_current = True  # what is open is as it is configured
        self._configure(plugin, filters, read_only, multi_conn, tls_only)

    def _configure(
        self,
        plugin: Plugin,
        filters: Sequence[FilterPlugin],
        read_only: bool,
        multi_conn: bool,
        tls_only: bool,
    ) -> None:
        self._plugin = plugin
        self._filters = tuple(filters)
        self._layers.become(self._filters, per_connection=plugin.per_connection)
        self.any_name = plugin.any_name
        self.read_only, self.multi_conn, self.tls_only = read_only, multi_conn, tls_only

    # BaseExport

    async def load(self) -> None:
        async with self.turns:
            await self._start()

    async def look_again(self) -> None:
        async with self.turns:
            if self._is_idle():
                await self._start()

    async def look(self, name: str) -> Profile:
        async with self.turns:
            await self._start()
            opening = self._opening(name)
            if self._layers.per_connection:
                device = await self._open(replace(opening, only_look=True))
                try:
                    return self._profile(device)
                finally:
                    await close(device, self.name)
            shared = await self._share(opening)
            try:
                profile = await self._layers.profile(shared.device, opening)
            finally:
                await self._leave(shared)
            self._size = profile.size
            return profile

    async def attach(self, client: Client, name: str = "") -> Device:
        async with self.turns:
            if self._connections and not self.multi_conn:
                raise Locked(f"{self.name} serves one connection at a time", "")
            await self._start()
            opening = self._opening(name, client)
            device = await self._connect(opening)
            self._connections += 1
            return device

    async def detach(self, device: Device | None = None) -> None:
        assert device is not None
        async with self.turns:
            self._connections -= 1
            own = self._own.pop(id(device), None)
            if own is not None:
                await close(device, self.name)
                shared = own.above
            else:
                shared = next(each for each in self._shared.values() if each.device is device)
            if shared is not None:
                await self._leave(shared)

    async def shut_down(self) -> None:
        async with self.turns:
            self.retire()
            await self._stop()
            await self._layers.stop()

    def change(self, new: Self) -> None:
        assert self._is_idle()
        self._configure(new._plugin, new._filters, new.read_only, new.multi_conn, new.tls_only)
        self._is_current = False

    def retire(self) -> None:
        self._is_retired = True

    async def listed(self, client: Client) -> Sequence[tuple[str, str]]:
        if not self.any_name:
            return ((self.name, ""),)
        async with self.turns:
            await self._start()
            opening = self._opening("", client)
            return await called("listing its names", self._plugin.listed, opening)

    @property
    def connections(self) -> int:
        return self._connections

    @property
    def attached(self) -> bool:
        return bool(self._shared or self._own)

    @property
    def status(self) -> ExportStatus:
        state = ExportState.ATTACHED if self._connections else ExportState.IDLE
        return ExportStatus(state, self._connections, holder="", lease_seconds=None, cache=None)

    @property
    def facts(self) -> ExportFacts:
        return ExportFacts(self._size)

    @property
    def shares_device(self) -> bool:
        return not self._layers.per_connection and self._layers.are_one_disk

    # What is open, called in turn

    async def _start(self) -> None:
        """Be as configured: the plugin started, and the device open that stays so."""
        if self._is_retired:
            raise ContainerMissing(f"{self.name} is not exported any more")
        if not self._is_current:
            await self._stop()
            self._is_current = True
        if self._started is None:
            await called("starting it", self._plugin.start)
            self._started = self._plugin
        await self._layers.start()
        if not (self.any_name or self._layers.per_connection or self._shared):
            shared = await self._share(self._opening(self.name))
            shared.stays = True
            await self._leave(shared)

    async def _stop(self) -> None:
        """Close what is open. Raises `SwiftnbdError` if something could not be."""
        failures: list[SwiftnbdError] = []
        for device in [own.device for own in self._own.values()]:
            await close(device, self.name)  # their connections were cut short
        self._own.clear()
        for key, shared in list(self._shared.items()):
            try:
                await called("closing it", shared.device.close)
                del self._shared[key]
            except SwiftnbdError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        if self._started is not None:
            plugin, self._started = self._started, None
            await called("stopping it", plugin.stop)

    async def _connect(self, opening: Opening) -> Device:
        """A device for one connection."""
        if self._layers.per_connection:
            device = await self._open(opening)
            self._own[id(device)] = _Own(device, None)
            return device
        shared = await self._share(opening)
        try:
            device = await self._layers.connect(shared.device, opening)
        except BaseException:
            await self._leave(shared)
            raise
        if device is not shared.device:
            self._own[id(device)] = _Own(device, shared)
        return device

    async def _share(self, opening: Opening) -> _Shared:
        """The device for a name, with one connection more; give it back with `_leave`."""
        shared = self._shared.get(opening.name)
        if shared is None:
            shared = _Shared(opening.name, await self._open(replace(opening, client=None)))
            self._shared[opening.name] = shared
        shared.connections += 1
        return shared

    async def _leave(self, shared: _Shared) -> None:
        shared.connections -= 1
        if not shared.connections and (not shared.stays or shared.device.is_spent):
            del self._shared[shared.name]
            await close(shared.device, self.name)

    async def _open(self, opening: Opening) -> Device:
        """What the plugin makes, behind all filters that belong to it."""
        device = await called("opening it", self._plugin.open, opening)
        try:
            Profile.of(device)
            device = checked(device, self._plugin)
        except ExportUnusable:
            if isinstance(device, Device):
                await close(device, self.name)
            raise
        if self.read_only and not device.read_only:
            device = ReadOnly(device)
        if self._layers.per_connection:
            device = await self._layers.connect(device, opening)
        else:
            device = await self._layers.share(device, opening)
        try:
            self._profile(device)
        except BaseException:
            await close(device, self.name)
            raise
        return device

    def _profile(self, device: Device) -> Profile:
        profile = Profile.of(device)
        self._size = profile.size
        return profile

    def _opening(self, name: str, client: Client | None = None) -> Opening:
        return Opening(name if self.any_name else self.name, self.read_only, client)

    def _is_idle(self) -> bool:
        return not self._connections
