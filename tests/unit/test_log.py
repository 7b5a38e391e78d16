# SPDX-License-Identifier: MIT
import logging
import re
import socket
from pathlib import Path

import pytest

from swiftnbd import log
from swiftnbd.errors import ConfigError

logger = logging.getLogger("swiftnbd.some.module")


def test_stderr_line_is_that_of_the_old_version(capsys: pytest.CaptureFixture[str]) -> None:
    log.log_for_server(verbose=False, syslog=False, log_file=None)
    logger.info("Starting %s", "now")
    logger.debug("not shown")
    line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}: swiftnbd: INFO: Starting now\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_verbose_shows_debug_lines(capsys: pytest.CaptureFixture[str]) -> None:
    log.log_for_server(verbose=True, syslog=False, log_file=None)
    logger.debug("shown")
    assert capsys.readouterr().err.endswith(": swiftnbd: DEBUG: shown\n")


def test_log_file_gets_every_line_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):  # set up again: the first handler is gone
        log.log_for_server(verbose=False, syslog=False, log_file=str(path))
    logger.info("line")
    assert path.read_text().count("line") == 1
    _close_handlers()


def test_bad_log_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot write log file {tmp_path}: Is a directory"):
        log.log_for_server(verbose=False, syslog=False, log_file=str(tmp_path))


def test_what_others_send_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.log_for_server(verbose=False, syslog=False, log_file=None)
    logger.info("export %s", "a\nb\x1b[0m")
    assert capsys.readouterr().err.endswith("INFO: export a\\nb\\x1b[0m\n")


@pytest.mark.allows_log("boom")
def test_traceback_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    log.log_for_server(verbose=False, syslog=False, log_file=None)
    try:
        raise ValueError("x")
    except ValueError:
        logger.exception("boom")
    assert "\nTraceback (most recent call last):\n" in capsys.readouterr().err


def test_syslog_gets_facility_local0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    monkeypatch.setattr(log, "SYSLOG_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(path)
        log.log_for_server(verbose=False, syslog=True, log_file=None)
        logger.info("hello")
        received = syslog.recv(1000)
    local0_info = (16 << 3) | 6
    assert re.fullmatch(rb"<%d>swiftnbd\[\d+\]: INFO: hello\x00" % local0_info, received)
    _close_handlers()


def test_syslog_without_its_socket_goes_over_udp(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(log, "SYSLOG_SOCKET", str(tmp_path / "none"))
    log.log_for_server(verbose=False, syslog=True, log_file=None)
    handler = logging.getLogger("swiftnbd").handlers[0]
    assert isinstance(handler, logging.handlers.SysLogHandler)
    assert handler.address == ("127.0.0.1", 514)
    _close_handlers()


@pytest.mark.expects_log("careful")
def test_ctl_says_plain_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    log.log_for_ctl(verbose=False)
    logger.info("not for everybody")
    logger.warning("careful")
    assert capsys.readouterr().err == "swiftnbd-ctl: WARNING: careful\n"


def _close_handlers() -> None:
    for handler in logging.getLogger("swiftnbd").handlers:
        handler.close()
