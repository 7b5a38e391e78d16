# SPDX-License-Identifier: MIT
"""Handshake phase: layouts of options and their replies ("Handshake", "Option types").

Option::            u64 "IHAVEOPT"   u32 option   u32 length   data
Option reply::      u64 magic        u32 option   u32 type     u32 length   data
"""

import struct
from dataclasses import dataclass
from typing import Final

from swiftnbd.protocol.constants import (
    GREETING_MAGIC,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    PAYLOAD_BYTES_MAX,
    STRING_BYTES_MAX,
    HandshakeFlag,
    Info,
    OptionReply,
    TransmissionFlag,
)

OPTION: Final = struct.Struct(">QII")
_OPTION_REPLY: Final = struct.Struct(">QIII")
_GREETING: Final = struct.Struct(">QQH")
_EXPORT_NAME_REPLY: Final = struct.Struct(">QH")
_INFO_EXPORT: Final = struct.Struct(">HQH")
_INFO_BLOCK_SIZE: Final = struct.Struct(">HIII")
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")

ZEROES: Final = bytes(124)  # what follows the reply to EXPORT_NAME without NO_ZEROES
BLOCK_SIZE_MIN: Final = 1  # the engine does read-modify-write, so any byte range will do


class InvalidOption(Exception):
    """The data of an option is malformed: answer ERR_INVALID and go on."""


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """All that INFO, GO and EXPORT_NAME say of an export, taken from one snapshot.

    "INFO and GO with the same arguments must answer the same." ``block_size`` is the preferred
    size of requests in bytes, a power of two; what all of them must be multiples of, and how large
    a payload may be, are ``block_size_min`` and ``block_size_max``.
    """

    name: str
    size: int
    flags: TransmissionFlag
    description: str
    block_size: int
    block_size_min: int = BLOCK_SIZE_MIN
    block_size_max: int = PAYLOAD_BYTES_MAX


@dataclass(frozen=True, slots=True)
class InfoQuery:
    """Data of INFO and GO: the export's name and the information types asked for."""

    name: str
    wanted: frozenset[int]


def greeting(flags: HandshakeFlag) -> bytes:
    """The server's first bytes."""
    return _GREETING.pack(GREETING_MAGIC, OPTION_MAGIC, flags)


def parse_string(data: bytes) -> str:
    """A name or a query ("Terminology": UTF-8, no NUL, at most 4096 bytes)."""
    if len(data) > STRING_BYTES_MAX:
        raise InvalidOption(f"a string of {len(data)} bytes is longer than {STRING_BYTES_MAX}")
    if b"\0" in data:
        raise InvalidOption("a string must not contain NUL")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidOption("a string must be UTF-8") from None


def utf8_text(message: str) -> bytes:
    """A text for people as it may be sent: cut to what a string may be (CVE-2020-10761)."""
    text = message.encode(errors="replace")[:STRING_BYTES_MAX]
    return text.decode(errors="ignore").encode()  # a character cut in two would not be UTF-8


def parse_info_query(data: bytes) -> InfoQuery:
    """Data of INFO and GO: ``u32 length of name, name, u16 count, count * u16 type``.

    Every length is checked against what is there before anything is taken.
    """
    if len(data) < 6:
        raise InvalidOption(f"{len(data)} bytes are too few")
    (name_length,) = _U32.unpack_from(data)
    if name_length > len(data) - 6:
        raise InvalidOption(f"a name of {name_length} bytes does not fit into the option")
    name = parse_string(data[4 : 4 + name_length])
    (count,) = _U16.unpack_from(data, 4 + name_length)
    types = data[6 + name_length :]
    if len(types) != 2 * count:
        raise InvalidOption(f"{count} information requests do not take {len(types)} bytes")
    return InfoQuery(name, frozenset(kind for (kind,) in _U16.iter_unpack(types)))


def reply(option: int, kind: OptionReply, data: bytes = b"") -> bytes:
    """One option reply."""
    return _OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def error_reply(option: int, kind: OptionReply, message: str = "") -> bytes:
    """An error reply with a text for people."""
    return reply(option, kind, utf8_text(message))


def server_reply(option: int, name: str, description: str = "") -> bytes:
    """One export of the answer to LIST: ``u32 length, name, details``, the length in bytes.

    The details are ours to choose: a description for people, which libnbd shows.
    """
    encoded = name.encode()
    data = _U32.pack(len(encoded)) + encoded + description.encode()
    return reply(option, OptionReply.SERVER, data)


def export_name_reply(export: ExportInfo, *, no_zeroes: bool) -> bytes:
    """The answer to EXPORT_NAME: ``u64 size, u16 flags`` and, unless waived, 124 zero bytes."""
    head = _EXPORT_NAME_REPLY.pack(export.size, export.flags)
    return head if no_zeroes else head + ZEROES


def info_replies(option: int, export: ExportInfo, wanted: frozenset[int]) -> bytes:
    """The answer to INFO and GO: INFO_EXPORT always, the rest as asked for, then ACK."""
    infos = [_INFO_EXPORT.pack(Info.EXPORT, export.size, export.flags)]
    if Info.NAME in wanted:
        infos.append(_U16.pack(Info.NAME) + export.name.encode())
    if Info.DESCRIPTION in wanted and export.description:
        infos.append(_U16.pack(Info.DESCRIPTION) + export.description.encode())
    if Info.BLOCK_SIZE in wanted:
        infos.append(
            _INFO_BLOCK_SIZE.pack(
                Info.BLOCK_SIZE, export.block_size_min, export.block_size, export.block_size_max
            )
        )
    replies = [reply(option, OptionReply.INFO, data) for data in infos]
    return b"".join([*replies, reply(option, OptionReply.ACK)])
