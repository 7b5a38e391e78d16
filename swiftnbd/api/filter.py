# SPDX-License-Identifier: MIT
"""A device in front of a device."""

from collections.abc import Sequence
from dataclasses import fields
from inspect import Parameter, signature
from typing import Any, ClassVar, Final

from swiftnbd.api.device import Device, Extent, Pending
from swiftnbd.api.profile import Profile
from swiftnbd.buffers import Buffer

# What must not go past a filter that has its own way of reading, or of writing: those methods that
# it does not have as well are a `Device`'s, which are always right, if slower.
_WITH_READ: Final = ("read_now", "read_soon", "extents", "prefetch")
_WITH_WRITE: Final = ("write_now", "write_soon", "zero", "trim")
_CHANGES: Final = ("write", "zero", "trim")  # what FUA may be asked of
# Where a filter has nothing to do it is not called either: these are the inner device's own.
_BOUND: Final = ("read_now", "write_now", "read_soon", "write_soon", "read", "write")
_ATTRIBUTES: Final = tuple(each.name for each in fields(Profile))


class Filter(Device):
    """Passes everything on to ``device``. A filter overrides what it changes.

    What the device can do is taken over when the filter is made, but for what the filter's class
    says itself; what depends on the device is set after ``super().__init__(device)``.

    A filter that overrides `read` and not `read_now`, `read_soon`, `extents` or `prefetch` has
    those of a plain `Device` (decline; decline; all is data; nothing), for what the inner device
    would say there is not what it reads. One that overrides `write` and not `write_now`,
    `write_soon`, `zero` or `trim` likewise (decline; decline; writes zeros; nothing). Where one of
    its own does not take ``fua`` (or `zero` not ``fast``), it cannot do that, whatever the inner
    device can. So a filter can be slow by leaving something out, never wrong.
    """

    _own: ClassVar[frozenset[str]] = frozenset()  # attributes that classes of filters set
    _takes_fua: ClassVar[bool] = True
    _takes_fast: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        # not a Device's: which methods a filter has says nothing of what the device can do
        super(Device, cls).__init_subclass__(**options)
        cls._own = cls._own | (vars(cls).keys() & set(_ATTRIBUTES))
        for method, others in (("read", _WITH_READ), ("write", _WITH_WRITE)):
            if getattr(cls, method) is not getattr(Filter, method):
                for name in others:
                    if getattr(cls, name) is getattr(Filter, name):
                        setattr(cls, name, getattr(Device, name))
        cls._takes_fua = all(_takes(getattr(cls, name), "fua") for name in _CHANGES)
        cls._takes_fast = _takes(cls.zero, "fast")

    def __init__(self, device: Device) -> None:
        self.device = device
        kind = type(self)
        for name in _ATTRIBUTES:
            if name not in kind._own:
                setattr(self, name, getattr(device, name))
        if self.can_fua and not kind._takes_fua and "can_fua" not in kind._own:
            self.can_fua = False
        if kind.zero is Device.zero or not kind._takes_fast:
            self.can_fast_zero = False
        if kind.trim is Device.trim:
            self.can_trim = False
        if kind.prefetch is Device.prefetch:
            self.can_prefetch = False
        for name in _BOUND:
            if getattr(kind, name) is getattr(Filter, name):
                setattr(self, name, getattr(device, name))

    @property
    def is_spent(self) -> bool:
        return self.device.is_spent

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return self.device.read_now(offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        return self.device.write_now(offset, data)

    def read_soon(self, offset: int, length: int, pending: Pending) -> bool:
        return self.device.read_soon(offset, length, pending)

    def write_soon(self, offset: int, data: Buffer, pending: Pending) -> bool:
        return self.device.write_soon(offset, data, pending)

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        return await self.device.read(offset, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self.device.write(offset, data, **if_set(fua=fua))

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        options = if_set(no_hole=no_hole, fua=fua, fast=fast)
        await self.device.zero(offset, length, **options)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self.device.trim(offset, length, **if_set(fua=fua))

    async def flush(self) -> None:
        await self.device.flush()

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        return await self.device.extents(offset, length, count=count)

    async def prefetch(self, offset: int, length: int) -> None:
        await self.device.prefetch(offset, length)

    async def close(self) -> None:
        """Let go of what is the filter's own, then close ``device``."""
        await self.device.close()


def _takes(method: Any, flag: str) -> bool:
    """Whether a method may be given a flag, as far as can be seen."""
    try:
        parameters = signature(method).parameters
    except (TypeError, ValueError):
        return True
    kinds = {each.kind for each in parameters.values()}
    return flag in parameters or Parameter.VAR_KEYWORD in kinds


def if_set(**flags: bool) -> dict[str, bool]:
    """Those that are set: a device that does not know a flag is never given it."""
    return {name: True for name, value in flags.items() if value}
