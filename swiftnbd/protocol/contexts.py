# SPDX-License-Identifier: MIT
"""Metadata contexts: what clients may ask for, and in which words ("Metadata querying").

Data of LIST_META_CONTEXT and SET_META_CONTEXT::

    u32 length, name of export   u32 count   count * (u32 length, query)

A META_CONTEXT reply::

    u32 id   name
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from swiftnbd.protocol.constants import Option, OptionReply
from swiftnbd.protocol.options import InvalidOption, parse_string, reply

ALLOCATION: Final = "base:allocation"
CONTEXT_IDS: Final = {ALLOCATION: 1}  # all that can be selected; the ids are ours to choose
QUERIES_MAX: Final = 256  # of one option: clients send one for each context they know

_U32: Final = struct.Struct(">I")


class TooManyQueries(Exception):
    """They may be well-formed: answer ERR_TOO_BIG and go on."""


@dataclass(frozen=True, slots=True)
class ContextQuery:
    """Data of the two options: the export's name and what is asked for."""

    name: str
    queries: tuple[str, ...]


def parse_context_query(data: bytes) -> ContextQuery:
    """Every length and the count are checked against what is there before anything is taken."""
    name, rest = _take_string(memoryview(data))
    if len(rest) < _U32.size:
        raise InvalidOption("the number of queries is missing")
    (count,) = _U32.unpack_from(rest)
    rest = rest[_U32.size :]
    if count > len(rest) // _U32.size:
        raise InvalidOption(f"{count} queries do not fit into {len(rest)} bytes")
    if count > QUERIES_MAX:
        raise TooManyQueries(f"{count} queries are more than {QUERIES_MAX}")
    queries = []
    for _ in range(count):
        query, rest = _take_string(rest)
        queries.append(query)
    if rest:
        raise InvalidOption(f"{len(rest)} bytes are left after the last query")
    return ContextQuery(name, tuple(queries))


def _take_string(data: memoryview) -> tuple[str, memoryview]:
    """A string with its length before it, and what follows it."""
    if len(data) < _U32.size:
        raise InvalidOption("the length of a string is missing")
    (length,) = _U32.unpack_from(data)
    data = data[_U32.size :]
    if length > len(data):
        raise InvalidOption(f"a string of {length} bytes does not fit into {len(data)}")
    return parse_string(bytes(data[:length])), data[length:]


def listed(queries: Iterable[str]) -> list[str]:
    """The contexts that LIST_META_CONTEXT answers; to no query, all of them.

    A namespace alone is a wildcard. What is not known is ignored ("MUST").
    """
    wanted = set(queries)
    return [
        context
        for context in CONTEXT_IDS
        if not wanted or wanted & {context, context.partition(":")[0] + ":"}
    ]


def selected(queries: Iterable[str]) -> list[str]:
    """The contexts that SET_META_CONTEXT selects: here a wildcard stands for none ("MUST")."""
    wanted = set(queries)
    return [context for context in CONTEXT_IDS if context in wanted]


def context_replies(option: Option, contexts: Iterable[str]) -> bytes:
    """The answer to either option. The ids in that to LIST are reserved, and zero."""
    chosen = option is Option.SET_META_CONTEXT
    replies = [
        reply(
            option,
            OptionReply.META_CONTEXT,
            _U32.pack(CONTEXT_IDS[context] if chosen else 0) + context.encode(),
        )
        for context in contexts
    ]
    return b"".join([*replies, reply(option, OptionReply.ACK)])
