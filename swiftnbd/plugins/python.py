# SPDX-License-Identifier: MIT
"""``swiftnbd-server python SCRIPT [KEY=VALUE]...``"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from swiftnbd.api import (
    PATH,
    Buffer,
    Device,
    ExportError,
    Extent,
    Opening,
    Pending,
    Plugin,
    other_keys,
    parameter,
)
from swiftnbd.errors import Locked
from swiftnbd.scripts.crew import Crew
from swiftnbd.scripts.handle import Handle, is_sendable
from swiftnbd.scripts.module import Cache, Flag, Fua, ThreadModel, here
from swiftnbd.scripts.script import Script

THREADS: Final = 16  # of a connection whose calls may be parallel, as in nbdkit
NAMES_MAX: Final = 10_000  # of one list: what nbdkit allows

T = TypeVar("T")

log = logging.getLogger(__name__)


class _Running:
    """A script between `Python.start` and `Python.stop`."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew  # for all that is no connection's
        self.script: Script
        self.model: ThreadModel
        self.handles = 0

    def load(self, path: Path, keys: Sequence[tuple[str, str]]) -> None:
        """All that nbdkit calls before it serves, in its order."""
        here.client = here.export_name = None
        script = Script(path)
        script.configure(keys)
        script.optional("config_complete")
        self.model = script.thread_model()
        for name in ("get_ready", "after_fork"):
            script.optional(name)
        self.script = script

    def crew_for_one(self) -> Crew:
        """The threads of one connection."""
        match self.model:
            case ThreadModel.PARALLEL:
                return Crew(THREADS, "script")
            case ThreadModel.SERIALIZE_REQUESTS:
                return Crew(1, "script")
        return self.crew


@dataclass
class Python(Plugin):
    """A Python plugin of nbdkit, as it is.

    It says what else it takes. docs/nbdkit-python.md tells what is different from nbdkit.
    """

    script: Path = parameter(PATH, "The Python script.", main=True)
    keys: tuple[tuple[str, str], ...] = other_keys("What the script is told.")
    _running: _Running | None = field(default=None, init=False, compare=False, repr=False)

    per_connection: ClassVar[bool] = True
    any_name: ClassVar[bool] = True

    async def start(self) -> None:
        running = _Running(Crew(1, "script"))
        try:
            await running.crew.call(_nobody, running.load, self.script, self.keys)
        except BaseException:
            running.crew.stop()
            raise
        self._running = running

    async def open(self, opening: Opening) -> Device:
        running = self._running
        assert running is not None
        if running.model is ThreadModel.SERIALIZE_CONNECTIONS and running.handles:
            raise Locked(f"{self.script.name} serves one connection at a time", "")
        crew = running.crew_for_one()
        running.handles += 1
        try:
            handle = await crew.call(_nobody, _opened, running.script, opening)
        except BaseException:
            _leave(running, crew)
            raise
        device = ScriptDevice(handle, crew, lambda: _leave(running, crew))
        if running.model is ThreadModel.SERIALIZE_CONNECTIONS:
            device.multi_conn = False
        return device

    async def listed(self, opening: Opening) -> Sequence[tuple[str, str]]:
        running = self._running
        assert running is not None
        return await running.crew.call(_nobody, _listed, running.script, opening)

    async def stop(self) -> None:
        running, self._running = self._running, None
        assert running is not None
        with suppress(ExportError):
            await running.crew.call(_nobody, running.script.optional, "cleanup")
        running.crew.stop()

    def dump(self) -> None:
        script = Script(self.script)
        script.configure(self.keys)
        script.dump()


class ScriptDevice(Device):
    """A handle of a script, and the threads it may be called in."""

    def __init__(self, handle: Handle, crew: Crew, left: Callable[[], None]) -> None:
        self._handle, self._crew, self._left = handle, crew, left
        self.size = handle.size
        if handle.block_sizes is not None:
            self.block_size_min, self.block_size, self.block_size_max = handle.block_sizes
        self.read_only = not handle.can_write
        self.can_flush, self.can_trim = handle.can_flush, handle.can_trim
        self.can_fua = handle.fua is not Fua.NONE
        self.can_prefetch = handle.cache_kind is not Cache.NONE
        self.can_fast_zero = handle.can_fast_zero
        self.multi_conn = handle.multi_conn
        self.is_rotational = handle.is_rotational
        self.description = handle.description

    async def _call(self, work: Callable[..., T], *arguments: Any) -> T:
        return await self._crew.call(self._handle.enter, work, *arguments)

    def read_soon(self, offset: int, length: int, pending: Pending) -> bool:
        self._crew.put(self._handle.enter, pending, self._handle.read, length, offset)
        return True

    def write_soon(self, offset: int, data: Buffer, pending: Pending) -> bool:
        self._crew.put(self._handle.enter, pending, self._handle.pwrite, data, offset)
        return True

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        return await self._call(self._handle.read, length, offset)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self._call(self._handle.pwrite, data, offset, _flags(fua=fua))

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        flags = _flags(fua=fua, may_trim=not no_hole, fast=fast)
        await self._call(self._handle.zero, length, offset, flags)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self._call(self._handle.trim, length, offset, _flags(fua=fua))

    async def flush(self) -> None:
        await self._call(self._handle.flush)

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        return await self._call(self._handle.extents, length, offset, count)

    async def prefetch(self, offset: int, length: int) -> None:
        await self._call(self._handle.cache, length, offset)

    async def close(self) -> None:
        try:
            await self._call(self._handle.close)
        finally:
            self._left()


def _nobody() -> None:
    here.client = here.export_name = None


def _leave(running: _Running, crew: Crew) -> None:
    running.handles -= 1
    if crew is not running.crew:
        crew.stop()


def _opened(script: Script, opening: Opening) -> Handle:
    return Handle(script, opening.client, opening.name, opening.read_only)


def _listed(script: Script, opening: Opening) -> list[tuple[str, str]]:
    """Names and descriptions. Without a callback the default export is the only one."""
    here.client, here.export_name = opening.client, None
    asked = (opening.read_only, opening.client is not None and opening.client.is_encrypted)
    if script.callback("list_exports") is None:
        answer = [script.optional("default_export", *asked, default="")]
    else:
        answer = script.call("list_exports", *asked)
    found: list[tuple[str, str]] = []
    try:
        for each in answer:
            name, description = (each, "") if isinstance(each, str) else each
            if not (isinstance(name, str) and isinstance(description, str)):
                raise TypeError(f"{each!r} is no name, nor a name with a description")
            if not is_sendable(name):
                raise ValueError(f"{name[:80]!r} is no name for an export")
            found.append((name, description if is_sendable(description) else ""))
            if len(found) == NAMES_MAX:
                break
    except Exception as error:
        raise script.raised("list_exports", error) from None
    return found


def _flags(*, fua: bool = False, may_trim: bool = False, fast: bool = False) -> int:
    found = Flag.FUA if fua else 0
    found |= Flag.MAY_TRIM if may_trim else 0
    return int(found | (Flag.FAST_ZERO if fast else 0))
