# SPDX-License-Identifier: MIT
"""Whether a device may serve: open, closed for a while, closed for good."""

from errno import ESHUTDOWN

import pytest

from swiftnbd.errors import ExportError
from swiftnbd.export.gate import Gate
from tests.support.disks import begun

GONE = ExportError(ESHUTDOWN, "gone")


async def test_open_gate_is_passed_at_once() -> None:
    gate = Gate()
    assert gate.is_open
    assert (await begun(gate.passing())).done()


async def test_closed_gate_is_passed_when_it_opens() -> None:
    gate = Gate()
    gate.close()
    assert not gate.is_open
    waiting = [await begun(gate.passing()) for _ in range(2)]
    assert not any(task.done() for task in waiting)
    gate.open()
    assert gate.is_open
    for task in waiting:
        await task


async def test_gate_closed_again_before_a_waiter_ran_stops_it() -> None:
    gate = Gate()
    gate.close()
    waiting = await begun(gate.passing())
    gate.open()
    gate.close()
    again = await begun(gate.passing())
    assert (waiting.done(), again.done()) == (False, False)
    gate.open()
    await waiting
    await again


@pytest.mark.parametrize("closed_before", [False, True])
async def test_failed_gate_raises_for_those_who_wait_and_those_who_come(
    closed_before: bool,
) -> None:
    gate = Gate()
    if closed_before:
        gate.close()
        waiting = await begun(gate.passing())
    gate.fail(GONE)
    if closed_before:
        with pytest.raises(ExportError, match="gone"):
            await waiting
    with pytest.raises(ExportError, match="gone"):
        await gate.passing()
    assert not gate.is_open


async def test_failed_gate_never_opens_again() -> None:
    gate = Gate()
    gate.fail(GONE)
    with pytest.raises(AssertionError):
        gate.open()
