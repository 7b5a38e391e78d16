# SPDX-License-Identifier: MIT
"""Where log lines go. Modules log to ``logging.getLogger(__name__)`` and never look here."""

import logging
import re
import time
from dataclasses import dataclass
from logging.handlers import SYSLOG_UDP_PORT, SysLogHandler, WatchedFileHandler
from pathlib import Path

from swiftnbd.errors import ConfigError

SYSLOG_SOCKET = "/dev/log"

# A peer, or a store that is down, can cause the same line any number of times. So many of a kind
# in so many seconds tell the story; what is left out is counted. A disk that fills up with a log
# would be one more victim.
LINES_OF_A_KIND_MAX = 200
KIND_SECONDS = 60.0

_LINE = "%(asctime)s: swiftnbd: %(levelname)s: %(message)s"
_SYSLOG_LINE = "swiftnbd[%(process)d]: %(levelname)s: %(message)s"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# asyncio reports tasks that failed unseen; without this they would end in /dev/null
_LOGGERS = ("swiftnbd", "asyncio")

log = logging.getLogger(__name__)


class OneLine(logging.Formatter):
    """Keeps a message on one line: what a peer or a container sends cannot forge another."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return _CONTROL.sub(lambda match: repr(match[0])[1:-1], super().formatMessage(record))


@dataclass(slots=True)
class _Kind:
    """Lines from one place in the code: since when they are counted, and what was left out."""

    since: float
    lines: int = 0
    left_out: int = 0
    last: str = ""


class FewOfAKind(logging.Filter):
    """Leaves out what is repeated without end; says so, with the number, when time is up.

    DEBUG is exempt: who asks for everything gets it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, int], _Kind] = {}  # as many as there are places

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        now = time.monotonic()
        self._report(now)
        kind = self._kinds.setdefault((record.pathname, record.lineno), _Kind(now))
        kind.lines += 1
        if kind.lines <= LINES_OF_A_KIND_MAX:
            return True
        kind.left_out += 1
        kind.last = record.getMessage()
        return False

    def _report(self, now: float) -> None:
        for place, kind in list(self._kinds.items()):
            if now - kind.since < KIND_SECONDS:
                continue
            # what we log comes through here too, and other threads do
            if self._kinds.pop(place, None) is kind and kind.left_out:
                log.warning(
                    "%d more lines were left out that are like this: %s", kind.left_out, kind.last
                )


class _Plain(OneLine):
    """``swiftnbd-ctl: message``; the level only where it matters."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        return f"swiftnbd-ctl: {level}{line}"


def log_for_server(*, verbose: bool, syslog: bool, log_file: str | None) -> None:
    """Log to syslog (facility local0), to ``log_file`` or to stderr."""
    handler: logging.Handler
    if syslog:
        handler = _syslog_handler()
        handler.setFormatter(OneLine(_SYSLOG_LINE))
    else:
        handler = _file_handler(log_file) if log_file else logging.StreamHandler()
        handler.setFormatter(OneLine(_LINE))
    handler.addFilter(FewOfAKind())
    _install(handler, logging.DEBUG if verbose else logging.INFO)


def log_for_ctl(*, verbose: bool) -> None:
    """Plain sentences on stderr; what is no warning is for ``-v`` only."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(message)s"))
    _install(handler, logging.DEBUG if verbose else logging.WARNING)


def _install(handler: logging.Handler, level: int) -> None:
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for old in logger.handlers[:]:
            logger.removeHandler(old)
            old.close()
        logger.addHandler(handler)
        logger.setLevel(level)


def _file_handler(path: str) -> logging.Handler:
    try:
        return WatchedFileHandler(path, encoding="utf-8")  # follows logrotate
    except OSError as error:
        raise ConfigError(f"cannot write log file {path}: {error.strerror}") from None


def _syslog_handler() -> logging.Handler:
    facility = SysLogHandler.LOG_LOCAL0
    # the handler does not report a missing socket, so look before
    if Path(SYSLOG_SOCKET).exists():
        return SysLogHandler(SYSLOG_SOCKET, facility)
    try:
        return SysLogHandler(("127.0.0.1", SYSLOG_UDP_PORT), facility)
    except OSError as error:
        raise ConfigError(f"cannot reach syslog: {error}") from None
