# SPDX-License-Identifier: MIT
"""Any bytes at all: the server answers what is well-formed, keeps in sync, and goes on serving.

A short run; ``tox -e fuzz`` (or FUZZ_SECONDS=600) makes it a long one. What it finds becomes a
seed in ``corpus/`` or a test of its own.
"""

import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings

from tests.support.fuzzing import SEEDS, Target, attacks, variants
from tests.support.stream_oracle import Wrong, judge

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
EXAMPLES = 100  # of one round; a long run has many, each from the beginning
VARIANTS = 15  # of each example, in a long run: cheaper to make than examples
LEFT_BYTES_MAX = 64 * 1024 * 1024  # more resident memory after all rounds than after the first

pytestmark = pytest.mark.timeout(120 + SECONDS)


class Attacked:
    """A server that is attacked again and again, and an event loop that runs only then."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.runner = runner
        self.target = Target()

    def attack(self, pieces: list[bytes]) -> str:
        return self.runner.run(self.target.attack(pieces))

    def check_service(self) -> None:
        self.runner.run(self.target.check_service())


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def attacked(request: pytest.FixtureRequest) -> Iterator[Attacked]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        attacked = Attacked(runner)
        runner.run(attacked.target.start())
        yield attacked
        runner.run(attacked.target.stop())


def test_any_bytes_get_the_answers_they_deserve(attacked: Attacked) -> None:
    reached: Counter[str] = Counter()
    resident = 0
    began = time.monotonic()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(attacks())
    def one_round(pieces: list[bytes]) -> None:
        for attack in (pieces, *variants(pieces, VARIANTS if SECONDS else 0)):
            reached[attacked.attack(attack)] += 1
        attacked.check_service()

    for _ in itertools.count():
        one_round()
        resident = resident or resident_bytes()
        if time.monotonic() - began > SECONDS / 2:  # the other half is the other event loop's
            break
    print(f"{reached.total()} attacks: {dict(reached)}")
    assert reached["transmission"] > EXAMPLES / 10, "it does not get far enough to find anything"
    assert resident_bytes() - resident < LEFT_BYTES_MAX


@pytest.mark.parametrize("name", SEEDS)
def test_seed_is_answered_whole_and_byte_by_byte(attacked: Attacked, name: str) -> None:
    data = SEEDS[name]
    reached = attacked.attack([data])
    assert attacked.attack([data[i : i + 1] for i in range(len(data))]) == reached
    attacked.check_service()


def resident_bytes() -> int:
    """The memory that this process has now."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


# The judge itself

CLIENT = SEEDS["oldest_client"]
GREETING = b"NBDMAGICIHAVEOPT\0\3"
ANSWER = (
    GREETING + bytes(10) + bytes(124) + b"\x67\x44\x66\x98" + bytes(4) + bytes(7) + b"\1" + b"x"
)


def test_judge_accepts_what_is_right() -> None:
    assert judge(CLIENT, ANSWER) == "transmission"
    assert judge(b"", GREETING) == "greeted"


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        (CLIENT, ANSWER[:-1]),  # a byte of the READ is missing
        (CLIENT, ANSWER + b"x"),
        (CLIENT, ANSWER + ANSWER[-17:]),  # a second reply
        (CLIENT, ANSWER[:-17]),  # none
        (CLIENT, ANSWER[:-2] + b"\2x"),  # another cookie
        (CLIENT, ANSWER[:-17] + b"\x67\x44\x66\x99" + ANSWER[-13:]),
        (CLIENT, ANSWER[:-13] + b"\0\0\0\2" + ANSWER[-9:-1]),  # no error of NBD
        (b"", GREETING + b"x"),
        (b"", b"NBDMAGIC"),
        (SEEDS["haggling"], GREETING + b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\6\0\0\0\1\0\0\0\0"),
    ],
)
def test_judge_finds_what_is_wrong(sent: bytes, got: bytes) -> None:
    with pytest.raises(Wrong):
        judge(sent, got)
