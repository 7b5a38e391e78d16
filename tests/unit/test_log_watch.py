# SPDX-License-Identifier: MIT
"""The log watcher itself: it must fail what it should, or it is worth nothing."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

INNER_TESTS = """
    import asyncio
    import logging
    import pytest

    log = logging.getLogger("swiftnbd")

    def test_info_passes(): log.info("fine")
    def test_other_logger_passes(): logging.getLogger("other").error("not ours")
    def test_slow_callback_is_not_even_logged_and_passes(caplog):
        logging.getLogger("asyncio").warning("Executing %s took %.3f seconds", "<x>", 1.0)
        assert not caplog.records
    def test_expected_passes(expects_log): expects_log("od+"); log.warning("odd")
    @pytest.mark.expects_log("od+")
    def test_marked_passes(): log.warning("odd")
    def test_allowed_and_missing_passes(allows_log): allows_log("odd")
    def test_allowed_and_logged_passes(allows_log): allows_log("odd"); log.warning("odd")

    def test_warning_fails(): log.warning("odd")
    def test_error_of_a_child_fails(): logging.getLogger("swiftnbd.store").error("odd")
    def test_announced_but_missing_fails(expects_log): expects_log("odd")
    def test_another_one_announced_fails(allows_log): allows_log("even"); log.warning("odd")
    def test_lost_task_exception_fails():
        async def broken(): raise ValueError
        async def lose(): asyncio.ensure_future(broken()); await asyncio.sleep(0)
        asyncio.run(lose())
"""


def test_log_watch_fails_exactly_the_tests_it_should(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(INNER_TESTS)
    result = pytester.runpytest_subprocess("-p", "tests.support.log_watch", "-rE")
    result.assert_outcomes(passed=12, errors=INNER_TESTS.count("_fails("))
    failed = [line for line in result.outlines if line.startswith("ERROR test_")]
    assert all("_fails" in line for line in failed), failed
