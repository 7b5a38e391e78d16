# SPDX-License-Identifier: MIT
"""Stale replicas: they missed an overwrite and have the old bytes, with an ETag that fits them."""

from errno import EIO

import pytest

from swiftnbd.errors import ExportError, StoreError
from tests.support.disks import SIZE, Disk, a_disk, begun, caching, name
from tests.support.faulty import Fault, failing

A, B = b"a" * SIZE, b"b" * SIZE


async def overwritten(disk: Disk) -> None:
    """Object 0 is `B`, after it was `A`, and not in the cache."""
    await disk.device.write(0, A, fua=True)
    await disk.device.write(0, B, fua=True)
    await disk.device.write(2 * SIZE, A * 6, fua=True)
    await disk.read(2 * SIZE, 6 * SIZE)
    assert 0 not in disk.blocks


@pytest.mark.parametrize("block", [None, 128])
async def test_stale_replica_is_not_read(block: int | None) -> None:
    async with a_disk(settings=caching(block_bytes=block)) as disk:
        await overwritten(disk)
        gets = disk.store.count("get")
        disk.script.on("get", Fault(stale=True))
        assert await disk.read(0, SIZE) == B
        assert disk.store.count("get") == gets + 2  # again, with X-Newest


async def test_replica_that_missed_the_first_put_is_not_believed() -> None:
    async with a_disk() as disk:
        await disk.device.write(0, B, fua=True)
        await disk.device.write(2 * SIZE, A * 6, fua=True)
        await disk.read(2 * SIZE, 6 * SIZE)
        disk.script.on("get", Fault(stale=True))  # says that it does not exist
        assert await disk.read(0, SIZE) == B


async def test_object_that_is_not_the_one_stored_last_is_an_error() -> None:
    async with a_disk() as disk:
        await overwritten(disk)
        disk.put(0, A)  # whatever one asks, the old bytes come back
        with pytest.raises(ExportError, match="not the one that was stored last") as caught:
            await disk.read(0, 1)
        assert caught.value.errno == EIO
        with pytest.raises(ExportError):
            await disk.device.write(1, b"x", fua=True)
        assert disk.has(0) == A
        await disk.device.write(0, B, fua=True)  # and this repairs it
        assert await disk.read(0, SIZE) == B


async def test_object_that_vanished_is_an_error_not_zeros() -> None:
    async with a_disk() as disk:
        await overwritten(disk)
        del disk.stored[name(0)]
        with pytest.raises(ExportError, match="not the one that was stored last"):
            await disk.read(0, 1)


async def test_replica_that_missed_a_delete_is_not_asked() -> None:
    async with a_disk() as disk:
        await overwritten(disk)
        await disk.device.trim(0, SIZE, fua=True)
        disk.put(0, B)  # it comes back
        assert await disk.read(0, SIZE) == bytes(SIZE)


async def test_lost_reply_of_a_delete_leaves_its_object_unknown() -> None:
    async with a_disk() as disk:
        disk.put(0, A)
        disk.script.on("delete", failing())
        with pytest.raises(StoreError):
            await disk.device.zero(0, SIZE, fua=True)
        assert await disk.read(0, SIZE) == bytes(SIZE)
        await disk.device.flush()
        assert disk.has(0) is None


async def test_what_was_written_while_its_object_was_deleted_lies_on_zeros() -> None:
    """A replica that missed the DELETE cannot bring the bytes around it back."""
    async with a_disk() as disk:
        disk.put(0, b"O" * SIZE)
        gate = disk.script.hold("delete")
        zeroing = await begun(disk.device.zero(0, SIZE, fua=True))
        await disk.device.write(10, b"new")
        gate.open()
        await zeroing
        disk.put(0, b"O" * SIZE)  # it missed it
        expected = bytes(10) + b"new" + bytes(SIZE - 13)
        assert await disk.read(0, SIZE) == expected
        await disk.device.flush()
        assert disk.has(0) == expected


async def test_put_given_up_that_lands_late_does_not_keep_its_object_from_being_stored() -> None:
    """Its other blocks are read before it lands; the next upload fetches them afterwards."""
    async with a_disk(settings=caching(block_bytes=128)) as disk:
        disk.put(0, A)
        await disk.device.write(0, B[:128])
        disk.script.on("put", failing())
        with pytest.raises(StoreError):
            await disk.device.flush()
        assert await disk.read(128, 1) == b"a"
        disk.put(0, B[:128] + A[128:])
        await disk.device.flush()
        assert disk.has(0) == B[:128] + A[128:]
        assert await disk.read(0, SIZE) == disk.has(0)
