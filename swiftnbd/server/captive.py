# SPDX-License-Identifier: MIT
"""A command that the server lives as long as (``--run``).

It runs in a process group of its own, so that nothing of it is left behind when we are told to
stop; on a terminal that group is put in the foreground as a shell would do it, so that the
command can read from it and Ctrl-C reaches the command, not us.
"""

import asyncio
import logging
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress

from swiftnbd.errors import SwiftnbdError

SHELL = "/bin/sh"
END_SECONDS_MAX = 10.0  # after SIGTERM, for a client to flush and disconnect

_GROUP_POLL_SECONDS = 0.02  # nothing tells when a process group has become empty

log = logging.getLogger(__name__)


class Captive:
    """``command``, for a shell, and its environment."""

    def __init__(self, command: str, environment: Mapping[str, str]) -> None:
        self._command = command
        self._environment = environment

    async def run(self, stop: asyncio.Event, force: asyncio.Event) -> int:
        """Run it to its end; its exit code, 128 + N if signal N killed it.

        ``stop`` ends it and all it has started, ``force`` does so at once.
        """
        terminal = _our_terminal()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - no longer than a fork takes
                [SHELL, "-c", self._command], env=self._environment, process_group=0
            )
        except OSError as error:
            raise SwiftnbdError(f"cannot run {SHELL}: {error.strerror}") from None
        if terminal is not None:
            _put_in_foreground(terminal, process.pid)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)  # it may have read before that
        try:
            await self._wait(process, stop, force)
        finally:
            if terminal is not None:
                _put_in_foreground(terminal, os.getpgrp())
        code = process.returncode
        return code if code >= 0 else 128 - code  # as a shell names a death by signal

    async def _wait(
        self, process: subprocess.Popen[bytes], stop: asyncio.Event, force: asyncio.Event
    ) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        descriptor = os.pidfd_open(process.pid)
        loop.add_reader(descriptor, ended.set)
        try:
            if not await _first(ended, stop):
                await self._end(process, force)
            else:
                process.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    async def _end(self, process: subprocess.Popen[bytes], force: asyncio.Event) -> None:
        """End the whole group: those that the shell waited for may need longer than it."""
        log.info("ending the command")
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            os.killpg(process.pid, signal.SIGCONT)  # what is stopped would not notice
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS_MAX):
                while not force.is_set() and _is_alive(process):  # noqa: ASYNC110
                    await asyncio.sleep(_GROUP_POLL_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_alive(process: subprocess.Popen[bytes]) -> bool:
    """Whether anything is left of its group. (Its number is not used again before.)"""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


async def _first(one: asyncio.Event, other: asyncio.Event) -> bool:
    """Wait for one of two events; whether ``one`` has happened."""
    tasks = [asyncio.ensure_future(event.wait()) for event in (one, other)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return one.is_set()


def _our_terminal() -> int | None:
    """Standard input, if that is a terminal and we are in its foreground."""
    try:
        return 0 if os.tcgetpgrp(0) == os.getpgrp() else None
    except OSError:
        return None


def _put_in_foreground(terminal: int, group: int) -> None:
    # who does that from the background is stopped, unless it blocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        with suppress(OSError):  # the terminal has gone, or the group has
            os.tcsetpgrp(terminal, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
