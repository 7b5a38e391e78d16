# SPDX-License-Identifier: MIT
"""What a block device can be asked. Plugins make devices, filters wrap them.

Offsets and lengths are bytes, always inside the device and never empty: the caller has checked
them, so implementations may assert. Methods raise `swiftnbd.errors.SwiftnbdError` with an
``errno`` (`swiftnbd.errors.ExportError` takes one) or OSError when they fail; the client is told
the nearest of NBD's eight errors. Anything else is a bug: EIO, and a line of the log.

Order: all calls come from the event loop's thread. Those that overlap in time may take effect in
any order, but each byte is read and changed once by each. The calls of one connection on any one
byte begin in the order in which they came. A call that is cancelled may have happened in part;
what of it had not happened then never will.

`Device.read_now` and `Device.write_now` are the synchronous fast path of the connection's
receive loop: no await, no task, no exception; they do what is at hand or decline, and the
caller then awaits `Device.read` or `Device.write`.

A device whose work is done by threads, or by another process, may have `Device.read_soon` and
`Device.write_soon`, too: they take requests on without a coroutine and a task for each, which
cost more than many a small request does.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from errno import ENOTSUP, EPERM
from typing import Any, Final, NamedTuple

from swiftnbd.buffers import Buffer, hole
from swiftnbd.errors import ExportError

EXTENTS_MAX: Final = 64 * 1024  # of one answer: bounds what one small request makes us send
BLOCK_SIZE_DEFAULT: Final = 4096  # a page, which is what kernels and file systems work with
PAYLOAD_BYTES_MAX: Final = 32 * 1024 * 1024  # of one read or write, as NBD has it
_ZEROS_BYTES: Final = 1024 * 1024  # written at once where zeros have to be written

# A class that has the method can do what the capability says, unless it says otherwise.
_IMPLIED: Final = {
    "write": ("read_only", False),
    "flush": ("can_flush", True),
    "trim": ("can_trim", True),
    "prefetch": ("can_prefetch", True),
}


class Extent(NamedTuple):
    """``length`` bytes of one kind.

    ``hole``: nothing is stored there, writing may take more space. ``zero``: it reads as zeros.
    Neither may be said without proof; both False is always true enough.
    """

    length: int
    hole: bool
    zero: bool


class Pending(ABC):
    """A request that a device has taken on, to be answered with `done`.

    ``is_wanted`` may become False at any time, as a call may be cancelled: what has not happened by
    then must not happen any more. It may be read in any thread.
    """

    __slots__ = ("is_wanted",)

    def __init__(self) -> None:
        self.is_wanted = True

    @abstractmethod
    def done(
        self, pieces: Sequence[Buffer] | None = None, error: BaseException | None = None
    ) -> None:
        """Nothing of it will happen any more: it was done, for a read with these ``pieces``, as
        `Device.read` returns them; or not, because of the ``error``; or it was not wanted.

        To be called once, in any case, in the event loop's thread.
        """


class Device(ABC):
    """A disk. The least there can be has a ``size`` and a `read`, and a `write` unless it is
    read-only; whatever else it has makes it better.

    What it can do is fixed once it is made, for clients are told so before they ask:

    * ``size``: bytes.
    * ``block_size``: of the requests that suit it best; ``block_size_min``: what all offsets and
      lengths must be multiples of (never asked of `read_now` and `write_now`: they decline what is
      not); both powers of two, in bytes. ``block_size_max``: of one read or write.
      ``block_sizes_told``: the least, the best and the largest that clients are told instead.
    * ``read_only``: nothing that changes it is ever called. True for a class without `write`.
    * ``can_flush``: what was written may be lost in a crash until `flush`. True for a class with
      `flush`. Where it is False a write must be safe when it returns.
    * ``can_fua``: `write`, `zero` and `trim` take ``fua``. Where it is False they are not given
      it; a `flush` follows instead, if there is one. None: nor may clients ask for that.
    * ``can_trim``, ``can_prefetch``: for a class that has the method.
    * ``can_zero``: clients may ask for zeros rather than send them. ``can_fast_zero``: and that
      they be told (by ENOTSUP) if it would be no faster.
    * ``multi_conn``: a client with several connections sees on each what it did on the others,
      and a flush on one is a flush for all. None: if all of them use the same device.
    * ``is_rotational``: seeks are slow. ``description`` is for people, one short line.
    """

    size: int
    block_size: int = BLOCK_SIZE_DEFAULT
    block_size_min: int = 1
    block_size_max: int = PAYLOAD_BYTES_MAX
    block_sizes_told: tuple[int, int, int] | None = None
    read_only: bool = True
    can_flush: bool = False
    can_fua: bool | None = False
    can_trim: bool = False
    can_prefetch: bool = False
    can_zero: bool = True
    can_fast_zero: bool = False
    multi_conn: bool | None = None
    is_rotational: bool = False
    description: str = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for method, (capability, value) in _IMPLIED.items():
            if method in vars(cls) and capability not in vars(cls):
                setattr(cls, capability, value)

    @property
    def is_spent(self) -> bool:
        """Whether it has failed for good, and only another one can help: it is closed when its
        last client has left, and `swiftnbd.api.Plugin.open` is called for the next."""
        return False

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        """The bytes in pieces, if all are in memory. The pieces never change afterwards.

        None: `read` is needed.
        """
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Accept ``data`` if that takes no waiting. It is the caller's again on return.

        False: nothing happened, `write` is needed.
        """
        return False

    def read_soon(self, offset: int, length: int, pending: Pending) -> bool:
        """Begin what `read` does, and call `Pending.done` with the outcome, but not from in here.

        False: nothing happened, `read` is needed.
        """
        return False

    def write_soon(self, offset: int, data: Buffer, pending: Pending) -> bool:
        """Begin what `write` does without ``fua``, as `read_soon`."""
        return False

    @abstractmethod
    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """The bytes in pieces, as many as there were asked for. They never change afterwards.

        What is known to be zeros is best given as `swiftnbd.buffers.holes`.
        """

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Accept ``data``, which will not change any more. With ``fua``: durable on return."""
        raise ExportError(EPERM, "the device is read-only")

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
        nothing has changed. The default writes zeros.
        """
        if fast:
            raise ExportError(ENOTSUP, "zeros are written like everything else")
        options = {"fua": True} if fua else {}
        end = offset + length
        while offset < end:
            here = min(end - offset, _ZEROS_BYTES, self.block_size_max)
            await self.write(offset, hole(here), **options)
            offset += here

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """A hint that the range is no longer needed; what it reads as is then undefined.

        The default does nothing.
        """

    async def flush(self) -> None:
        """Everything accepted before this call, on any connection, is durable on return."""

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        """What lies in the range, from its start: at least one extent, at most ``count``.

        No extent is empty, together they reach no further than the range, neighbours may be
        of one kind. They may end before the range does; the caller asks again from there.
        """
        return [Extent(length, hole=False, zero=False)]

    async def prefetch(self, offset: int, length: int) -> None:
        """A hint that the range will be read soon."""

    async def close(self) -> None:
        """Write back what is left, then let go of everything. Raises if bytes are lost.

        Nothing else is called at the same time, and nothing after it, unless it raised: then it
        may be tried again.
        """
