# SPDX-License-Identifier: MIT
"""What the server asks of an export, whatever is behind it.

`swiftnbd.export.export.Export` is a container, with a lock and a cache;
`swiftnbd.export.device_export.DeviceExport` is what a plugin makes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from swiftnbd.api.client import Client
from swiftnbd.api.device import Device
from swiftnbd.api.profile import Profile
from swiftnbd.export.status import ExportFacts, ExportStatus
from swiftnbd.export.turns import Turns
from swiftnbd.metrics import Counters

if TYPE_CHECKING:
    from swiftnbd.export.disk import ObjectDevice


class BaseExport(ABC):
    """An export under a ``name``. Open it with `load` before anything else.

    ``device``: the block engine under it, if it has one and that is open. ``multi_conn`` False:
    one connection at a time. ``tls_only``: only clients whose connection is encrypted may know
    of it. ``left_as`` says what becomes of it if the server cannot let go of it. ``any_name``:
    it answers to all names that no other export has.
    """

    name: str
    read_only: bool
    multi_conn: bool
    tls_only: bool
    counters: Counters
    turns: Turns
    any_name: bool = False
    device: "ObjectDevice | None" = None
    left_as: ClassVar[str] = "stays locked"

    @abstractmethod
    async def load(self) -> None:
        """Find out whether it can be served. Raises `SwiftnbdError`."""

    @abstractmethod
    async def look_again(self) -> None:
        """`load` anew, unless it is in use."""

    @abstractmethod
    async def look(self, name: str) -> Profile:
        """What a client would get under the name it asks for. Raises `SwiftnbdError`."""

    @abstractmethod
    async def attach(self, client: Client, name: str = "") -> Device:
        """One more connection of ``client``, which asked for ``name``. Give it back with `detach`.

        Raises `Locked` if somebody else uses it, or another `SwiftnbdError`.
        """

    @abstractmethod
    async def detach(self, device: Device | None = None) -> None:
        """One connection less, which used ``device`` (None: one that has none of its own)."""

    @abstractmethod
    async def shut_down(self) -> None:
        """The server ends: let go of everything. Raises `SwiftnbdError` saying what is lost."""

    async def abandon(self) -> None:
        """The process ends: what is still held is not looked after any more."""

    @abstractmethod
    def change(self, new: Self) -> None:
        """Be as ``new``, of the same name and never used. Only while this one is idle."""

    @abstractmethod
    def retire(self) -> None:
        """Accept nobody any more: one may have found it before it was removed."""

    async def listed(self, client: Client) -> Sequence[tuple[str, str]]:
        """What a client is told of who asks for a list: names, and their descriptions or ''."""
        return ((self.name, ""),)

    @property
    @abstractmethod
    def connections(self) -> int:
        """How many connections use it now."""

    @property
    @abstractmethod
    def attached(self) -> bool:
        """Whether something is held that would be left behind if the process ended."""

    @property
    @abstractmethod
    def status(self) -> ExportStatus:
        """What there is to see of it now."""

    @property
    @abstractmethod
    def facts(self) -> ExportFacts:
        """What is known of it once it is loaded."""

    @property
    def shares_device(self) -> bool:
        """Whether all its connections use the same device, in the end."""
        return True

    @property
    def is_lost(self) -> bool:
        """Whether somebody else took it from us: nothing can be stored any more."""
        return False

    @property
    def check_lock(self) -> Callable[[], None]:
        """Called before anything is answered at once. For whoever is attached now."""
        return no_lock

    @property
    def cache_bytes_max(self) -> int | None:
        """What its cache may hold; None if it has none."""
        return None

    @property
    def patience_seconds(self) -> float:
        """How long letting go of it may stand still."""
        return 0.0


def no_lock() -> None:
    """There is none to check."""
