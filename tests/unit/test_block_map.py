# SPDX-License-Identifier: MIT
"""The map of blocks: every block is counted once, as what it is, in the cell it lies in."""

import asyncio
import random

import pytest

from swiftnbd.export.block_map import CELLS_MAX, BlockMap, Kind
from swiftnbd.export.presence import PAGE_OBJECTS, Presence, State
from tests.support.disks import SIZE, Disk, a_disk, begun, caching


def kinds_of(drawn: BlockMap) -> list[str]:
    """What the cells are, of a map with one block in each."""
    return [
        next(str(kind) for kind in Kind if drawn.counts[kind][cell]) for cell in range(drawn.cells)
    ]


def assert_whole(drawn: BlockMap) -> None:
    """No block is missing, none counted twice."""
    size = drawn.end - drawn.first
    for cell in range(drawn.cells):
        begin, end = (number * size // drawn.cells for number in (cell, cell + 1))
        assert sum(counts[cell] for counts in drawn.counts.values()) == end - begin


@pytest.mark.parametrize("seed", range(8))
def test_tally_counts_what_get_says(seed: int) -> None:
    chance = random.Random(seed)
    presence = Presence(2 * PAGE_OBJECTS + 1234)
    for _ in range(30):
        first = chance.randrange(presence.objects)
        end = chance.randrange(first, presence.objects + 1)
        presence.fill(
            first, min(end, first + chance.choice([3, 500, end])), chance.choice(list(State))
        )
    for _ in range(20):
        first = chance.randrange(presence.objects)
        end = min(presence.objects, first + chance.choice([0, 1, 5, 999]))
        states = [presence.get(index) for index in range(first, end)]
        assert presence.tally(first, end) == [states.count(state) for state in State]
    whole = [0, 0, 0]
    for count, state in presence.runs(0, presence.objects):
        whole[state] += count
    assert presence.tally(0, presence.objects) == whole


async def test_each_block_is_what_happened_to_it() -> None:
    async with a_disk(objects=8, cached=8, settings=caching(8)) as disk:
        disk.put(0, b"0" * SIZE)
        disk.put(1, b"1" * SIZE)
        await disk.read(0, SIZE)  # cached
        await disk.read(2 * SIZE, SIZE)  # zeros, cached too
        await disk.device.write(3 * SIZE, b"3" * SIZE)
        await disk.device.trim(4 * SIZE, SIZE)
        drawn = await disk.device.block_map(0, 8, CELLS_MAX)
        assert kinds_of(drawn) == [
            "cached", "unknown", "cached", "dirty", "dirty", "unknown", "unknown", "unknown",
        ]  # fmt: skip
        await disk.device.flush()
        drawn = await disk.device.block_map(0, 8, CELLS_MAX)
        assert kinds_of(drawn)[3:6] == ["cached", "absent", "unknown"]
        part = await disk.device.block_map(3, 5, CELLS_MAX)
        assert (part.first, part.end, part.cells, kinds_of(part)) == (3, 5, 2, ["cached", "absent"])


async def test_block_that_is_being_stored_and_one_that_was_given_up() -> None:
    async with a_disk(objects=8, cached=4) as disk:
        gate = asyncio.Event()
        for index in range(5):
            disk.put(index, b"x" * SIZE)
            await disk.read(index * SIZE, SIZE)
        await disk.device.write(7 * SIZE, b"7" * SIZE)
        real = disk.memory.put

        async def held(*args: object, **options: object) -> str:
            await gate.wait()
            return await real(*args, **options)  # type: ignore[arg-type]

        disk.memory.put = held  # type: ignore[method-assign]
        flush = await begun(disk.device.flush())
        kinds = kinds_of(await disk.device.block_map(0, 8, CELLS_MAX))
        assert kinds[7] == "uploading"
        assert sorted(kinds[:5]) == ["cached"] * 3 + ["stored"] * 2
        gate.set()
        await flush


@pytest.mark.parametrize("cells", [1, 2, 3, 7, 16, 64, 100])
async def test_parts_of_large_objects_add_up(cells: int) -> None:
    """Blocks are parts of objects here, and ranges begin and end inside of them."""
    settings = caching(8, 4 * SIZE, block_bytes=SIZE)
    async with a_disk(objects=16, size=4 * SIZE, settings=settings) as disk:
        for index in range(0, 16, 3):
            disk.put(index, b"x" * (4 * SIZE))
            await disk.read(index * 4 * SIZE + SIZE, SIZE)
        await disk.device.write(5 * SIZE, b"y" * SIZE)
        await disk.device.zero(40 * SIZE, 4 * SIZE)
        for first, end in [(0, 64), (1, 63), (5, 6), (13, 47)]:
            drawn = await disk.device.block_map(first, end, cells)
            assert drawn.blocks == 64
            assert drawn.cells == min(cells, end - first)
            assert_whole(drawn)
        whole = await disk.device.block_map(0, 64, 64)
        assert kinds_of(whole)[4:8] == ["unknown", "dirty", "unknown", "unknown"]
        assert kinds_of(whole)[40:44] == ["dirty"] * 4
        many = await disk.device.block_map(0, 64, cells)
        for kind in Kind:  # from far away it is the same
            assert sum(many.counts[kind]) == sum(whole.counts[kind])


async def test_16_million_blocks_leave_the_event_loop_its_turns() -> None:
    disk = Disk(objects=1 << 24)
    presence = disk.device._disk.objects.presence
    for page in range(256):
        presence.set(page * PAGE_OBJECTS + page, State.PRESENT)
        presence.fill(page * PAGE_OBJECTS + 1000, page * PAGE_OBJECTS + 2000, State.ABSENT)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    drawn = await disk.device.block_map(0, 1 << 24, 1000)
    few = await disk.device.block_map(0, 1 << 24, 1)
    counting.cancel()
    assert turns >= 2 * 256 // 32
    assert_whole(drawn)
    assert sum(drawn.counts[Kind.STORED]) == few.counts[Kind.STORED][0] == 256
    assert sum(drawn.counts[Kind.ABSENT]) == 256 * 1000


async def test_a_map_drawn_while_all_changes_has_each_block_once() -> None:
    async with a_disk(objects=4096, cached=64, settings=caching(64)) as disk:
        presence = disk.device._disk.objects.presence

        async def change() -> None:
            chance = random.Random(1)
            for _ in range(40):
                for _ in range(100):
                    presence.set(chance.randrange(4096), chance.choice(list(State)))
                await disk.device.write(chance.randrange(4096) * SIZE, b"z" * SIZE)

        changing = asyncio.create_task(change())
        while not changing.done():
            assert_whole(await disk.device.block_map(0, 4096, 4096))
        await changing
        await disk.device.flush()
