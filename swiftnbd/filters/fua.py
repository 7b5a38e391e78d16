# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter fua PLUGIN fuamode=force``"""

import logging
from dataclasses import dataclass
from enum import StrEnum

from swiftnbd.api import (
    Buffer,
    Device,
    ExportUnusable,
    Filter,
    FilterPlugin,
    Opening,
    choice,
    parameter,
)
from swiftnbd.api.around import Passing

log = logging.getLogger(__name__)


class Mode(StrEnum):
    """nbdkit's words."""

    NONE = "none"
    EMULATE = "emulate"
    NATIVE = "native"
    FORCE = "force"
    PASS = "pass"  # noqa: S105
    DISCARD = "discard"


@dataclass(frozen=True)
class Fua(FilterPlugin):
    """Changes how FUA, that a write is durable when it is answered, comes about.

    none: clients are told that there is none. emulate: as a flush after the write. native: as the
    device has it. force: for every write. pass: no change. discard: neither FUA nor flushes do
    anything, so a crash loses what was written.
    """

    fuamode: Mode = parameter(choice(Mode), "How.", default=Mode.NONE)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        mode = self.fuamode
        is_able = device.can_flush if mode is Mode.EMULATE else device.can_flush or device.can_fua
        if mode in (Mode.EMULATE, Mode.NATIVE, Mode.FORCE) and not (is_able or device.read_only):
            raise ExportUnusable(f"fuamode={mode} needs a device that can be flushed")
        match mode:
            case Mode.NONE:
                return None_(device)
            case Mode.EMULATE:
                return Emulate(device)
            case Mode.NATIVE:
                return Native(device)
            case Mode.FORCE:
                return Force(device)
            case Mode.PASS:
                return device
        log.warning(
            "%s: fuamode=discard: flushes are answered and not done, and a crash loses what was "
            "written", opening.name,
        )  # fmt: skip
        return Discard(device)


class None_(Filter):  # noqa: N801
    """Nobody may ask for FUA."""

    can_fua = None


class Emulate(Filter):
    """Nobody gives FUA to the device; whoever wants it flushes."""

    can_fua = False


class Native(Passing):
    """Takes FUA whether the device does or not."""

    can_fua = True

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await super().write(offset, data, fua=self._given(fua))
        await self._end(fua)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        given = self._given(fua)
        await super().zero(offset, length, no_hole=no_hole, fua=given, fast=fast)
        await self._end(fua)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await super().trim(offset, length, fua=self._given(fua))
        await self._end(fua)

    def _given(self, fua: bool) -> bool:
        return fua and bool(self.device.can_fua)

    async def _end(self, fua: bool) -> None:
        if fua and not self.device.can_fua:
            await self.device.flush()


class Force(Native):
    """Every change is durable when it is answered. A flush, with little to do, is passed on."""

    def write_now(self, offset: int, data: Buffer) -> bool:
        return False

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await super().write(offset, data, fua=True)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        await super().zero(offset, length, no_hole=no_hole, fua=True, fast=fast)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await super().trim(offset, length, fua=True)


class Discard(Native):
    """Says that it is durable, and does nothing for it."""

    can_flush = True

    async def flush(self) -> None:
        pass

    def _given(self, fua: bool) -> bool:
        return False

    async def _end(self, fua: bool) -> None:
        pass
