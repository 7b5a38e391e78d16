# SPDX-License-Identifier: MIT
"""Our server on the memory store: ``python -m benchmarks.memory_server MIB``.

The programs do not offer that store; here it shows what the engine costs when the store is free.
"""

import asyncio
import sys

import uvloop

from swiftnbd.export.export import Export
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.export.settings import CacheSettings
from swiftnbd.server.config import ServerConfig, TcpAddress
from swiftnbd.server.server import Server
from swiftnbd.store.memory import MemoryStore

OBJECT_BYTES = 64 * 1024


async def serve(size: int) -> int:
    """Serve one disk of ``size`` bytes, with a cache that holds twice as much, until SIGTERM."""
    store = MemoryStore("disk")
    await store.create_container(setup_metadata(Geometry(size // OBJECT_BYTES, OBJECT_BYTES)))
    export = Export("disk", store, cache=CacheSettings(cache_bytes=4 * size))
    await export.load()
    server = Server({"disk": export}, ServerConfig((TcpAddress(port=0),)))
    return await server.run(lambda places: print(places[0].uri("disk"), flush=True))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(serve(int(sys.argv[1]) * 1024 * 1024)))
