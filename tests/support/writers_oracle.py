# SPDX-License-Identifier: MIT
"""A device that many write to and read from at once, and what may be there meanwhile."""

import asyncio
import random

from swiftnbd.api import Device


async def check_writers(device: Device, model: bytearray, chance: random.Random) -> None:
    """Many writers of neighbouring bytes at once, some of which give up.

    A byte that somebody was writing to is afterwards one of what was written there, or what was
    there before if all gave up; any other byte is what it was. Readers meanwhile see the same.
    """
    possible = [{byte} for byte in model]
    written: list[set[int]] = [set() for _ in model]
    is_settled = [False] * len(model)
    tasks: list[tuple[asyncio.Task[None], int, bytes]] = []
    reads: list[tuple[asyncio.Task[bytes], int]] = []

    async def read(offset: int, length: int) -> bytes:
        return b"".join(await device.read(offset, length))

    middle = chance.randrange(len(model) - 8192) // 512 * 512
    for _ in range(48):
        offset = middle + chance.choice((chance.randrange(1500), 512 * chance.randrange(3)))
        data = chance.randbytes(chance.choice((3, 40, 512, 512, 1500)))
        for at, byte in enumerate(data, offset):
            possible[at].add(byte)
            written[at].add(byte)
        if chance.random() < 0.6 and device.write_now(offset, data):
            is_settled[offset : offset + len(data)] = [True] * len(data)
        else:
            tasks.append((asyncio.create_task(device.write(offset, data)), offset, data))
        place = middle + chance.randrange(1500)
        pieces = device.read_now(place, 700)
        if pieces is not None:
            check_possible(b"".join(pieces), place, possible)
        reads.append((asyncio.create_task(read(place, 700)), place))
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        if tasks and chance.random() < 0.2:
            chance.choice(tasks)[0].cancel()
    for task, offset, data in tasks:
        try:
            await task
        except asyncio.CancelledError:
            continue
        is_settled[offset : offset + len(data)] = [True] * len(data)
    for reading, place in reads:
        check_possible(await reading, place, possible)
    after = await read(0, len(model))
    for at, byte in enumerate(after):
        assert byte in (written[at] if is_settled[at] else possible[at]), at
    model[:] = after


def check_possible(data: bytes, offset: int, possible: list[set[int]]) -> None:
    for at, byte in enumerate(data, offset):
        assert byte in possible[at], at
