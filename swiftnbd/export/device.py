# SPDX-License-Identifier: MIT
"""What a block device can be asked. Implementations make devices; filters will wrap them.

Offsets and lengths are bytes, always inside the device: the caller has checked them
(`swiftnbd.protocol.requests.check`), so implementations may assert. Every method raises
`swiftnbd.errors.SwiftnbdError` with an ``errno`` when it fails, and nothing else.

Order: calls that overlap in time may take effect in any order, but each block is read and
changed atomically. A call that is cancelled may have happened in part; what of it had not
happened then never will.

`Device.read_now` is the synchronous fast path of the connection's receive loop: no await, no
task, no exception; it answers what is at hand or declines, and the caller then awaits
`Device.read`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from swiftnbd.store.base import Buffer


class Device(ABC):
    """A disk of ``size`` bytes.

    ``block_size`` is the size of request that suits it best, a power of two in bytes.
    """

    size: int
    block_size: int

    @abstractmethod
    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        """The bytes in pieces, if all are in memory. The pieces never change afterwards."""

    @abstractmethod
    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """The bytes in pieces. The pieces never change afterwards."""

    @abstractmethod
    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Accept ``data``, which must not change any more. With ``fua``: durable on return."""

    @abstractmethod
    async def zero(
        self, offset: int, length: int, *, no_hole: bool = False, fua: bool = False
    ) -> None:
        """Make the range read as zeros; with ``no_hole`` it keeps its space."""

    @abstractmethod
    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """A hint that the range is no longer needed; what it reads as is then undefined."""

    @abstractmethod
    async def flush(self) -> None:
        """Everything accepted before this call is durable on return."""

    @abstractmethod
    async def prefetch(self, offset: int, length: int) -> None:
        """A hint that the range will be read soon."""

    @abstractmethod
    async def close(self) -> None:
        """Write back what is left, then let go of everything. Raises if bytes are lost."""
