# SPDX-License-Identifier: MIT
"""From a program's start to its exit code: every failure becomes one sentence on stderr."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import click

from swiftnbd.cli.exits import Exit, exit_code
from swiftnbd.errors import SwiftnbdError
from swiftnbd.log import OneLine

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ONE_LINE = OneLine()
_END_OF_BAR = b"\r\x1b[2K\x1b[?25h"  # clears its line, and shows the cursor that it has hidden


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, after the work it stopped has cleaned up."""


def say(program: str, message: str) -> None:
    """One line for the person at the terminal, apart from what the program puts out."""
    line = _ONE_LINE.format(logging.makeLogRecord({"msg": message}))
    click.echo(f"{program}: {line}", err=True)


def run(command: click.Command, program: str, argv: Sequence[str] | None = None) -> int:
    """Run a click command; the exit code, once anything that went wrong has been said."""
    try:
        code = command.main(
            None if argv is None else list(argv), prog_name=program, standalone_mode=False
        )
        sys.stdout.flush()
    except click.ClickException as error:
        say(program, _usage_sentence(error))
        return Exit.USAGE
    except (click.Abort, KeyboardInterrupt, Interrupted):
        say(program, "interrupted")
        return Exit.INTERRUPTED
    except SwiftnbdError as error:
        say(program, str(error))
        return exit_code(error)
    except BrokenPipeError:
        return _reader_is_gone()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(program, f"{where}{error.strerror or error}")
        return Exit.FAILED
    return int(code or 0)


def leave(code: int) -> NoReturn:
    """End the process; after an interrupt without waiting for any thread.

    Nor for those of obstore: they cannot be told to end, and one that has something to say to an
    interpreter that is going away aborts the process.
    """
    if code == Exit.INTERRUPTED or "obstore" in sys.modules:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _usage_sentence(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    if isinstance(error, click.UsageError) and type(error).__name__ == "NoArgsIsHelpError":
        message = "a command is missing"  # its own message is the whole help text
    else:
        message = " ".join(error.format_message().split()).rstrip(".")
    return f"{message}; try: {context.command_path} --help" if context else message


def _reader_is_gone() -> int:
    """``| head`` took enough."""
    drop_output()
    return Exit.FAILED


def drop_output() -> None:
    """What could not be printed is of no use to anybody: Python would try, and fail, at exit."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_interruptible(program: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``work()`` in an event loop; SIGINT and SIGTERM cancel it, so that it cleans up."""
    import asyncio  # neither is needed for --help

    import uvloop

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_interruptible(program, work))
    finally:
        for number, handler in before.items():  # uvloop leaves those of the closed loop
            signal.signal(number, handler)


async def _interruptible(program: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    loop = asyncio.get_running_loop()
    task = loop.create_task(work())

    def interrupt() -> None:
        if task.cancelling():
            say(program, "interrupted twice: a container may stay locked (swiftnbd-ctl unlock)")
            with suppress(OSError):
                if os.isatty(2):  # not sys.stderr: while there is a bar, that is the bar's
                    os.write(2, _END_OF_BAR)
            os._exit(Exit.INTERRUPTED)
        task.cancel()

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            loop.add_signal_handler(number, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        # Closing the loop would wait for the threads of this one; what they do, a login that
        # takes its time, no longer matters.
        loop.set_default_executor(ThreadPoolExecutor())
        raise Interrupted from None
