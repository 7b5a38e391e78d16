# SPDX-License-Identifier: MIT
"""Transmission phase: request headers, what makes one valid, and simple replies.

Request ("Request message")::

    u32 magic   u16 flags   u16 type   u64 cookie   u64 offset   u32 length   [payload of WRITE]

Simple reply ("Simple reply message")::

    u32 magic   u32 error   u64 cookie   [payload of READ, if error is 0]
"""

import struct
from dataclasses import dataclass
from errno import EINVAL, ENOSPC, EPERM
from typing import Final

from swiftnbd.errors import ExportError
from swiftnbd.protocol.constants import (
    PAYLOAD_BYTES_MAX,
    SIMPLE_REPLY_MAGIC,
    Command,
    CommandFlag,
    TransmissionFlag,
)

REQUEST: Final = struct.Struct(">IHHQQI")
SIMPLE_REPLY: Final = struct.Struct(">IIQ")

# A WRITE longer than PAYLOAD_BYTES_MAX but not than this is read away and refused; a longer one
# ends the connection, for nobody honest sends it and reading it away would only serve an attacker.
DRAIN_BYTES_MAX = 2 * PAYLOAD_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Request:
    """One request header. ``cookie`` is the client's, opaque, echoed, not unique."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ExportShape:
    """What of an export decides whether a request on it is valid."""

    size: int
    flags: TransmissionFlag

    @property
    def read_only(self) -> bool:
        return TransmissionFlag.READ_ONLY in self.flags


# Command -> (the transmission flag that announces it, flags it may carry besides FUA).
# FUA: "a server that supports it MUST accept it on all commands" once SEND_FUA is announced.
_COMMANDS: Final[dict[int, tuple[TransmissionFlag, CommandFlag]]] = {
    Command.READ: (TransmissionFlag.HAS_FLAGS, CommandFlag(0)),
    Command.WRITE: (TransmissionFlag.HAS_FLAGS, CommandFlag(0)),
    Command.FLUSH: (TransmissionFlag.SEND_FLUSH, CommandFlag(0)),
    Command.TRIM: (TransmissionFlag.SEND_TRIM, CommandFlag(0)),
    Command.CACHE: (TransmissionFlag.SEND_CACHE, CommandFlag(0)),
    Command.WRITE_ZEROES: (TransmissionFlag.SEND_WRITE_ZEROES, CommandFlag.NO_HOLE),
}
_UNKNOWN: Final = (TransmissionFlag(1 << 16), CommandFlag(0))  # a flag no export can have
_CHANGING: Final = frozenset({Command.WRITE, Command.TRIM, Command.WRITE_ZEROES})
# Out of range, these are "no space"; everything else is merely invalid.
_GROWING: Final = frozenset({Command.WRITE, Command.WRITE_ZEROES})


def check(request: Request, export: ExportShape) -> None:
    """Raise `ExportError` unless this request may be carried out on this export.

    Everything below trusts what passed here: known command, allowed flags, a range inside the
    export, a payload of bounded size, no change to a read-only export.
    """
    if request.command in _CHANGING and export.read_only:
        raise ExportError(EPERM, "the export is read-only")
    announced, allowed = _COMMANDS.get(request.command, _UNKNOWN)
    if announced not in export.flags:
        raise ExportError(EINVAL, f"command {request.command} is not supported")
    if TransmissionFlag.SEND_FUA in export.flags:
        allowed |= CommandFlag.FUA
    # int: the complement of an IntFlag has only the bits that have names
    if request.flags & ~int(allowed):
        raise ExportError(
            EINVAL, f"flags {request.flags:#x} are not valid for command {request.command}"
        )
    if request.command == Command.FLUSH:
        return  # offset and length are reserved; a client that sets them means no harm
    if request.offset + request.length > export.size:
        raise ExportError(
            ENOSPC if request.command in _GROWING else EINVAL,
            f"range {request.offset}+{request.length} is beyond the end ({export.size})",
        )
    if request.command in (Command.READ, Command.WRITE) and request.length > PAYLOAD_BYTES_MAX:
        raise ExportError(EINVAL, f"{request.length} bytes are more than {PAYLOAD_BYTES_MAX}")


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """Header of a simple reply; the data of a READ follows it."""
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)
