# SPDX-License-Identifier: MIT
"""A WRITE whose payload is being received."""

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
