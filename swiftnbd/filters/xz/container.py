# SPDX-License-Identifier: MIT
"""The xz format, as far as it says where the blocks of a file are. liblzma does the rest.

::

    header (12 bytes), blocks, index (the sizes of all blocks), footer (12 bytes)

of one or more streams, with zeros between and behind them. So a file is looked at from its end.
Source: "The .xz File Format", version 1.2.1; its section names are in the comments.
"""

import lzma
import struct
from array import array
from errno import EIO
from typing import Final, NamedTuple
from zlib import crc32

from swiftnbd.api import Device, ExportError
from swiftnbd.api.access import read_bytes
from swiftnbd.api.threads import Threads
from swiftnbd.errors import ExportUnusable

ENDS_BYTES: Final = 12  # of a header, and of a footer
INDEX_BYTES_MAX: Final = 16 * 1024 * 1024  # read at once, of one stream
BLOCKS_MAX: Final = 1 << 18  # of all streams: 4 TiB in blocks of 16 MiB
STREAMS_MAX: Final = 10_000  # each takes three reads
PADDING_BYTES_MAX: Final = 64 * 1024 * 1024  # behind a stream: an image in whole objects
DICTIONARY_BYTES_MAX: Final = 128 * 1024 * 1024  # xz -9 wants half of it
_SIZE_MAX: Final = (1 << 63) - 1
_PIECE_BYTES: Final = 64 * 1024

_HEADER_MAGIC, _FOOTER_MAGIC = b"\xfd7zXZ\0", b"YZ"
_FOOTER: Final = struct.Struct("<II2s2s")  # CRC32, backward size, flags, magic
_NUMBER_BYTES_MAX: Final = 9  # "1.2. Multibyte Integers"


class Block(NamedTuple):
    """One, as the index tells of it. ``stored`` is without its padding to four bytes."""

    offset: int
    stored: int
    length: int
    flags: bytes


class Index:
    """Where all blocks are: ``starts`` of their bytes, and the end of the last."""

    def __init__(self, blocks: list[Block]) -> None:
        self._places = array("Q", (block.offset for block in blocks))
        self._stored = array("Q", (block.stored for block in blocks))
        self._flags = [block.flags for block in blocks]
        self.starts = array("Q", [0])
        for block in blocks:
            if self.starts[-1] + block.length > _SIZE_MAX:
                raise _damaged("its blocks are larger than any disk")
            self.starts.append(self.starts[-1] + block.length)

    def __getitem__(self, number: int) -> Block:
        length = self.starts[number + 1] - self.starts[number]
        return Block(self._places[number], self._stored[number], length, self._flags[number])


async def read_index(device: Device, threads: Threads, block_bytes_max: int) -> Index:
    """Where the blocks are. Raises `ExportUnusable` if it is no xz file, or a hostile one."""
    streams: list[list[Block]] = []
    left = BLOCKS_MAX
    end = await _without_padding(device, device.size)
    for _ in range(STREAMS_MAX):
        end, found = await _stream(device, threads, end, left)
        streams.append(found)
        left -= len(found)
        if end:
            end = await _without_padding(device, end)
        if not end:
            break
    else:
        raise _damaged(f"it has more than {STREAMS_MAX} streams")
    blocks = [block for found in reversed(streams) for block in found]
    for block in blocks:
        if block.length > block_bytes_max or block.stored > _stored_max(block_bytes_max):
            raise ExportUnusable(
                f"xz: a block has {block.length} bytes, more than xz-max-block: "
                "compress it anew with xz --block-size=16MiB"
            )
    return Index(blocks)


def _stored_max(length: int) -> int:
    """What does not compress takes a little more, and the block's header."""
    return length + length // 64 + 4096


async def _without_padding(device: Device, end: int) -> int:
    """Where a stream ends: "2.2. Stream Padding" is zeros, a multiple of four."""
    least = max(end - PADDING_BYTES_MAX, 0)
    while end > least:
        start = max(end - _PIECE_BYTES, 0)
        found = (await read_bytes(device, start, end - start)).rstrip(b"\0")
        if found:
            # the size of a stream is a multiple of four, and its last byte is none of zero
            return start + len(found)
        end = start
    raise ExportUnusable("xz: it does not end like an xz file")


async def _stream(
    device: Device, threads: Threads, end: int, blocks_max: int
) -> tuple[int, list[Block]]:
    """Where the stream begins that ends there, and its blocks."""
    if end % 4 or end < 2 * ENDS_BYTES:
        raise ExportUnusable("xz: it does not end like an xz file")
    checksum, backward, flags, magic = _FOOTER.unpack(
        await read_bytes(device, end - ENDS_BYTES, ENDS_BYTES)
    )
    if magic != _FOOTER_MAGIC:
        raise ExportUnusable("xz: it does not end like an xz file")
    if checksum != crc32(struct.pack("<I", backward) + flags):
        raise _damaged("the checksum of a footer is wrong")
    length = (backward + 1) * 4
    start = end - ENDS_BYTES - length
    if length > INDEX_BYTES_MAX or start < ENDS_BYTES:
        raise _damaged(f"an index has {length} bytes")
    index = await read_bytes(device, start, length)
    records = await threads.run(_records, index, blocks_max)
    offset = start - sum(-(-stored // 4) * 4 for stored, _ in records)
    begin = offset - ENDS_BYTES
    if begin < 0:
        raise _damaged("its blocks are larger than it is")
    if await read_bytes(device, begin, ENDS_BYTES) != header(flags):
        raise _damaged("a stream does not begin where its index says")
    if flags[0] or not lzma.is_check_supported(flags[1]):
        raise ExportUnusable(f"xz: its kind of checksum, {flags[1]}, is unknown")
    blocks = []
    for stored, size in records:
        if size:
            blocks.append(Block(offset, stored, size, flags))
        offset += -(-stored // 4) * 4
    return begin, blocks


def _records(data: bytes, blocks_max: int) -> list[tuple[int, int]]:
    """Stored and own sizes: "4. Index"."""
    body, checksum = data[:-4], data[-4:]
    if checksum != struct.pack("<I", crc32(body)) or body[:1] != b"\0":
        raise _damaged("the checksum of an index is wrong")
    count, at = _number(body, 1)
    if count > blocks_max:
        raise _damaged(f"it has more than {BLOCKS_MAX} blocks")
    records = []
    for _ in range(count):
        stored, at = _number(body, at)
        size, at = _number(body, at)
        if not stored:
            raise _damaged("a block takes no room")
        records.append((stored, size))
    if len(body) - at > 3 or any(body[at:]):
        raise _damaged("an index is longer than its blocks")
    return records


def _number(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for index, byte in enumerate(data[at : at + _NUMBER_BYTES_MAX]):
        number |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return number, at + index + 1
    raise _damaged("a number of an index is too long")


def _packed(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


def header(flags: bytes) -> bytes:
    """ "2.1.1. Stream Header"."""
    return _HEADER_MAGIC + flags + struct.pack("<I", crc32(flags))


def decode(block: Block, number: int, stored: bytes) -> bytes:
    """The bytes of a block, as the only one of a stream: so all of its checksums are looked at."""
    index = b"\0\1" + _packed(block.stored) + _packed(block.length)
    index += bytes(-len(index) % 4)
    index += struct.pack("<I", crc32(index))
    backward = struct.pack("<I", len(index) // 4 - 1)
    footer = struct.pack("<I", crc32(backward + block.flags)) + backward
    stream = b"".join((header(block.flags), stored, index, footer, block.flags, _FOOTER_MAGIC))
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=DICTIONARY_BYTES_MAX)
    try:
        data = decoder.decompress(stream, block.length + 1)
    except (lzma.LZMAError, MemoryError) as error:
        raise ExportError(EIO, f"xz: block {number} cannot be decompressed: {error}") from None
    if not decoder.eof or len(data) != block.length:
        raise ExportError(EIO, f"xz: block {number} cannot be decompressed: its length is wrong")
    return data


def _damaged(what: str) -> ExportUnusable:
    return ExportUnusable(f"xz: the file is damaged: {what}")
