# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter exitwhen PLUGIN exit-when-file-created=/run/stop``"""

import asyncio
import logging
import os
import select
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from swiftnbd.api import (
    PATH,
    ConfigError,
    Device,
    FilterPlugin,
    Kind,
    Opening,
    integer,
    parameter,
)
from swiftnbd.api.ending import ENDING
from swiftnbd.errors import Locked
from swiftnbd.filters.exitlast import Leaving

POLL_SECONDS: Final = 60.0
SCRIPT_SECONDS_MAX: Final = 60.0  # one that takes longer is killed: it would stay for ever
ASK_AGAIN_SECONDS: Final = 0.1  # until the server has started
INT_MAX: Final = 2**31 - 1  # C's, as which the kernel takes a descriptor or a process
HAPPENED: Final = 88  # a script's exit code

log = logging.getLogger(__name__)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 86400:
        raise ValueError
    return seconds


def _several(kind: Kind, help: str) -> Any:
    return parameter(kind, help, repeated=True)


@dataclass(slots=True)
class _State:
    connections: int = 0
    happened: str = ""  # what it was
    processes: list[int] = field(default_factory=list)  # descriptors
    watch: asyncio.Task[None] | None = None


@dataclass(frozen=True)
class ExitWhen(FilterPlugin):
    """The server ends when something happens, and the last connection has ended.

    New connections are refused from then on.
    """

    per_connection = True

    exit_when_file_created: tuple[Path, ...] = _several(PATH, "This file appears.")
    exit_when_file_deleted: tuple[Path, ...] = _several(PATH, "This file is gone.")
    exit_when_pipe_closed: tuple[int, ...] = _several(
        integer(0, INT_MAX), "The other end of the pipe with this descriptor is closed."
    )
    exit_when_process_exits: tuple[int, ...] = _several(integer(1, INT_MAX), "This process ends.")
    exit_when_script: str = parameter(
        Kind("COMMAND", "a command", str), "This command ends with code 88.", default=""
    )
    exit_when_poll: float = parameter(
        Kind("SECONDS", "seconds, up to a day", _seconds, lambda value: f"{value:g}"),
        "Time between looks.",
        default=POLL_SECONDS,
    )

    _state: _State = field(init=False, compare=False, repr=False, default_factory=_State)

    async def start(self) -> None:
        for descriptor in self.exit_when_pipe_closed:
            try:
                os.fstat(descriptor)
            except OSError:
                raise ConfigError(
                    f"descriptor {descriptor} of exit-when-pipe-closed is not open"
                ) from None
        for pid in self.exit_when_process_exits:
            try:
                self._state.processes.append(os.pidfd_open(pid))
            except ProcessLookupError:
                self._state.happened = f"process {pid} has ended"
        self._state.watch = asyncio.get_running_loop().create_task(self._watch())

    async def wrap(self, device: Device, opening: Opening) -> Device:
        if opening.client is None:  # who only wants to know what there would be
            return device
        self._look()
        if self._state.happened:
            self._end_if_over()
            raise Locked(f"the server ends, as {self._state.happened}", "")
        self._state.connections += 1
        return Leaving(device, self._left)

    async def stop(self) -> None:
        state = self._state
        if state.watch is not None:
            state.watch.cancel()
            await asyncio.gather(state.watch, return_exceptions=True)
            state.watch = None
        while state.processes:
            os.close(state.processes.pop())

    def _left(self) -> None:
        self._state.connections -= 1
        self._look()
        self._end_if_over()

    async def _watch(self) -> None:
        state = self._state
        while not state.happened:
            self._look()
            if not state.happened and self.exit_when_script:
                await self._run_script(self.exit_when_script)
            if not state.happened:
                await asyncio.sleep(self.exit_when_poll)
        while not state.connections and not self._end_if_over():  # noqa: ASYNC110
            await asyncio.sleep(ASK_AGAIN_SECONDS)

    def _end_if_over(self) -> bool:
        """Whether the server has been asked to end."""
        is_over = bool(self._state.happened) and not self._state.connections
        if is_over and ENDING.ask():
            log.info("the server ends, as %s", self._state.happened)
            return True
        return False

    def _look(self) -> None:
        """Whatever can be seen at once."""
        if self._state.happened:
            return
        for path in self.exit_when_file_created:
            if _is_there(path) is True:
                self._state.happened = f"there is {path}"
        for path in self.exit_when_file_deleted:
            if _is_there(path) is False:
                self._state.happened = f"{path} is gone"
        for descriptor in self.exit_when_pipe_closed:
            if _events(descriptor, 0) & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                self._state.happened = f"the pipe of descriptor {descriptor} is closed"
        for descriptor in self._state.processes:
            if _events(descriptor, select.POLLIN):
                self._state.happened = "a process has ended"

    async def _run_script(self, script: str) -> None:
        nothing = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_shell(script, stdin=nothing)
        except OSError as error:
            log.error("exit-when-script cannot be run now: %s", error.strerror)
            return
        try:
            async with asyncio.timeout(SCRIPT_SECONDS_MAX):
                code = await process.wait()
        except TimeoutError:
            code = 1
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if code == HAPPENED:
            self._state.happened = "exit-when-script says so"
        elif code:
            log.error("exit-when-script: exit code %d", code)


def _is_there(path: Path) -> bool | None:
    """None: nobody knows, as it is in a folder that we may not read, or on a sick disk."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    return True


def _events(descriptor: int, wanted: int) -> int:
    poll = select.poll()
    poll.register(descriptor, wanted)
    return next((events for _, events in poll.poll(0)), 0)
