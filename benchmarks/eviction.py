# SPDX-License-Identifier: MIT
"""Hit rates of orders of eviction, on recorded requests: no server, no store, no clock.

`traces/` holds what a disk was asked for, one request per line: R or W (or T, of no matter
here), the first unit of 4 KiB, and how many::

    R 37132 2

* ``database``: fio, 512 MiB: 45,000 reads and writes of 16 KiB, 4 to 1, zipf 1.1, and while it
  goes on two sequential scans, of 200 and 312 MiB.
* ``ext4``: a kernel with 400 MB of memory, on nbdkit: mkfs, unpack a source tree of 2,500 files,
  then find, grep, copy, diff and backup of all of it, a file of 100 MiB written and read, and
  in between five times each the reading and editing of a few directories, caches dropped.

``scans`` is made up: a working set of 40 blocks, while four readers go sequentially through
2000 others, 4 KiB at a time, in turns. The last figure is how much of a working set is still
there after such readers have gone through four times the cache, and nobody used it meanwhile.
"""

import lzma
import random
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.options import KIB, MIB, Options
from benchmarks.policies import POLICIES, Block, Policy
from benchmarks.results import Results

PART = "eviction"
TRACES = Path(__file__).parent / "traces"
UNIT = 4 * KIB
BLOCK_BYTES = 64 * KIB
CACHES_MIB = {"database": (16, 64, 128), "ext4": (16, 64, 128), "scans": (3, 4, 8)}
BUSY_TOUCHES = 100  # a written block is dirty, then uploaded, while so many blocks are touched


class Touch(NamedTuple):
    """A request on one block."""

    block: int
    write: bool


def measure(options: Options, results: Results, workdir: Path) -> None:
    """Every trace, cache size and policy, once: the same each time."""
    for name, sizes in CACHES_MIB.items():
        touches = list(scans() if name == "scans" else recorded(name, BLOCK_BYTES))
        for mib in sizes:
            for policy_name, policy in POLICIES.items():
                what = f"{name}, cache of {mib} MiB: {policy_name}"
                figure = results.figure(PART, what, "% of reads hit")
                figure.values.append(100 * hit_rate(policy, touches, mib * MIB // BLOCK_BYTES))
                options.say(f"{what}: {figure.values[-1]:.2f}")
    for policy_name, policy in POLICIES.items():
        figure = results.figure(PART, f"working set after a scan: {policy_name}", "% kept")
        figure.values.append(100 * kept(policy))


def recorded(name: str, block_bytes: int) -> Iterator[Touch]:
    """The blocks that a trace touches, in order."""
    units = block_bytes // UNIT
    with lzma.open(TRACES / f"{name}.xz", "rt") as file:
        for line in file:
            command, first, count = line.split()
            if command in "RW":
                start, end = int(first), int(first) + int(count)
                for index in range(start // units, -(-end // units)):
                    yield Touch(index, command == "W")


def scans(*, hot: int = 40, readers: int = 4, blocks: int = 2000) -> Iterator[Touch]:
    """A working set, and readers who never come back."""
    chance = random.Random(1)
    reads = BLOCK_BYTES // UNIT
    for number in range(blocks * reads):
        reader, done = number % readers, number // readers // reads
        yield Touch((reader + 1) * blocks + done, write=False)
        if number % 4 == 0:
            yield Touch(chance.randrange(hot), write=False)


def hit_rate(policy: type[Policy], touches: list[Touch], capacity: int) -> float:
    """Which share of the reads found its block in memory. A write needs no fetch."""
    cache = _Cache(policy(capacity), capacity)
    reads = hits = 0
    for touch in touches:
        hit = cache.touch(touch)
        reads += not touch.write
        hits += hit and not touch.write
    return hits / reads


def kept(policy: type[Policy], *, pieces: int = 16, readers: int = 4) -> float:
    """Of 60 blocks read again and again, which share a cache of 100 has after 400 others.

    The cache was not full before. Each of the others is read once, in ``pieces``.
    """
    cache = _Cache(policy(100), 100)
    for _ in range(10):
        for index in range(60):
            cache.touch(Touch(index, write=False))
    for number in range(0, 400, readers):
        for _ in range(pieces):
            for reader in range(readers):
                cache.touch(Touch(1000 * (reader + 1) + number, write=False))
    return sum(cache.touch(Touch(index, write=False)) for index in range(60)) / 60


class _Cache:
    """Blocks in memory: busy from a write until its upload has ended, else idle."""

    def __init__(self, policy: Policy, capacity: int) -> None:
        self._policy = policy
        self._capacity = capacity
        self._blocks: dict[int, Block] = {}
        self._writes: deque[tuple[int, Block]] = deque()  # by the time at which they end
        self._busy: dict[int, int] = {}  # how many of these, by the number of the block
        self._now = 0

    def touch(self, touch: Touch) -> bool:
        """Read or write a block; whether it was there."""
        self._now += 1
        while self._writes and self._writes[0][0] <= self._now:
            self._end_write()
        block = self._blocks.get(touch.block)
        found = block is not None
        if block is None:
            self._make_room()
            block = self._blocks[touch.block] = Block(touch.block)
            if not touch.write:
                self._policy.insert_idle(block)
        else:
            self._policy.hit(block)
        if touch.write:
            self._begin_write(block)
        return found

    def _make_room(self) -> None:
        while len(self._blocks) >= self._capacity:
            victim = self._policy.victim()
            if victim is None:
                self._end_write()
            else:
                del self._blocks[victim.index]

    def _begin_write(self, block: Block) -> None:
        self._policy.remove(block)
        self._busy[block.index] = self._busy.get(block.index, 0) + 1
        self._writes.append((self._now + BUSY_TOUCHES, block))

    def _end_write(self) -> None:
        _, block = self._writes.popleft()
        self._busy[block.index] -= 1
        if not self._busy[block.index]:
            del self._busy[block.index]
            self._policy.insert_idle(block)
