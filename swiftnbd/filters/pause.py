# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter pause PLUGIN pause-control=control.sock``

Whoever connects to the socket sends ``p``, and gets ``P`` when nothing is at work any more and
nothing begins; then ``r``, and gets ``R`` when requests go on. Anything else gets ``X``.
"""

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EADDRINUSE, ESHUTDOWN
from pathlib import Path
from typing import Final, TypeVar

from swiftnbd.api import (
    PATH,
    Buffer,
    ConfigError,
    Device,
    ExportError,
    FilterPlugin,
    Opening,
    parameter,
)
from swiftnbd.api.around import Around, Call
from swiftnbd.api.ending import ENDING

T = TypeVar("T")

CONTROLS_MAX: Final = 16  # at a time: scripts of one administrator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pause(FilterPlugin):
    """Requests can be held up, and go on later, by a word to a socket.

    p pauses, and is answered with P when nothing is at work; r resumes, answered with R.
    """

    pause_control: Path = parameter(PATH, "The socket, which only its owner can use.")

    _gate: "Gate" = field(init=False, compare=False, repr=False, default_factory=lambda: Gate())

    async def start(self) -> None:
        await self._gate.open(self.pause_control)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        return PauseFilter(device, self._gate)

    async def stop(self) -> None:
        await self._gate.close()


class PauseFilter(Around):
    """Requests pass through ``gate``."""

    def __init__(self, device: Device, gate: "Gate") -> None:
        super().__init__(device)
        self._gate = gate

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return None if self._gate.is_paused else self.device.read_now(offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        return not self._gate.is_paused and self.device.write_now(offset, data)

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        await self._gate.enter()
        try:
            return await work()
        finally:
            self._gate.leave()


class Gate:
    """What holds requests up, and the socket that says so."""

    def __init__(self) -> None:
        self.is_paused = False
        self._is_ending = False
        self._at_work = 0
        self._go_on = asyncio.Event()  # requests that wait look again
        self._quiet = asyncio.Event()  # so do those who wait for requests to end
        self._server: asyncio.Server | None = None
        self._controls: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._path: Path | None = None

    # Requests

    async def enter(self) -> None:
        """Wait until one more may be at work; give it back with `leave`."""
        while self.is_paused:
            if self._is_ending:
                raise ExportError(ESHUTDOWN, "requests are paused, and the server ends")
            await self._go_on.wait()
        self._at_work += 1

    def leave(self) -> None:
        self._at_work -= 1
        if not self._at_work:
            self._quiet.set()

    async def pause(self) -> bool:
        """Let no request begin, and wait for the others; False if meanwhile they may again."""
        self.is_paused = True
        if not self._is_ending:
            self._go_on.clear()
        while self.is_paused and self._at_work:
            self._quiet.clear()
            await self._quiet.wait()
        return self.is_paused

    def resume(self) -> None:
        self.is_paused = False
        self._go_on.set()
        self._quiet.set()

    def _end(self) -> None:
        """The server ends, and cannot as long as requests wait: they fail, and are not done."""
        self._is_ending = True
        self._go_on.set()

    # The socket

    async def open(self, path: Path) -> None:
        sock = _listening(path)
        try:
            self._server = await asyncio.start_unix_server(self._accept, sock=sock)
        except BaseException:
            sock.close()
            raise
        self._path = path
        ENDING.waiting.append(self._end)

    async def close(self) -> None:
        if self._server is None:
            return
        ENDING.waiting.remove(self._end)
        self._server.close()
        self.resume()
        tasks = list(self._controls.values())
        for writer in self._controls:
            writer.transport.abort()  # which ends its task
        await asyncio.gather(*tasks)
        self._server = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._controls) < CONTROLS_MAX:
                self._controls[writer] = task
                with suppress(OSError):
                    await self._obey(reader, writer)
        finally:
            self._controls.pop(writer, None)
            writer.close()

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while byte := await reader.read(1):
            answer = "X"
            if byte == b"p" and await self.pause():
                log.info("requests are paused")
                answer = "P"
            elif byte == b"r":
                self.resume()
                log.info("requests go on")
                answer = "R"
            elif byte.isspace():
                continue
            writer.write(answer.encode())
            await writer.drain()


def _listening(path: Path) -> socket.socket:
    """A socket at ``path``, in the place of one that nobody listens on any more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(sock.fileno(), 0o600)  # that of the file that bind makes
        try:
            sock.bind(os.fspath(path))
        except OSError as error:
            if error.errno != EADDRINUSE or not _is_left_over(path):
                raise
            path.unlink()
            sock.bind(os.fspath(path))
        sock.listen(CONTROLS_MAX)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"{path} cannot be the control socket: {error.strerror or error}"
        ) from None
    return sock


def _is_left_over(path: Path) -> bool:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
    return False
