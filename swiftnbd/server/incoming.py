# SPDX-License-Identifier: MIT
"""A WRITE whose payload is being received, or read away."""

from swiftnbd.protocol.requests import Request
from swiftnbd.store.base import Buffer


class Incoming:
    """Receives the payload of ``request``, which begins with what is ``there`` already."""

    def __init__(self, request: Request, there: Buffer) -> None:
        self.request = request
        self.payload = bytearray(request.length)
        self.payload[: len(there)] = there
        self.received = len(there)

    def space(self) -> memoryview:
        """Where the next bytes go."""
        return memoryview(self.payload)[self.received :]

    def add(self, count: int) -> bool:
        """So many have been put there; whether that is all."""
        self.received += count
        return self.received == len(self.payload)


class Refused:
    """Reads away the payload, ``left`` bytes of it, of a WRITE that will be answered ``reply``.

    Not before its end: libnbd takes the reply to a request that it still sends for one to nothing.
    """

    def __init__(self, length: int, reply: list[Buffer]) -> None:
        self.left = length
        self.reply = reply

    def skip(self, available: int) -> int:
        """How many bytes, of those that are there, are of the payload."""
        count = min(self.left, available)
        self.left -= count
        return count
