# SPDX-License-Identifier: MIT
"""Carrying out checked requests on a device: where NBD's commands meet its methods."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from errno import EIO
from functools import partial
from itertools import chain
from time import perf_counter
from typing import Any

from swiftnbd.api.device import EXTENTS_MAX, Device, Pending
from swiftnbd.errors import SwiftnbdError
from swiftnbd.log import SLOW
from swiftnbd.metrics import Counters
from swiftnbd.protocol.constants import BlockState, Command, CommandFlag, Error
from swiftnbd.protocol.contexts import ALLOCATION, CONTEXT_IDS
from swiftnbd.protocol.errors import wire_error
from swiftnbd.protocol.replies import Replies, status_reply
from swiftnbd.protocol.requests import CHANGING, Request
from swiftnbd.server.budget import Share
from swiftnbd.server.outbox import Outbox
from swiftnbd.store.base import Buffer

EXTENT_BYTES_MAX = 2**32 - 512  # what 32 bits can say, in whole sectors
EXTENT_BYTES_MIN = 512  # we answer no more extents than this gives: a small question, few bytes
EXTENT_COST_BYTES = 128  # in memory, of one extent, generously
EXTENTS_PER_TURN_MAX = 4096  # a few milliseconds, then others have a turn
LOOKS_FOR_ONE_MAX = 8  # extents to look at where one is wanted: neighbours may be of one kind

# Plain numbers: to look up a member of an enumeration takes as long as all the rest.
_READ, _WRITE, _BLOCK_STATUS = map(int, (Command.READ, Command.WRITE, Command.BLOCK_STATUS))
_NAMES = {int(each): each.name for each in Command}
_HOLE, _ZERO = int(BlockState.HOLE), int(BlockState.ZERO)
_FAILURES = {
    Error.EPERM: "the store refused it",
    Error.ENOSPC: "the store has no room left",
    Error.ENOTSUP: "it would not be faster than writing",
    Error.ESHUTDOWN: "the export has ended",
}

log = logging.getLogger(__name__)


class AtWork:
    """The requests of one connection that are at work on its device.

    Each is a task, or a `Pending` that the device has taken on. ``unbegun`` are those that the
    device has not been given yet. ``worked`` is called whenever one is done, its reply queued and
    its bytes of the ``share`` on their way back.
    """

    def __init__(
        self,
        device: Device,
        replies: Replies,
        outbox: Outbox,
        share: Share,
        counters: Counters,
        peer: str,
        worked: Callable[[], None],
    ) -> None:
        self.unbegun: deque[Request] = deque()
        self._tasks: dict[asyncio.Task[None], float] = {}  # and when each was made
        self._pending: set[_Pending] = set()
        self._none_pending: asyncio.Future[None] | None = None  # somebody waits for that
        self._device = device
        self._replies = replies
        self._outbox = outbox
        self._share = share
        self._counters = counters
        self._peer = peer
        self._worked = worked
        # requests come with the transport's context, which knows nothing of client and export
        self._context = copy_context()

    def __len__(self) -> int:
        return len(self._tasks) + len(self._pending)

    @property
    def oldest_begin(self) -> float | None:
        """When the one began that has been at work for longest, on `perf_counter`'s clock."""
        begins = chain(self._tasks.values(), (pending.begin for pending in self._pending))
        return min(begins, default=None)

    def would_overtake(self, offset: int, length: int) -> bool:
        """Whether a request on these bytes came before, and the device does not know it yet."""
        end = offset + length
        for earlier in self.unbegun:  # not any(): this takes half the time, and there may be many
            if earlier.offset < end and offset < earlier.offset + earlier.length:
                return True
        return False

    def begin(self, request: Request, payload: Buffer) -> None:
        """Carry out a checked request that has taken its bytes."""
        if request.flags or not self._is_taken_on(request, payload):
            self.unbegun.append(request)
            work = self._serve(request, payload)
            task = asyncio.get_running_loop().create_task(work, context=self._context)
            self._tasks[task] = perf_counter()
            task.add_done_callback(partial(self._done, request))

    async def cancel(self) -> None:
        """Return when nothing is at work any more, and nothing of it will ever happen."""
        for pending in self._pending:
            pending.is_wanted = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._pending:
            self._none_pending = asyncio.get_running_loop().create_future()
            await self._none_pending

    # As tasks

    def _done(self, request: Request, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if task.cancelled():  # perhaps before its first step
            self._share.give(bytes_held(request))
        self._worked()

    async def _serve(self, request: Request, payload: Buffer) -> None:
        begun = self.unbegun.popleft()
        assert begun is request, "tasks begin in the order in which they were made"
        self._log(logging.DEBUG, request, "%s")
        begin = perf_counter()
        try:
            reply = await perform(self._device, request, payload, self._replies, self._counters)
        except Exception as error:
            reply = self._failure(request, error)
        self._answer(request, reply, begin)

    # Without tasks

    def _is_taken_on(self, request: Request, payload: Buffer) -> bool:
        """Whether the device does it without, and has it now."""
        offset, length = request.offset, request.length
        if self.unbegun and self.would_overtake(offset, length):
            return False
        pending = _Pending(request, self)
        if request.command == _READ:
            is_taken = self._device.read_soon(offset, length, pending)
        elif request.command == _WRITE:
            is_taken = self._device.write_soon(offset, payload, pending)
        else:
            return False
        if is_taken:
            self._pending.add(pending)
            self._log(logging.DEBUG, request, "%s")
        return is_taken

    def done_pending(
        self, pending: "_Pending", pieces: Sequence[Buffer] | None, error: BaseException | None
    ) -> None:
        """The device has done one, or will not do it any more."""
        self._pending.remove(pending)
        request = pending.request
        if pending.is_wanted:
            reply = (
                self._outcome(request, pieces) if error is None else self._failure(request, error)
            )
            self._answer(request, reply, pending.begin)
        else:
            self._share.give(request.length)
        self._worked()
        if self._none_pending is not None and not self._pending and not self._none_pending.done():
            self._none_pending.set_result(None)

    def _outcome(self, request: Request, pieces: Sequence[Buffer] | None) -> list[Buffer]:
        """What a read or a write is answered that went well."""
        if request.command == _WRITE:
            self._counters.client_in += request.length
            return self._replies.done(request)
        try:
            assert pieces is not None, "the device gave no bytes"
            reply = self._replies.content(request, pieces)
        except Exception as error:
            return self._failure(request, error)
        self._counters.client_out += request.length
        return reply

    # Answers

    def _answer(self, request: Request, reply: list[Buffer], begin: float) -> None:
        self._outbox.add(reply, bytes_held(request))
        name, seconds = _NAMES[request.command], perf_counter() - begin
        self._counters.requests[name] += 1
        self._counters.took(name, seconds)
        if seconds >= self._counters.slow_seconds:
            self._log(logging.INFO, request, "slow: %s took %.2f s", seconds, extra=SLOW)

    def _failure(self, request: Request, error: BaseException) -> list[Buffer]:
        """What a request is answered that failed; the log has more than the client is told."""
        self._counters.errors[_NAMES[request.command]] += 1
        if isinstance(error, SwiftnbdError | OSError):
            number = wire_error(error.errno or EIO, request)
            level = logging.DEBUG if number is Error.ENOTSUP else logging.ERROR
            self._log(level, request, "%s failed: %s", error)
        else:
            number = Error.EIO
            self._log(logging.ERROR, request, "%s failed", exc_info=error)
        return self._replies.failure(request, number, failure_text(request, number))

    def _log(
        self, level: int, request: Request, text: str, *arguments: object, **options: Any
    ) -> None:
        """Say something of a request, as of this client and export, from wherever we are called."""
        if log.isEnabledFor(level):
            say = partial(log.log, level, f"%s: {text}", self._peer, Described(request))
            context = self._context.copy()  # it may be the current one, which cannot be entered
            context.run(say, *arguments, **options)


class _Pending(Pending):
    """A read or write that the device has taken on since ``begin``."""

    __slots__ = ("_owner", "begin", "request")

    def __init__(self, request: Request, owner: AtWork) -> None:
        self.is_wanted = True
        self.request = request
        self.begin = perf_counter()
        self._owner = owner

    def done(
        self, pieces: Sequence[Buffer] | None = None, error: BaseException | None = None
    ) -> None:
        self._owner.done_pending(self, pieces, error)


async def perform(
    device: Device, request: Request, payload: Buffer, replies: Replies, counters: Counters
) -> list[Buffer]:
    """Carry out ``request``; returns its reply.

    Raises what the device raises: `swiftnbd.errors.SwiftnbdError` with an errno, or OSError.
    """
    offset, length = request.offset, request.length
    fua: dict[str, bool] = {}
    is_flushed = False
    if request.flags & CommandFlag.FUA and request.command in CHANGING:
        fua = {"fua": True} if device.can_fua else {}
        is_flushed = not fua
    match request.command:
        case Command.READ:
            pieces = await device.read(offset, length)
            counters.client_out += length
            return replies.content(request, pieces)
        case Command.WRITE:
            await device.write(offset, payload, **fua)
            counters.client_in += length
        case Command.FLUSH:
            await device.flush()
        case Command.TRIM:
            await device.trim(offset, length, **fua)
        case Command.CACHE:
            await device.prefetch(offset, length)
        case Command.WRITE_ZEROES:
            no_hole = bool(request.flags & CommandFlag.NO_HOLE)
            fast = bool(request.flags & CommandFlag.FAST_ZERO)
            await device.zero(offset, length, no_hole=no_hole, fast=fast, **fua)
        case Command.BLOCK_STATUS:
            extents = await _allocation(device, request)
            return status_reply(request, CONTEXT_IDS[ALLOCATION], extents)
        case _:
            raise AssertionError(f"command {request.command} was checked but is not done")
    if is_flushed:
        await device.flush()
    return replies.done(request)


def bytes_held(request: Request) -> int:
    """How much memory a checked request takes while it is at work."""
    command = request.command
    if command in (_READ, _WRITE):
        return request.length
    if command == _BLOCK_STATUS:
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
        count = min(left, EXTENTS_PER_TURN_MAX)
        found = await device.extents(position, end - position, count=count)
        assert found, "the device told of no extent at all"
        left -= len(found)
        for length, hole, zero in found:
            position += length
            state = (_HOLE if hole else 0) | (_ZERO if zero else 0)
            if extents and extents[-1][1] == state:
                length += extents.pop()[0]
            extents.append((length, state))
        await asyncio.sleep(0)
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
