#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Keeps a device of the kernel's NBD client connected while its server is restarted.

    nbd-reconnect.py nbd0 HOST PORT EXPORT [SECONDS]

nbd-client has attached the device before, by netlink (its default) and with -timeout. From now on
the kernel holds requests for up to SECONDS (600) without a connection instead of failing them; and
whenever a connection ends, a new one to the same server takes its place. Ends with the device.

Only for a server that stores everything before it ends, as one that is told to end does: after a
crash, what it had accepted since the last flush is lost, and the kernel does not send it again.
Python's standard library is all it needs. No TLS.
"""

import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

WAIT_SECONDS = 600  # for a connection, by default: a server may write back for minutes
LOOK_SECONDS = 5.0  # how often to look whether the device is still attached
RETRY_SECONDS = 1.0
ANSWER_SECONDS_MAX = 30.0  # of a server that is asked for its export
ERROR_BYTES_MAX = 4096  # of a server's reason

# linux/genetlink.h, linux/nbd-netlink.h
_GENERIC, _REQUEST, _ACK, _ERROR, _NESTED = 16, 1, 4, 2, 0x8000
_GET_FAMILY, _FAMILY_ID, _FAMILY_NAME, _GROUPS, _GROUP_NAME, _GROUP_ID = 3, 1, 2, 7, 1, 2
_RECONFIGURE, _LINK_DEAD = 3, 4
_INDEX, _SOCKETS, _DEAD_CONN_TIMEOUT, _SOCK_ITEM, _SOCK_FD = 1, 7, 8, 1, 1

# The NBD protocol: proto.md, "Newstyle negotiation"
_NBD_MAGIC, _OPTS_MAGIC, _REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES, _OPT_GO, _ACKNOWLEDGED, _INFO, _IS_ERROR = 1, 2, 7, 1, 3, 1 << 31


class Failed(Exception):
    """In one sentence, for whoever reads the journal."""


class Netlink:
    """The kernel's NBD driver. Raises `OSError` with what it answers."""

    def __init__(self) -> None:
        self._family = 0x10  # that of the controller, who knows the others
        self._requests = self._open()
        self._events = self._open()
        name = _attribute(_FAMILY_NAME, b"nbd\0")
        found = dict(_attributes(self._ask(_GET_FAMILY, name)))
        self._family = int.from_bytes(found[_FAMILY_ID], sys.byteorder)
        for _, group in _attributes(found[_GROUPS]):
            number = int.from_bytes(dict(_attributes(group))[_GROUP_ID], sys.byteorder)
            self._events.setsockopt(270, 1, number)  # SOL_NETLINK, NETLINK_ADD_MEMBERSHIP

    def reconfigure(self, index: int, connection: socket.socket | None, seconds: int) -> None:
        """Hold requests for so long; and let a connection take the place of one that ended."""
        attributes = _attribute(_INDEX, struct.pack("=I", index))
        attributes += _attribute(_DEAD_CONN_TIMEOUT, struct.pack("=Q", seconds))
        if connection is not None:
            item = _attribute(_SOCK_FD, struct.pack("=I", connection.fileno()))
            attributes += _attribute(_SOCKETS | _NESTED, _attribute(_SOCK_ITEM | _NESTED, item))
        self._ask(_RECONFIGURE, attributes)

    def connections_ended(self, index: int, seconds: float) -> int:
        """How many connections of a device have ended, if that is told within ``seconds``."""
        ended = 0
        while select.select([self._events], [], [], 0.0 if ended else seconds)[0]:
            data = self._events.recv(65536)
            where = dict(_attributes(data[20:])).get(_INDEX)
            if data[16] == _LINK_DEAD and where == struct.pack("=I", index):
                ended += 1
        return ended

    @staticmethod
    def _open() -> socket.socket:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC)
        opened.bind((0, 0))
        return opened

    def _ask(self, command: int, attributes: bytes) -> bytes:
        """The attributes of the answer, if there is any."""
        body = struct.pack("=BBH", command, 1, 0) + attributes
        header = struct.pack("=IHHII", 16 + len(body), self._family, _REQUEST | _ACK, 0, 0)
        self._requests.send(header + body)
        answer = b""
        while True:  # until it is acknowledged
            data = self._requests.recv(65536)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind == _ERROR:
                    number = -int(struct.unpack_from("=i", data, 16)[0])
                    if number:
                        raise OSError(number, f"the kernel's NBD driver: error {number}")
                    return answer
                answer, data = data[20:length], data[(length + 3) & ~3 :]


def _attribute(kind: int, value: bytes) -> bytes:
    header = struct.pack("=HH", 4 + len(value), kind)
    return header + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & ~_NESTED, data[4:length]
        data = data[(length + 3) & ~3 :]


def connect(host: str, port: str, export: str) -> tuple[socket.socket, int]:
    """A connection that is ready for the kernel, and the bytes of the export."""
    connection = socket.create_connection((host, port), timeout=ANSWER_SECONDS_MAX)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        size = _negotiate(connection, export.encode())
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection, size


def _negotiate(connection: socket.socket, export: bytes) -> int:
    greeting = struct.unpack(">QQH", _receive(connection, 18))
    if greeting[:2] != (_NBD_MAGIC, _OPTS_MAGIC) or not greeting[2] & _FIXED_NEWSTYLE:
        raise Failed("that is no server of the fixed newstyle")
    connection.sendall(struct.pack(">I", _FIXED_NEWSTYLE | (greeting[2] & _NO_ZEROES)))
    body = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
    connection.sendall(struct.pack(">QII", _OPTS_MAGIC, _OPT_GO, len(body)) + body)
    size = None
    while True:
        magic, _, kind, length = struct.unpack(">QIII", _receive(connection, 20))
        if magic != _REPLY_MAGIC or length > ERROR_BYTES_MAX:
            raise Failed("that is no answer of an NBD server")
        data = _receive(connection, length)
        if kind & _IS_ERROR:
            raise Failed(f"the server refuses: {data.decode(errors='replace') or hex(kind)}")
        if kind == _INFO and data[:2] == b"\0\0":  # NBD_INFO_EXPORT
            size = int.from_bytes(data[2:10], "big")
        if kind == _ACKNOWLEDGED and size is not None:
            return size


def _receive(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise Failed("the server has closed the connection")
        data += more
    return data


def _say(text: str) -> None:
    print(f"nbd-reconnect: {text}", file=sys.stderr, flush=True)


def keep(device: str, host: str, port: str, export: str, seconds: int) -> None:
    """Return when the device is detached. Raises `Failed` if it is another disk by now."""
    folder = Path("/sys/block") / device
    index = int(device.removeprefix("nbd"))
    netlink = Netlink()
    netlink.reconfigure(index, None, seconds)
    _say(f"{device}: requests wait for up to {seconds} s for a server that is restarted")
    ended = 1  # perhaps, before we looked; the kernel takes no connection that it does not need
    while (folder / "pid").exists():  # that of whoever attached it
        for _ in range(ended):
            size = int((folder / "size").read_text()) * 512
            connection = _connect_again(folder, host, port, export)
            if connection is None:
                break
            with connection[0]:  # the kernel has a reference of its own
                if connection[1] != size:
                    raise Failed(f"{export} has {connection[1]} bytes now, {device} has {size}")
                netlink.reconfigure(index, connection[0], seconds)
        if ended:
            _say(f"{device}: connected")
        ended = netlink.connections_ended(index, LOOK_SECONDS)


def _connect_again(
    folder: Path, host: str, port: str, export: str
) -> tuple[socket.socket, int] | None:
    """Try until it works, or the device is detached."""
    told = ""
    while (folder / "pid").exists():
        try:
            return connect(host, port, export)
        except (OSError, Failed) as error:
            if str(error) != told:
                told = str(error)
                _say(f"{folder.name}: not connected: {told}; trying again")
            time.sleep(RETRY_SECONDS)
    return None


def main() -> int:
    """The command line."""
    arguments = sys.argv[1:]
    if len(arguments) not in (4, 5):
        print("usage: nbd-reconnect.py nbd0 HOST PORT EXPORT [SECONDS]", file=sys.stderr)
        return 2
    try:
        device, host, port, export = arguments[:4]
        keep(device, host, port, export, int(arguments[4]) if arguments[4:] else WAIT_SECONDS)
    except (OSError, Failed, ValueError) as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
