# SPDX-License-Identifier: MIT
"""Filters that do the same around every request, or are only interested in some of them."""

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from swiftnbd.api.device import Extent
from swiftnbd.api.filter import Filter
from swiftnbd.buffers import Buffer

T = TypeVar("T")


class Passing(Filter):
    """Has all methods, and passes everything on: unlike a `swiftnbd.api.filter.Filter`'s, they do
    so still when others of them are overridden. For filters that change no byte."""

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return self.device.read_now(offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        return self.device.write_now(offset, data)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        await super().zero(offset, length, no_hole=no_hole, fua=fua, fast=fast)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await super().trim(offset, length, fua=fua)

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        return await self.device.extents(offset, length, count=count)

    async def prefetch(self, offset: int, length: int) -> None:
        await self.device.prefetch(offset, length)


class Call(NamedTuple):
    """What a device is asked: the name of its method, the range, and the flags that are set."""

    name: str
    offset: int = 0
    length: int = 0
    flags: tuple[str, ...] = ()


class Around(Passing):
    """Every request goes through `around`, so nothing is done at once."""

    @abstractmethod
    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        """What ``work()`` returns, which has the device do it; it may be called again.

        Raises for what is not to be done, or could not be.
        """

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        return False

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        work = partial(self.device.read, offset, length)
        return await self.around(Call("read", offset, length), work)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        work = partial(super().write, offset, data, fua=fua)
        await self.around(Call("write", offset, len(data), _set(fua=fua)), work)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        flags = _set(no_hole=no_hole, fua=fua, fast=fast)
        work = partial(super().zero, offset, length, no_hole=no_hole, fua=fua, fast=fast)
        await self.around(Call("zero", offset, length, flags), work)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        work = partial(super().trim, offset, length, fua=fua)
        await self.around(Call("trim", offset, length, _set(fua=fua)), work)

    async def flush(self) -> None:
        await self.around(Call("flush"), self.device.flush)

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        work = partial(self.device.extents, offset, length, count=count)
        return await self.around(Call("extents", offset, length), work)

    async def prefetch(self, offset: int, length: int) -> None:
        work = partial(self.device.prefetch, offset, length)
        await self.around(Call("prefetch", offset, length), work)


def _set(**flags: bool) -> tuple[str, ...]:
    return tuple(name for name, value in flags.items() if value)
