# SPDX-License-Identifier: MIT
"""What the client's side makes of a server's bytes: of our server's, and of anybody's."""

import random
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftnbd.buffers import holes, is_hole
from swiftnbd.errors import ExportError, ProtocolError
from swiftnbd.protocol import client as wire
from swiftnbd.protocol.constants import (
    Command,
    CommandFlag,
    Error,
    HandshakeFlag,
    Option,
    OptionReply,
    TransmissionFlag,
)
from swiftnbd.protocol.contexts import context_replies, parse_context_query
from swiftnbd.protocol.options import (
    ExportInfo,
    error_reply,
    export_name_reply,
    greeting,
    info_replies,
    parse_info_query,
)
from swiftnbd.protocol.replies import SimpleReplies, StructuredReplies, status_reply
from swiftnbd.protocol.requests import Request

CONTEXT = 7


def understood(stream: bytes, request: Request, *, structured: bool) -> wire.Answer:
    """Feed a whole reply; fail if bytes are left over."""
    answer = wire.Answer(request, structured=structured, context=CONTEXT)
    while True:
        header = wire.parse_reply(_exactly(stream, wire.REPLY_BYTES))
        stream, announced = stream[wire.REPLY_BYTES :], 0
        if header.cookie != request.cookie:
            raise ProtocolError("another's")
        if header.is_chunk:
            announced = wire.parse_chunk_length(_exactly(stream, 4))
            stream = stream[4:]
        length = answer.payload_length(header, announced)
        assert length <= 32 << 20
        answer.take(header, _exactly(stream, length))
        stream = stream[length:]
        if header.is_done:
            answer.check()
            assert not stream
            return answer


def _exactly(stream: bytes, length: int) -> bytes:
    if len(stream) < length:
        raise EOFError
    return stream[:length]


def content(answer: wire.Answer) -> bytes:
    return b"".join(bytes(length) if data is None else data for length, data in answer.pieces)


PIECES = st.lists(
    st.one_of(st.binary(min_size=1, max_size=700), st.integers(1, 2000)), min_size=1, max_size=6
)


@given(PIECES, st.booleans(), st.booleans(), st.integers(0, 1 << 60))
def test_what_our_server_sends_is_what_is_understood(
    plan: list[bytes | int], structured: bool, whole: bool, offset: int
) -> None:
    pieces: list[bytes | memoryview] = []
    for each in plan:
        pieces += holes(each) if isinstance(each, int) else [each]
    expected = b"".join(pieces)
    flags = CommandFlag.DF if whole and structured else 0
    request = Request(Command.READ, flags, 99, offset, len(expected))
    replies = StructuredReplies(is_hole) if structured else SimpleReplies()
    stream = b"".join(replies.content(request, pieces))
    answer = understood(stream, request, structured=structured)
    assert content(answer) == expected
    if structured and not whole:
        assert sum(n for n, data in answer.pieces if data is None) == sum(
            len(piece) for piece in pieces if len(piece) >= 512 and is_hole(piece)
        )


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("error", list(Error))
def test_error_is_the_servers(structured: bool, error: Error) -> None:
    request = Request(Command.READ, 0, 1, 4096, 512)
    replies = StructuredReplies(is_hole) if structured else SimpleReplies()
    for offset in (None, 4100):
        stream = b"".join(replies.failure(request, error, "why\u00e9", offset))
        with pytest.raises(ExportError) as caught:
            understood(stream, request, structured=structured)
        assert caught.value.errno == error
        assert ("why\u00e9" if structured else error.name) in str(caught.value)


def test_done_is_done() -> None:
    for structured, replies in ((False, SimpleReplies()), (True, StructuredReplies(is_hole))):
        for command in (Command.WRITE, Command.FLUSH, Command.TRIM, Command.WRITE_ZEROES):
            request = Request(command, 0, 1, 0, 512)
            understood(b"".join(replies.done(request)), request, structured=structured)


@given(st.lists(st.tuples(st.integers(1, 1 << 31), st.integers(0, 3)), min_size=1, max_size=9))
def test_status_is_understood(extents: list[tuple[int, int]]) -> None:
    request = Request(Command.BLOCK_STATUS, 0, 5, 0, 1 << 31)
    stream = b"".join(status_reply(request, CONTEXT, extents))
    assert understood(stream, request, structured=True).extents == extents
    with pytest.raises(ProtocolError, match="that was not asked for"):
        understood(b"".join(status_reply(request, 1, extents)), request, structured=True)


@given(
    st.sampled_from([Command.READ, Command.WRITE, Command.BLOCK_STATUS]), st.booleans(),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 60),
)  # fmt: skip
def test_broken_reply_is_an_error_and_nothing_else(
    command: Command, structured: bool, changes: list[tuple[int, int]], cut: int
) -> None:
    request = Request(command, 0, 3, 512, 1600)
    pieces: Sequence[bytes | memoryview] = [b"a" * 500, *holes(600), b"b" * 500]
    replies = StructuredReplies(is_hole) if structured else SimpleReplies()
    match command:
        case Command.READ:
            sent = replies.content(request, pieces)
        case Command.BLOCK_STATUS:
            sent = status_reply(request, CONTEXT, [(512, 0), (1024, 3)])
        case _:
            sent = replies.done(request)
    stream = bytearray(b"".join(sent))
    for at, byte in changes:
        stream[at % len(stream)] = byte
    try:
        answer = understood(bytes(stream[: len(stream) - cut]), request, structured=structured)
    except (ProtocolError, ExportError, EOFError, AssertionError):
        return
    if command == Command.READ:
        assert len(content(answer)) == 1600


def chunk(kind: int, payload: bytes, *, done: bool = False) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, done, kind, 3, len(payload)) + payload


def data(offset: int, length: int, **how: bool) -> bytes:
    return chunk(1, struct.pack(">Q", offset) + b"x" * length, **how)


def gap(offset: int, length: int, **how: bool) -> bytes:
    return chunk(2, struct.pack(">QI", offset, length), **how)


HOSTILE = {
    "twice": data(512, 512) + data(512, 1024, done=True),
    "overlap": data(512, 1024) + data(1000, 512, done=True),
    "missing": data(512, 512, done=True),
    "before": data(511, 1, done=True),
    "behind": data(512 + 1600 - 1, 2, done=True),
    "a hole too long": gap(512, 0xFFFFFFFF, done=True),
    "too much": data(512, 1600) + gap(512, 1600, done=True),
    "an empty hole": gap(512, 0),
    "no bytes": data(512, 0),
    "a status": chunk(5, bytes(12), done=True),
    "an unknown chunk": chunk(77, b"", done=True),
    "an endless text": chunk(0x8001, struct.pack(">IH", 5, 65535) + b"x", done=True),
    "an error that is none": chunk(0x8001, struct.pack(">IH", 0, 0), done=True),
    "an empty chunk": chunk(0, b""),
    "a simple reply": struct.pack(">IIQ", 0x67446698, 0, 3) + b"x" * 1600,
    "no magic": bytes(20),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_reply_that_makes_no_sense_ends_the_connection(name: str) -> None:
    with pytest.raises(ProtocolError):
        understood(HOSTILE[name], Request(Command.READ, 0, 3, 512, 1600), structured=True)


def test_structured_reply_to_who_did_not_ask_for_it_is_refused() -> None:
    with pytest.raises(ProtocolError):
        understood(data(512, 1600, done=True), Request(0, 0, 3, 512, 1600), structured=False)


def test_unknown_error_is_one_of_input_and_output() -> None:
    stream = struct.pack(">IIQ", 0x67446698, 7777, 3)
    with pytest.raises(ExportError) as caught:
        understood(stream, Request(1, 0, 3, 0, 1), structured=False)
    assert caught.value.errno == 5


# Handshake


def replies_in(stream: bytes, option: Option) -> list[tuple[int, bytes]]:
    found = []
    while stream:
        kind, length = wire.parse_option_reply(option, stream[: wire.OPTION_REPLY_BYTES])
        stream = stream[wire.OPTION_REPLY_BYTES :]
        found.append((kind, stream[:length]))
        stream = stream[length:]
    return found


def test_greeting() -> None:
    both = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
    assert wire.parse_greeting(greeting(both)) == both
    assert wire.client_flags(both) == b"\0\0\0\3"
    with pytest.raises(ProtocolError, match="an old style"):
        wire.parse_greeting(greeting(HandshakeFlag(0)))
    with pytest.raises(ProtocolError, match="an old style"):
        wire.parse_greeting(b"NBDMAGIC" + bytes.fromhex("00420281861253") + b"\0\0\0")
    with pytest.raises(ProtocolError, match="no NBD server"):
        wire.parse_greeting(b"HTTP/1.1 400 Bad R")


@given(
    st.sampled_from(["", "disk", "\u00e9" * 500]),
    st.integers(0, (1 << 63) - 1),
    st.integers(0, 12),
)
def test_what_our_server_says_of_an_export(name: str, size: int, bits: int) -> None:
    flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag(1 << bits & 0xFFF)
    info = ExportInfo(name, size, flags, "", 8192, 512, 1 << 20)
    query = parse_info_query(wire.go_data(name))
    assert query.name == name
    replies = replies_in(info_replies(Option.GO, info, query.wanted), Option.GO)
    assert replies.pop() == (OptionReply.ACK, b"")
    assert wire.export_info(name, [data for _, data in replies]) == info
    found = wire.parse_export_name(name, export_name_reply(info, no_zeroes=True))
    assert (found.size, found.flags, found.block_size_min) == (size, flags, 1)


def test_context_is_understood() -> None:
    query = parse_context_query(wire.context_data("disk", "base:allocation"))
    assert (query.name, query.queries) == ("disk", ("base:allocation",))
    sent = context_replies(Option.SET_META_CONTEXT, query.queries)
    (_, data), _ = replies_in(sent, Option.SET_META_CONTEXT)
    assert wire.parse_context(data) == (1, "base:allocation")


def test_refusal_is_in_words() -> None:
    ((kind, data),) = replies_in(
        error_reply(Option.GO, OptionReply.ERR_UNKNOWN, "no such"), Option.GO
    )
    assert wire.is_error(kind)
    assert not wire.is_error(OptionReply.META_CONTEXT)
    assert str(wire.refusal(kind, data)) == "no such"


@pytest.mark.parametrize(
    "infos", [[], [b""], [b"\0"], [b"\0\0" + bytes(9)], [b"\0\0" + bytes(10), b"\0\3" + bytes(11)]]
)
def test_export_that_is_not_described_is_refused(infos: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        wire.export_info("", infos)


def test_reply_to_an_option_is_bounded() -> None:
    header = struct.pack(">QIII", 0x0003E889045565A9, 7, 3, 1 << 20)
    with pytest.raises(ProtocolError, match="has 1048576 bytes"):
        wire.parse_option_reply(Option.GO, header)
    for broken in (b"\1" + header[1:], header[:11] + b"\6" + header[12:]):
        with pytest.raises(ProtocolError, match="makes no sense"):
            wire.parse_option_reply(Option.GO, broken)


def test_random_bytes_are_never_more_than_an_error() -> None:
    chance = random.Random(5)
    for _ in range(500):
        stream = b"\x66\x8e\x33\xef" + chance.randbytes(60)
        with pytest.raises((ProtocolError, ExportError, EOFError)):
            understood(stream, Request(0, 0, 3, 512, 1600), structured=True)
