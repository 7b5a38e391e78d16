# SPDX-License-Identifier: MIT
"""A device of plain bytes that writes down what it is asked, and connections straight to it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

from swiftnbd.api.device import Device, Extent
from swiftnbd.buffers import hole
from swiftnbd.errors import SwiftnbdError
from swiftnbd.metrics import Counters
from swiftnbd.protocol.constants import TransmissionFlag
from swiftnbd.protocol.requests import ExportShape
from swiftnbd.server.budget import Budget
from swiftnbd.server.transmission import Transmission
from swiftnbd.store.base import Buffer
from tests.support.loopback import Peer, soon

BLOCK = 4096
FLAGS = TransmissionFlag(0x0DED)  # all that we announce, structured replies agreed on
PLAIN = FLAGS & ~TransmissionFlag.SEND_DF
BUDGET_BYTES = 256 * 1024 * 1024


class ByteDevice(Device):
    """``blocks`` blocks of `BLOCK` bytes, holes at first.

    ``quick``: whether `read_now` and `write_now` do anything. ``calls`` lists what was asked as
    (method, offset, length), in order; `gate` holds what is awaited.
    """

    can_fua = can_fast_zero = True

    def __init__(self, blocks: int = 64, *, quick: bool = True) -> None:
        self.size = blocks * BLOCK
        self.block_size = BLOCK
        self.quick = quick
        self.blocks: dict[int, bytearray] = {}
        self.calls: list[tuple[str, int, int]] = []
        self.given: list[Buffer] = []  # data of writes, as it was handed over
        self.error: SwiftnbdError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def fill(self, offset: int, data: bytes) -> None:
        """Put bytes there, behind everybody's back."""
        for index, byte in enumerate(data, offset):
            self.blocks.setdefault(index // BLOCK, bytearray(BLOCK))[index % BLOCK] = byte

    def image(self) -> bytes:
        parts = (bytes(self.blocks.get(index, bytes(BLOCK))) for index in range(self.size // BLOCK))
        return b"".join(parts)

    async def _asked(self, method: str, offset: int, length: int) -> None:
        self.calls.append((method, offset, length))
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    def _pieces(self, offset: int, length: int) -> list[Buffer]:
        pieces: list[Buffer] = []
        end = offset + length
        while offset < end:
            start = offset % BLOCK
            here = min(BLOCK - start, end - offset)
            block = self.blocks.get(offset // BLOCK)
            pieces.append(hole(here) if block is None else bytes(block[start : start + here]))
            offset += here
        return pieces

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        self.calls.append(("read_now", offset, length))
        return self._pieces(offset, length) if self.quick else None

    def write_now(self, offset: int, data: Buffer) -> bool:
        self.calls.append(("write_now", offset, len(data)))
        if self.quick:
            self.fill(offset, bytes(data))
        return self.quick

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        await self._asked("read", offset, length)
        return self._pieces(offset, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        self.given.append(data)
        await self._asked("write fua" if fua else "write", offset, len(data))
        self.fill(offset, bytes(data))

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        flags = {"no_hole": no_hole, "fua": fua, "fast": fast}
        method = " ".join(["zero", *(name for name, given in flags.items() if given)])
        await self._asked(method, offset, length)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self._asked("trim fua" if fua else "trim", offset, length)

    async def flush(self) -> None:
        await self._asked("flush", 0, 0)

    async def prefetch(self, offset: int, length: int) -> None:
        await self._asked("prefetch", offset, length)

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        await self._asked("extents", offset, length)
        position, end, found = offset, offset + length, list[Extent]()
        while position < end and len(found) < count:
            here = min(BLOCK - position % BLOCK, end - position)
            absent = position // BLOCK not in self.blocks
            found.append(Extent(here, hole=absent, zero=absent))
            position += here
        return found

    async def close(self) -> None:
        await self._asked("close", 0, 0)


class Direct:
    """A client in transmission, and the connection that serves it."""

    def __init__(self, peer: Peer, transmission: Transmission, counters: Counters) -> None:
        self.peer = peer
        self.transmission = transmission
        self.counters = counters


@asynccontextmanager
async def transmitting(
    device: Device,
    flags: TransmissionFlag = FLAGS,
    contexts: frozenset[str] = frozenset({"base:allocation"}),
) -> AsyncIterator[Direct]:
    """Serve ``device`` to one client without a handshake; afterwards nothing may be left."""
    budget, counters = Budget(BUDGET_BYTES), Counters()
    shape = ExportShape(device.size, flags, contexts)
    started: asyncio.Future[Transmission] = asyncio.get_running_loop().create_future()

    class Accept(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transmission = Transmission(device, shape, budget, counters, "client disk")
            transport = cast(asyncio.Transport, transport)
            transport.pause_reading()
            transmission.start(transport, b"")
            started.set_result(transmission)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Accept, "127.0.0.1", 0)
    async with await Peer.connect(server.sockets[0].getsockname()[1]) as peer:
        transmission = await soon(started)
        running = asyncio.create_task(transmission.run())
        try:
            yield Direct(peer, transmission, counters)
        finally:
            await peer.close()
            transmission.end()
            transmission.abort()
            server.close()
            await server.wait_closed()
            await soon(running)
    assert budget.left == budget.limit
    assert not transmission._at_work
