# SPDX-License-Identifier: MIT
"""Peers that do a server no good: ``python -m benchmarks.hostile_peers PORT EXPORT``.

Fifty connections say nothing at all, fifty attach and say nothing more, twenty send the payload
of a large WRITE byte by byte, twenty ask for all they can and never read. Whoever is cut off
comes back. It says "ready" when all have begun, and goes on until it is ended.
"""

import asyncio
import os
import signal
import struct
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

SILENT, IDLE, SLOW, DEAF = 50, 50, 20, 20
WRITE_BYTES, READ_BYTES = 32 * 1024 * 1024, 1024 * 1024
SOURCE = "127.0.0.1"  # where the honest client comes from too: they are one client, and share
STRANGER = "127.0.0.2"

_READ, _WRITE = 0, 1

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def request(command: int, length: int) -> bytes:
    """A request at the beginning of the disk."""
    return struct.pack(">IHHQQI", 0x25609513, 0, command, 0, 0, length)


async def attach(peer: Peer, export: bytes) -> None:
    """The shortest handshake there is: EXPORT_NAME."""
    reader, writer = peer
    await reader.readexactly(18)
    writer.write(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(export)) + export)
    await reader.readexactly(10)


async def wait(peer: Peer) -> None:
    """Until the server has had enough."""
    await peer[0].read()


async def dribble(peer: Peer) -> None:
    """A byte each second of a payload that the server has to make room for."""
    peer[1].write(request(_WRITE, WRITE_BYTES))
    while True:
        peer[1].write(b"x")
        await peer[1].drain()
        await asyncio.sleep(1)


async def ask(peer: Peer) -> None:
    """Requests for as long as they are taken, and no reading of replies."""
    writer = peer[1]
    transport = writer.transport
    assert isinstance(transport, asyncio.ReadTransport)
    transport.pause_reading()
    while True:
        writer.write(request(_READ, READ_BYTES) * 100)
        await writer.drain()


async def again_and_again(
    port: int,
    source: str,
    export: bytes | None,
    behave: Callable[[Peer], Awaitable[None]],
    begun: asyncio.Event,
) -> None:
    """Connect, attach unless ``export`` is None, behave, be cut off, come back."""
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            peer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=(source, 0), limit=4096
            )
            try:
                if export is not None:
                    await attach(peer, export)
                begun.set()
                await behave(peer)
            finally:
                peer[1].close()
        await asyncio.sleep(0.5)


async def attack(port: int, export: bytes) -> None:
    """All of them, for ever."""
    kinds = [
        *[(STRANGER, None, wait)] * SILENT,
        *[(SOURCE, export, wait)] * IDLE,
        *[(SOURCE, export, dribble)] * SLOW,
        *[(SOURCE, export, ask)] * DEAF,
    ]
    async with asyncio.TaskGroup() as group:
        all_begun = []
        for source, name, behave in kinds:
            begun = asyncio.Event()
            all_begun.append(begun)
            group.create_task(again_and_again(port, source, name, behave, begun))
        for begun in all_begun:
            await begun.wait()
        print("ready", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # without a goodbye
    asyncio.run(attack(int(sys.argv[1]), sys.argv[2].encode()))
