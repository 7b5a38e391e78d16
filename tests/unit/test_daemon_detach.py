# SPDX-License-Identifier: MIT
"""Detaching, seen from outside: each case is a small program in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

PRELUDE = """
import os, signal, sys
from swiftnbd.server.daemon import run_detached
"""


def run(body: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the program to the exit of its parent process; ``report`` is a file of its child."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", PRELUDE + body],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **options,
    )


def test_parent_ends_with_0_once_the_child_is_ready(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    done = run(f"""
def work(ready):
    print("nbd://ready")
    ready()
    with open({str(fifo)!r}, "w") as report:
        print(os.getpid() == os.getsid(0), os.getcwd(), file=report)
        for fd in (0, 1, 2):
            print(os.readlink(f"/proc/self/fd/{{fd}}"), file=report)
    return 7
sys.exit(run_detached(work))
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "nbd://ready\n", "")
    assert fifo.read_text().splitlines() == ["True /", *["/dev/null"] * 3]


def test_failure_before_ready_reaches_terminal_and_exit_code() -> None:
    done = run("""
def work(ready):
    print("cannot listen", file=sys.stderr)
    return 2
sys.exit(run_detached(work))
""")
    assert (done.returncode, done.stderr) == (2, "cannot listen\n")


def test_child_killed_before_ready_is_told_as_a_shell_does() -> None:
    done = run("sys.exit(run_detached(lambda ready: os.kill(os.getpid(), signal.SIGKILL)))")
    assert done.returncode == 128 + signal.SIGKILL


def test_child_gives_up_if_nobody_waits_for_it_any_more() -> None:
    # stdout ends when both processes have: the child must not stay behind
    done = run("""
def work(ready):
    os.kill(os.getppid(), signal.SIGKILL)
    while os.getppid() == parent:
        pass
    try:
        ready()
    except Exception as error:
        print(error)
    return 1
parent = os.getpid()
sys.exit(run_detached(work))
""")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "the process that started this one is gone: giving up\n"
