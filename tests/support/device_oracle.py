# SPDX-License-Identifier: MIT
"""A device, and the array of bytes that it has to be."""

import random

from swiftnbd.api import Device

LENGTHS = (1, 511, 4096, 5000, 65536)


async def is_array_of_bytes(
    device: Device, model: bytearray, chance: random.Random, rounds: int = 60, unit: int = 1
) -> None:
    """Requests at random, in multiples of ``unit`` bytes; then all of it is looked at."""
    size = len(model)
    assert device.size == size
    for _ in range(rounds):
        offset = chance.randrange(0, size, unit)
        length = min(-(-chance.choice(LENGTHS) // unit) * unit, size - offset)
        what = chance.choice(("write", "write now", "zero", "trim", "read", "extents", "flush"))
        await _ask(device, model, chance, what, offset, length)
    assert b"".join(await device.read(0, size)) == model
    await check_extents(device, model)


async def _ask(
    device: Device, model: bytearray, chance: random.Random, what: str, offset: int, length: int
) -> None:
    end = offset + length
    match what:
        case "write" | "write now":
            data = chance.randbytes(length)
            if what == "write" or not device.write_now(offset, data):
                await device.write(offset, data, **_fua(device, chance))
            model[offset:end] = data
        case "zero":
            no_hole = chance.random() < 0.5
            await device.zero(offset, length, no_hole=no_hole, **_fua(device, chance))
            model[offset:end] = bytes(length)
        case "trim":
            await device.trim(offset, length, **_fua(device, chance))
            model[offset:end] = b"".join(await device.read(offset, length))  # whatever it is now
        case "read":
            assert b"".join(await device.read(offset, length)) == model[offset:end]
            pieces = device.read_now(offset, length)
            assert pieces is None or b"".join(pieces) == model[offset:end]
        case "extents":
            found = await device.extents(offset, length, count=3)
            assert 0 < len(found) <= 3
            assert sum(each.length for each in found) <= length
        case _:
            await device.flush()
            await device.prefetch(offset, length)


def _fua(device: Device, chance: random.Random) -> dict[str, bool]:
    return {"fua": True} if device.can_fua and chance.random() < 0.3 else {}


async def check_extents(device: Device, model: bytearray) -> None:
    """What is said to be zeros is zeros, and the whole disk is told of."""
    at, size = 0, len(model)
    while at < size:
        for length, _, zero in await device.extents(at, size - at, count=3):
            assert length > 0
            assert not zero or not any(model[at : at + length])
            at += length
    assert at == size
