# SPDX-License-Identifier: MIT
"""The other side: what a client sends, and what it makes of a server's answers.

No I/O: bytes in, values out. A server is not trusted. What breaks the protocol is `ProtocolError`,
and nothing is taken whose length was not checked against what was asked for.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EIO
from typing import Final

from swiftnbd.errors import ExportError, ProtocolError
from swiftnbd.protocol.constants import (
    GREETING_MAGIC,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    PAYLOAD_BYTES_MAX,
    SIMPLE_REPLY_MAGIC,
    STRING_BYTES_MAX,
    STRUCTURED_REPLY_MAGIC,
    ChunkType,
    Command,
    Error,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    ReplyFlag,
    TransmissionFlag,
)
from swiftnbd.protocol.options import OPTION, ExportInfo
from swiftnbd.protocol.requests import Request

GREETING_BYTES: Final = 18
OPTION_REPLY_BYTES: Final = 20
OPTION_REPLY_DATA_BYTES_MAX: Final = 2 * STRING_BYTES_MAX + 64  # names and descriptions are strings
OPTION_REPLIES_MAX: Final = 64  # to one of the options that are sent here
REPLY_BYTES: Final = 16  # of any reply; a chunk's length follows
CHUNK_LENGTH_BYTES: Final = 4
CHUNKS_MAX: Final = 64 * 1024  # of one reply: one for each sector of the largest READ
EXTENTS_BYTES_MAX: Final = 4 + 8 * 1024 * 1024  # of one reply to BLOCK_STATUS
BLOCK_SIZE: Final = 4096  # "Block size constraints": if the server does not say

_GREETING: Final = struct.Struct(">QQH")
_OPTION_REPLY: Final = struct.Struct(">QIII")
_INFO_EXPORT: Final = struct.Struct(">QH")
_INFO_BLOCK_SIZE: Final = struct.Struct(">III")
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_SIMPLE: Final = struct.Struct(">IIQ")
_CHUNK: Final = struct.Struct(">IHHQ")
_HOLE: Final = struct.Struct(">QI")
_ERROR: Final = struct.Struct(">IH")
_EXTENT: Final = struct.Struct(">II")
_U64: Final = struct.Struct(">Q")
_ERROR_BIT: Final = 1 << 15

Data = bytes | memoryview


class OptionRefused(Exception):
    """The server answered an option with an error; ``text`` is its reason for people."""

    def __init__(self, kind: int, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


# Handshake


def parse_greeting(data: bytes) -> HandshakeFlag:
    """The server's first bytes."""
    magic, style, flags = _GREETING.unpack(data)
    if magic != GREETING_MAGIC:
        raise ProtocolError("it is no NBD server")
    if style != OPTION_MAGIC or not flags & HandshakeFlag.FIXED_NEWSTYLE:
        raise ProtocolError("it speaks an old style of NBD only")
    return HandshakeFlag(flags & (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES))


def client_flags(flags: HandshakeFlag) -> bytes:
    """The answer to a greeting: whatever both know."""
    return _U32.pack(flags)


def option(kind: Option, data: bytes = b"") -> bytes:
    """An option as it is sent."""
    return OPTION.pack(OPTION_MAGIC, kind, len(data)) + data


def parse_option_reply(kind: Option, header: bytes) -> tuple[int, int]:
    """The type of a reply to this option, and how many bytes of data follow."""
    magic, answered, reply, length = _OPTION_REPLY.unpack(header)
    if magic != OPTION_REPLY_MAGIC or answered != kind:
        raise ProtocolError(f"its reply to option {kind} makes no sense")
    if length > OPTION_REPLY_DATA_BYTES_MAX:
        raise ProtocolError(f"its reply to option {kind} has {length} bytes")
    return reply, length


def refusal(kind: int, data: bytes) -> OptionRefused:
    """What an error reply says."""
    return OptionRefused(kind, data.decode(errors="replace"))


def is_error(kind: int) -> bool:
    """Whether a reply's type is one of an error."""
    return kind >= OptionReply.ERR_UNSUP - 1


def go_data(name: str) -> bytes:
    """Data of GO: the name, and that block sizes are wanted, to which we keep."""
    encoded = name.encode()
    return _U32.pack(len(encoded)) + encoded + _U16.pack(1) + _U16.pack(Info.BLOCK_SIZE)


def context_data(name: str, context: str) -> bytes:
    """Data of SET_META_CONTEXT for one context."""
    one, two = name.encode(), context.encode()
    return b"".join((_U32.pack(len(one)), one, _U32.pack(1), _U32.pack(len(two)), two))


def parse_context(data: bytes) -> tuple[int, str]:
    """Data of a META_CONTEXT reply: the id and the name."""
    if len(data) < _U32.size:
        raise ProtocolError("a context without its id")
    return _U32.unpack_from(data)[0], data[_U32.size :].decode(errors="replace")


def export_info(name: str, infos: Sequence[bytes]) -> ExportInfo:
    """What the INFO replies to a GO say."""
    size, flags, sizes = None, 0, (1, BLOCK_SIZE, PAYLOAD_BYTES_MAX)
    for data in infos:
        kind = _U16.unpack_from(data)[0] if len(data) >= _U16.size else -1
        rest = data[_U16.size :]
        if kind == Info.EXPORT and len(rest) == _INFO_EXPORT.size:
            size, flags = _INFO_EXPORT.unpack(rest)
        elif kind == Info.BLOCK_SIZE and len(rest) == _INFO_BLOCK_SIZE.size:
            sizes = _INFO_BLOCK_SIZE.unpack(rest)
        elif kind in (-1, Info.EXPORT, Info.BLOCK_SIZE):
            raise ProtocolError("what it says of the export makes no sense")
    if size is None:
        raise ProtocolError("it does not say how large the export is")
    return _info(name, size, flags, *sizes)


def parse_export_name(name: str, data: bytes) -> ExportInfo:
    """The answer to EXPORT_NAME, without the zeros."""
    size, flags = _INFO_EXPORT.unpack(data)
    return _info(name, size, flags, 1, BLOCK_SIZE, PAYLOAD_BYTES_MAX)


EXPORT_NAME_BYTES: Final = _INFO_EXPORT.size


def _info(name: str, size: int, flags: int, least: int, best: int, most: int) -> ExportInfo:
    known = sum(TransmissionFlag)
    most = min(most, PAYLOAD_BYTES_MAX)
    if least > 1:
        most -= most % least
    return ExportInfo(name, size, TransmissionFlag(flags & known), "", min(best, most), least, most)


# Transmission


@dataclass(frozen=True, slots=True)
class ReplyHeader:
    """The first bytes of a reply. A chunk has a ``kind`` and flags, a simple reply an ``error``."""

    cookie: int
    is_chunk: bool
    kind: int
    is_done: bool
    error: int


def parse_reply(data: bytes) -> ReplyHeader:
    """`REPLY_BYTES` of a reply of either sort."""
    magic = _U32.unpack_from(data)[0]
    if magic == SIMPLE_REPLY_MAGIC:
        _, error, cookie = _SIMPLE.unpack(data)
        return ReplyHeader(cookie, False, 0, True, error)
    if magic == STRUCTURED_REPLY_MAGIC:
        _, flags, kind, cookie = _CHUNK.unpack(data)
        return ReplyHeader(cookie, True, kind, bool(flags & ReplyFlag.DONE), 0)
    raise ProtocolError(f"a reply begins with {magic:#010x}")


def parse_chunk_length(data: bytes) -> int:
    """What follows the header of a chunk."""
    length: int = _U32.unpack(data)[0]
    return length


class Answer:
    """What comes back for one request, put together.

    For each reply: `payload_length`, which checks what was announced, then `take`. When the last
    one is taken, `result`.
    """

    __slots__ = (
        "_chunks", "_context", "_error", "_extents", "_got", "_pieces", "_request", "_structured",
    )  # fmt: skip

    def __init__(self, request: Request, *, structured: bool, context: int | None = None) -> None:
        self._request = request
        self._structured = structured
        self._context = context
        self._pieces: list[tuple[int, int, Data | None]] = []
        self._extents: list[tuple[int, int]] = []
        self._error: ExportError | None = None
        self._got = 0
        self._chunks = 0

    def payload_length(self, header: ReplyHeader, announced: int) -> int:
        """How many bytes of payload to read; ``announced`` is what a chunk says."""
        reads = self._request.command == Command.READ
        if not header.is_chunk:
            if self._chunks or (self._structured and reads):
                raise ProtocolError("a simple reply where a structured one has to be")
            return self._request.length if reads and not header.error else 0
        self._chunks += 1
        if not self._structured or self._chunks > CHUNKS_MAX:
            raise ProtocolError("more structured replies than there can be")
        least, most = self._bounds(header.kind, reads=reads)
        if not least <= announced <= most:
            raise ProtocolError(f"a chunk of type {header.kind} with {announced} bytes")
        if header.kind == ChunkType.NONE and not header.is_done:
            raise ProtocolError("an empty chunk that is not the last")
        return announced

    def _bounds(self, kind: int, *, reads: bool) -> tuple[int, int]:
        if kind & _ERROR_BIT:
            return _ERROR.size, _ERROR.size + STRING_BYTES_MAX + _U64.size
        if kind == ChunkType.NONE:
            return 0, 0
        if kind == ChunkType.OFFSET_DATA and reads:
            return _U64.size + 1, _U64.size + self._request.length - self._got
        if kind == ChunkType.OFFSET_HOLE and reads:
            return _HOLE.size, _HOLE.size
        if kind == ChunkType.BLOCK_STATUS and self._request.command == Command.BLOCK_STATUS:
            return _U32.size + _EXTENT.size, EXTENTS_BYTES_MAX
        raise ProtocolError(f"a chunk of type {kind} for command {self._request.command}")

    def take(self, header: ReplyHeader, payload: bytes) -> None:
        """One reply with its payload."""
        if not header.is_chunk:
            if header.error:
                self._error = _error(header.error, "")
            elif self._request.command == Command.READ:
                self._pieces.append((self._request.offset, len(payload), payload))
        elif header.kind & _ERROR_BIT:
            self._take_error(payload)
        elif header.kind == ChunkType.OFFSET_DATA:
            offset = _U64.unpack_from(payload)[0]
            self._take_piece(offset, len(payload) - _U64.size, memoryview(payload)[_U64.size :])
        elif header.kind == ChunkType.OFFSET_HOLE:
            offset, length = _HOLE.unpack(payload)
            self._take_piece(offset, length, None)
        elif header.kind == ChunkType.BLOCK_STATUS:
            self._take_extents(payload)

    def _take_error(self, payload: bytes) -> None:
        error, length = _ERROR.unpack_from(payload)
        text = payload[_ERROR.size :][:length]
        if len(text) < length or not error:
            raise ProtocolError("an error that makes no sense")
        self._error = self._error or _error(error, text.decode(errors="replace"))

    def _take_piece(self, offset: int, length: int, data: Data | None) -> None:
        begin, end = self._request.offset, self._request.offset + self._request.length
        self._got += length
        if not length or not begin <= offset < offset + length <= end:
            raise ProtocolError(f"{offset}+{length} is no part of what was asked for")
        if self._got > self._request.length:
            raise ProtocolError("more bytes than were asked for")
        self._pieces.append((offset, length, data))

    def _take_extents(self, payload: bytes) -> None:
        if (len(payload) - _U32.size) % _EXTENT.size or self._extents:
            raise ProtocolError("a status that makes no sense")
        if _U32.unpack_from(payload)[0] != self._context:
            raise ProtocolError("the status of something that was not asked for")
        self._extents = list(_EXTENT.iter_unpack(payload[_U32.size :]))
        if not all(length for length, _ in self._extents):
            raise ProtocolError("the status of no bytes")

    @property
    def pieces(self) -> list[tuple[int, Data | None]]:
        """What a READ got, in order: each its length and its bytes; None is a hole."""
        return [(length, data) for _, length, data in self._pieces]

    @property
    def extents(self) -> list[tuple[int, int]]:
        """What a BLOCK_STATUS got: each its length and its flags."""
        return self._extents

    def check(self) -> None:
        """When all is taken: raise `ExportError` if it failed, `ProtocolError` if it is not all."""
        if self._error is not None:
            raise self._error
        if self._request.command == Command.READ:
            self._pieces.sort(key=lambda piece: piece[0])
            at = self._request.offset
            for offset, length, _ in self._pieces:
                if offset != at:
                    raise ProtocolError(f"{at} is missing, or was sent twice")
                at += length
            if at != self._request.offset + self._request.length:
                raise ProtocolError(f"{at} is missing")
        if self._request.command == Command.BLOCK_STATUS and not self._extents:
            raise ProtocolError("a status without an extent")


def _error(number: int, text: str) -> ExportError:
    known = number in set(Error)
    shown = Error(number).name if known else f"error {number}"
    return ExportError(number if known else EIO, f"the server says {text or shown}")
