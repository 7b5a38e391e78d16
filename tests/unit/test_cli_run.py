# SPDX-License-Identifier: MIT
import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import click
import pytest

from swiftnbd.cli.run import run, run_interruptible, say
from swiftnbd.errors import ContainerMissing, Locked


def command(body: Callable[[], object]) -> click.Command:
    return click.Command("c", callback=body)


def raising(error: BaseException) -> click.Command:
    def body() -> None:
        raise error

    return command(body)


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_exit_code_is_what_the_command_returns(result: int | None, code: int) -> None:
    assert run(command(lambda: result), "prog", []) == code


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (Locked("d is in use by a:1", "a:1@2"), 3, "d is in use by a:1"),
        (ContainerMissing("d doesn't exist"), 4, "d doesn't exist"),
        (click.UsageError("that\nis  wrong."), 2, "that is wrong; try: prog --help"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file", "/x"), 1, "/x: No such file"),
        (OSError("odd"), 1, "odd"),
    ],
)
def test_every_failure_is_one_sentence_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, sentence: str
) -> None:
    assert run(raising(error), "prog", []) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.strip() == f"prog: {sentence}"  # ^C leaves an empty line first


def test_usage_error_points_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command(lambda: None), "prog", ["--nope"]) == 2
    assert capsys.readouterr().err == "prog: No such option '--nope'; try: prog --help\n"


def test_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()), "prog", [])


def test_line_cannot_be_forged(capsys: pytest.CaptureFixture[str]) -> None:
    say("prog", "a\nb\x1b[31m\u2028\x9b")
    assert capsys.readouterr().err == "prog: a\\nb\\x1b[31m\\u2028\\x9b\n"


def test_sentence_is_escaped_in_the_one_place_where_log_lines_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swiftnbd.log._CONTROL", re.compile("[\u202e]"))
    say("prog", "100%s \u202e")
    assert capsys.readouterr().err == "prog: 100%s \\u202e\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_lets_the_work_clean_up(
    capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    cleaned = []

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    assert run(command(lambda: run_interruptible("prog", work)), "prog", []) == 130
    assert cleaned == [True]
    assert capsys.readouterr().err == "prog: interrupted\n"


STUBBORN = """
import asyncio, os
from swiftnbd.cli.progress import progress
from swiftnbd.cli.run import run_interruptible

async def work():
    with progress("Working", 10, quiet=False, tell=print) as advance:
        while True:
            try:
                os.write(1, b"ready\\n")  # whatever is printed meanwhile goes above the bar
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

run_interruptible("prog", work)
"""


def test_cursor_is_there_again_after_an_interrupt_that_waits_for_nothing() -> None:
    terminal, its_side = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=its_side,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        os.close(its_side)
        assert process.stdout is not None
        for _ in range(2):
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    said = b""
    with suppress(OSError):  # EIO: nobody has the other side any more
        while part := os.read(terminal, 4096):
            said += part
    os.close(terminal)
    assert said.rindex(b"\x1b[?25h") > said.rindex(b"\x1b[?25l")
    assert b"interrupted twice" in said


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    async def work() -> int:
        return 7

    assert run_interruptible("prog", work) == 7
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_who_has_used_obstore_leaves_without_waiting_for_its_threads() -> None:
    """One of them could abort the process while the interpreter goes away."""
    code = (
        "import atexit, sys; from swiftnbd.cli.run import leave; "
        "atexit.register(lambda: print('late')); import obstore; print('said'); leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", "")
