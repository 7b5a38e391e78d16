# SPDX-License-Identifier: MIT
"""STARTTLS without I/O: what is answered before, by and after it (rows A2.9 to A2.11, A9, E8)."""

import pytest

from swiftnbd.protocol.constants import Option
from swiftnbd.protocol.events import ExportWanted, ListWanted, StartTls
from swiftnbd.protocol.handshake import Handshake, Tls
from tests.support.handshakes import (
    ABORT,
    ABORT_ACK,
    ACK,
    FIXED,
    INVALID,
    POLICY,
    REPLY,
    TLS_REQD,
    UNSUP,
    Dialogue,
    collect,
    error_kind,
    in_pieces,
    option,
    query,
)

STARTTLS = option(5)
STARTTLS_ACK = REPLY + b"\0\0\0\5" + ACK + b"\0\0\0\0"

REFUSED_UNTIL_TLS = [
    (3, b""),
    (3, b"x"),
    (4, b""),
    (6, query(b"disk")),
    (6, query(b"other")),
    (6, b"malformed"),
    (7, query(b"disk")),
    (7, query(b"disk", length=0xFFFFFFFF)),
    (7, b"x" * 70000),
    (8, b""),
    (8, ABORT * 5),
    (9, query(b"disk")),
    (10, query(b"disk")),
    (11, b""),
    (0, b""),
    (99, b"x" * (1 << 20)),
    (0xFFFFFFFF, b""),
]


def encrypted(tls: Tls = Tls.OFFERED, flags: bytes = FIXED) -> Dialogue:
    """A dialogue inside TLS."""
    dialogue = Dialogue(tls=tls).feed(flags, STARTTLS)
    assert dialogue.take() == STARTTLS_ACK
    return dialogue.over_tls()


@pytest.mark.parametrize("tls", [Tls.OFFERED, Tls.REQUIRED])
def test_starttls_is_acknowledged_and_nothing_behind_it_is_interpreted(tls: Tls) -> None:
    handshake = Handshake(tls=tls)
    handshake.feed(FIXED + STARTTLS + ABORT)
    assert collect(handshake) == [StartTls(STARTTLS_ACK)]
    assert handshake.next_event() is None
    assert handshake.rest() == ABORT


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 70000])
def test_starttls_is_against_policy_where_tls_is_off(data: bytes) -> None:
    dialogue = Dialogue(tls=Tls.OFF).feed(FIXED, option(5, data))
    assert error_kind(dialogue.take(), 5) == POLICY
    assert dialogue.feed(ABORT).take() == ABORT_ACK


@pytest.mark.parametrize("data", [b"x", b"x" * 65536, b"x" * 70000, ABORT])
@pytest.mark.parametrize("tls", [Tls.OFFERED, Tls.REQUIRED])
def test_starttls_with_data_is_invalid_and_starts_no_tls(tls: Tls, data: bytes) -> None:
    dialogue = Dialogue(tls=tls).feed(FIXED, option(5, data))
    assert error_kind(dialogue.take(), 5) == INVALID
    assert dialogue.ended == ""
    assert dialogue.feed(ABORT).take() == ABORT_ACK


@pytest.mark.parametrize("data", [b"", b"x"])
def test_second_starttls_is_invalid(data: bytes) -> None:
    dialogue = encrypted().feed(option(5, data))
    assert error_kind(dialogue.take(), 5) == INVALID
    assert dialogue.feed(ABORT).take() == ABORT_ACK


@pytest.mark.parametrize("flags", [b"\0\0\0\0", b"\0\0\0\2"])
def test_starttls_without_fixed_newstyle_closes(flags: bytes) -> None:
    dialogue = Dialogue(tls=Tls.REQUIRED).feed(flags, STARTTLS)
    assert "without fixed newstyle" in dialogue.ended
    assert dialogue.sent == b""


@pytest.mark.parametrize(("number", "data"), REFUSED_UNTIL_TLS)
def test_forced_tls_refuses_everything_else_and_stays_in_sync(number: int, data: bytes) -> None:
    dialogue = Dialogue(tls=Tls.REQUIRED).feed(FIXED, option(number, data))
    assert error_kind(dialogue.take(), number) == TLS_REQD
    assert dialogue.ended == ""
    assert dialogue.feed(STARTTLS).take() == STARTTLS_ACK


@pytest.mark.parametrize("name", [b"disk", b"other", b""])
@pytest.mark.parametrize("flags", [FIXED, b"\0\0\0\0"])
def test_forced_tls_closes_on_export_name(flags: bytes, name: bytes) -> None:
    dialogue = Dialogue(tls=Tls.REQUIRED).feed(flags, option(1, name))
    assert "only over TLS" in dialogue.ended
    assert dialogue.sent == b""


def test_forced_tls_lets_a_client_abort() -> None:
    assert Dialogue(tls=Tls.REQUIRED).feed(FIXED, ABORT).take() == ABORT_ACK


@pytest.mark.parametrize(("number", "data"), REFUSED_UNTIL_TLS)
@pytest.mark.parametrize("tls", [Tls.OFF, Tls.OFFERED])
def test_tls_is_never_demanded_where_it_is_not_forced(tls: Tls, number: int, data: bytes) -> None:
    dialogue = Dialogue(tls=tls).feed(FIXED, option(number, data))
    assert TLS_REQD not in dialogue.take()


@pytest.mark.parametrize(("number", "data"), REFUSED_UNTIL_TLS)
def test_tls_is_never_demanded_inside_tls(number: int, data: bytes) -> None:
    dialogue = encrypted(Tls.REQUIRED).feed(option(number, data))
    assert TLS_REQD not in dialogue.take()


@pytest.mark.parametrize("tls", [Tls.OFFERED, Tls.REQUIRED])
def test_inside_tls_options_are_answered_as_ever(tls: Tls) -> None:
    handshake = encrypted(tls).handshake
    handshake.feed(option(3) + option(6, query(b"disk")))
    assert collect(handshake) == [ListWanted(), ExportWanted(Option.INFO, "disk", frozenset())]


@pytest.mark.parametrize(("flags", "length"), [(FIXED, 10), (b"\0\0\0\1", 134)])
def test_clients_flags_still_count_inside_tls(flags: bytes, length: int) -> None:
    dialogue = encrypted(flags=flags).feed(option(1, b"disk"))
    assert len(dialogue.take()) == length


def test_options_before_tls_are_not_given_back() -> None:
    dialogue = Dialogue(exports=0, tls=Tls.OFFERED).feed(FIXED, option(99) * 16, STARTTLS)
    dialogue.over_tls().feed(option(99) * 15)
    assert dialogue.ended == ""
    assert "too many options" in dialogue.feed(option(99)).ended


def test_unread_bytes_of_the_clear_are_not_taken_over() -> None:
    dialogue = Dialogue(tls=Tls.OFFERED).feed(FIXED + STARTTLS + ABORT)
    dialogue.take()
    assert dialogue.over_tls().handshake.next_event() is None
    assert error_kind(dialogue.feed(option(99)).take(), 99) == UNSUP


@pytest.mark.parametrize("tls", Tls)
def test_byte_by_byte_gives_the_same(tls: Tls) -> None:
    data = FIXED + option(99, b"xyz") + option(5, b"data") + option(3) + STARTTLS + option(3)
    if tls is Tls.ACTIVE:
        whole, split = (encrypted() for _ in range(2))
        data = data.removeprefix(FIXED)
    else:
        whole, split = (Dialogue(tls=tls) for _ in range(2))
    whole.feed(data)
    split.feed(*in_pieces(data, range(len(data))))
    assert (split.sent, split.ended) == (whole.sent, whole.ended)
