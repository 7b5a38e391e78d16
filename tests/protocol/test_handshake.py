# SPDX-License-Identifier: MIT
"""Handshake without I/O: bytes in, bytes and events out (rows A1.*, A2.*, A4)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftnbd.errors import ProtocolError
from swiftnbd.protocol.constants import HandshakeFlag, Option, OptionReply
from swiftnbd.protocol.events import Aborted, ExportWanted, ListWanted, Send
from swiftnbd.protocol.handshake import Handshake, Rules
from tests.support.handshakes import (
    ABORT,
    ABORT_ACK,
    ACK,
    DISK,
    FIXED,
    INVALID,
    MAGIC,
    POLICY,
    REPLY,
    UNKNOWN,
    UNSUP,
    Dialogue,
    collect,
    context_query,
    error_kind,
    in_pieces,
    option,
    query,
)

SIZE_AND_FLAGS = b"\x00\x00\x01\x23\x45\x67\x8a\x00" + b"\x05\x6d"


def info(number: int, data: bytes) -> bytes:
    return REPLY + number.to_bytes(4) + b"\0\0\0\3" + len(data).to_bytes(4) + data


def ack(number: int) -> bytes:
    return REPLY + number.to_bytes(4) + ACK + b"\0\0\0\0"


INFO_EXPORT = b"\0\0" + SIZE_AND_FLAGS
INFO_NAME = b"\0\1disk"
INFO_DESCRIPTION = b"\0\x0264 KiB objects"
INFO_BLOCK_SIZE = b"\0\3" + b"\0\0\0\1" + b"\0\1\0\0" + b"\2\0\0\0"


def opened(flags: bytes = FIXED) -> Handshake:
    handshake = Handshake()
    handshake.feed(flags)
    assert handshake.next_event() is None
    return handshake


# Flags


def test_greeting_offers_fixed_newstyle_and_no_zeroes_only() -> None:
    assert Handshake().greeting() == b"NBDMAGIC" + b"IHAVEOPT" + b"\0\3"


@pytest.mark.parametrize("flags", range(4))
def test_known_client_flags_are_accepted(flags: int) -> None:
    opened(flags.to_bytes(4))


@pytest.mark.parametrize("bit", range(2, 32))
def test_unknown_client_flag_closes(bit: int) -> None:
    handshake = Handshake()
    handshake.feed((1 << bit | 3).to_bytes(4))
    with pytest.raises(ProtocolError, match="client flags"):
        handshake.next_event()


@pytest.mark.parametrize("offered", range(4))
@pytest.mark.parametrize("flags", range(4))
def test_client_flag_that_was_not_offered_closes(offered: int, flags: int) -> None:
    """Acceptance rows A1.1, A1.3: the greeting says which."""
    dialogue = Dialogue(rules=Rules(flags=HandshakeFlag(offered)))
    assert dialogue.handshake.greeting() == b"NBDMAGICIHAVEOPT" + offered.to_bytes(2)
    dialogue.feed(flags.to_bytes(4))
    assert bool(dialogue.ended) is bool(flags & ~offered)


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0xFFFFFFFF])
@pytest.mark.parametrize("flags", [b"\0\0\0\0", b"\0\0\0\2"])
def test_option_but_export_name_without_fixed_newstyle_closes(flags: bytes, number: int) -> None:
    handshake = opened(flags)
    handshake.feed(option(number))
    with pytest.raises(ProtocolError, match="without fixed newstyle"):
        handshake.next_event()


@pytest.mark.parametrize(
    "magic", [b"IHAVEOPU", b"\0" * 8, b"GET / HT", b"\x16\x03\x01\x02\0\1\0\1"]
)
def test_wrong_option_magic_closes(magic: bytes) -> None:
    handshake = opened()
    handshake.feed(magic + b"\0\0\0\3\0\0\0\0")
    with pytest.raises(ProtocolError, match="magic"):
        handshake.next_event()


# EXPORT_NAME


@pytest.mark.parametrize(
    ("flags", "zeroes"), [(b"\0\0\0\0", 124), (b"\0\0\0\1", 124), (b"\0\0\0\2", 0), (FIXED, 0)]
)
def test_export_name_answers_size_flags_and_zeroes_unless_waived(flags: bytes, zeroes: int) -> None:
    handshake = opened(flags)
    handshake.feed(option(1, b"disk"))
    event = handshake.next_event()
    assert event == ExportWanted(Option.EXPORT_NAME, "disk")
    assert isinstance(event, ExportWanted)
    assert event.chosen
    assert handshake.accept(event, DISK) == SIZE_AND_FLAGS + bytes(zeroes)


def test_unknown_export_name_closes_without_a_reply() -> None:
    dialogue = Dialogue().feed(FIXED, option(1, b"other"))
    assert dialogue.ended == "no such"
    assert dialogue.sent == b""


def test_export_name_may_be_empty() -> None:
    handshake = opened()
    handshake.feed(option(1))
    assert collect(handshake) == [ExportWanted(Option.EXPORT_NAME, "")]


@pytest.mark.parametrize("name", [b"a\0b", b"\xff", b"\xed\xa0\x80", b"x" * 4097])
def test_malformed_export_name_closes(name: bytes) -> None:
    handshake = opened()
    handshake.feed(option(1, name))
    with pytest.raises(ProtocolError):
        handshake.next_event()


@pytest.mark.parametrize("name", ["é" * 2048, "disk", "../x", "%2e", "\n\x1b[31m", "😀" * 256])
@pytest.mark.parametrize("number", [1, 6, 7])
def test_name_comes_out_exactly_as_sent(number: int, name: str) -> None:
    handshake = opened()
    data = name.encode()
    handshake.feed(option(number, data if number == 1 else query(data)))
    assert collect(handshake) == [ExportWanted(Option(number), name)]


# ABORT, LIST


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 65536, b"\0" * 65537, b"\0" * (1 << 20)])
def test_abort_is_acknowledged_whatever_data_it_has(data: bytes) -> None:
    handshake = opened()
    handshake.feed(option(2, data))
    assert handshake.next_event() == Aborted(ABORT_ACK)


def test_list_asks_for_the_names() -> None:
    handshake = opened()
    handshake.feed(option(3))
    assert handshake.next_event() == ListWanted()
    assert handshake.next_event() is None


def test_list_that_is_switched_off_is_refused_by_policy() -> None:
    """Acceptance rows A2.6, A2.7."""
    dialogue = Dialogue(rules=Rules(list_exports=False)).feed(FIXED, option(3))
    assert error_kind(dialogue.take(), 3) == POLICY
    assert error_kind(dialogue.feed(option(3, b"x")).take(), 3) == INVALID
    assert dialogue.feed(ABORT).take() == ABORT_ACK


def test_list_replies_carry_lengths_in_bytes() -> None:
    head = REPLY + b"\0\0\0\3"
    assert Handshake().list_replies([("disk", ""), ("größe", "")]) == (
        head + b"\0\0\0\2" + b"\0\0\0\x08" + b"\0\0\0\4disk"
        + head + b"\0\0\0\2" + b"\0\0\0\x0b" + b"\0\0\0\7gr\xc3\xb6\xc3\x9fe"
        + head + ACK + b"\0\0\0\0"
    )  # fmt: skip


def test_list_of_nothing_is_just_acknowledged() -> None:
    assert Handshake().list_replies([]) == ack(3)


# INFO and GO


@pytest.mark.parametrize("number", [6, 7])
@pytest.mark.parametrize(
    ("wanted", "answers"),
    [
        ((), [INFO_EXPORT]),
        ((0,), [INFO_EXPORT]),
        ((1,), [INFO_EXPORT, INFO_NAME]),
        ((2,), [INFO_EXPORT, INFO_DESCRIPTION]),
        ((3,), [INFO_EXPORT, INFO_BLOCK_SIZE]),
        ((3, 2, 1, 0), [INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE]),
        ((1, 1, 1), [INFO_EXPORT, INFO_NAME]),
        ((4, 0xFFFF), [INFO_EXPORT]),
    ],
)
def test_info_and_go_answer_what_is_asked_and_the_size_always(
    number: int, wanted: tuple[int, ...], answers: list[bytes]
) -> None:
    dialogue = Dialogue().feed(FIXED, option(number, query(b"disk", *wanted)))
    assert dialogue.sent == b"".join(info(number, data) for data in answers) + ack(number)
    assert dialogue.ended == ("transmission" if number == 7 else "")


@pytest.mark.parametrize("number", [6, 7])
def test_unknown_export_is_refused_and_the_handshake_goes_on(number: int) -> None:
    dialogue = Dialogue().feed(FIXED, option(number, query(b"other")))
    assert dialogue.take() == REPLY + number.to_bytes(4) + UNKNOWN + b"\0\0\0\7no such"
    assert dialogue.feed(ABORT).take() == ABORT_ACK


MALFORMED = {
    "empty": b"",
    "five bytes": b"\0\0\0\0\0",
    "name longer than the option": query(b"disk", length=5),
    "name of 4 GiB in a short option": query(b"disk", length=0xFFFFFFFF),
    "name as long as the option": query(b"disk", length=10),
    "name shorter than it is": query(b"disk", length=3),
    "fewer types than said": query(b"disk", 1, count=2),
    "more types than said": query(b"disk", 1, 2, count=1),
    "65535 types in no bytes": query(b"disk", count=0xFFFF),
    "half a type": query(b"disk", 1) + b"\0",
    "trailing bytes": query(b"disk") + b"xx",
    "NUL in the name": query(b"di\0sk"),
    "name that is not UTF-8": query(b"\xc3("),
    "name of 4097 bytes": query(b"n" * 4097),
    "name of 65000 bytes": query(b"n" * 65000),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("number", [6, 7])
def test_malformed_query_is_invalid_and_the_stream_stays_in_sync(number: int, case: str) -> None:
    dialogue = Dialogue().feed(FIXED, option(number, MALFORMED[case]))
    assert error_kind(dialogue.take(), number) == INVALID
    assert dialogue.feed(ABORT).take() == ABORT_ACK


# Every option in the option phase; after every error the stream is in sync

ERRORS = [
    (3, b"x", INVALID),
    (3, b"x" * 65536, INVALID),
    (5, b"", POLICY),
    (5, b"surplus", POLICY),
    (4, b"", UNSUP),
    (4, b"disk", UNSUP),
    (8, b"data", INVALID),
    (9, context_query(b"disk"), INVALID),
    (10, context_query(b"disk"), INVALID),
    (11, b"", UNSUP),
    (11, b"data", UNSUP),
    (0, b"", UNSUP),
    (12, b"", UNSUP),
    (0x49484156, MAGIC * 3, UNSUP),
    (0xFFFFFFFF, b"x" * 70000, UNSUP),
    (8, ABORT * 5, INVALID),  # data that looks like options is data
    (99, ABORT * 5, UNSUP),
    (3, b"x" * 65537, INVALID),  # known, but larger than any of them needs
    (6, b"x" * 70000, INVALID),
    (7, b"x" * (1 << 20), INVALID),
    (99, b"x" * (1 << 20), UNSUP),
]


@pytest.mark.parametrize(("number", "data", "kind"), ERRORS)
def test_error_reply_is_sent_and_abort_is_acknowledged_next(
    number: int, data: bytes, kind: bytes
) -> None:
    dialogue = Dialogue().feed(FIXED, option(number, data))
    assert error_kind(dialogue.take(), number) == kind
    assert dialogue.ended == ""
    assert dialogue.feed(ABORT).take() == ABORT_ACK
    assert dialogue.ended == "abort"


@pytest.mark.parametrize(("number", "data", "kind"), ERRORS)
def test_error_reply_comes_only_when_all_data_has(number: int, data: bytes, kind: bytes) -> None:
    dialogue = Dialogue().feed(FIXED, option(number, data)[:-1])
    assert dialogue.sent == b""
    dialogue.feed(option(number, data)[-1:])
    assert error_kind(dialogue.take(), number) == kind


def test_several_options_at_once_are_answered_in_order() -> None:
    dialogue = Dialogue().feed(
        FIXED + option(99) + option(3) + option(6, query(b"disk")) + option(2)
    )
    names = Handshake().list_replies([("disk", "")])
    text = b"option 99 is not supported"
    assert dialogue.sent == (
        REPLY + b"\0\0\0\x63" + UNSUP + len(text).to_bytes(4) + text
        + names + info(6, INFO_EXPORT) + ack(6) + ABORT_ACK
    )  # fmt: skip


# After the handshake


@pytest.mark.parametrize("choice", [option(1, b"disk"), option(7, query(b"disk"))])
def test_bytes_behind_the_choice_are_left_for_transmission(choice: bytes) -> None:
    dialogue = Dialogue().feed(FIXED + choice + b"\x25\x60\x95\x13 and more")
    assert dialogue.ended == "transmission"
    assert dialogue.handshake.next_event() is None
    assert dialogue.handshake.rest() == b"\x25\x60\x95\x13 and more"
    assert dialogue.handshake.rest() == b""


def test_nothing_is_taken_while_an_export_is_being_decided() -> None:
    handshake = opened()
    handshake.feed(option(6, query(b"disk")) + ABORT)
    (event,) = collect(handshake)
    assert isinstance(event, ExportWanted)
    assert handshake.next_event() is None
    assert handshake.refuse(event, OptionReply.ERR_UNKNOWN, "") == (
        REPLY + b"\0\0\0\6" + UNKNOWN + b"\0\0\0\0"
    )
    assert handshake.next_event() == Aborted(ABORT_ACK)


def test_answer_that_nobody_asked_for_is_a_bug() -> None:
    event = ExportWanted(Option.GO, "disk")
    with pytest.raises(AssertionError):
        opened().accept(event, DISK)
    with pytest.raises(AssertionError):
        opened().refuse(event, OptionReply.ERR_UNKNOWN, "")


# However the bytes are cut

CONVERSATIONS = {
    "all options": FIXED
    + option(3)
    + option(5)
    + option(8, b"data")
    + option(9, context_query(b"disk"))
    + option(8)
    + option(8)
    + option(9, context_query(b"disk"))
    + option(10, context_query(b"other", b"base:allocation"))
    + option(10, context_query(b"disk", b"base:allocation", b"x:y"))
    + option(11)
    + option(3, b"data")
    + option(6, query(b"other", 1, 2))
    + option(6, query(b"disk", 3))
    + option(6, b"bad")
    + option(7, query(b"disk", 1))
    + b"requests",
    "old client": b"\0\0\0\0" + option(1, b"disk") + b"requests",
    "abort": FIXED + option(99, b"x" * 300) + ABORT + b"rest",
    "bad magic": FIXED + option(3) + b"GET / HTTP/1.1\r\n\r\n",
    "bad flags": b"\0\1\0\3" + option(3),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_byte_by_byte_and_all_at_once_give_the_same(name: str) -> None:
    data = CONVERSATIONS[name]
    whole, bytewise = Dialogue().feed(data), Dialogue().feed(*in_pieces(data, range(len(data))))
    assert bytewise.sent == whole.sent
    assert bytewise.ended == whole.ended


@given(st.sampled_from(sorted(CONVERSATIONS)), st.sets(st.integers(0, 400), max_size=40))
def test_any_split_gives_the_same(name: str, cuts: set[int]) -> None:
    data = CONVERSATIONS[name]
    pieces = in_pieces(data, [cut for cut in cuts if cut < len(data)])
    whole, split = Dialogue().feed(data), Dialogue().feed(*pieces)
    assert (split.sent, split.ended) == (whole.sent, whole.ended)


STARTS = [b"", FIXED, FIXED + MAGIC]
STARTS += [FIXED + option(8) + MAGIC + b"\0\0\0" + bytes([kind]) for kind in (7, 9, 10)]
STARTS += [FIXED + option(8) + option(kind, b"", 40) + b"\0\0\0\4disk\0\0" for kind in (9, 10)]


@given(st.binary(max_size=300), st.sampled_from(STARTS))
def test_any_bytes_end_in_waiting_a_reply_or_a_protocol_error(noise: bytes, start: bytes) -> None:
    Dialogue().feed(start + noise)


def test_event_before_its_bytes_is_none() -> None:
    handshake = opened()
    handshake.feed(option(8, b"data")[:-1])
    assert collect(handshake) == []
    handshake.feed(b"a")
    assert [type(event) for event in collect(handshake)] == [Send]
