# SPDX-License-Identifier: MIT
"""``swiftnbd-server full 1T``"""

from dataclasses import dataclass
from errno import ENOSPC
from typing import NoReturn

from swiftnbd.api import SIZE, Buffer, Device, ExportError, Opening, Plugin, parameter
from swiftnbd.plugins.null import NullDevice


@dataclass(frozen=True)
class Full(Plugin):
    """Zeros, and no space for anything else, to see what becomes of those who write."""

    size: int = parameter(SIZE, "How large it is.", main=True)

    async def open(self, opening: Opening) -> Device:
        return FullDevice(self.size)


class FullDevice(NullDevice):
    """Takes no change, not even one to zeros, as a thin disk on a full one."""

    def write_now(self, offset: int, data: Buffer) -> bool:
        return False

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        _refuse()

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        _refuse()

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        _refuse()


def _refuse() -> NoReturn:
    raise ExportError(ENOSPC, "the disk is full, as it was asked to be")
