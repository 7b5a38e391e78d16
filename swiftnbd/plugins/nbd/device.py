# SPDX-License-Identifier: MIT
"""A device that is an export of another server.

What only looks is asked again on another connection when one is lost. A change is not: nobody
knows whether the server has carried it out, or still will, over what is written later. Nor is it
known what became of changes that were answered and not flushed, for the server may have been
started anew, and then even a read would bring back what was there before. So a connection that is
lost while there are such changes makes the device `is_spent`: all its requests fail from then on.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from errno import EIO
from typing import Final

from swiftnbd.api import EXTENTS_MAX, Buffer, Device, ExportError, Extent, holes
from swiftnbd.plugins.nbd.connection import Connection, Lost, Overdue
from swiftnbd.plugins.nbd.remote import Remote
from swiftnbd.protocol.client import Answer
from swiftnbd.protocol.constants import BlockState, Command, CommandFlag, TransmissionFlag
from swiftnbd.protocol.requests import CHANGING

LENGTH_MAX: Final = 1 << 30  # of one ZERO, TRIM, ...: the field has 32 bits
GIVE_UP_SECONDS: Final = 30.0  # a change that nobody wants any more is waited for so long


class NbdDevice(Device):
    """What is at the other end of ``remote``."""

    def __init__(self, remote: Remote, *, read_only: bool) -> None:
        info, flags = remote.info, remote.info.flags
        self._remote = remote
        self._retries = remote.count + 1  # of what only looks: all may be lost, one by one
        self.size = info.size
        self.block_size, self.block_size_min = info.block_size, info.block_size_min
        self.block_size_max = info.block_size_max
        self.read_only = read_only or TransmissionFlag.READ_ONLY in flags
        self.can_flush = TransmissionFlag.SEND_FLUSH in flags
        self.can_fua = TransmissionFlag.SEND_FUA in flags
        self.can_trim = TransmissionFlag.SEND_TRIM in flags
        self.can_prefetch = TransmissionFlag.SEND_CACHE in flags
        self.can_fast_zero = TransmissionFlag.SEND_FAST_ZERO in flags
        self.is_rotational = TransmissionFlag.ROTATIONAL in flags
        self._zeroes = TransmissionFlag.SEND_WRITE_ZEROES in flags
        self._spent = False
        self._sent = 0  # changes so far; those up to ``_flushed`` are safe
        self._flushed = 0
        self._at_work: set[int] = set()  # changes without an answer
        remote.on_lost = self._lost

    @property
    def is_spent(self) -> bool:
        return self._spent

    # Looking

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        answer = await self._look(Command.READ, offset, length)
        pieces: list[Buffer] = []
        for size, data in answer.pieces:
            pieces += holes(size) if data is None else [data]
        return pieces

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        if not self._remote.has_status:
            return await super().extents(offset, length, count=count)
        length = min(length, LENGTH_MAX)
        flags = CommandFlag.REQ_ONE if count == 1 else 0
        answer = await self._look(Command.BLOCK_STATUS, offset, length, flags)
        found: list[Extent] = []
        for size, state in answer.extents[: min(count, EXTENTS_MAX)]:
            here = min(size, length)  # "the last extent may reach beyond the request"
            found.append(Extent(here, bool(state & BlockState.HOLE), bool(state & BlockState.ZERO)))
            length -= here
            if not length:
                break
        return found

    async def prefetch(self, offset: int, length: int) -> None:
        await self._look(Command.CACHE, offset, min(length, LENGTH_MAX))

    async def _look(self, command: Command, offset: int, length: int, flags: int = 0) -> Answer:
        for _ in range(self._retries):
            connection = await self._ready()
            try:
                return await connection.send(command, offset, length, flags)
            except Overdue as error:
                raise self._failure(error) from None
            except Lost:
                continue
        connection = await self._ready()
        try:
            return await connection.send(command, offset, length, flags)
        except Lost as error:
            raise self._failure(error) from None

    async def _ready(self) -> Connection:
        """A connection that a request can be sent on, until the next await."""
        failure: Lost | None = None
        for _ in range(self._retries + 1):
            self._check()
            connection = await self._remote.connection()
            try:
                await connection.room()
            except Lost as error:
                failure = error
            else:
                self._check()
                return connection
        assert failure is not None
        raise self._failure(failure)

    def _failure(self, error: Exception) -> ExportError:
        return ExportError(EIO, f"{self._remote.server.shown}: {error}")

    # Changing

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self._change(Command.WRITE, offset, len(data), _flags(fua=fua), data)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        if not self._zeroes:
            await super().zero(offset, length, no_hole=no_hole, fua=fua, fast=fast)
            return
        flags = _flags(fua=fua, no_hole=no_hole, fast=fast)
        for begin in range(offset, offset + length, LENGTH_MAX):
            here = min(LENGTH_MAX, offset + length - begin)
            await self._change(Command.WRITE_ZEROES, begin, here, flags)
            flags &= ~CommandFlag.FAST_ZERO  # it is begun, so it has to be finished

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        for begin in range(offset, offset + length, LENGTH_MAX):
            here = min(LENGTH_MAX, offset + length - begin)
            await self._change(Command.TRIM, begin, here, _flags(fua=fua))

    async def _change(
        self, command: Command, offset: int, length: int, flags: int, data: Buffer = b""
    ) -> None:
        assert command in CHANGING
        connection = await self._ready()
        self._sent += 1
        number = self._sent
        self._at_work.add(number)
        try:
            await self._answered(connection, connection.send(command, offset, length, flags, data))
            if not self._is_dirty_but_for(number, flags):
                self._flushed = self._sent
        except Lost as error:
            raise self._failure(error) from None
        finally:
            self._at_work.discard(number)

    def _is_dirty_but_for(self, number: int, flags: int) -> bool:
        """Whether there is something to flush when this change has been answered."""
        if not self.can_flush:
            return bool(self._at_work - {number})  # what is answered is safe
        safe = flags & CommandFlag.FUA and self._flushed == number - 1
        return not (safe and self._sent == number)

    def _check(self) -> None:
        if self._spent:
            raise ExportError(
                EIO, f"{self._remote.server.shown}: the connection was lost before all was "
                "flushed; the disk can be used again when its clients have left",
            )  # fmt: skip

    async def _answered(self, connection: Connection, future: asyncio.Future[Answer]) -> None:
        """Wait for it even if it is given up: what is under way must not come later."""
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future], timeout=GIVE_UP_SECONDS)
            if not future.done():
                connection.abort(TimeoutError(f"no answer in {GIVE_UP_SECONDS:.0f} s"))
            with suppress(Exception):
                future.exception()  # seen: nobody is left to be told
            raise

    def _lost(self) -> None:
        if self._sent > self._flushed:
            self._spent = True

    # Making durable

    async def flush(self) -> None:
        connection = await self._ready()
        safe = min(self._at_work, default=self._sent + 1) - 1  # all that was answered by now
        try:
            await self._answered(connection, connection.send(Command.FLUSH, 0, 0))
        except Lost as error:
            raise self._failure(error) from None
        self._check()
        self._flushed = max(self._flushed, safe)

    async def close(self) -> None:
        try:
            if self.can_flush and self._sent > self._flushed:
                await self.flush()
        finally:
            self._flushed = self._sent  # told once
            await self._remote.close()


def _flags(*, fua: bool = False, no_hole: bool = False, fast: bool = False) -> int:
    return (
        (CommandFlag.FUA if fua else 0)
        | (CommandFlag.NO_HOLE if no_hole else 0)
        | (CommandFlag.FAST_ZERO if fast else 0)
    )
