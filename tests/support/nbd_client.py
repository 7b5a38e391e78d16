# SPDX-License-Identifier: MIT
"""A small NBD client for tests: blocking sockets, numbers and layouts written out.

It shares nothing with `swiftnbd.protocol`, so that it can be its witness. It says what it is
told to say, right or wrong, and checks only what it needs to stay in sync::

    with NbdClient(port, source="127.0.0.2") as client:
        client.go(b"disk")
        client.write(0, b"x" * 512)
        assert client.read(0, 512) == b"x" * 512

Every wait has a deadline (`SECONDS_MAX`): a hanging server fails a test, it does not stop it.
"""

import socket
import struct
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

SECONDS_MAX = 20.0

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY = 1, 2, 3, 5, 6, 7, 8
LIST_META_CONTEXT, SET_META_CONTEXT = 9, 10
ACK, SERVER, REP_INFO, META_CONTEXT = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_UNKNOWN, ERR_SHUTDOWN = (
    0x80000001,
    0x80000002,
    0x80000003,
    0x80000006,
    0x80000007,
)
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = 0, 1, 2, 3, 4, 5, 6, 7
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16

DONE = 1
NONE, OFFSET_DATA, OFFSET_HOLE, STATUS, ERROR, ERROR_OFFSET = 0, 1, 2, 5, 0x8001, 0x8002
HOLE, ZERO = 1, 2

EIO, EPERM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 5, 1, 22, 28, 75, 95, 108

_OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
_REPLY_MAGIC = 0x0003E889045565A9


class NbdError(Exception):
    """An error reply to a request; ``number`` is the wire's, ``text`` from structured ones."""

    def __init__(self, number: int, text: str = "", offset: int | None = None) -> None:
        super().__init__(f"the server answered error {number}: {text}")
        self.number = number
        self.text = text
        self.offset = offset


class Refused(Exception):
    """An error reply to an option; ``kind`` is its reply type, ``text`` what the server says."""

    def __init__(self, kind: int, text: str) -> None:
        super().__init__(f"the server answered {kind:#x}: {text}")
        self.kind = kind
        self.text = text


@dataclass
class ExportInfo:
    """What GO, INFO or EXPORT_NAME told of an export."""

    size: int = 0
    flags: int = 0
    items: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """One structured reply chunk, or a simple reply as ``kind`` -1 with its error as data."""

    kind: int
    cookie: int
    data: bytes = b""
    done: bool = True

    HEADER = struct.Struct(">HHQI")  # behind the magic

    @classmethod
    def parse(cls, header: bytes) -> tuple["Chunk", int]:
        """A chunk without its data, and how much there is."""
        flags, kind, cookie, length = cls.HEADER.unpack(header)
        assert flags in (0, DONE), flags
        assert kind in (NONE, OFFSET_DATA, OFFSET_HOLE, STATUS, ERROR, ERROR_OFFSET), kind
        return cls(kind, cookie, b"", bool(flags)), length

    @property
    def extents(self) -> list[tuple[int, int]]:
        """Of a STATUS chunk: lengths and flags."""
        assert self.kind == STATUS
        assert len(self.data) > 4
        return list(struct.iter_unpack(">II", self.data[4:]))

    @property
    def error(self) -> NbdError | None:
        """What went wrong."""
        if self.kind not in (ERROR, ERROR_OFFSET):
            return None
        number, length = struct.unpack_from(">IH", self.data)
        rest = self.data[6 + length :]
        assert len(rest) == (8 if self.kind == ERROR_OFFSET else 0)
        text = self.data[6 : 6 + length].decode()
        return NbdError(number, text, int.from_bytes(rest) if rest else None)


def content_of(chunks: list[Chunk], offset: int, length: int) -> bytes:
    """The bytes of a READ, put together; every one must be there just once."""
    found: dict[int, bytes] = {}
    for chunk in chunks:
        if chunk.kind == NONE:
            assert chunk.done
            assert chunk.data == b""
            continue
        start = int.from_bytes(chunk.data[:8])
        if chunk.kind == OFFSET_DATA:
            found[start] = chunk.data[8:]
        else:
            assert chunk.kind == OFFSET_HOLE, chunk
            assert len(chunk.data) == 12
            found[start] = bytes(int.from_bytes(chunk.data[8:]))
        assert found[start], "an empty chunk"
    position = offset
    for start in sorted(found):
        assert start == position, "chunks must neither overlap nor leave gaps"
        position += len(found[start])
    assert position == offset + length
    return b"".join(found[start] for start in sorted(found))


def context_query(name: bytes, *queries: bytes) -> bytes:
    """Data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    strings = b"".join(struct.pack(">I", len(each)) + each for each in queries)
    return struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries)) + strings


class NbdClient:
    """One connection. ``source`` is the address it comes from."""

    def __init__(
        self,
        port: int | socket.socket,
        *,
        host: str = "127.0.0.1",
        source: str = "",
        client_flags: int | None = 3,
        seconds_max: float = SECONDS_MAX,
    ) -> None:
        """``port`` may also be a socket that is connected already."""
        if isinstance(port, socket.socket):
            self.socket = port
            self.socket.settimeout(seconds_max)
        else:
            bind = (source, 0) if source else None
            self.socket = socket.create_connection((host, port), seconds_max, bind)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.greeting_flags = 0
        self.client_flags = client_flags or 0
        self.structured = False
        self._cookie = 0
        if client_flags is not None:
            try:
                self.greet(client_flags)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket without a word."""
        self.socket.close()

    # Bytes

    def send(self, data: bytes) -> None:
        """Send these bytes as they are."""
        self.socket.sendall(data)

    def receive(self, length: int) -> bytes:
        """Exactly this many bytes; EOFError (how many came) if the server closes before."""
        data = bytearray()
        while len(data) < length:
            piece = self.socket.recv(min(length - len(data), 1 << 20))
            if not piece:
                raise EOFError(f"the server closed after {len(data)} of {length} bytes")
            data += piece
        return bytes(data)

    def closed_by_server(self) -> bool:
        """Wait for the end of the connection; False if bytes come instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    # Handshake

    def greet(self, client_flags: int) -> None:
        """Read the greeting, answer with ``client_flags``."""
        greeting = self.receive(18)
        assert greeting[:16] == b"NBDMAGICIHAVEOPT", greeting
        (self.greeting_flags,) = struct.unpack(">H", greeting[16:])
        self.send(struct.pack(">I", client_flags))

    def send_option(self, option: int, data: bytes = b"") -> None:
        """Send one option."""
        self.send(struct.pack(">QII", _OPTION_MAGIC, option, len(data)) + data)

    def receive_reply(self, option: int) -> tuple[int, bytes]:
        """One reply to ``option``: its type and data."""
        magic, answers, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == _REPLY_MAGIC, hex(magic)
        assert answers == option, (answers, option)
        return kind, self.receive(length)

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send one option and collect its replies, the final ACK or error included."""
        self.send_option(option, data)
        replies = [self.receive_reply(option)]
        while replies[-1][0] in (SERVER, REP_INFO, META_CONTEXT):
            replies.append(self.receive_reply(option))
        return replies

    def list_exports(self) -> list[bytes]:
        """The names that LIST answers."""
        replies = self.option(LIST)
        _raise_if_refused(replies)
        names = []
        for kind, data in replies[:-1]:
            assert kind == SERVER, kind
            (length,) = struct.unpack(">I", data[:4])
            names.append(data[4 : 4 + length])
        return names

    def go(self, name: bytes = b"", wanted: tuple[int, ...] = ()) -> ExportInfo:
        """GO: from here on requests may be sent. `Refused` if the server says no."""
        return self._info_or_go(GO, name, wanted)

    def info(self, name: bytes = b"", wanted: tuple[int, ...] = ()) -> ExportInfo:
        """INFO: like `go`, but the handshake goes on."""
        return self._info_or_go(INFO, name, wanted)

    def _info_or_go(self, option: int, name: bytes, wanted: tuple[int, ...]) -> ExportInfo:
        asked = struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)
        replies = self.option(option, struct.pack(">I", len(name)) + name + asked)
        _raise_if_refused(replies)
        info = ExportInfo()
        for _, data in replies[:-1]:
            (item,) = struct.unpack(">H", data[:2])
            info.items[item] = data[2:]
        info.size, info.flags = struct.unpack(">QH", info.items[INFO_EXPORT])
        return info

    def structured_replies(self) -> None:
        """STRUCTURED_REPLY. `Refused` if the server says no."""
        _raise_if_refused(self.option(STRUCTURED_REPLY))
        self.structured = True

    def contexts(self, name: bytes, *queries: bytes, option: int = SET_META_CONTEXT) -> list[bytes]:
        """Select (or list) metadata contexts: the names of those there are."""
        replies = self.option(option, context_query(name, *queries))
        _raise_if_refused(replies)
        return [data[4:] for _, data in replies[:-1]]

    def export_name(self, name: bytes = b"") -> ExportInfo:
        """EXPORT_NAME, with the 124 zeros if this client did not say NO_ZEROES."""
        self.send_option(EXPORT_NAME, name)
        no_zeroes = self.client_flags & self.greeting_flags & 2
        answer = self.receive(10 if no_zeroes else 134)
        assert not any(answer[10:]), answer
        size, flags = struct.unpack(">QH", answer[:10])
        return ExportInfo(size, flags)

    def abort(self) -> None:
        """ABORT, its ACK and the end of the connection."""
        assert self.option(ABORT) == [(ACK, b"")]
        assert self.closed_by_server()

    # Transmission

    def send_request(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: bytes = b"",
        cookie: int | None = None,
    ) -> int:
        """Send one request and return its cookie."""
        if cookie is None:
            self._cookie += 1
            cookie = self._cookie
        header = struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)
        self.send(header + data)
        return cookie

    def receive_chunks(self, cookie: int) -> list[Chunk]:
        """The whole reply to the only request that is under way, simple or structured."""
        chunks: list[Chunk] = []
        while not chunks or not chunks[-1].done:
            magic = int.from_bytes(self.receive(4))
            if magic == 0x67446698:
                assert not chunks
                error, answered = struct.unpack(">IQ", self.receive(12))
                chunk = Chunk(-1, answered, struct.pack(">I", error))
            else:
                assert magic == 0x668E33EF, hex(magic)
                chunk, length = Chunk.parse(self.receive(Chunk.HEADER.size))
                chunk = replace(chunk, data=self.receive(length))
            assert chunk.cookie == cookie
            chunks.append(chunk)
        return chunks

    def receive_simple_reply(self, length: int = 0) -> tuple[int, int, bytes]:
        """Error number, cookie and, if there is no error, ``length`` bytes of data."""
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert magic == 0x67446698, hex(magic)
        return error, cookie, b"" if error else self.receive(length)

    def request(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: bytes = b"",
    ) -> bytes:
        """One request, one reply. `NbdError` if that is an error."""
        sent = self.send_request(command, offset, length, flags=flags, data=data)
        if self.structured:
            chunks = self.receive_chunks(sent)
            raise_errors(chunks)
            if command == READ:
                return content_of(chunks, offset, length)
            assert len(chunks) == 1, chunks
            return chunks[0].data
        expected = length if command == READ else 0
        error, cookie, answer = self.receive_simple_reply(expected)
        assert cookie == sent, (cookie, sent)
        if error:
            raise NbdError(error)
        return answer

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        return self.request(READ, offset, length, flags=flags)

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        self.request(WRITE, offset, len(data), flags=flags, data=data)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        self.request(WRITE_ZEROES, offset, length, flags=flags)

    def trim(self, offset: int, length: int, flags: int = 0) -> None:
        self.request(TRIM, offset, length, flags=flags)

    def status(self, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
        """BLOCK_STATUS: the extents of the only context there is."""
        sent = self.send_request(BLOCK_STATUS, offset, length, flags=flags)
        chunks = self.receive_chunks(sent)
        raise_errors(chunks)
        assert len(chunks) == 1
        return chunks[0].extents

    def flush(self) -> None:
        self.request(FLUSH)

    def cache(self, offset: int, length: int) -> None:
        self.request(CACHE, offset, length)

    def disconnect(self) -> None:
        """DISC, and the end of the connection."""
        self.send_request(DISC)
        assert self.closed_by_server()
        self.close()


def raise_errors(chunks: list[Chunk]) -> None:
    """Raise the error that a reply contains."""
    for chunk in chunks:
        if chunk.kind == -1 and any(chunk.data):
            raise NbdError(int.from_bytes(chunk.data))
        if (error := chunk.error) is not None:
            raise error


def _raise_if_refused(replies: list[tuple[int, bytes]]) -> None:
    kind, data = replies[-1]
    if kind != ACK:
        raise Refused(kind, data.decode(errors="replace"))
