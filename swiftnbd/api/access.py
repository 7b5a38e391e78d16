# SPDX-License-Identifier: MIT
"""Reading and writing of a device for a filter that does not ask for what its client did."""

from collections.abc import Sequence

from swiftnbd.api.device import Device
from swiftnbd.buffers import Buffer


async def read_bytes(device: Device, offset: int, length: int) -> bytes:
    """The bytes of any range, or none, inside the device, in requests that suit its block sizes."""
    if not length:
        return b""
    least, most = device.block_size_min, device.block_size_max
    start, end = offset // least * least, -(-(offset + length) // least) * least
    found: list[Buffer] = []
    for at in range(start, end, most):
        found += await device.read(at, min(most, end - at))
    data = joined(found)
    return data if (start, end) == (offset, offset + length) else data[offset - start :][:length]


async def write_bytes(device: Device, offset: int, data: Buffer, *, fua: bool = False) -> None:
    """Write multiples of the device's smallest block, however many, in requests that suit it."""
    assert not (offset | len(data)) % device.block_size_min
    options = {"fua": True} if fua else {}
    most = device.block_size_max
    if len(data) <= most:
        await device.write(offset, data, **options)
        return
    view = memoryview(data)
    for at in range(0, len(view), most):
        await device.write(offset + at, view[at : at + most], **options)


def joined(pieces: Sequence[Buffer]) -> bytes:
    """What was read, in one."""
    if len(pieces) == 1 and type(pieces[0]) is bytes:
        return pieces[0]
    return b"".join(pieces)
