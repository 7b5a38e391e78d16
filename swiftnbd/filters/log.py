# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter log PLUGIN logfile=requests.log``"""

import asyncio
import json
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from errno import errorcode
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, Final, TypeVar

from swiftnbd.api import (
    BOOLEAN,
    PATH,
    ConfigError,
    Device,
    FilterPlugin,
    Opening,
    Profile,
    parameter,
    size,
)
from swiftnbd.api.around import Around, Call

T = TypeVar("T")

LOG_BYTES_MAX: Final = 128 * 1024 * 1024  # some 600,000 requests; twice that on the disk
LOG_BYTES_MIN: Final = 64 * 1024
LINES_AT_ONCE_MAX: Final = 64  # far from the smallest size of a file
LOOK_SECONDS: Final = 1.0  # between looks whether the file has been moved away

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Log(FilterPlugin):
    """Writes down every request and its end, a line of JSON each.

    A file that somebody moves away is made anew, so any rotation will do.
    """

    per_connection = True

    logfile: Path = parameter(PATH, "The file.")
    logappend: bool = parameter(BOOLEAN, "Keep what is in it.", default=False)
    logsize: int = parameter(
        size(LOG_BYTES_MIN),
        "A file of this size becomes FILE.1, replacing an older one.",
        default=LOG_BYTES_MAX,
    )

    _state: "_State" = field(
        init=False, compare=False, repr=False, default_factory=lambda: _State()
    )

    async def start(self) -> None:
        self._state.file = LogFile(self.logfile, self.logsize, append=self.logappend)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        if opening.client is None:  # who only wants to know what there would be
            return device
        assert self._state.file is not None
        self._state.connections += 1
        return LogFilter(device, opening, self._state.file, self._state.connections)

    async def stop(self) -> None:
        if self._state.file is not None:
            self._state.file.close()
            self._state.file = None


@dataclass(slots=True)
class _State:
    file: "LogFile | None" = None
    connections: int = 0  # so many there were


class LogFilter(Around):
    """Writes down what one connection asks."""

    def __init__(self, device: Device, opening: Opening, file: "LogFile", number: int) -> None:
        super().__init__(device)
        self._file, self._number, self._requests = file, number, 0
        profile = Profile.of(device)
        self._write(
            "connect",
            export=opening.name,
            client=str(opening.client),
            device={each.name: getattr(profile, each.name) for each in fields(profile)},
        )

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        self._requests += 1
        number, begin = self._requests, perf_counter()
        told: dict[str, Any] = {"request": call.name}
        if call.length:
            told |= {"offset": call.offset, "length": call.length}
        if call.flags:
            told["flags"] = call.flags
        self._write("begin", id=number, **told)
        error: str | None = "cancelled"
        try:
            result = await work()
            error = None
        except Exception as caught:
            error = errorcode.get(getattr(caught, "errno", None) or 0, type(caught).__name__)
            raise
        finally:
            seconds = round(perf_counter() - begin, 6)
            failed: dict[str, str] = {} if error is None else {"error": error}
            self._write("end", id=number, request=call.name, seconds=seconds, **failed)
        return result

    async def close(self) -> None:
        if self._number:
            self._write("disconnect", requests=self._requests)
            self._number = 0
        await super().close()

    def _write(self, event: str, **told: Any) -> None:
        self._file.write({"event": event, "connection": self._number, **told})


class LogFile:
    """Lines of JSON in a file that is not to become larger than ``size_max`` bytes.

    What cannot be written is lost, and said: requests do not fail for their log.
    """

    def __init__(self, path: Path, size_max: int, *, append: bool) -> None:
        """Raises OSError and `ConfigError`."""
        self._path, self._size_max = path, size_max
        self._lines: list[bytes] = []  # of this turn of the event loop
        self._lost = 0
        self._looked = monotonic()
        self._descriptor = -1
        self._open(0 if append else os.O_TRUNC)

    def write(self, told: dict[str, Any]) -> None:
        """One line, with the time before the rest."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._flush)
        self._lines.append(json.dumps({"time": now, **told}).encode() + b"\n")
        if len(self._lines) >= LINES_AT_ONCE_MAX:
            self._flush()

    def close(self) -> None:
        self._flush()
        with suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = -1

    def _open(self, flags: int = 0) -> None:
        flags |= os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, 0o640)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ConfigError(f"{self._path} is no regular file")
        with suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = descriptor

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if not lines or self._descriptor < 0:
            return
        try:
            self._make_room(sum(map(len, lines)))
            _write_all(self._descriptor, b"".join(lines))
        except (OSError, ConfigError) as error:
            if not self._lost:
                reason = error.strerror if isinstance(error, OSError) else error
                log.error("%s: requests are not written down: %s", self._path, reason)
            self._lost += len(lines)
        else:
            if self._lost:
                log.error("%s: %d lines are missing", self._path, self._lost)
            self._lost = 0

    def _make_room(self, count: int) -> None:
        """Have the right file open, with room for so many bytes."""
        now = monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            if not self._is_in_place():
                self._open()
        if os.fstat(self._descriptor).st_size + count > self._size_max:
            self._path.rename(self._path.with_name(f"{self._path.name}.1"))
            self._open()

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
