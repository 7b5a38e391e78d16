# SPDX-License-Identifier: MIT
"""The engine against the oracle, in rounds of examples drawn from a seed.

A failure prints the rules that led to it and the command that repeats it. More than what runs by
default, from seeds that nobody has tried: ``tox -e model``, or ``MODEL_SECONDS=600``.
"""

import os
import random
import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import DiskMachine
from tests.support.faulty import Call

SECONDS = float(os.environ.get("MODEL_SECONDS", "0"))
SEED = int(os.environ.get("MODEL_SEED", "1"))
EXAMPLES = 120  # of a round
SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    database=None,  # or a seed would not be all there is to it
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.usefixtures("no_threads")
@pytest.mark.allows_log("kept locked, trying again")
@pytest.mark.timeout(0 if SECONDS else 120)
def test_every_byte_is_legal_whatever_happens() -> None:
    end = time.monotonic() + SECONDS
    number, rounds = SEED, 0
    while True:
        try:
            _explore(number, DiskMachine, SETTINGS)
        except BaseException:
            print(f"\nTo repeat it: MODEL_SEED={number} python -m pytest {__file__}")
            raise
        rounds += 1
        if time.monotonic() >= end:
            break
        number = random.randrange(1 << 32)
    print(f"\n{rounds} rounds of {EXAMPLES} examples, the last one from seed {number}")


@pytest.mark.usefixtures("no_threads")
@pytest.mark.allows_log("kept locked, trying again")
def test_seed_repeats_the_same_calls_of_the_store() -> None:
    short = settings(SETTINGS, max_examples=8, phases=[Phase.generate])
    runs: list[list[Counter[Call]]] = []
    for number in (5, 5, 6):
        runs.append([])

        class Traced(DiskMachine):
            def teardown(self) -> None:
                super().teardown()
                runs[-1].append(self.store.calls)

        _explore(number, Traced, short)
    assert runs[0] == runs[1] != runs[2]


def _explore(number: int, machine: type[DiskMachine], chosen: settings) -> None:
    seeded = seed(number)(type("Seeded", (machine,), {}))
    run_state_machine_as_test(seeded, settings=chosen)
