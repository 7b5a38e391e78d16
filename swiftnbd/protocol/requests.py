# SPDX-License-Identifier: MIT
"""Transmission phase: request headers, and what makes one valid.

Request ("Request message")::

    u32 magic   u16 flags   u16 type   u64 cookie   u64 offset   u32 length   [payload of WRITE]
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from errno import EINVAL, ENOSPC, EOVERFLOW, EPERM
from typing import Final, NamedTuple

from swiftnbd.errors import ExportError
from swiftnbd.protocol.constants import (
    PAYLOAD_BYTES_MAX,
    Command,
    CommandFlag,
    TransmissionFlag,
)

REQUEST: Final = struct.Struct(">IHHQQI")

# A WRITE longer than PAYLOAD_BYTES_MAX but not than this is read away and refused; a longer one
# ends the connection, for nobody honest sends it and reading it away would only serve an attacker.
DRAIN_BYTES_MAX = 2 * PAYLOAD_BYTES_MAX


class Request(NamedTuple):
    """One request header. ``cookie`` is the client's, opaque, echoed, not unique."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int


# Command -> (the transmission flag that announces it, the flags it may carry)
_COMMANDS: Final = {
    Command.READ: (TransmissionFlag.HAS_FLAGS, CommandFlag.DF),
    Command.WRITE: (TransmissionFlag.HAS_FLAGS, CommandFlag(0)),
    Command.FLUSH: (TransmissionFlag.SEND_FLUSH, CommandFlag(0)),
    Command.TRIM: (TransmissionFlag.SEND_TRIM, CommandFlag(0)),
    Command.CACHE: (TransmissionFlag.SEND_CACHE, CommandFlag(0)),
    Command.WRITE_ZEROES: (
        TransmissionFlag.SEND_WRITE_ZEROES,
        CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
    ),
    Command.BLOCK_STATUS: (TransmissionFlag.HAS_FLAGS, CommandFlag.REQ_ONE),
}
# Flags that must be announced by themselves
_ANNOUNCED: Final = {
    CommandFlag.DF: TransmissionFlag.SEND_DF,
    CommandFlag.FAST_ZERO: TransmissionFlag.SEND_FAST_ZERO,
}
CHANGING: Final = frozenset({Command.WRITE, Command.TRIM, Command.WRITE_ZEROES})
# Out of range, these are "no space"; everything else is merely invalid.
_GROWING: Final = frozenset({Command.WRITE, Command.WRITE_ZEROES})
# Plain numbers: to look up a member of an enumeration takes as long as all the rest.
_FLUSH, _BLOCK_STATUS = int(Command.FLUSH), int(Command.BLOCK_STATUS)
_WITH_DATA: Final = (int(Command.READ), int(Command.WRITE))


@dataclass(frozen=True, slots=True)
class ExportShape:
    """What of an export, and of what was agreed on it, decides whether a request is valid.

    ``contexts`` are the metadata contexts selected; ``block_size_min`` and ``block_size_max`` as
    in `swiftnbd.protocol.options.ExportInfo`. The others follow from these. ``structured``: whether
    structured replies were negotiated, for just then SEND_DF is announced ("MUST"). ``commands``:
    those that there are, and for each the flags it may carry.
    """

    size: int
    flags: TransmissionFlag
    contexts: frozenset[str] = frozenset()
    block_size_min: int = 1
    block_size_max: int = PAYLOAD_BYTES_MAX
    read_only: bool = field(init=False, repr=False)
    structured: bool = field(init=False, repr=False)
    commands: Mapping[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, value in {
            "read_only": TransmissionFlag.READ_ONLY in self.flags,
            "structured": TransmissionFlag.SEND_DF in self.flags,
            "commands": dict(self._commands()),
        }.items():
            object.__setattr__(self, name, value)

    def _commands(self) -> Iterator[tuple[int, int]]:
        for command, (announcement, flags) in _COMMANDS.items():
            if announcement not in self.flags:
                continue
            if command is Command.BLOCK_STATUS and not self.contexts:
                continue
            for flag, needed in _ANNOUNCED.items():
                if needed not in self.flags:
                    flags &= ~flag
            # "a server that supports it MUST accept it on all commands" once it is announced
            if TransmissionFlag.SEND_FUA in self.flags:
                flags |= CommandFlag.FUA
            yield int(command), int(flags)


class OutOfRange(ExportError):
    """A request that reaches beyond the end; ``offset`` is its first byte there, if any."""

    def __init__(self, errno: int, message: str, offset: int | None) -> None:
        super().__init__(errno, message)
        self.offset = offset


def check(request: Request, export: ExportShape) -> None:
    """Raise `ExportError` unless this request may be carried out on this export.

    Everything below trusts what passed here: known command, allowed flags, a range inside the
    export, a payload of bounded size, no change to a read-only export.
    """
    if request.command in CHANGING and export.read_only:
        raise ExportError(EPERM, "the export is read-only")
    allowed = export.commands.get(request.command)
    if allowed is None:
        if request.command == Command.BLOCK_STATUS:
            raise ExportError(EINVAL, "no metadata context was selected for this export")
        raise ExportError(EINVAL, f"command {request.command} is not supported")
    if request.flags & ~allowed:
        raise ExportError(
            EINVAL, f"flags {request.flags:#x} are not valid for command {request.command}"
        )
    if request.command == _FLUSH:
        return  # offset and length are reserved; a client that sets them means no harm
    _check_range(request, export)


def _check_range(request: Request, export: ExportShape) -> None:
    if request.offset + request.length > export.size:
        raise OutOfRange(
            ENOSPC if request.command in _GROWING else EINVAL,
            f"range {request.offset}+{request.length} is beyond the end ({export.size})",
            max(export.size, request.offset) if request.length else None,
        )
    if request.command == _BLOCK_STATUS and not request.length:
        raise ExportError(EINVAL, "the status of no bytes")
    if request.command in _WITH_DATA and request.length > export.block_size_max:
        raise ExportError(
            EOVERFLOW if request.flags & CommandFlag.DF else EINVAL,
            f"{request.length} bytes are more than {export.block_size_max}",
        )
    if (request.offset | request.length) & (export.block_size_min - 1):
        raise ExportError(
            EINVAL,
            f"{request.offset}+{request.length} is not in whole blocks of "
            f"{export.block_size_min} bytes",
        )
