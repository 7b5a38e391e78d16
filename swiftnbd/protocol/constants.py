# SPDX-License-Identifier: MIT
"""Magic numbers, flags and codes of NBD (proto.md, "Values")."""

from enum import IntEnum, IntFlag

GREETING_MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

STRING_BYTES_MAX = 4096  # "Terminology": no string on the wire is longer
PAYLOAD_BYTES_MAX = 32 * 1024 * 1024  # "Size constraints": what a server should at least accept


class HandshakeFlag(IntFlag):
    """Server's handshake flags; the client's flags have the same values."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class Option(IntEnum):
    """Option types. Those we do not know are answered with `OptionReply.ERR_UNSUP`."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    PEEK_EXPORT = 4
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


_ERROR = 1 << 31


class OptionReply(IntEnum):
    """Option reply types; errors have bit 31 set."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = _ERROR + 1
    ERR_POLICY = _ERROR + 2
    ERR_INVALID = _ERROR + 3
    ERR_PLATFORM = _ERROR + 4
    ERR_TLS_REQD = _ERROR + 5
    ERR_UNKNOWN = _ERROR + 6
    ERR_SHUTDOWN = _ERROR + 7
    ERR_BLOCK_SIZE_REQD = _ERROR + 8
    ERR_TOO_BIG = _ERROR + 9
    ERR_EXT_HEADER_REQD = _ERROR + 10


class Info(IntEnum):
    """Information types of INFO and GO."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(IntFlag):
    """What an export can do, sent with its size."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Command(IntEnum):
    """Request types."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7
    RESIZE = 8


class CommandFlag(IntFlag):
    """Request flags."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4
    PAYLOAD_LEN = 1 << 5


class ReplyFlag(IntFlag):
    """Structured reply flags."""

    DONE = 1 << 0


_CHUNK_ERROR = 1 << 15


class ChunkType(IntEnum):
    """Structured reply types; errors have bit 15 set."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = _CHUNK_ERROR + 1
    ERROR_OFFSET = _CHUNK_ERROR + 2


class BlockState(IntFlag):
    """Status flags of the metadata context "base:allocation"."""

    HOLE = 1 << 0
    ZERO = 1 << 1


class Error(IntEnum):
    """The only error values that may appear on the wire ("Error values")."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108
