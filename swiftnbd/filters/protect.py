# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter protect PLUGIN protect=0-0x1bd``"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from errno import ENOTSUP, EPERM
from typing import Final, NamedTuple

from swiftnbd.api import (
    Buffer,
    Device,
    ExportError,
    Filter,
    FilterPlugin,
    Kind,
    Opening,
    parameter,
)
from swiftnbd.filters.checkwrite import holds, holds_zeros

_RANGE: Final = re.compile(r"(~?)(0x[0-9a-f]{1,16}|\d{0,19})-(0x[0-9a-f]{1,16}|\d{0,19})", re.I)


class Range(NamedTuple):
    """Bytes ``first`` to ``last``, which is None at the end; or all others."""

    first: int
    last: int | None
    is_complement: bool

    def __str__(self) -> str:
        tilde, last = "~" if self.is_complement else "", "" if self.last is None else self.last
        return f"{tilde}{self.first}-{last}"

    def spans(self, size: int) -> Iterator[tuple[int, int]]:
        """From where to where, on a disk of ``size`` bytes."""
        start, end = min(self.first, size), size if self.last is None else min(self.last + 1, size)
        if self.is_complement:
            yield from ((0, start), (end, size))
        else:
            yield start, end


def _parse(text: str) -> Range:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError
    first, last = (_number(each) for each in match.group(2, 3))
    if last is not None and last < (first or 0):
        raise ValueError
    return Range(first or 0, last, bool(match[1]))


def _number(text: str) -> int | None:
    """Decimal, octal (0NN) or hexadecimal (0xNN)."""
    if not text:
        return None
    is_octal = text[0] == "0" and text.isdigit()
    return int(text, 8) if is_octal else int(text, 0)


RANGE: Final = Kind("START-END", "a range like 0-511, 0x200- or ~1048576-2097151", _parse)


@dataclass(frozen=True)
class Protect(FilterPlugin):
    """Parts of the disk cannot be changed.

    Writing what is there already is no change. Ranges are offsets of the first and the last byte,
    decimal, octal (0NN) or hexadecimal (0xNN); the disk's start and end if left out. With ~ before
    it, all but that range is protected.
    """

    protect: tuple[Range, ...] = parameter(RANGE, "A protected range.", repeated=True)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        spans = merged(span for each in self.protect for span in each.spans(device.size))
        return ProtectFilter(device, spans) if spans else device


def merged(spans: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """In their order, without empty ones and without any two that meet."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if start >= end:
            continue
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


class ProtectFilter(Filter):
    """Nothing that is done through it changes the bytes of ``spans`` (as of `merged`)."""

    def __init__(self, device: Device, spans: Sequence[tuple[int, int]]) -> None:
        super().__init__(device)
        self._spans = spans
        self._ends = [end for _, end in spans]

    def write_now(self, offset: int, data: Buffer) -> bool:
        is_free = next(self._protected(offset, len(data)), None) is None
        return is_free and self.device.write_now(offset, data)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        # what is compared cannot change until it is written: everybody comes this way
        view = memoryview(data)
        for start, end in self._protected(offset, len(view)):
            if not await holds(self.device, start, view[start - offset : end - offset]):
                raise _refusal(start, end)
        await super().write(offset, data, fua=fua)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        for start, end in self._protected(offset, length):
            if fast:
                raise ExportError(ENOTSUP, "what is protected would have to be read first")
            if not await holds_zeros(self.device, start, end - start):
                raise _refusal(start, end)
        await super().zero(offset, length, no_hole=no_hole, fua=fua, fast=fast)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """A hint, so what is protected is left out."""
        least, at = self.device.block_size_min, offset
        for start, end in [*self._protected(offset, length), (offset + length, offset + length)]:
            free = start - start % least
            if at < free:
                await super().trim(at, free - at, fua=fua)
            at = end + -end % least

    def _protected(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """What of a range is protected."""
        end = offset + length
        for index in range(bisect_right(self._ends, offset), len(self._spans)):
            start, stop = self._spans[index]
            if start >= end:
                return
            yield max(start, offset), min(stop, end)


def _refusal(start: int, end: int) -> ExportError:
    return ExportError(EPERM, f"bytes {start} to {end - 1} are protected")
