# SPDX-License-Identifier: MIT
"""Judges what a server answered to any bytes at all: does it parse, and does it fit?

It reads both directions of a connection that has ended. The client sent ``sent`` and then closed
its side; the server answered ``got`` and then closed. Nothing here comes from `swiftnbd`.
"""

import struct
from collections import Counter, defaultdict
from dataclasses import dataclass, field

GREETING = b"NBDMAGICIHAVEOPT"
OPTION, OPTION_REPLY = b"IHAVEOPT", b"\x00\x03\xe8\x89\x04\x55\x65\xa9"
REQUEST, SIMPLE, STRUCTURED = 0x25609513, 0x67446698, 0x668E33EF
EXPORT_NAME, GO, STRUCTURED_REPLIES = 1, 7, 8
READ, WRITE, DISC, BLOCK_STATUS = 0, 1, 2, 7
ACK, NOT_FINAL = 1, (2, 3, 4)  # SERVER, INFO, META_CONTEXT
OPTION_REPLIES = {1, 2, 3, 4} | {0x80000000 + number for number in range(1, 10)}
ERRORS = {1, 5, 12, 22, 28, 75, 95, 108}
NONE, DATA, HOLE, STATUS, ERROR, ERROR_OFFSET = 0, 1, 2, 5, 0x8001, 0x8002
DRAINED_BYTES_MAX = 64 * 1024 * 1024
STRING_BYTES_MAX = 4096


class Wrong(AssertionError):
    """The server's answer cannot be."""


def require(condition: object, what: str) -> None:
    """Raise `Wrong` unless so."""
    if not condition:
        raise Wrong(what)


@dataclass
class Reader:
    """Takes bytes off the front."""

    data: bytes
    at: int = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def peek(self, length: int) -> bytes:
        return self.data[self.at : self.at + length]

    def take(self, length: int) -> bytes:
        require(length <= self.left, f"cut off: {length} bytes wanted, {self.left} there")
        self.at += length
        return self.data[self.at - length : self.at]

    def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))


@dataclass
class Asked:
    """One request that arrived whole. ``may_lack_answer``: its payload did not."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    may_lack_answer: bool = False


@dataclass
class Answer:
    """What came for one cookie, until the final chunk."""

    error: int = 0
    parts: list[tuple[int, int]] = field(default_factory=list)  # content: offset, length
    extents: list[tuple[int, int]] = field(default_factory=list)
    simple: bool = False


def judge(sent: bytes, got: bytes) -> str:
    """Raise `Wrong`, or return how far the client came."""
    answers = Reader(got)
    require(answers.take(16) == GREETING, "no greeting")
    require(answers.unpack(">H") == (3,), "handshake flags")
    client = Reader(sent)
    if client.left < 4:
        require(not answers.left, "an answer to nobody")
        return "greeted"
    no_zeroes = client.unpack(">I")[0] & 2
    structured = False
    while True:
        option = _next_option(client)
        if option is None:
            require(not answers.left, "an answer to nothing")
            return "options"
        if option == EXPORT_NAME:
            if not answers.left:
                return "refused"
            answers.take(10)
            require(no_zeroes or answers.take(124) == bytes(124), "zeroes")
            break
        if not answers.left:
            return "closed"  # too many options, a bad one, or ABORT before
        final = _option_replies(answers, option)
        structured |= option == STRUCTURED_REPLIES and final == ACK
        if option == GO and final == ACK:
            break
    requests: dict[int, list[Asked]] = defaultdict(list)
    for asked in _requests(client):
        requests[asked.cookie].append(asked)
    if not structured and any(_ambiguous(group) for group in requests.values()):
        return "ambiguous"
    _judge_transmission(requests, answers, structured=structured)
    return "transmission"


def _next_option(client: Reader) -> int | None:
    """The next option that arrived whole."""
    if client.left < 16 or client.peek(8) != OPTION:
        return None
    client.take(8)
    option, length = client.unpack(">II")
    if client.left < length:
        return None
    client.take(length)
    return option


def _option_replies(answers: Reader, option: int) -> int:
    """The type of the final reply to an option; all of them are well-formed and its own."""
    while True:
        require(answers.take(8) == OPTION_REPLY, "magic of an option reply")
        answered, kind, length = answers.unpack(">III")
        require(answered == option, f"option {option} was answered as {answered}")
        require(kind in OPTION_REPLIES, f"reply type {kind:#x}")
        data = answers.take(length)
        if kind & 0x80000000:
            require(length <= STRING_BYTES_MAX, "a long error text")
            data.decode()
        if kind not in NOT_FINAL:
            return kind


def _requests(client: Reader) -> list[Asked]:
    """The requests that arrived, up to the first that ends the connection."""
    found: list[Asked] = []
    while client.left >= 28:
        magic, flags, command, cookie, offset, length = client.unpack(">IHHQQI")
        if magic != REQUEST or command == DISC:
            break
        asked = Asked(command, flags, cookie, offset, length)
        found.append(asked)
        if command == WRITE:
            if length > client.left or length > DRAINED_BYTES_MAX:
                asked.may_lack_answer = True
                break
            client.take(length)
    return found


def _ambiguous(group: list[Asked]) -> bool:
    """Whether simple replies with their cookie may be of several lengths."""
    return len({asked.length if asked.command == READ else 0 for asked in group}) > 1


def _judge_transmission(
    by_cookie: dict[int, list[Asked]], answers: Reader, *, structured: bool
) -> None:
    replies: Counter[int] = Counter()
    under_way: dict[int, Answer] = defaultdict(Answer)
    while answers.left:
        cookie, is_final = _take_reply(answers, by_cookie, under_way, structured=structured)
        if is_final:
            replies[cookie] += 1
            answer = under_way.pop(cookie)
            if len(by_cookie[cookie]) == 1:
                _judge_answer(by_cookie[cookie][0], answer, structured=structured)
    require(not under_way, f"unfinished replies: {list(under_way)}")
    for cookie, asked_for in by_cookie.items():
        most = len(asked_for)
        least = most - sum(asked.may_lack_answer for asked in asked_for)
        require(
            least <= replies[cookie] <= most, f"{replies[cookie]} of {most} replies: {asked_for}"
        )


def _take_reply(
    answers: Reader,
    by_cookie: dict[int, list[Asked]],
    under_way: dict[int, Answer],
    *,
    structured: bool,
) -> tuple[int, bool]:
    """Take one reply or chunk; its cookie, and whether it was the last for that."""
    magic = int.from_bytes(answers.peek(4))
    if magic == SIMPLE:
        _, error, cookie = answers.unpack(">IIQ")
        require(by_cookie.get(cookie), f"a reply to cookie {cookie:#x}")
        require(error == 0 or error in ERRORS, f"error {error}")
        under_way[cookie].error = error
        under_way[cookie].simple = True
        group = by_cookie[cookie]  # replies may come in any order
        if structured:
            others = any(asked.command != READ for asked in group)
            require(error or others, "a simple reply to a READ")
        elif (asked := group[0]).command == READ and not error:
            answers.take(asked.length)
            under_way[cookie].parts.append((asked.offset, asked.length))
        return cookie, True
    require(structured and magic == STRUCTURED, f"reply magic {magic:#x}")
    _, flags, kind, cookie, length = answers.unpack(">IHHQI")
    require(by_cookie.get(cookie), f"a chunk for cookie {cookie:#x}")
    require(flags in (0, 1), f"chunk flags {flags}")
    _take_chunk(Reader(answers.take(length)), kind, under_way[cookie])
    return cookie, flags == 1


def _take_chunk(body: Reader, kind: int, answer: Answer) -> None:
    if kind == DATA:
        (offset,) = body.unpack(">Q")
        require(body.left, "data without bytes")
        answer.parts.append((offset, body.left))
        body.take(body.left)
    elif kind == HOLE:
        offset, length = body.unpack(">QI")
        require(length, "an empty hole")
        answer.parts.append((offset, length))
    elif kind == STATUS:
        body.unpack(">I")
        while body.left:
            length, status = body.unpack(">II")
            answer.extents.append((length, status))
    elif kind in (ERROR, ERROR_OFFSET):
        error, length = body.unpack(">IH")
        require(error in ERRORS, f"error {error}")
        require(length <= STRING_BYTES_MAX, "a long error text")
        body.take(length).decode()
        if kind == ERROR_OFFSET:
            body.take(8)
        answer.error = error
    else:
        require(kind == NONE, f"chunk type {kind}")
    require(not body.left, "bytes behind a chunk")


def _judge_answer(asked: Asked, answer: Answer, *, structured: bool) -> None:
    """The content of the one answer to a request whose cookie is its own."""
    if answer.error:
        return
    if asked.command == READ:
        at = asked.offset
        for offset, length in sorted(answer.parts):
            require(offset == at, f"content at {offset}, not {at}: {asked}")
            at += length
        require(at == asked.offset + asked.length, f"content ends at {at}: {asked}")
        return
    require(not answer.parts, f"content for {asked}")
    if asked.command == BLOCK_STATUS:
        require(structured and answer.extents, f"no extents for {asked}")
        require(all(length for length, _ in answer.extents), f"an empty extent for {asked}")
        require(
            sum(length for length, _ in answer.extents[:-1]) < asked.length,
            f"extents beyond {asked}",
        )
    else:
        require(not answer.extents, f"extents for {asked}")
