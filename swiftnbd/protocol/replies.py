# SPDX-License-Identifier: MIT
"""Transmission phase: replies, simple ones and structured ones.

Simple reply ("Simple reply message")::

    u32 magic   u32 error   u64 cookie   [payload of READ, if error is 0]

Structured reply chunk ("Structured reply chunk message")::

    u32 magic   u16 flags   u16 type   u64 cookie   u32 length   payload

    NONE            nothing
    OFFSET_DATA     u64 offset   data
    OFFSET_HOLE     u64 offset   u32 length
    BLOCK_STATUS    u32 context id   count * (u32 length, u32 flags)
    ERROR           u32 error   u16 length   text
    ERROR_OFFSET    u32 error   u16 length   text   u64 offset

A reply is a list of buffers to be sent one after the other, so that data is never copied. Only
whole replies are made, when nothing can fail any more: the last chunk carries DONE.
"""

import itertools
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from swiftnbd.protocol.constants import (
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    ChunkType,
    Command,
    CommandFlag,
    Error,
    ReplyFlag,
)
from swiftnbd.protocol.options import utf8_text
from swiftnbd.protocol.requests import Request

SIMPLE_REPLY: Final = struct.Struct(">IIQ")
_DATA_CHUNK: Final = struct.Struct(">IHHQIQ")  # the chunk's header and the payload's, at once
_CHUNK: Final = struct.Struct(">IHHQI")
_HOLE: Final = struct.Struct(">QI")
_ERROR: Final = struct.Struct(">IH")
_U64: Final = struct.Struct(">Q")

OFFSET_BYTES: Final = 8  # of a data chunk's payload, before the data
HOLE_BYTES_MIN: Final = 512  # smaller ones go as data: "chunks ... multiple of 512 bytes"

_OTHER_BYTES: Final = "the device gave other bytes than it was asked for"

# Plain numbers: to look up a member of an enumeration takes as long as all the rest.
_READ, _OFFSET_DATA, _DONE = int(Command.READ), int(ChunkType.OFFSET_DATA), int(ReplyFlag.DONE)

# What comes before the data of a reply that has nothing else: cookie, bytes of payload, offset
pack_only_data: Final = partial(_DATA_CHUNK.pack, STRUCTURED_REPLY_MAGIC, _DONE, _OFFSET_DATA)

Bytes = bytes | bytearray | memoryview


class Replies(ABC):
    """How requests are answered on one connection."""

    @abstractmethod
    def done(self, request: Request) -> list[Bytes]:
        """Success without content."""

    @abstractmethod
    def content(self, request: Request, pieces: Sequence[Bytes]) -> list[Bytes]:
        """Success of a READ; the pieces are all it asked for, in order, at least one byte."""

    @abstractmethod
    def failure(
        self, request: Request, error: Error, text: str, offset: int | None = None
    ) -> list[Bytes]:
        """``text`` is for the people there, ``offset`` where in the request it went wrong."""


class SimpleReplies(Replies):
    """For a client that did not negotiate more."""

    def done(self, request: Request) -> list[Bytes]:
        return [SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)]

    def content(self, request: Request, pieces: Sequence[Bytes]) -> list[Bytes]:
        return [SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie), *pieces]

    def failure(
        self, request: Request, error: Error, text: str, offset: int | None = None
    ) -> list[Bytes]:
        return [SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, request.cookie)]


class StructuredReplies(Replies):
    """For a client that negotiated them: a READ is never answered with a simple reply ("MUST").

    ``is_hole`` recognises pieces of which nothing but their length needs to be sent.
    """

    def __init__(self, is_hole: Callable[[Bytes], bool]) -> None:
        self._is_hole = is_hole

    def done(self, request: Request) -> list[Bytes]:
        if request.command == _READ:
            return [_chunk(request.cookie, ChunkType.NONE)]
        return [SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)]

    def content(self, request: Request, pieces: Sequence[Bytes]) -> list[Bytes]:
        end = request.offset + request.length
        if len(pieces) == 1 and not self._is_worth_a_hole(pieces[0]):  # the usual case
            assert len(pieces[0]) == request.length, _OTHER_BYTES
            return [_data_header(request.cookie, request.offset, request.length, end), *pieces]
        if request.flags & CommandFlag.DF:  # "at most one content chunk"
            return [_data_header(request.cookie, request.offset, request.length, end), *pieces]
        reply: list[Bytes] = []
        position = request.offset
        for is_hole, run in itertools.groupby(pieces, self._is_worth_a_hole):
            parts = list(run)
            length = sum(map(len, parts))
            if is_hole:
                reply.append(_hole_chunk(request.cookie, position, length, end))
            else:
                reply += [_data_header(request.cookie, position, length, end), *parts]
            position += length
        assert position == end, _OTHER_BYTES
        return reply

    def _is_worth_a_hole(self, piece: Bytes) -> bool:
        return len(piece) >= HOLE_BYTES_MIN and self._is_hole(piece)

    def failure(
        self, request: Request, error: Error, text: str, offset: int | None = None
    ) -> list[Bytes]:
        message = utf8_text(text)
        payload = _ERROR.pack(error, len(message)) + message
        if offset is None:
            return [_chunk(request.cookie, ChunkType.ERROR, payload)]
        assert request.offset <= offset < request.offset + request.length
        payload += _U64.pack(offset)
        return [_chunk(request.cookie, ChunkType.ERROR_OFFSET, payload)]


def status_reply(
    request: Request, context_id: int, extents: Sequence[tuple[int, int]]
) -> list[Bytes]:
    """Success of a BLOCK_STATUS: consecutive extents, each its length in bytes and its flags.

    Always structured: without that no context can have been selected.
    """
    assert extents
    numbers = itertools.chain.from_iterable(extents)
    payload = struct.pack(f">I{2 * len(extents)}I", context_id, *numbers)
    return [_chunk(request.cookie, ChunkType.BLOCK_STATUS, payload)]


def _data_header(cookie: int, offset: int, length: int, end: int) -> bytes:
    """What comes before the data of a chunk, the last one if it reaches the ``end``."""
    flags = _DONE if offset + length == end else 0
    return _DATA_CHUNK.pack(
        STRUCTURED_REPLY_MAGIC, flags, _OFFSET_DATA, cookie, OFFSET_BYTES + length, offset
    )


def _hole_chunk(cookie: int, offset: int, length: int, end: int) -> bytes:
    payload = _HOLE.pack(offset, length)
    return _chunk(cookie, ChunkType.OFFSET_HOLE, payload, done=offset + length == end)


def _chunk(cookie: int, kind: ChunkType, payload: bytes = b"", *, done: bool = True) -> bytes:
    flags = ReplyFlag.DONE if done else 0
    return _CHUNK.pack(STRUCTURED_REPLY_MAGIC, flags, kind, cookie, len(payload)) + payload
