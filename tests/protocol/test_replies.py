# SPDX-License-Identifier: MIT
"""Layouts of replies, written out: simple ones and every kind of chunk (acceptance rows A7)."""

import pytest

from swiftnbd.protocol.constants import Error
from swiftnbd.protocol.replies import Bytes, SimpleReplies, StructuredReplies, status_reply
from swiftnbd.protocol.requests import Request

SIMPLE = b"\x67\x44\x66\x98"
CHUNK = b"\x66\x8e\x33\xef"
COOKIE = b"\x01\x23\x45\x67\x89\xab\xcd\xef"
DONE, MORE = b"\0\1", b"\0\0"
NONE, DATA, HOLE, STATUS = b"\0\0", b"\0\1", b"\0\2", b"\0\5"
ERROR, ERROR_OFFSET = b"\x80\1", b"\x80\2"

READ, WRITE, FLUSH, STATUS_COMMAND = 0, 1, 3, 7
DF = 4


def is_hole(piece: Bytes) -> bool:
    return isinstance(piece, memoryview)


def hole(length: int) -> memoryview:
    return memoryview(bytes(length))


def request(command: int = READ, offset: int = 0, length: int = 512, flags: int = 0) -> Request:
    return Request(command, flags, int.from_bytes(COOKIE), offset, length)


def content(pieces: list[Bytes], offset: int = 0, flags: int = 0) -> bytes:
    asked = request(READ, offset, sum(map(len, pieces)), flags)
    return b"".join(StructuredReplies(is_hole).content(asked, pieces))


def data_chunk(offset: int, data: bytes, flags: bytes = DONE) -> bytes:
    length = (8 + len(data)).to_bytes(4)
    return CHUNK + flags + DATA + COOKIE + length + offset.to_bytes(8) + data


def hole_chunk(offset: int, length: int, flags: bytes = DONE) -> bytes:
    payload = offset.to_bytes(8) + length.to_bytes(4)
    return CHUNK + flags + HOLE + COOKIE + b"\0\0\0\x0c" + payload


# Simple replies


@pytest.mark.parametrize("cookie", [0, 1, 0x0123456789ABCDEF, 2**64 - 1])
def test_simple_reply_is_magic_error_and_cookie(cookie: int) -> None:
    """Acceptance row A6.20."""
    replies, asked = SimpleReplies(), Request(READ, 0, cookie, 0, 4)
    assert replies.done(asked) == [SIMPLE + bytes(4) + cookie.to_bytes(8)]
    assert replies.content(asked, [b"da", b"ta"]) == [
        SIMPLE + bytes(4) + cookie.to_bytes(8),
        b"da",
        b"ta",
    ]
    refused = replies.failure(asked, Error.EINVAL, "not sent", 3)
    assert refused == [SIMPLE + b"\0\0\0\x16" + cookie.to_bytes(8)]


# READ


def test_read_of_nothing_is_a_none_chunk() -> None:
    """Acceptance rows A7.1, A7.3: never a simple reply."""
    done = StructuredReplies(is_hole).done(request(READ, 0, 0))
    assert done == [CHUNK + DONE + NONE + COOKIE + b"\0\0\0\0"]


def test_data_is_one_chunk_whatever_its_pieces() -> None:
    """Acceptance row A7.4."""
    assert content([b"one"], 5) == data_chunk(5, b"one")
    assert content([b"one", b"two", bytearray(b"three")], 2**40) == data_chunk(
        2**40, b"onetwothree"
    )


def test_data_is_not_copied() -> None:
    piece = bytearray(b"data")
    reply = StructuredReplies(is_hole).content(request(READ, 0, 4), [piece])
    assert reply[1] is piece


def test_holes_are_said_and_not_sent() -> None:
    """Acceptance row A7.5: neighbours are one, and only the last chunk of all is DONE."""
    assert content([hole(4096)], 512) == hole_chunk(512, 4096)
    assert content([hole(4096), hole(512), hole(1024)]) == hole_chunk(0, 5632)
    assert content([b"x" * 512, hole(512), hole(512), b"y", b"z"], 512) == (
        data_chunk(512, b"x" * 512, MORE)
        + hole_chunk(1024, 1024, MORE)
        + data_chunk(2048, b"yz")
    )  # fmt: skip
    assert content([hole(512), b"x"]) == hole_chunk(0, 512, MORE) + data_chunk(512, b"x")


def test_small_hole_is_sent_as_data() -> None:
    assert content([hole(511)]) == data_chunk(0, bytes(511))
    assert content([b"x", hole(511), b"y"]) == data_chunk(0, b"x" + bytes(511) + b"y")
    assert content([hole(512)]) == hole_chunk(0, 512)


def test_df_makes_one_data_chunk_of_everything() -> None:
    """Acceptance row A7.9: "with the zeroes explicitly present"."""
    assert content([b"x", hole(512), b"y"], 7, DF) == data_chunk(7, b"x" + bytes(512) + b"y")
    assert content([hole(1024)], 7, DF) == data_chunk(7, bytes(1024))


def test_pieces_that_are_not_what_was_asked_for_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        StructuredReplies(is_hole).content(request(READ, 0, 5), [b"four"])


# Others


@pytest.mark.parametrize("command", [WRITE, FLUSH, 4, 5, 6])
def test_success_without_content_is_a_simple_reply(command: int) -> None:
    """Acceptance row A7.2."""
    done = StructuredReplies(is_hole).done(request(command))
    assert done == [SIMPLE + bytes(4) + COOKIE]


@pytest.mark.parametrize("command", [READ, WRITE, STATUS_COMMAND])
def test_failure_is_an_error_chunk_with_its_text(command: int) -> None:
    """Acceptance rows A7.2, A7.8."""
    failure = StructuredReplies(is_hole).failure
    assert failure(request(command), Error.EIO, "größer") == [
        CHUNK + DONE + ERROR + COOKIE
        + b"\0\0\0\x0e" + b"\0\0\0\5" + b"\0\x08" + b"gr\xc3\xb6\xc3\x9fer"
    ]  # fmt: skip
    assert failure(request(command), Error.EINVAL, "") == [
        CHUNK + DONE + ERROR + COOKIE + b"\0\0\0\6" + b"\0\0\0\x16" + b"\0\0"
    ]


def test_failure_with_an_offset_says_it_behind_the_text() -> None:
    """Acceptance row A7.8."""
    failure = StructuredReplies(is_hole).failure
    assert failure(request(READ, 512, 1024), Error.EINVAL, "end", 1000) == [
        CHUNK + DONE + ERROR_OFFSET + COOKIE
        + b"\0\0\0\x11" + b"\0\0\0\x16" + b"\0\3" + b"end" + bytes(6) + b"\3\xe8"
    ]  # fmt: skip


@pytest.mark.parametrize("offset", [511, 1536])
def test_offset_outside_of_the_request_is_a_bug(offset: int) -> None:
    with pytest.raises(AssertionError):
        StructuredReplies(is_hole).failure(request(READ, 512, 1024), Error.EIO, "", offset)


@pytest.mark.parametrize("character", ["x", "ö", "😀", "\udcff"])
def test_text_is_cut_to_what_a_string_may_be(character: str) -> None:
    """Acceptance row A7.8."""
    (chunk,) = StructuredReplies(is_hole).failure(request(), Error.EIO, "a" + character * 5000)
    length = int.from_bytes(chunk[24:26])
    assert 4093 <= length <= 4096
    assert len(chunk) == 26 + length
    assert bytes(chunk[16:20]) == (6 + length).to_bytes(4)
    bytes(chunk[26:]).decode()


def test_status_is_the_context_and_its_extents() -> None:
    """Acceptance row A7.6."""
    asked = request(STATUS_COMMAND, 0, 8192)
    assert status_reply(asked, 1, [(4096, 3), (2**32 - 512, 0)]) == [
        CHUNK + DONE + STATUS + COOKIE + b"\0\0\0\x14" + b"\0\0\0\1"
        + b"\0\0\x10\0" + b"\0\0\0\3" + b"\xff\xff\xfe\0" + b"\0\0\0\0"
    ]  # fmt: skip
    with pytest.raises(AssertionError):
        status_reply(asked, 1, [])
