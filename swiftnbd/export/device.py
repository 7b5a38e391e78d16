# SPDX-License-Identifier: MIT
"""What a block device can be asked. Implementations make devices; filters will wrap them.

Offsets and lengths are bytes, always inside the device: the caller has checked them
(`swiftnbd.protocol.requests.check`), so implementations may assert. Every method raises
`swiftnbd.errors.SwiftnbdError` with an ``errno`` when it fails, and nothing else.

Order: calls that overlap in time may take effect in any order, but each block is read and
changed atomically. A call that is cancelled may have happened in part; what of it had not
happened then never will.

`Device.read_now` and `Device.write_now` are the synchronous fast path of the connection's
receive loop: no await, no task, no exception; they do what is at hand or decline, and the
caller then awaits `Device.read` or `Device.write`.

Bytes that are zeros because nothing is stored there are read as a `hole`: pieces of one shared
page of zeros, which cost nothing to make, to send as they are, or to recognise and leave out.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, NamedTuple

from swiftnbd.store.base import OBJECT_BYTES_MAX, Buffer

HOLE_BYTES_MAX: Final = OBJECT_BYTES_MAX  # of one piece
_HOLE_PIECE_BYTES: Final = 256 * 1024
_NOTHING: Final = bytes(HOLE_BYTES_MAX)  # never written to, so it takes address space only
_HOLE: Final = memoryview(_NOTHING)

EXTENTS_MAX: Final = 64 * 1024  # of one answer: bounds what one small request makes us send


def hole(length: int) -> memoryview:
    """``length`` zeros, recognised by `is_hole`; at most `HOLE_BYTES_MAX`."""
    assert length <= HOLE_BYTES_MAX
    return _HOLE[:length]


def holes(length: int) -> list[memoryview]:
    """``length`` zeros in pieces of a size that a transport's progress can be seen in."""
    pieces = [_HOLE[:_HOLE_PIECE_BYTES]] * (length // _HOLE_PIECE_BYTES)
    if rest := length % _HOLE_PIECE_BYTES:
        pieces.append(_HOLE[:rest])
    return pieces


def is_hole(piece: Buffer) -> bool:
    """Whether a piece that a device returned came from `hole`, whole or cut."""
    return type(piece) is memoryview and piece.obj is _NOTHING


class Extent(NamedTuple):
    """``length`` bytes of one kind.

    ``hole``: nothing is stored there, writing may take more space. ``zero``: it reads as zeros.
    Neither may be said without proof; both False is always true enough.
    """

    length: int
    hole: bool
    zero: bool


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
    def write_now(self, offset: int, data: Buffer) -> bool:
        """Accept ``data`` if that takes no waiting. It is the caller's again on return.

        False: nothing happened, `write` is needed.
        """

    @abstractmethod
    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """The bytes in pieces. The pieces never change afterwards."""

    @abstractmethod
    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Accept ``data``, which must not change any more. With ``fua``: durable on return."""

    @abstractmethod
    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        """Make the range read as zeros; with ``no_hole`` it keeps its space.

        With ``fast``: only if that is faster than writing zeros; else ENOTSUP, at once, and
        nothing has changed.
        """

    @abstractmethod
    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """A hint that the range is no longer needed; what it reads as is then undefined."""

    @abstractmethod
    async def flush(self) -> None:
        """Everything accepted before this call is durable on return."""

    @abstractmethod
    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        """What lies in the range, from its start: at least one extent, at most ``count``.

        No extent is empty, together they reach no further than the range, neighbours may be
        of one kind. They may end before the range does; the caller asks again from there.
        """

    @abstractmethod
    async def prefetch(self, offset: int, length: int) -> None:
        """A hint that the range will be read soon."""

    @abstractmethod
    async def close(self) -> None:
        """Write back what is left, then let go of everything. Raises if bytes are lost."""
