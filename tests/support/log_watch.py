# SPDX-License-Identifier: MIT
"""Pytest plugin: a WARNING or ERROR of ours that no test announced fails that test.

Announce one with the marker ``@pytest.mark.expects_log("regex")`` or, where the text is known
only later, with the fixture: ``expects_log("regex")``. What is announced must come. A line that
may or may not come (a race decides) is ``allows_log("regex")``, marker or fixture.
"""

import gc
import logging
import re
from collections.abc import Callable, Generator, Iterator

import pytest

WATCHED = ("swiftnbd", "asyncio")

Announce = Callable[[str], None]


class LogWatch(logging.Handler):
    """Collects the messages of the watched loggers from WARNING up.

    It listens at the root: the programs' own set-up, run by a test in this process, replaces
    the handlers of the watched loggers.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.expected: list[str] = []
        self.allowed: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] in WATCHED:
            self.lines.append(self.format(record))

    def unexpected(self) -> list[str]:
        """The lines that nobody announced."""
        known = [re.compile(regex) for regex in self.expected + self.allowed]
        return [line for line in self.lines if not any(regex.search(line) for regex in known)]

    def missing(self) -> list[str]:
        """The announced expressions that matched no line."""
        return [
            regex for regex in self.expected if not any(re.search(regex, x) for x in self.lines)
        ]


def pytest_collection_finish(session: pytest.Session) -> None:
    _freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    yield
    if nextitem is None or nextitem.path != item.path:
        _freeze()


def _freeze() -> None:
    """Spare the collection after each test all that is there now: it would be most of its cost.

    What is imported, and what is left of a file when its last test is torn down, is there to stay.
    """
    gc.collect()
    gc.freeze()


def _is_news(record: logging.LogRecord) -> bool:
    """Not that a callback took long: asyncio's debug mode says so on any busy machine."""
    return not re.match(r"Executing .* took ", str(record.msg))


def pytest_configure(config: pytest.Config) -> None:
    # at the logger: a program run in this process would print it among its messages
    logging.getLogger("asyncio").addFilter(_is_news)
    for name, verb in (("expects_log", "must"), ("allows_log", "may")):
        config.addinivalue_line("markers", f"{name}(regex): a WARNING or ERROR that {verb} come")


@pytest.fixture(autouse=True)
def log_watch(request: pytest.FixtureRequest) -> Iterator[LogWatch]:
    """Watches one test; it is the first fixture set up and the last torn down."""
    watch = LogWatch()
    watch.expected += _marked(request, "expects_log")
    watch.allowed += _marked(request, "allows_log")
    loggers = [logging.getLogger(name) for name in WATCHED]
    before = [(logger.handlers[:], logger.level) for logger in loggers]
    logging.getLogger().addHandler(watch)
    yield watch
    gc.collect()  # "Task exception was never retrieved" is said when the task is collected
    logging.getLogger().removeHandler(watch)
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)
    if unexpected := watch.unexpected():
        pytest.fail("unexpected in the log:\n" + "\n".join(unexpected), pytrace=False)
    if missing := watch.missing():
        pytest.fail(f"announced for the log, but never logged: {missing}", pytrace=False)


@pytest.fixture
def expects_log(log_watch: LogWatch) -> Announce:
    """Announce a WARNING or ERROR that must come."""
    return log_watch.expected.append


@pytest.fixture
def allows_log(log_watch: LogWatch) -> Announce:
    """Announce a WARNING or ERROR that may come."""
    return log_watch.allowed.append


def _marked(request: pytest.FixtureRequest, name: str) -> list[str]:
    return [regex for marker in request.node.iter_markers(name) for regex in marker.args]
