# SPDX-License-Identifier: MIT
"""The test of the test: the model finds every planted bug, within a bounded number of examples.

Among them are the classic ones: `stored_is_marked_before_the_put`, `flush_error_is_swallowed`,
`read_modify_write_is_not_atomic`, and `clear_leaves_clean_blocks_in_the_cache` (a stale read after
a trim).
"""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import DiskMachine
from tests.model.mutants import MUTANTS, Plant

SETTINGS = settings(
    max_examples=600,
    derandomize=True,
    stateful_step_count=30,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    phases=[Phase.generate],  # that it is found is enough; shrinking takes long
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.usefixtures("no_threads")
@pytest.mark.allows_log("")  # whatever a broken engine says, or leaves behind
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(240)  # each takes less than a minute, on a machine that does nothing else
@pytest.mark.parametrize("plant", MUTANTS, ids=lambda plant: plant.__name__)
def test_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, KeyError, BaseExceptionGroup)):
        run_state_machine_as_test(DiskMachine, settings=SETTINGS)
