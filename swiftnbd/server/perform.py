# SPDX-License-Identifier: MIT
"""Carrying out one checked request on a device: where NBD's commands meet its methods."""

from collections.abc import Sequence

from swiftnbd.export.device import Device
from swiftnbd.metrics import Counters
from swiftnbd.protocol.constants import Command, CommandFlag
from swiftnbd.protocol.requests import Request
from swiftnbd.store.base import Buffer


async def perform(
    device: Device, request: Request, payload: Buffer, counters: Counters
) -> Sequence[Buffer]:
    """Carry out ``request``; returns the bytes of a READ in pieces, nothing for others.

    Raises what the device raises, `swiftnbd.errors.SwiftnbdError` with an errno.
    """
    offset, length = request.offset, request.length
    fua = bool(request.flags & CommandFlag.FUA)
    match request.command:
        case Command.READ:
            pieces = await device.read(offset, length)
            counters.client_out += length
            return pieces
        case Command.WRITE:
            await device.write(offset, payload, fua=fua)
            counters.client_in += length
        case Command.FLUSH:
            await device.flush()
        case Command.TRIM:
            await device.trim(offset, length, fua=fua)
        case Command.CACHE:
            await device.prefetch(offset, length)
        case Command.WRITE_ZEROES:
            no_hole = bool(request.flags & CommandFlag.NO_HOLE)
            await device.zero(offset, length, no_hole=no_hole, fua=fua)
        case _:
            raise AssertionError(f"command {request.command} was checked but is not done")
    return ()


class Described:
    """A request as log lines show it, put into words only if the line is written."""

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request = request

    def __str__(self) -> str:
        request = self._request
        try:
            name = Command(request.command).name
        except ValueError:
            name = f"command {request.command}"
        return f"{name} {request.offset}+{request.length} flags {request.flags:#x}"
