# SPDX-License-Identifier: MIT
"""Whatever happens to blocks, a victim is one of the idle ones, and each of them goes once."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from benchmarks.policies import Block
from swiftnbd.export.eviction import Eviction, Queue

CAPACITY = 12
INDEXES = st.integers(0, 30)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.policy = Eviction[Block](CAPACITY)
        self.idle: dict[int, Block] = {}
        self.busy: dict[int, Block] = {}

    @rule(index=INDEXES, used=st.booleans())
    def becomes_idle(self, index: int, used: bool) -> None:
        if index in self.idle:
            return
        block = self.busy.pop(index) if index in self.busy else Block(index)
        self.idle[index] = block
        block.used |= used
        queue = block.queue
        self.policy.insert_idle(block)
        assert block.queue is not Queue.NEW
        assert queue in (Queue.NEW, block.queue)

    @rule(index=INDEXES)
    def becomes_busy(self, index: int) -> None:
        block = self.idle.pop(index, None)
        if block is not None:
            self.busy[index] = block
        if index in self.busy:
            self.policy.remove(self.busy[index])

    @rule(index=INDEXES)
    def is_hit(self, index: int) -> None:
        block = self.idle.get(index) or self.busy.get(index)
        if block is not None:
            block.used = True

    @rule(index=INDEXES)
    def is_cold(self, index: int) -> None:
        if index in self.idle:
            self.policy.cold(self.idle[index])
            assert not self.idle[index].used

    @precondition(lambda self: self.idle)
    @rule()
    def gives_up_one(self) -> None:
        victim = self.policy.victim()
        assert victim is not None
        assert self.idle.pop(victim.index) is victim

    @rule()
    def gives_up_all(self) -> None:
        while (victim := self.policy.victim()) is not None:
            assert self.idle.pop(victim.index) is victim
        assert not self.idle

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.policy) == len(self.idle)
        assert len(self.policy._ghosts) <= CAPACITY // 2


TestEviction = Machine.TestCase
TestEviction.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
