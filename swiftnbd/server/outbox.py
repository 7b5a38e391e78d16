# SPDX-License-Identifier: MIT
"""Replies of one connection, from when they are made until they have left."""

import asyncio
from collections.abc import Iterable

from swiftnbd.server.budget import Share
from swiftnbd.store.base import Buffer

SMALL_BYTES = 512  # a piece in a transport takes about as much beside its bytes


class Outbox:
    """Collects replies; those of one turn of the event loop leave in one ``writelines``.

    The bytes that requests took of the ``share`` are given back only when their replies have
    left, or a client that does not read could make us hold any number of them.
    """

    def __init__(self, share: Share) -> None:
        self.pieces: list[Buffer] = []  # may be added to directly, if `send` is called then
        self.writable = True  # or the client must read first
        self._share = share
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._cost = 0  # bytes of the share that leave with the pieces
        self._unsent = 0  # bytes of the share that are in the transport
        self._stuck = 0  # bytes that were put into the transport which it still held when it paused
        self._taken_before = 0
        self._send_scheduled = False

    def start(self, transport: asyncio.Transport, *, writable: bool = True) -> None:
        """Say where to send to. Not ``writable``: the transport has paused writing before."""
        self._transport = transport
        if not writable:
            self.pause()

    def add(self, reply: Iterable[Buffer], cost: int = 0) -> None:
        """Queue a reply to a request that took ``cost`` bytes."""
        self.pieces.extend(reply)
        self._cost += cost
        if not self._send_scheduled:
            self._send_scheduled = True
            self._loop.call_soon(self._send_scheduled_now)

    def _send_scheduled_now(self) -> None:
        self._send_scheduled = False
        self.send()

    def send(self) -> None:
        """Hand what is queued to the transport."""
        if self.pieces and not self._transport.is_closing():
            was_writable, waiting = self.writable, self._transport.get_write_buffer_size()
            # they will wait too, and small ones would take more room than their bytes
            self._transport.writelines(_joined(self.pieces) if waiting else self.pieces)
            if not self.writable:
                held = self._transport.get_write_buffer_size()
                if was_writable:  # what went straight to the client was taken, too
                    self._taken_before += waiting + sum(map(len, self.pieces)) - held
                else:
                    self._stuck += held - waiting
        self.pieces.clear()
        if not self._cost:
            return  # all of it was answered at once
        cost, self._cost = self._cost, 0
        if self.writable:
            self._share.give(cost)
        else:
            self._unsent += cost

    def pause(self) -> None:
        """The transport holds more than it should."""
        self.writable = False
        self._stuck = self._transport.get_write_buffer_size()

    def resume(self) -> None:
        """The transport has sent most of what it held, or will send no more."""
        self._taken_before = self.taken
        self.writable = True
        unsent, self._unsent = self._unsent, 0
        self._share.give(unsent)

    @property
    def taken(self) -> int:
        """Bytes that the client has taken, of those for which it had to be waited for."""
        if self.writable:
            return self._taken_before
        return self._taken_before + self._stuck - self._transport.get_write_buffer_size()


def _joined(pieces: list[Buffer]) -> list[Buffer]:
    """The same bytes; as one piece, if the pieces are small."""
    if sum(map(len, pieces)) < SMALL_BYTES * len(pieces):
        return [b"".join(pieces)]
    return pieces
