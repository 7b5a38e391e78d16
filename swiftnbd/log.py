# SPDX-License-Identifier: MIT
"""Where log lines go, and what they look like.

Modules log to ``logging.getLogger(__name__)``. Here they find only how to say what a line is
about, where the lines are read by machines: `about` for all that a task does, `Subject` for one
line.
"""

import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from logging.handlers import SYSLOG_UDP_PORT, SysLogHandler, WatchedFileHandler
from pathlib import Path
from typing import Any

from swiftnbd.errors import ConfigError

SYSLOG_SOCKET = "/dev/log"

# A peer, or a store that is down, can cause the same line any number of times. So many of a kind
# in so many seconds tell the story; what is left out is counted. A disk that fills up with a log
# would be one more victim.
LINES_OF_A_KIND_MAX = 200
KIND_SECONDS = 60.0
SLOW_LINES_MAX = 20  # of slow requests: an outage makes many, and each is like the others
SLOW = {"lines_max": SLOW_LINES_MAX}  # the ``extra`` of their lines

_LINE = "%(asctime)s: swiftnbd: %(levelname)s: %(message)s"
_SYSLOG_TAG = "swiftnbd[%(process)d]: "
_SYSLOG_LINE = _SYSLOG_TAG + "%(levelname)s: %(message)s"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# asyncio reports tasks that failed unseen; without this they would end in /dev/null
_LOGGERS = ("swiftnbd", "asyncio")

log = logging.getLogger(__name__)

_ABOUT: ContextVar[Mapping[str, str]] = ContextVar("about", default={})  # noqa: B039 - never changed


def about(**names: str) -> None:
    """From now on this task, and every one that it starts, works for these: "export", "client"."""
    _ABOUT.set({**_ABOUT.get(), **names})


class Subject(str):
    """What a line begins with, and in it what can be named: "export", "client"."""

    names: Mapping[str, str]

    def __new__(cls, text: str, **names: str) -> "Subject":
        subject = super().__new__(cls, text)
        subject.names = names
        return subject


class LogFormat(Enum):
    """How a server's log lines look."""

    TEXT = "text"
    JSON = "json"


class JsonLines(logging.Formatter):
    """One JSON object a line, in ASCII: whatever a peer calls itself, it stays a string in it.

    ``time`` (UTC), ``level``, ``logger``, ``message``; ``export`` and ``client`` where they are
    known; ``traceback`` where something failed that should not.
    """

    def __init__(self, tag: str = "") -> None:
        """``tag`` is put before each object, formatted."""
        super().__init__()
        self._tag = tag

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        values: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_ABOUT.get(),
        }
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, Subject):
                values |= argument.names
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return self._tag % record.__dict__ + json.dumps(values)


class OneLine(logging.Formatter):
    """Keeps a message on one line: what a peer or a container sends cannot forge another."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return _CONTROL.sub(lambda match: repr(match[0])[1:-1], super().formatMessage(record))


class _LogFile(WatchedFileHandler):
    """Follows logrotate. If a line cannot be written, or the new file not be made, lines are lost,
    and nothing else: standard error is told once, until one is written again.
    """

    _loses = _failed = False  # up to the line before, and this one

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)
        self._loses = self._failed

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)  # a bug of ours, with its traceback
            return
        self._failed = True
        if not self._loses and sys.stderr is not None:
            with suppress(OSError):
                text = f"cannot write log file {self.baseFilename}: {error.strerror}"
                print(f"swiftnbd: {text}; lines are lost", file=sys.stderr, flush=True)


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
        if kind.lines <= getattr(record, "lines_max", LINES_OF_A_KIND_MAX):
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


def log_for_server(
    *, verbose: bool, syslog: bool, log_file: str | None, style: LogFormat = LogFormat.TEXT
) -> None:
    """Log to syslog (facility local0), to ``log_file`` or to stderr."""
    handler: logging.Handler
    if syslog:
        handler, tag, line = _syslog_handler(), _SYSLOG_TAG, _SYSLOG_LINE
    else:
        handler = _file_handler(log_file) if log_file else logging.StreamHandler()
        tag, line = "", _LINE
    handler.setFormatter(JsonLines(tag) if style is LogFormat.JSON else OneLine(line))
    handler.addFilter(FewOfAKind())
    _install(handler, logging.DEBUG if verbose else logging.INFO)


def log_file_descriptors() -> list[int]:
    """Those of the files into which is logged."""
    handlers = logging.getLogger(_LOGGERS[0]).handlers
    streams = [handler.stream for handler in handlers if isinstance(handler, _LogFile)]
    return [stream.fileno() for stream in streams if stream]  # None: the last line was lost


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
        return _LogFile(path, encoding="utf-8")
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
