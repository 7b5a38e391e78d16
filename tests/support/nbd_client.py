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
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

SECONDS_MAX = 20.0

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY = 1, 2, 3, 5, 6, 7, 8
ACK, SERVER, REP_INFO = 1, 2, 3
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

EIO, EPERM, EINVAL, ENOSPC, ESHUTDOWN = 5, 1, 22, 28, 108

_OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
_REPLY_MAGIC = 0x0003E889045565A9


class NbdError(Exception):
    """An error reply to a request; ``number`` is the wire's error number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the server answered error {number}")
        self.number = number


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
        self._cookie = 0
        if client_flags is not None:
            self.greet(client_flags)

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
        while replies[-1][0] in (SERVER, REP_INFO):
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

    def flush(self) -> None:
        self.request(FLUSH)

    def cache(self, offset: int, length: int) -> None:
        self.request(CACHE, offset, length)

    def disconnect(self) -> None:
        """DISC, and the end of the connection."""
        self.send_request(DISC)
        assert self.closed_by_server()
        self.close()


def _raise_if_refused(replies: list[tuple[int, bytes]]) -> None:
    kind, data = replies[-1]
    if kind != ACK:
        raise Refused(kind, data.decode(errors="replace"))
