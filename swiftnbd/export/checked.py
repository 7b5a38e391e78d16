# SPDX-License-Identifier: MIT
"""Devices of other people's code: what they return is looked at before it goes anywhere.

A reply that is a byte too long puts all that follow it out of step, and a filter that is given
something else than buffers may make zeros of it. Ours are not looked at, for that takes time.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from errno import EIO
from inspect import isawaitable, iscoroutine
from typing import Any, Final, TypeVar

from swiftnbd.api.device import Device, Extent, Pending
from swiftnbd.api.filter import Filter, if_set
from swiftnbd.api.plugin import FilterPlugin, Plugin
from swiftnbd.blame import file_of, said
from swiftnbd.buffers import Buffer, is_hole
from swiftnbd.errors import ExportError, SwiftnbdError
from swiftnbd.export.checked_pending import CheckedPending
from swiftnbd.export.forms import check_methods

_OURS: Final = __name__.partition(".")[0]
_BUFFERS: Final = (bytes, bytearray, memoryview)

log = logging.getLogger(__name__)

T = TypeVar("T")
ReadNow = Callable[[int, int], Sequence[Buffer] | None]
WriteNow = Callable[[int, Buffer], bool]


def checked(device: Device, maker: Plugin | FilterPlugin) -> Device:
    """``device``, which ``maker`` made, as it can be trusted. Raises `ExportUnusable`."""
    if is_ours(maker):
        return device
    check_methods(device)
    return Checked(device, f"{kind_of(maker)} {type(maker).__name__}")


def is_ours(maker: Plugin | FilterPlugin) -> bool:
    """Whether it came with swiftnbd."""
    return type(maker).__module__.partition(".")[0] == _OURS


def kind_of(maker: Plugin | FilterPlugin) -> str:
    """What users call it."""
    return "plugin" if isinstance(maker, Plugin) else "filter"


class Checked(Filter):
    """Passes on what is right. What is wrong is EIO, with a sentence for whoever wrote it.

    A fast path that goes wrong has declined: then it is a line of the log.
    """

    def __init__(self, device: Device, maker: str) -> None:
        super().__init__(device)
        self._of = f"{maker}: {type(device).__name__}"
        self._file = file_of(type(device))
        looked_at: dict[str, Callable[[Any], Any]] = {
            "read_now": self._read_now_of,
            "write_now": self._write_now_of,
        }
        for name in ("read_now", "write_now", "read_soon", "write_soon"):
            ask = getattr(device, name)
            if not _is_own(device, name):  # asked straight: it declines, or was looked at below
                setattr(self, name, ask)
            elif name in looked_at:
                setattr(self, name, looked_at[name](ask))

    def _read_now_of(self, ask: ReadNow) -> ReadNow:
        """`read_now`, which is asked most: one piece is soon seen to be right."""

        def read_now(offset: int, length: int) -> Sequence[Buffer] | None:
            try:
                pieces = ask(offset, length)
            except Exception as error:
                log.error("%s", self._failed("read_now", error))
                return None
            if pieces is None:
                return None
            if type(pieces) is list and len(pieces) == 1:
                piece = pieces[0]
                if (type(piece) is bytes or is_hole(piece)) and len(piece) == length:
                    return pieces
            if wrong := _wrong_pieces(pieces, length):
                log.error("%s.read_now(%d, %d) %s", self._of, offset, length, wrong)
                return None
            return pieces

        return read_now

    def _write_now_of(self, ask: WriteNow) -> WriteNow:
        def write_now(offset: int, data: Buffer) -> bool:
            try:
                is_done = ask(offset, data)
            except Exception as error:
                log.error("%s", self._failed("write_now", error))
                return False
            if is_done is not True and is_done is not False:
                wrong = f"returned {_kind(is_done)}; it has to return True or False"
                log.error("%s.write_now(%d, %d bytes) %s", self._of, offset, len(data), wrong)
                return False
            return is_done

        return write_now

    def read_soon(self, offset: int, length: int, pending: Pending) -> bool:
        call = f"{self._of}.read_soon({offset}, {length})"
        checked = CheckedPending(pending, call, lambda pieces: _wrong_pieces(pieces, length))
        return checked.begin(self.device.read_soon, offset, length)

    def write_soon(self, offset: int, data: Buffer, pending: Pending) -> bool:
        call = f"{self._of}.write_soon({offset}, {len(data)} bytes)"
        checked = CheckedPending(pending, call, lambda pieces: "")
        return checked.begin(self.device.write_soon, offset, data)

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        pieces = await self._result("read", self.device.read, offset, length)
        if wrong := _wrong_pieces(pieces, length):
            raise self._wrong(f"read({offset}, {length})", wrong)
        return pieces

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self._result("write", self.device.write, offset, data, **if_set(fua=fua))

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        options = if_set(no_hole=no_hole, fua=fua, fast=fast)
        await self._result("zero", self.device.zero, offset, length, **options)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self._result("trim", self.device.trim, offset, length, **if_set(fua=fua))

    async def flush(self) -> None:
        await self._result("flush", self.device.flush)

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        found = await self._result("extents", self.device.extents, offset, length, count=count)
        if wrong := _wrong_extents(found, length, count):
            raise self._wrong(f"extents({offset}, {length}, count={count})", wrong)
        return found

    async def prefetch(self, offset: int, length: int) -> None:
        await self._result("prefetch", self.device.prefetch, offset, length)

    async def close(self) -> None:
        await self._result("close", self.device.close)

    async def _result(
        self, method: str, ask: Callable[..., Awaitable[T]], *arguments: Any, **options: Any
    ) -> T:
        try:
            made = ask(*arguments, **options)
            if not isawaitable(made):  # in spite of its type
                raise self._wrong(method, f"is no coroutine: write async def {method}")
            return await made
        except (SwiftnbdError, OSError):
            raise
        except Exception as error:
            raise ExportError(EIO, self._failed(method, error)) from error

    def _failed(self, method: str, error: Exception) -> str:
        """What to say of an exception; all about it is in the log's details."""
        log.debug("%s.%s failed", self._of, method, exc_info=error)
        return f"{self._of}.{method} failed: {said(error, self._file)}"

    def _wrong(self, call: str, what: str) -> ExportError:
        return ExportError(EIO, f"{self._of}.{call} {what}")


def _is_own(device: Device, name: str) -> bool:
    """Whether it is its own method, and not one that declines or is that of the device below."""
    of_kind = getattr(type(device), name)
    if of_kind is getattr(Device, name):
        return name in vars(device)
    if of_kind is getattr(Filter, name):
        below = getattr(device, "device", None)
        return bool(getattr(device, name) != getattr(below, name, None))
    return True


def _wrong_pieces(pieces: object, length: int) -> str:
    """What is wrong with the result of a read; '' if it is right."""
    if type(pieces) is not list and (
        isinstance(pieces, _BUFFERS) or not isinstance(pieces, Sequence)
    ):
        return f"returned {_kind(pieces)}; it has to return a sequence of buffers, like [data]"
    found = 0
    for piece in pieces:
        if not isinstance(piece, _BUFFERS):
            return f"returned {_kind(pieces)} with {_kind(piece)} in it, which is no buffer"
        if isinstance(piece, memoryview) and not (piece.itemsize == 1 and piece.contiguous):
            return "returned a memoryview whose items are not bytes one after the other"
        found += len(piece)
    return "" if found == length else f"returned {found} bytes; it has to return {length}"


def _wrong_extents(extents: object, length: int, count: int) -> str:
    """What is wrong with the result of extents; '' if it is right."""
    if not isinstance(extents, Sequence):
        return f"returned {_kind(extents)}; it has to return a sequence of Extent"
    if not 0 < len(extents) <= count:
        return f"returned {len(extents)} extents; it has to return 1 to {count}"
    end = 0
    for each in extents:
        if not (isinstance(each, tuple) and len(each) == 3 and type(each[0]) is int):
            return f"returned {_kind(each)} that is no Extent(length, hole, zero)"
        if each[0] <= 0:
            return f"returned an extent of {each[0]} bytes"
        end += each[0]
    return "" if end <= length else f"returned extents of {end} bytes, more than it was asked for"


def _kind(found: object) -> str:
    """What something is, for people."""
    if iscoroutine(found):
        found.close()  # nobody will await it
    return "None" if found is None else f"{type(found).__name__}"
