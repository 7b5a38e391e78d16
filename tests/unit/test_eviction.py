# SPDX-License-Identifier: MIT
"""The order in which idle blocks are given up."""

import pytest

from benchmarks.eviction import BLOCK_BYTES, hit_rate, kept, recorded, scans
from benchmarks.policies import Block, Clock, Lru, Ours
from swiftnbd.export import eviction
from swiftnbd.export.eviction import CHANCES_MAX, Eviction, Queue


def filled(*indexes: int, capacity: int = 10) -> tuple[Eviction[Block], dict[int, Block]]:
    """A policy, and blocks that became idle in this order."""
    policy = Eviction[Block](capacity)
    blocks = {index: Block(index) for index in indexes}
    for block in blocks.values():
        policy.insert_idle(block)
    return policy, blocks


def evicted(policy: Eviction[Block]) -> list[int]:
    """Everything, in the order in which it goes."""
    found = []
    while (block := policy.victim()) is not None:
        found.append(block.index)
    return found


def give_up(policy: Eviction[Block], count: int) -> list[int]:
    """The next ``count`` to go."""
    found = []
    for _ in range(count):
        block = policy.victim()
        assert block is not None
        found.append(block.index)
    return found


def test_nothing_idle_is_no_victim() -> None:
    policy, blocks = filled(1)
    policy.remove(blocks[1])
    assert policy.victim() is None
    assert len(policy) == 0


def test_blocks_not_used_go_in_the_order_they_came() -> None:
    policy, _ = filled(5, 1, 9, 2)
    assert len(policy) == 4
    assert evicted(policy) == [5, 1, 9, 2]


def test_use_by_who_brought_the_block_in_does_not_count() -> None:
    policy = Eviction[Block](10)
    for index in range(3):
        block = Block(index)
        block.used = True
        policy.insert_idle(block)
    assert evicted(policy) == [0, 1, 2]


def test_use_while_young_does_not_count() -> None:
    policy, blocks = filled(*range(10))
    blocks[9].used = True
    assert give_up(policy, 1) == [0]
    for index in range(10, 40):
        policy.insert_idle(Block(index))
        give_up(policy, 1)
    assert blocks[9].queue is Queue.SMALL


def test_use_while_old_moves_to_main() -> None:
    policy, blocks = filled(*range(10))
    blocks[0].used = True
    assert give_up(policy, 1) == [1]
    assert blocks[0].queue is Queue.MAIN
    for index in range(10, 60):
        policy.insert_idle(Block(index))
        assert give_up(policy, 1) != [0]


def test_block_of_main_goes_when_it_is_not_used_and_stays_when_it_is() -> None:
    policy, blocks = filled(0, 1, 2)
    for block in blocks.values():
        block.queue = Queue.MAIN
        policy.remove(block)
        policy.insert_idle(block)
    blocks[0].used = True
    assert evicted(policy) == [1, 2, 0]


def test_block_wanted_again_soon_moves_to_main() -> None:
    policy, _ = filled(*range(10))
    assert give_up(policy, 1) == [0]
    again = Block(0)
    policy.insert_idle(again)
    assert again.queue is Queue.MAIN
    assert give_up(policy, 7) == list(range(1, 8))


def test_ghosts_are_bounded_and_the_oldest_go_first() -> None:
    policy, _ = filled(*range(30), capacity=10)
    assert give_up(policy, 30) == list(range(30))
    assert list(policy._ghosts) == [25, 26, 27, 28, 29]
    for index, queue in ((24, Queue.SMALL), (25, Queue.MAIN)):
        block = Block(index)
        policy.insert_idle(block)
        assert block.queue is queue
    assert 25 not in policy._ghosts


def test_removed_block_is_no_victim_and_may_be_removed_again() -> None:
    policy, blocks = filled(1, 2, 3)
    policy.remove(blocks[1])
    policy.remove(blocks[1])
    assert evicted(policy) == [2, 3]


@pytest.mark.parametrize("queue", [Queue.SMALL, Queue.MAIN])
def test_block_that_was_busy_is_back_in_its_queue(queue: Queue) -> None:
    policy, blocks = filled(*range(10))
    policy.remove(blocks[0])
    blocks[0].queue = queue
    blocks[0].used = True
    policy.insert_idle(blocks[0])
    assert blocks[0].queue is queue
    assert blocks[0].used
    assert give_up(policy, 2) == [1, 2]


def test_cold_block_is_the_next_to_go() -> None:
    policy, blocks = filled(*range(10))
    blocks[7].used = True
    policy.cold(blocks[7])
    blocks[3].queue = Queue.MAIN
    policy.cold(blocks[3])
    assert len(policy) == 10
    assert give_up(policy, 3) == [7, 3, 0]
    assert 7 not in policy._ghosts


def test_cold_block_that_is_used_after_all_stays() -> None:
    policy, blocks = filled(*range(10))
    policy.cold(blocks[7])
    blocks[7].used = True
    assert evicted(policy) == [0, 1, 2, 3, 4, 5, 6, 8, 7, 9]


def test_cold_block_that_becomes_busy_is_no_victim() -> None:
    policy, blocks = filled(1, 2)
    policy.cold(blocks[2])
    policy.remove(blocks[2])
    assert evicted(policy) == [1]


def test_one_victim_takes_a_bounded_time_even_if_all_are_used() -> None:
    policy, blocks = filled(*range(3 * CHANCES_MAX), capacity=3 * CHANCES_MAX)
    for block in blocks.values():
        policy.remove(block)
        block.queue = Queue.MAIN
        block.used = True
        policy.insert_idle(block)
    assert give_up(policy, 1) == [CHANCES_MAX]
    assert sum(block.used for block in blocks.values()) == 2 * CHANCES_MAX


@pytest.mark.parametrize("pieces", [1, 16])
@pytest.mark.parametrize("readers", [1, 4, 8])
def test_scan_does_not_throw_out_what_was_used_before(readers: int, pieces: int) -> None:
    assert kept(Lru, readers=readers, pieces=pieces) == 0.0
    assert kept(Ours, readers=readers, pieces=pieces) >= 0.9  # all but those still YOUNG


def test_recorded_requests_are_hit_more_often_than_with_lru_and_clock() -> None:
    """With the default cache and object size; the figures stand in the module's docstring."""
    found = {
        policy: [
            round(100 * hit_rate(policy, list(touches), 1024), 1)
            for touches in (recorded("database", BLOCK_BYTES), recorded("ext4", BLOCK_BYTES))
        ]
        for policy in (Lru, Clock, Ours)
    }
    assert found == {Lru: [56.4, 84.0], Clock: [57.3, 84.0], Ours: [60.9, 88.2]}
    touches = list(scans())
    assert hit_rate(Ours, touches, 48) > hit_rate(Lru, touches, 48) > hit_rate(Clock, touches, 48)
    assert "60.9" in (eviction.__doc__ or "")
