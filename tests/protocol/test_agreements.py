# SPDX-License-Identifier: MIT
"""What options agree on without choosing an export: structured replies, metadata contexts, the end.

Acceptance rows A1.12, A2.19 to A2.25, E7 and E19, without I/O: bytes in, bytes out.
"""

import pytest

from swiftnbd.protocol.contexts import QUERIES_MAX
from swiftnbd.protocol.handshake import Rules, Tls
from tests.support.handshakes import (
    ABORT,
    ABORT_ACK,
    ACK,
    FIXED,
    INVALID,
    POLICY,
    REPLY,
    SHUTDOWN,
    TOO_BIG,
    UNKNOWN,
    UNSUP,
    Dialogue,
    context_query,
    error_kind,
    option,
    query,
)

LIST, SET = 9, 10
ALLOCATION = b"base:allocation"


def ack(number: int) -> bytes:
    return REPLY + number.to_bytes(4) + ACK + b"\0\0\0\0"


def found(number: int, context_id: int) -> bytes:
    """The answer that names base:allocation, and nothing else."""
    context = REPLY + number.to_bytes(4) + b"\0\0\0\4" + b"\0\0\0\x13"
    return context + context_id.to_bytes(4) + ALLOCATION + ack(number)


def structured() -> Dialogue:
    """A client that has structured replies."""
    dialogue = Dialogue().feed(FIXED, option(8))
    assert dialogue.take() == ack(8)
    return dialogue


def selected() -> Dialogue:
    """A client that has selected base:allocation of the export "disk"."""
    dialogue = structured().feed(option(SET, context_query(b"disk", ALLOCATION)))
    assert dialogue.take() == found(SET, 1)
    return dialogue


def contexts_after_go(dialogue: Dialogue, name: bytes = b"disk") -> set[str]:
    dialogue.feed(option(7, query(name)))
    assert dialogue.ended == "transmission"
    return set(dialogue.contexts)


# STRUCTURED_REPLY


def test_structured_replies_are_off_until_asked_for() -> None:
    assert not Dialogue().feed(FIXED).handshake.structured
    assert structured().handshake.structured


@pytest.mark.parametrize("data", [b"x", b"\0" * 65537])
def test_structured_reply_with_data_is_invalid_and_changes_nothing(data: bytes) -> None:
    """Acceptance row A2.19."""
    dialogue = Dialogue().feed(FIXED, option(8, data))
    assert error_kind(dialogue.take(), 8) == INVALID
    assert not dialogue.handshake.structured


def test_structured_reply_a_second_time_is_invalid_and_stays_on() -> None:
    """Acceptance row A2.19."""
    dialogue = structured().feed(option(8))
    assert error_kind(dialogue.take(), 8) == INVALID
    assert dialogue.handshake.structured
    assert dialogue.feed(ABORT).take() == ABORT_ACK


@pytest.mark.parametrize("data", [b"", b"data", context_query(b"disk")])
@pytest.mark.parametrize("number", [8, LIST, SET])
def test_server_without_structured_replies_knows_none_of_their_options(
    number: int, data: bytes
) -> None:
    dialogue = Dialogue(rules=Rules(structured_replies=False)).feed(FIXED, option(number, data))
    assert error_kind(dialogue.take(), number) == UNSUP
    assert not dialogue.handshake.structured
    assert dialogue.feed(ABORT).take() == ABORT_ACK


def test_extended_headers_are_not_supported() -> None:
    """Acceptance row A2.25."""
    dialogue = structured().feed(option(11))
    assert error_kind(dialogue.take(), 11) == UNSUP
    assert dialogue.feed(ABORT).take() == ABORT_ACK


# LIST_META_CONTEXT and SET_META_CONTEXT

QUERIES = {  # what is asked: whether LIST and SET find base:allocation
    "nothing": ((), True, False),
    "the context": ((ALLOCATION,), True, True),
    "the context twice": ((ALLOCATION, ALLOCATION), True, True),
    "the wildcard": ((b"base:",), True, False),
    "wildcard and context": ((b"base:", ALLOCATION), True, True),
    "an unknown leaf": ((b"base:nope",), False, False),
    "an unknown namespace": ((b"qemu:dirty-bitmap:x",), False, False),
    "an unknown wildcard": ((b"x-local:",), False, False),
    "unknown ones and the context": ((b"x:y", b"base:nope", ALLOCATION), True, True),
    "no colon": ((b"base",), False, False),
    "an empty query": ((b"",), False, False),
    "a beginning": ((b"base:alloc",), False, False),
    "more behind it": ((ALLOCATION + b" ",), False, False),
    "other letters": ((b"BASE:ALLOCATION",), False, False),
    "as many as may be": ((b"base:nope",) * QUERIES_MAX, False, False),
}


@pytest.mark.parametrize("name", [b"disk", b""])
@pytest.mark.parametrize("case", QUERIES)
def test_list_finds_and_reserves_the_id(case: str, name: bytes) -> None:
    """Acceptance row A2.20."""
    queries, listed, _ = QUERIES[case]
    dialogue = structured().feed(option(LIST, context_query(name, *queries)))
    assert dialogue.take() == (found(LIST, 0) if listed else ack(LIST))
    assert contexts_after_go(dialogue, name) == set()


@pytest.mark.parametrize("name", [b"disk", b""])
@pytest.mark.parametrize("case", QUERIES)
def test_set_selects_for_the_transmission_phase(case: str, name: bytes) -> None:
    """Acceptance row A2.21."""
    queries, _, chosen = QUERIES[case]
    dialogue = structured().feed(option(SET, context_query(name, *queries)))
    assert dialogue.take() == (found(SET, 1) if chosen else ack(SET))
    assert contexts_after_go(dialogue, name) == ({"base:allocation"} if chosen else set())


@pytest.mark.parametrize("number", [LIST, SET])
def test_contexts_without_structured_replies_are_invalid(number: int) -> None:
    dialogue = Dialogue().feed(FIXED, option(number, context_query(b"disk", ALLOCATION)))
    assert error_kind(dialogue.take(), number) == INVALID
    assert contexts_after_go(dialogue) == set()


MALFORMED = {
    "empty": b"",
    "half a length": b"\0\0",
    "name longer than the option": b"\0\0\0\5disk",
    "name of 4 GiB": b"\xff\xff\xff\xffdisk\0\0\0\0",
    "no count": b"\0\0\0\4disk",
    "half a count": b"\0\0\0\4disk\0\0\0",
    "a query that is missing": context_query(b"disk", count=1),
    "2^32 - 1 queries in no bytes": context_query(b"disk", count=2**32 - 1),
    "2^32 - 1 queries in some bytes": context_query(b"disk", ALLOCATION, count=2**32 - 1),
    "fewer queries than said": context_query(b"disk", ALLOCATION, count=2),
    "more queries than said": context_query(b"disk", ALLOCATION, b"x:y", count=1),
    "query longer than the option": context_query(b"disk", count=1) + b"\0\0\0\6base:",
    "query of 4 GiB": context_query(b"disk", count=1) + b"\xff\xff\xff\xffbase:",
    "half a length of a query": context_query(b"disk", b"base:", count=2) + b"\0\0",
    "trailing bytes": context_query(b"disk", ALLOCATION) + b"x",
    "NUL in the name": context_query(b"di\0sk", ALLOCATION),
    "name that is not UTF-8": context_query(b"\xff", ALLOCATION),
    "name of 4097 bytes": context_query(b"n" * 4097, ALLOCATION),
    "NUL in a query": context_query(b"disk", ALLOCATION, b"x:\0"),
    "query that is not UTF-8": context_query(b"disk", ALLOCATION, b"x:\xff"),
    "query of 4097 bytes": context_query(b"disk", ALLOCATION, b"x:" + b"q" * 4095),
    "more data than any option": context_query(b"disk", *[b""] * 20_000),
    "2^18 queries of no bytes": context_query(b"disk", *[b""] * (2**18 - 100)),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("number", [LIST, SET])
def test_malformed_query_is_invalid_and_the_stream_stays_in_sync(number: int, case: str) -> None:
    """Acceptance rows A2.22, E1, E19."""
    dialogue = structured().feed(option(number, MALFORMED[case]))
    assert error_kind(dialogue.take(), number) == INVALID
    assert dialogue.feed(ABORT).take() == ABORT_ACK


def test_2_20_queries_of_no_bytes_close_at_the_header() -> None:
    """Acceptance row E19."""
    dialogue = structured().feed(option(SET, b"", 12 + 4 * 2**20))
    assert "4194316 bytes" in dialogue.ended


@pytest.mark.parametrize("number", [LIST, SET])
def test_too_many_queries_are_too_big(number: int) -> None:
    """Acceptance row A2.24."""
    queries = [ALLOCATION] * (QUERIES_MAX + 1)
    dialogue = structured().feed(option(number, context_query(b"disk", *queries)))
    assert error_kind(dialogue.take(), number) == TOO_BIG
    assert dialogue.feed(ABORT).take() == ABORT_ACK


@pytest.mark.parametrize("number", [LIST, SET])
def test_contexts_of_an_unknown_export_are_refused(number: int) -> None:
    """Acceptance row E3: and the text does not repeat any length of name."""
    dialogue = structured().feed(option(number, context_query(b"n" * 4096, ALLOCATION)))
    assert error_kind(dialogue.take(), number) == UNKNOWN
    assert dialogue.feed(ABORT).take() == ABORT_ACK


@pytest.mark.parametrize(
    "data",
    [
        context_query(b"disk"),
        context_query(b"disk", b"base:"),
        context_query(b"disk", b"base:nope"),
        context_query(b"other", ALLOCATION),
        context_query(b"disk", *[ALLOCATION] * 300),
        *MALFORMED.values(),
    ],
)
def test_every_further_set_replaces_even_if_it_fails(data: bytes) -> None:
    """Acceptance row A2.21."""
    dialogue = selected().feed(option(SET, data))
    assert contexts_after_go(dialogue) == set()


@pytest.mark.parametrize(
    "between",
    [
        option(LIST, context_query(b"disk")),
        option(LIST, context_query(b"other")),
        option(3),
        option(6, query(b"disk")),
        option(6, query(b"other")),
        option(7, query(b"other")),
        option(8),
        option(99),
    ],
)
def test_no_other_option_takes_the_selection_away(between: bytes) -> None:
    assert contexts_after_go(selected().feed(between)) == {"base:allocation"}


def test_selection_is_lost_if_another_name_is_chosen() -> None:
    """Acceptance rows A2.23, E7: even for another name of the same export."""
    assert contexts_after_go(selected(), b"") == set()
    renamed = selected().feed(option(SET, context_query(b"", ALLOCATION)))
    assert contexts_after_go(renamed, b"disk") == set()


def test_selection_goes_with_export_name_too() -> None:
    dialogue = selected().feed(option(1, b"disk"))
    assert dialogue.ended == "transmission"
    assert dialogue.contexts == {"base:allocation"}


def test_nothing_that_was_agreed_in_the_clear_counts_inside_tls() -> None:
    """Acceptance rows A2.23, E8 (CVE-2021-3716)."""
    dialogue = Dialogue(tls=Tls.OFFERED).feed(FIXED, option(8))
    dialogue.feed(option(SET, context_query(b"disk", ALLOCATION)), option(5))
    inside = dialogue.over_tls()
    assert not inside.handshake.structured
    assert contexts_after_go(inside) == set()


def test_rules_count_inside_tls_too() -> None:
    rules = Rules(structured_replies=False, list_exports=False)
    inside = Dialogue(tls=Tls.OFFERED, rules=rules).feed(FIXED, option(5)).over_tls()
    inside.take()
    assert error_kind(inside.feed(option(8)).take(), 8) == UNSUP
    assert error_kind(inside.feed(option(3)).take(), 3) == POLICY


# The server ends


def ending() -> Dialogue:
    dialogue = structured()
    dialogue.handshake.shut_down()
    return dialogue


@pytest.mark.parametrize("data", [b"", b"data", query(b"disk"), b"x" * 70_000])
@pytest.mark.parametrize("number", [0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0xFFFFFFFF])
def test_option_after_the_end_began_gets_shutdown(number: int, data: bytes) -> None:
    """Acceptance row A1.12."""
    dialogue = ending().feed(option(number, data))
    assert error_kind(dialogue.take(), number) == SHUTDOWN
    assert dialogue.feed(ABORT).take() == ABORT_ACK
    assert dialogue.ended == "abort"


def test_export_name_after_the_end_began_closes() -> None:
    dialogue = ending().feed(option(1, b"disk"))
    assert "shutting down" in dialogue.ended
    assert dialogue.take() == b""


@pytest.mark.parametrize("length", [(1 << 20) + 1, 0xFFFFFFFF])
def test_endless_data_closes_then_too(length: int) -> None:
    assert f"{length} bytes" in ending().feed(option(7, b"", length)).ended


def test_half_an_option_from_before_gets_shutdown() -> None:
    go = option(7, query(b"disk"))
    dialogue = structured().feed(go[:20])
    dialogue.handshake.shut_down()
    assert error_kind(dialogue.feed(go[20:]).take(), 7) == SHUTDOWN
