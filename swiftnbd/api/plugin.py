# SPDX-License-Identifier: MIT
"""What makes devices: plugins from nothing but what they are told, filters from a device.

Both are dataclasses. Their fields made with `swiftnbd.api.parameters.parameter` are what users can
set, and the first line of their docstring is what lists show. Each stands for one export as it is
configured: it is made when the configuration is read, must not do anything by itself, and is
compared (by its fields) when the configuration is read again. State belongs into devices.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from swiftnbd.api.client import Client
from swiftnbd.api.device import Device

API_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Opening:
    """What a device is made for.

    ``name``: the export that was asked for. ``read_only``: nothing will be changed through it.
    ``client``: for whom, or None where all share the device. ``only_look``: for nobody, only to
    see what clients would be told; nothing must be changed for that, nor when it is closed.
    """

    name: str
    read_only: bool = False
    client: Client | None = None
    only_look: bool = False


class Plugin(ABC):
    """Makes devices. ``ClassVar``:

    * ``api_version``: the version of this interface it is written for.
    * ``per_connection``: each connection gets a device of its own, made when it begins and closed
      when it ends. Else there is one for all, from the start of the server to its end.
    * ``any_name``: whatever export name a client asks for is served, and `open` decides. Devices
      that are not per connection are then made for each name, and closed with the last connection.
    """

    api_version: ClassVar[int] = 1  # what says nothing was written for the first one
    per_connection: ClassVar[bool] = False
    any_name: ClassVar[bool] = False

    async def start(self) -> None:
        """Called once before anything else is, when the server starts. Raises as `open` does;
        then it may be called again."""

    @abstractmethod
    async def open(self, opening: Opening) -> Device:
        """A device. Raises `swiftnbd.errors.SwiftnbdError` or OSError if there can be none now.

        Where it fails with `swiftnbd.errors.StoreUnavailable` when the server starts, it is tried
        again until it succeeds; any other error ends the export.
        """

    async def names(self) -> Sequence[str]:
        """With ``any_name``: the exports that clients are told of who ask for a list."""
        return ()

    async def listed(self, opening: Opening) -> Sequence[tuple[str, str]]:
        """`names` with a description of each ('' for none), for one client: the ``name`` of
        ``opening`` is empty."""
        return [(name, "") for name in await self.names()]

    def dump(self) -> None:
        """Put out more lines for ``--dump-plugin``, KEY=VALUE, of what it was told.

        Nothing else is called before or after. Raises `swiftnbd.errors.SwiftnbdError`.
        """

    async def stop(self) -> None:
        """Called at the end of the server, if `start` was, when all devices are closed."""


class FilterPlugin(ABC):
    """Puts filters in front of devices. ``per_connection``: a filter for each connection, in front
    of what the others share; it is closed without closing that. So is one above such a filter, and
    it may be made only to see what clients would be told: then there is no ``opening.client``."""

    api_version: ClassVar[int] = 1
    per_connection: ClassVar[bool] = False

    async def start(self) -> None:
        """Called once before anything else is, when the server starts. Raises as `wrap` does;
        then it may be called again."""

    @abstractmethod
    async def wrap(self, device: Device, opening: Opening) -> Device:
        """A device in front of ``device``, mostly a `swiftnbd.api.filter.Filter`.

        If it raises, ``device`` is closed by whoever called. Closing what it returns closes
        ``device`` as well.
        """

    async def stop(self) -> None:
        """Called at the end of the server, if `start` was, when all devices are closed."""
