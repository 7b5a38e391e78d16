# SPDX-License-Identifier: MIT
"""The lock in ten thousand schedules. A failure prints the seed to repeat it with.

That takes fifty seconds of one core; each test has a part of it, so a slow machine is only slow.
More than what runs by default: ``LOCK_SCHEDULES=1000000 pytest tests/model/test_lock.py``.
"""

import logging
import os
from collections.abc import Iterator

import pytest

from swiftnbd.export import lock as lock_module
from swiftnbd.export import pace as pace_module
from swiftnbd.export.process import Process
from tests.model.lock_model import EPOCHS_KEPT, PUT_SECONDS, RENEWALS, Processes, explore
from tests.model.lock_mutants import MUTANTS, Plant

SCHEDULES = int(os.environ.get("LOCK_SCHEDULES", "10000"))
SCHEDULES_PER_TEST = 500  # 3 s: it may take forty times as long
SCHEDULES_PER_FLAW = 8000  # each is found within the first 500
TENURES_MIN = 4  # per schedule, on average: a lock that nobody ever gets is safe too


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    processes = Processes()
    monkeypatch.setattr(pace_module, "PUT_SECONDS_MAX", PUT_SECONDS)
    monkeypatch.setattr(pace_module, "RENEWALS_PER_TERM", RENEWALS)
    monkeypatch.setattr(lock_module, "EPOCHS_KEPT", EPOCHS_KEPT)
    monkeypatch.setattr(lock_module, "current_process", processes.current)
    monkeypatch.setattr(Process, "is_dead", lambda self: processes.is_dead(self))
    logging.disable()  # most of the time would be spent on it
    yield processes
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(0, SCHEDULES, SCHEDULES_PER_TEST))
def test_never_two_may_write_and_nothing_stored_is_lost(processes: Processes, first: int) -> None:
    tenures = 0
    for seed in range(first, first + SCHEDULES_PER_TEST):
        try:
            tenures += explore(seed, processes).tenures
        except AssertionError as error:
            pytest.fail(f"seed {seed}: {error}")
    assert tenures >= TENURES_MIN * SCHEDULES_PER_TEST


@pytest.mark.timeout(300)  # found after 3 s on average
@pytest.mark.parametrize("plant", MUTANTS, ids=lambda plant: plant.__name__)
def test_planted_flaw_is_found(
    plant: Plant, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in range(SCHEDULES_PER_FLAW):
        try:
            explore(seed, processes)
        except AssertionError:
            return
    pytest.fail(f"not found in {SCHEDULES_PER_FLAW} schedules")
