# SPDX-License-Identifier: MIT
"""Bytes for tests of the handshake, written out, and a driver that decides like a server."""

import itertools
from collections.abc import Iterable

from swiftnbd.errors import ProtocolError
from swiftnbd.protocol.constants import OptionReply, TransmissionFlag
from swiftnbd.protocol.events import (
    Aborted,
    ContextsWanted,
    Event,
    ExportWanted,
    ListWanted,
    Send,
    StartTls,
)
from swiftnbd.protocol.handshake import Handshake, Rules, Tls
from swiftnbd.protocol.options import ExportInfo

FIXED = b"\0\0\0\3"  # client flags: fixed newstyle, no zeroes
MAGIC = b"IHAVEOPT"
REPLY = b"\x00\x03\xe8\x89\x04\x55\x65\xa9"
ACK = b"\0\0\0\1"
UNSUP = b"\x80\0\0\1"
POLICY = b"\x80\0\0\2"
INVALID = b"\x80\0\0\3"
TLS_REQD = b"\x80\0\0\5"
UNKNOWN = b"\x80\0\0\6"
SHUTDOWN = b"\x80\0\0\7"
TOO_BIG = b"\x80\0\0\x09"

ABORT = MAGIC + b"\0\0\0\2" + b"\0\0\0\0"
ABORT_ACK = REPLY + b"\0\0\0\2" + ACK + b"\0\0\0\0"

DISK = ExportInfo(
    name="disk",
    size=0x0000_0123_4567_8A00,
    flags=TransmissionFlag(0x056D),
    description="64 KiB objects",
    block_size=65536,
)


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    """An option; ``length`` if it is to lie about its data."""
    size = len(data) if length is None else length
    return MAGIC + number.to_bytes(4) + size.to_bytes(4) + data


def query(name: bytes, *wanted: int, length: int | None = None, count: int | None = None) -> bytes:
    """Data of INFO and GO; ``length`` and ``count`` if they are to lie."""
    size = len(name) if length is None else length
    number = len(wanted) if count is None else count
    types = b"".join(kind.to_bytes(2) for kind in wanted)
    return size.to_bytes(4) + name + number.to_bytes(2) + types


def context_query(name: bytes, *queries: bytes, count: int | None = None) -> bytes:
    """Data of LIST_META_CONTEXT and SET_META_CONTEXT; ``count`` if it is to lie."""
    number = len(queries) if count is None else count
    strings = b"".join(len(each).to_bytes(4) + each for each in queries)
    return len(name).to_bytes(4) + name + number.to_bytes(4) + strings


def collect(handshake: Handshake) -> list[Event]:
    """All events there are now, up to one that needs a decision."""
    events: list[Event] = []
    while (event := handshake.next_event()) is not None:
        events.append(event)
        if isinstance(event, ExportWanted | Aborted | StartTls):
            break
    return events


class Dialogue:
    """A handshake with one export called "disk": what it sends, and how it ended."""

    def __init__(self, exports: int = 1, tls: Tls = Tls.OFF, rules: Rules | None = None) -> None:
        self.handshake = Handshake(exports, tls, rules or Rules())
        self.sent = b""
        self.ended = ""  # "abort", "tls", "transmission" or why it must be closed
        self.contexts: frozenset[str] = frozenset()  # in transmission

    def feed(self, *pieces: bytes) -> "Dialogue":
        for piece in pieces:
            if not self.ended:
                self.handshake.feed(piece)
                self._react()
        return self

    def over_tls(self) -> "Dialogue":
        """Go on inside TLS."""
        assert self.ended == "tls"
        self.handshake, self.ended = self.handshake.over_tls(), ""
        return self

    def take(self) -> bytes:
        """What was sent since the last call."""
        sent, self.sent = self.sent, b""
        return sent

    def _react(self) -> None:
        try:
            while not self.ended and (event := self.handshake.next_event()) is not None:
                self._answer(event)
        except ProtocolError as error:
            self.ended = str(error)

    def _answer(self, event: Event) -> None:
        match event:
            case Send(data):
                self.sent += data
            case ListWanted():
                self.sent += self.handshake.list_replies([("disk", "")])
            case Aborted(data):
                self.sent += data
                self.ended = "abort"
            case StartTls(data):
                self.sent += data
                self.ended = "tls"
            case ExportWanted(name="disk" | ""):
                self.sent += self.handshake.accept(event, DISK)
                if event.chosen:
                    self.ended = "transmission"
                    self.contexts = self.handshake.contexts_of(event.name)
            case ContextsWanted(name="disk" | ""):
                self.sent += self.handshake.accept_contexts(event)
            case ExportWanted() | ContextsWanted():
                self.sent += self.handshake.refuse(event, OptionReply.ERR_UNKNOWN, "no such")


def error_kind(reply: bytes, number: int) -> bytes:
    """The type of the only reply in these bytes, which answers option ``number``."""
    assert reply[:8] == REPLY
    assert reply[8:12] == number.to_bytes(4)
    assert len(reply) == 20 + int.from_bytes(reply[16:20])
    assert len(reply) - 20 <= 4096
    reply[20:].decode()  # the text is UTF-8
    return reply[12:16]


def in_pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """``data``, cut at these places."""
    places = [0, *sorted(cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]
