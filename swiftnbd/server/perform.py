# SPDX-License-Identifier: MIT
"""Carrying out one checked request on a device: where NBD's commands meet its methods."""

from swiftnbd.export.device import EXTENTS_MAX, Device
from swiftnbd.metrics import Counters
from swiftnbd.protocol.constants import BlockState, Command, CommandFlag, Error
from swiftnbd.protocol.contexts import ALLOCATION, CONTEXT_IDS
from swiftnbd.protocol.replies import Replies, status_reply
from swiftnbd.protocol.requests import Request
from swiftnbd.store.base import Buffer

EXTENT_BYTES_MAX = 2**32 - 512  # what 32 bits can say, in whole sectors
EXTENT_BYTES_MIN = 512  # we answer no more extents than this gives: a small question, few bytes
EXTENT_COST_BYTES = 128  # in memory, of one extent, generously
LOOKS_FOR_ONE_MAX = 8  # extents to look at where one is wanted: neighbours may be of one kind

_FAILURES = {
    Error.EPERM: "the store refused it",
    Error.ENOSPC: "the store has no room left",
    Error.ENOTSUP: "it would not be faster than writing",
    Error.ESHUTDOWN: "the export has ended",
}


async def perform(
    device: Device, request: Request, payload: Buffer, replies: Replies, counters: Counters
) -> list[Buffer]:
    """Carry out ``request``; returns its reply.

    Raises what the device raises, `swiftnbd.errors.SwiftnbdError` with an errno.
    """
    offset, length = request.offset, request.length
    fua = bool(request.flags & CommandFlag.FUA)
    match request.command:
        case Command.READ:
            pieces = await device.read(offset, length)
            counters.client_out += length
            return replies.content(request, pieces)
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
            fast = bool(request.flags & CommandFlag.FAST_ZERO)
            await device.zero(offset, length, no_hole=no_hole, fua=fua, fast=fast)
        case Command.BLOCK_STATUS:
            extents = await _allocation(device, request)
            return status_reply(request, CONTEXT_IDS[ALLOCATION], extents)
        case _:
            raise AssertionError(f"command {request.command} was checked but is not done")
    return replies.done(request)


def bytes_held(request: Request) -> int:
    """How much memory a checked request takes while it is at work."""
    if request.command in (Command.READ, Command.WRITE):
        return request.length
    if request.command == Command.BLOCK_STATUS:
        return EXTENT_COST_BYTES * _extents_max(request)
    return 0


def failure_text(request: Request, error: Error) -> str:
    """What a client is told. More of what is wrong with our store is nothing to tell a peer."""
    reason = _FAILURES.get(error, "the store failed; the server's log says why")
    return f"{Described(request)}: {reason}"


async def _allocation(device: Device, request: Request) -> list[tuple[int, int]]:
    """The answer for "base:allocation": lengths and states, no two neighbours of one state.

    It may end before the range does, at least one extent after its start.
    """
    extents: list[tuple[int, int]] = []
    one = bool(request.flags & CommandFlag.REQ_ONE)
    left = _extents_max(request)
    position = request.offset
    end = position + min(request.length, EXTENT_BYTES_MAX)
    while position < end and left > 0 and not (one and len(extents) > 1):
        found = await device.extents(position, end - position, count=left)
        left -= len(found)
        for length, hole, zero in found:
            position += length
            state = (BlockState.HOLE.value if hole else 0) | (BlockState.ZERO.value if zero else 0)
            if extents and extents[-1][1] == state:
                length += extents.pop()[0]
            extents.append((length, state))
    assert position <= end, "the device told of more than it was asked for"
    return extents[:1] if one else extents


def _extents_max(request: Request) -> int:
    if request.flags & CommandFlag.REQ_ONE:
        return LOOKS_FOR_ONE_MAX
    return min(EXTENTS_MAX, request.length // EXTENT_BYTES_MIN + 2)


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
