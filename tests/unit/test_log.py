# SPDX-License-Identifier: MIT
import contextvars
import json
import logging
import re
import socket
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

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


def test_log_file_that_cannot_be_made_anew_costs_lines_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a logrotate in a folder where a server that gave up root may make no file."""
    folder = tmp_path / "folder"
    folder.mkdir()
    log.log_for_server(verbose=False, syslog=False, log_file=f"{folder}/log")
    logger.info("one")
    folder.rename(tmp_path / "old")
    for _ in range(2):
        logger.info("two")
    assert log.log_file_descriptors() == []
    folder.mkdir()
    logger.info("three")
    assert (folder / "log").read_text().endswith("INFO: three\n")
    assert len(log.log_file_descriptors()) == 1
    error = f"cannot write log file {folder}/log: No such file or directory; lines are lost"
    assert capsys.readouterr().err == f"swiftnbd: {error}\n"
    _close_handlers()


def test_full_disk_under_the_log_is_one_sentence_however_many_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.log_for_server(verbose=False, syslog=False, log_file="/dev/full")
    for _ in range(3):
        logger.info("line")
    error = "cannot write log file /dev/full: No space left on device; lines are lost"
    assert capsys.readouterr().err == f"swiftnbd: {error}\n"
    with suppress(OSError):  # it tries to write what it still has
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


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.expects_log("boom")
def test_json_line_is_an_object_with_all_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    log.log_for_server(verbose=False, syslog=False, log_file=None, style=log.LogFormat.JSON)
    context = contextvars.copy_context()
    context.run(log.about, export="disk", client="of the task")
    context.run(logger.info, "%s: said %d", log.Subject("c disk", client="of the line"), 7)
    logger.info("of nobody")
    try:
        raise ValueError("x")
    except ValueError:
        logger.exception("boom")
    said, plain, failed = json_lines(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said.pop("time"))
    assert said == {
        "level": "INFO",
        "logger": "swiftnbd.some.module",
        "message": "c disk: said 7",
        "export": "disk",
        "client": "of the line",
    }
    assert set(plain) == {"time", "level", "logger", "message"}
    assert failed["level"] == "ERROR"
    assert failed["traceback"].startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize(
    "name",
    ['"}\n{"level": "ERROR', "a\u2028b\x85c\x00\x1b[0m", "\udcff"],
    ids=["newline", "separators", "surrogate"],  # the names themselves cannot all be printed
)
def test_hostile_name_stays_a_string_of_one_json_line(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's own record of the log is sent between processes, and not all of it can be
    monkeypatch.setattr(logging.getLogger("swiftnbd"), "propagate", False)
    log.log_for_server(verbose=False, syslog=False, log_file=None, style=log.LogFormat.JSON)
    logger.info("%s: refused", log.Subject(name, export=name))
    text = capsys.readouterr().err
    assert text.isascii()
    assert text.count("\n") == 1
    assert text[:-1].isprintable()
    line = json.loads(text)
    assert (line["message"], line["export"]) == (f"{name}: refused", name)


def test_json_goes_to_syslog_behind_its_tag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = str(tmp_path / "log")
    monkeypatch.setattr(log, "SYSLOG_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(path)
        log.log_for_server(verbose=False, syslog=True, log_file=None, style=log.LogFormat.JSON)
        logger.info("100%% %s", "sure\n")
        received = syslog.recv(1000)
    match = re.fullmatch(rb"<134>swiftnbd\[\d+\]: (\{.*\})\x00", received)
    assert match
    assert json.loads(match[1])["message"] == "100% sure\n"
    _close_handlers()


@pytest.mark.expects_log("more lines were left out")
def test_slow_requests_have_a_limit_of_their_own(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    log.log_for_server(verbose=False, syslog=False, log_file=None)
    for number in range(5):
        logger.info("slow: %d", number, extra={"lines_max": 2})
    assert _messages(capsys) == ["INFO: slow: 0", "INFO: slow: 1"]
    clock.append(clock[-1] + log.KIND_SECONDS)
    _flood(1)
    assert "3 more lines were left out that are like this: slow: 4" in _messages(capsys)[0]


@pytest.mark.expects_log("careful")
def test_ctl_says_plain_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    log.log_for_ctl(verbose=False)
    logger.info("not for everybody")
    logger.warning("careful")
    assert capsys.readouterr().err == "swiftnbd-ctl: WARNING: careful\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the time is: its last item. Three lines of a kind are enough."""
    monkeypatch.setattr(log, "LINES_OF_A_KIND_MAX", 3)
    now = [100.0]
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: now[-1]))
    return now


def _flood(times: int, kind: str = "a") -> None:
    for number in range(times):
        if kind == "a":
            logger.info("peer %d is refused", number)
        else:
            logger.info("something else")


@pytest.mark.expects_log("^WARNING swiftnbd.log: 7 more lines .* like this: peer 9 is refused$")
def test_line_that_comes_without_end_is_left_out_and_counted(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    log.log_for_server(verbose=False, syslog=False, log_file=None)
    _flood(10)
    assert _messages(capsys) == [f"INFO: peer {number} is refused" for number in range(3)]
    _flood(2, "b")  # others are not concerned
    assert _messages(capsys) == ["INFO: something else"] * 2
    clock.append(clock[-1] + log.KIND_SECONDS)
    _flood(1, "b")
    assert _messages(capsys) == [
        "WARNING: 7 more lines were left out that are like this: peer 9 is refused",
        "INFO: something else",
    ]
    _flood(4)
    assert len(_messages(capsys)) == 3


def test_lines_of_a_kind_now_and_then_are_all_shown(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    log.log_for_server(verbose=False, syslog=False, log_file=None)
    for _ in range(5):
        _flood(3)
        clock.append(clock[-1] + log.KIND_SECONDS)
    assert len(_messages(capsys)) == 15


def test_debug_lines_are_never_left_out(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    log.log_for_server(verbose=True, syslog=False, log_file=None)
    for _ in range(10):
        logger.debug("request")
    assert len(_messages(capsys)) == 10


def _messages(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr since the last call, without the time."""
    return [line.split(": swiftnbd: ")[1] for line in capsys.readouterr().err.splitlines()]


def _close_handlers() -> None:
    for handler in logging.getLogger("swiftnbd").handlers:
        handler.close()
