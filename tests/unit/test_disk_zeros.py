# SPDX-License-Identifier: MIT
"""Zeros, trims and holes: what is deleted, what is kept, what is asked, and what extents say."""

import asyncio
from collections.abc import Iterator
from errno import ENOTSUP

import pytest

from swiftnbd.buffers import is_hole
from swiftnbd.errors import ContainerMissing, ExportError
from swiftnbd.export.presence import State
from swiftnbd.export.writeback import DirtyObject
from tests.support.disks import SIZE, a_disk, begin, begun, caching, turns
from tests.support.faulty import failing

A, B = b"a" * SIZE, b"b" * SIZE


@pytest.mark.parametrize("block", [None, 128])
async def test_object_that_becomes_zeros_is_deleted(block: int | None) -> None:
    async with a_disk(settings=caching(block_bytes=block)) as disk:
        disk.put(0, b"x" + bytes(SIZE - 1))
        disk.put(1, A)
        disk.put(2, A)
        await disk.device.write(0, b"\0")
        await disk.device.write(SIZE, bytes(SIZE))
        await disk.device.zero(2 * SIZE, SIZE)
        await disk.device.flush()
        assert disk.stored == {}
        assert disk.store.count("put") == 0


@pytest.mark.parametrize("fua", [False, True])
@pytest.mark.parametrize("length", [SIZE, SIZE // 2])
async def test_no_hole_stores_zeros_and_keeps_them(length: int, fua: bool) -> None:
    async with a_disk() as disk:
        await disk.device.zero(0, length, no_hole=True, fua=fua)
        await disk.device.flush()
        assert disk.has(0) == bytes(SIZE)
        await disk.device.write(SIZE, A * 7, fua=True)  # evicts it
        assert await disk.read(0, SIZE) == bytes(SIZE) == disk.has(0)
        assert await disk.device.extents(0, SIZE, count=1) == [(SIZE, False, False)]


async def test_no_hole_is_kept_by_what_is_written_before_it_is_stored() -> None:
    async with a_disk() as disk:
        await disk.device.zero(0, SIZE, no_hole=True)
        await disk.device.write(3, b"\0")
        await disk.device.flush()
        assert disk.has(0) == bytes(SIZE)


async def test_no_hole_over_a_hole_that_is_being_deleted_is_stored() -> None:
    async with a_disk() as disk:
        disk.put(0, A)
        gate = disk.script.hold("delete")
        first = await begun(disk.device.zero(0, SIZE, fua=True))
        second = await begun(disk.device.zero(0, SIZE, no_hole=True, fua=True))
        gate.open()
        await asyncio.gather(first, second)
        assert disk.has(0) == bytes(SIZE)


async def test_zeros_kept_are_deleted_when_zeroed_again_without_no_hole() -> None:
    async with a_disk() as disk:
        await disk.device.zero(0, SIZE, no_hole=True, fua=True)
        await disk.device.zero(0, SIZE, fua=True)
        assert disk.has(0) is None


async def test_trim_deletes_zeros_that_were_kept() -> None:
    async with a_disk() as disk:
        await disk.device.zero(0, SIZE, no_hole=True, fua=True)
        await disk.device.trim(0, SIZE, fua=True)
        assert disk.has(0) is None


async def test_holes_take_no_request_and_no_memory() -> None:
    async with a_disk(objects=100) as disk:
        await disk.device.zero(0, 100 * SIZE, fua=True)  # now it is known
        assert disk.blocks == {}
        calls = disk.store.calls.copy()
        assert all(map(is_hole, await disk.device.read(3, 90 * SIZE)))
        now = disk.device.read_now(0, 100 * SIZE)
        assert now is not None
        assert len(now) == 1  # neighbouring holes are one piece
        await disk.device.trim(0, 100 * SIZE, fua=True)
        await disk.device.zero(0, 100 * SIZE, fua=True)
        await disk.device.zero(5, 3, fua=True)
        await disk.device.prefetch(0, 100 * SIZE)
        extents = await disk.device.extents(7, 99 * SIZE, count=9)
        assert extents == [(99 * SIZE, True, True)]
        assert disk.store.calls == calls


async def test_extents_tell_holes_from_what_is_stored_unknown_or_written() -> None:
    async with a_disk(objects=6) as disk:
        disk.put(1, A)
        await disk.read(0, 3 * SIZE)
        await disk.device.write(2 * SIZE + 5, b"x")
        disk.put(4, A)
        await disk.device.zero(4 * SIZE, SIZE)
        await disk.device.zero(5 * SIZE, SIZE, no_hole=True)
        assert await disk.device.extents(10, 6 * SIZE - 10, count=99) == [
            (SIZE - 10, True, True),
            (3 * SIZE, False, False),  # stored, written, unknown
            (SIZE, True, True),
            (SIZE, False, True),
        ]
        assert await disk.device.extents(10, 6 * SIZE - 10, count=2) == [
            (SIZE - 10, True, True),
            (3 * SIZE, False, False),
        ]
        await disk.device.flush()


async def test_extents_of_many_small_runs_end_early_rather_than_hold_up_everybody() -> None:
    async with a_disk(objects=5000) as disk:
        presence = disk.device._disk.objects.presence
        for index in range(0, 5000, 2):
            presence.set(index, State.PRESENT)  # between others that are not known
        (extent,) = await disk.device.extents(0, 5000 * SIZE, count=9)
        assert extent == (1000 * SIZE, False, False)


async def test_zero_over_many_holes_does_not_hold_up_everybody() -> None:
    async with a_disk(objects=20_000) as disk:
        disk.device._disk.objects.presence.fill(0, 20_000, State.ABSENT)
        zero = begin(disk.device.zero(0, 20_000 * SIZE))
        await turns(5)
        assert not zero.done()
        await zero
        assert disk.store.calls.total() == 0


async def test_extents_of_a_disk_of_which_nothing_is_known_ask_nothing() -> None:
    async with a_disk() as disk:
        assert await disk.device.extents(0, 8 * SIZE, count=1) == [(8 * SIZE, False, False)]
        assert disk.store.calls.total() == 0


@pytest.mark.parametrize("block", [None, 128])
@pytest.mark.parametrize(
    ("state", "offset", "length", "is_fast"),
    [
        ("unknown", 0, SIZE, False),
        ("unknown", 0, 2 * SIZE, False),
        ("unknown", 1, SIZE - 1, False),
        ("unknown", 0, SIZE - 1, False),
        ("unknown", 0, SIZE + 1, False),
        ("unknown", SIZE - 1, SIZE + 1, False),
        ("absent", 1, 7, True),
        ("absent", 1, 2 * SIZE, True),
        ("cleared", 1, 7, True),
        ("stored", 0, SIZE, False),
        ("stored", 1, 7, False),
        ("known", 0, SIZE, True),
        ("known", 0, 2 * SIZE, True),
        ("known", 0, 3 * SIZE, False),
        ("partly written", 0, SIZE, True),
        ("cached", 1, 7, True),
        ("partly written", 1, 7, False),
    ],
)
async def test_fast_zero_is_refused_at_once_where_it_would_have_to_fetch_or_nothing_is_known(
    state: str, offset: int, length: int, is_fast: bool, block: int | None
) -> None:
    async with a_disk(settings=caching(block_bytes=block)) as disk:
        if state in ("stored", "cached", "cleared", "known"):
            disk.put(0, A)
            disk.put(1, A)
        if state == "known":
            await disk.read(0, 2 * SIZE)
        if state in ("absent", "cached"):
            await disk.read(0, 3 * SIZE)
        if state == "cleared":
            await disk.device.zero(0, SIZE)
        if state == "partly written":
            await disk.device.write(3, b"x")
        dirty, calls = disk.device.dirty_ranges(), disk.store.calls.copy()
        if is_fast and not (state == "cached" and block):
            await disk.device.zero(offset, length, fast=True)
            assert disk.store.count("get") == sum(
                count for call, count in calls.items() if call.op == "get"
            )
        else:
            with pytest.raises(ExportError) as caught:
                await disk.device.zero(offset, length, fast=True)
            assert caught.value.errno == ENOTSUP
            assert (disk.device.dirty_ranges(), disk.store.calls) == (dirty, calls)
        await disk.device.flush()


@pytest.mark.parametrize("whole_disk", [False, True])
async def test_trim_of_an_empty_disk_takes_one_listing(whole_disk: bool) -> None:
    async with a_disk(objects=100_000) as disk:
        await disk.device.trim(0 if whole_disk else 5, disk.device.size - 5)
        assert disk.store.calls.total() - disk.store.count("listing") == 0
        assert disk.store.count("listing") == 1


async def test_trim_within_one_object_asks_nothing() -> None:
    async with a_disk() as disk:
        await disk.device.trim(1, 2 * SIZE - 2)
        assert disk.store.calls.total() == 0


async def test_trim_of_blocks_known_to_be_absent_deletes_nothing() -> None:
    async with a_disk() as disk:
        await disk.read(0, 2 * SIZE)
        await disk.device.trim(0, 2 * SIZE, fua=True)
        assert disk.store.count("delete") == 0


async def test_trim_reaches_a_dirty_block_that_no_listing_shows() -> None:
    async with a_disk(objects=40) as disk:
        await disk.device.write(0, A)
        await disk.device.trim(0, 40 * SIZE)
        await disk.device.flush()
        assert await disk.read(0, SIZE) == bytes(SIZE) == disk.image()[:SIZE]
        assert disk.store.count("put") == 0


class Looks(dict[int, DirtyObject]):
    """What is changed, and how many of it were gone through."""

    looks = 0

    def __iter__(self) -> Iterator[int]:
        for index in super().__iter__():
            self.looks += 1
            yield index


async def test_trim_of_many_short_holes_does_not_go_through_all_changes_for_each() -> None:
    """It held the event loop for 0.2 s at a time where 100,000 objects were changed."""
    async with a_disk(objects=400, settings=caching(1600)) as disk:
        state = disk.device._disk
        for index in range(0, 400, 2):
            state.objects.presence.set(index, State.ABSENT)
        for index in range(100):
            await disk.device.write(index * SIZE, A)
        changed = Looks(state.writeback.objects)
        state.writeback.objects = changed
        await disk.device.trim(0, 400 * SIZE)
        assert changed.looks < 400
        assert await disk.read(0, 400 * SIZE) == bytes(400 * SIZE)


async def test_trim_leaves_objects_that_are_none_of_the_disk_alone() -> None:
    async with a_disk() as disk:
        names = ["disk.part/0000000x", "disk.part/00000099", "disk.part/000000011", "swiftnbd/x"]
        for other in names:
            await disk.memory.put(other, b"x")
        await disk.device.trim(0, disk.device.size, fua=True)
        assert sorted(disk.stored) == sorted(names)


async def test_trim_goes_through_all_pages_of_a_listing() -> None:
    async with a_disk(objects=10_100) as disk:
        for index in range(10_050):
            disk.put(index, A)
        await disk.device.trim(0, disk.device.size, fua=True)
        assert disk.stored == {}
        assert disk.store.count("listing") == 3


async def test_trim_whose_listing_fails_says_so() -> None:
    async with a_disk(objects=100) as disk:
        disk.script.on("listing", failing(ContainerMissing("faulty: gone")))
        with pytest.raises(ContainerMissing):
            await disk.device.trim(0, 100 * SIZE)


async def test_trim_of_a_few_objects_does_not_list() -> None:
    async with a_disk(objects=100) as disk:
        disk.put(3, A)
        await disk.device.trim(0, 10 * SIZE, fua=True)
        assert disk.has(3) is None
        assert disk.store.count("listing") == 0
