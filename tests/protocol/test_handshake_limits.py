# SPDX-License-Identifier: MIT
"""What a client can make the handshake keep, count or say is bounded (A1.7, A1.8, E1-E4)."""

import pytest

from swiftnbd.errors import ProtocolError
from swiftnbd.protocol.constants import Option, OptionReply
from swiftnbd.protocol.events import Aborted, ExportWanted, ListWanted, Send
from swiftnbd.protocol.handshake import Handshake
from tests.support.handshakes import (
    ABORT,
    ABORT_ACK,
    FIXED,
    INVALID,
    POLICY,
    REPLY,
    UNKNOWN,
    UNSUP,
    Dialogue,
    collect,
    error_kind,
    option,
    query,
)


def test_e1_name_of_4_gib_in_a_small_option_is_invalid() -> None:
    for number in (6, 7):
        dialogue = Dialogue().feed(FIXED, option(number, query(b"x", length=0xFFFFFFFF)))
        assert error_kind(dialogue.take(), number) == INVALID
        assert dialogue.feed(ABORT).take() == ABORT_ACK


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7, 8, 99])
@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x80000000, (1 << 20) + 1])
def test_e1_e4_option_too_long_to_read_away_closes_at_its_header(number: int, length: int) -> None:
    dialogue = Dialogue().feed(FIXED, option(number, b"", length))
    assert f"{length} bytes" in dialogue.ended
    assert dialogue.sent == b""


@pytest.mark.parametrize("length", [65537, 1 << 20])
def test_e1_export_name_longer_than_any_option_closes_at_its_header(length: int) -> None:
    assert f"{length} bytes" in Dialogue().feed(FIXED, option(1, b"", length)).ended


@pytest.mark.parametrize("length", [1, 256, 3000, 4096])
def test_e2_long_unknown_name_is_unknown(length: int) -> None:
    dialogue = Dialogue().feed(FIXED, option(7, query(b"n" * length)))
    assert error_kind(dialogue.take(), 7) == UNKNOWN
    assert dialogue.feed(ABORT).take() == ABORT_ACK


@pytest.mark.parametrize("length", [4097, 65000, 65536])
def test_e2_longer_name_is_invalid(length: int) -> None:
    dialogue = Dialogue().feed(FIXED, option(7, query(b"n" * length)))
    assert error_kind(dialogue.take(), 7) == INVALID
    assert dialogue.feed(ABORT).take() == ABORT_ACK


@pytest.mark.parametrize("character", ["x", "é", "😀", "\udcff"])
def test_e3_error_text_is_cut_to_what_a_string_may_be(character: str) -> None:
    handshake = Handshake()
    handshake.feed(FIXED + option(6, query(b"x")))
    (event,) = collect(handshake)
    assert isinstance(event, ExportWanted)
    reply = handshake.refuse(event, OptionReply.ERR_UNKNOWN, "a" + character * 5000)
    length = int.from_bytes(reply[16:20])
    assert reply[:16] == REPLY + b"\0\0\0\6" + UNKNOWN
    assert 4093 <= length <= 4096
    assert len(reply) == 20 + length
    assert reply[20:].decode().strip(character.encode(errors="replace").decode()) == "a"


def test_e4_skipped_data_is_not_kept() -> None:
    handshake = Handshake()
    handshake.feed(FIXED + option(99, b"", 1 << 20))
    for _ in range(1 << 10):
        assert handshake.next_event() is None
        handshake.feed(bytes(1024))
        assert len(handshake._buffer) <= 1024
    assert len(collect(handshake)) == 1
    assert len(handshake._buffer) == 0


@pytest.mark.parametrize(("exports", "limit"), [(0, 32), (1, 64), (10, 352)])
@pytest.mark.parametrize(
    "one", [option(3), option(8), option(3, b"x"), option(6, b""), option(6, query(b"other"))]
)
def test_too_many_options_close(exports: int, limit: int, one: bytes) -> None:
    dialogue = Dialogue(exports).feed(FIXED, *[one] * limit)
    assert dialogue.ended == ""
    assert dialogue.feed(one).ended.startswith("too many options")


def test_limit_counts_even_the_last_choice() -> None:
    dialogue = Dialogue(0).feed(FIXED, *[option(3)] * 31, option(7, query(b"disk")))
    assert dialogue.ended == "transmission"


def test_refused_length_is_checked_before_the_count() -> None:
    handshake = Handshake()
    handshake.feed(FIXED + option(99, b"", 0xFFFFFFFF))
    with pytest.raises(ProtocolError, match="4294967295"):
        handshake.next_event()


def test_e7_nothing_of_one_export_is_left_for_the_next() -> None:
    handshake = Handshake(2)
    handshake.feed(FIXED + option(6, query(b"one", 1, 2, 3)))
    (first,) = collect(handshake)
    assert isinstance(first, ExportWanted)
    handshake.refuse(first, OptionReply.ERR_UNKNOWN, "")
    handshake.feed(option(99, query(b"one")) + option(7, query(b"two")))
    sent, second = collect(handshake)
    assert error_kind(getattr(sent, "data", b""), 99) == UNSUP
    assert second == ExportWanted(Option.GO, "two", frozenset())


def test_endless_lists_are_refused_and_the_client_may_go_on() -> None:
    """The answer to each is as long as there are exports, however many options they allow."""
    handshake = Handshake(exports=500)
    handshake.feed(FIXED + option(3) * 100)
    events = collect(handshake)
    assert events[:8] == [ListWanted()] * 8
    assert len(events) == 100
    assert all(
        isinstance(event, Send) and error_kind(event.data, 3) == POLICY for event in events[8:]
    )
    handshake.feed(ABORT)
    assert collect(handshake) == [Aborted(ABORT_ACK)]
