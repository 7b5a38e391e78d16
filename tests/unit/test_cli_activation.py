# SPDX-License-Identifier: MIT
import os

import pytest

from swiftnbd.cli.activation import take_handed_over
from swiftnbd.errors import ConfigError

OURS = str(os.getpid())


def test_descriptors_follow_standard_error() -> None:
    environment = {"LISTEN_PID": OURS, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/"}
    assert take_handed_over(environment) == (3, 4)
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(
    "pid", ["1", "", "x", OURS + "0", f" {OURS}"], ids=["init", "none", "word", "longer", "blank"]
)
def test_what_is_meant_for_another_process_is_ignored_and_forgotten(pid: str) -> None:
    environment = {"LISTEN_PID": pid, "LISTEN_FDS": "2"}
    assert take_handed_over(environment) == ()
    assert environment == {}


def test_nothing_is_handed_over_as_a_rule() -> None:
    assert take_handed_over({}) == ()


@pytest.mark.parametrize("count", ["", "0", "-1", "x", "1025", "1" * 5000, "\u0661"])
def test_number_that_makes_no_sense_is_refused(count: str) -> None:
    with pytest.raises(ConfigError, match=r"LISTEN_FDS is .*, not a number from 1 to 1024"):
        take_handed_over({"LISTEN_PID": OURS, "LISTEN_FDS": count})
