# SPDX-License-Identifier: MIT
"""The engine against the oracle. A failure prints the rules to repeat it with.

More than what runs by default: ``MODEL_EXAMPLES=5000 pytest tests/model``, drawn at random.
"""

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import DiskMachine

EXAMPLES = os.environ.get("MODEL_EXAMPLES")
SETTINGS = settings(
    max_examples=int(EXAMPLES or 120),
    derandomize=EXAMPLES is None,
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.usefixtures("no_threads")
@pytest.mark.allows_log("kept locked, trying again")
@pytest.mark.timeout(0 if EXAMPLES else 120)
def test_every_byte_is_legal_whatever_happens() -> None:
    run_state_machine_as_test(DiskMachine, settings=SETTINGS)
