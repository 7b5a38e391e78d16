# SPDX-License-Identifier: MIT
"""Requests and structured replies on a real socket, straight to a device of plain bytes."""

from errno import ENOSPC, ENOTSUP, EOVERFLOW
from unittest.mock import ANY

import pytest

from swiftnbd.errors import ExportError, StoreError, StoreFull
from swiftnbd.protocol.constants import TransmissionFlag
from tests.support import nbd_client as nbd
from tests.support.byte_device import BLOCK, PLAIN, ByteDevice, transmitting
from tests.support.loopback import Peer, until
from tests.support.nbd_client import (
    DF,
    FAST_ZERO,
    FUA,
    NO_HOLE,
    READ,
    REQ_ONE,
    STATUS,
    WRITE,
    WRITE_ZEROES,
    Chunk,
    NbdError,
    content_of,
)

KiB, MiB = 1024, 1024 * 1024
SIZE = 64 * BLOCK


def kinds(chunks: list[Chunk]) -> list[int]:
    return [chunk.kind for chunk in chunks]


async def failure(
    peer: Peer, command: int, offset: int, length: int, flags: int = 0, data: bytes = b""
) -> NbdError:
    """The error of a request, which must be structured; the connection must be in sync then."""
    (chunk,) = await peer.ask_chunks(command, offset, length, flags=flags, data=data)
    assert chunk.error is not None, chunk
    assert chunk.error.text
    assert kinds(await peer.ask_chunks(READ, 0, 512)) in ([nbd.OFFSET_DATA], [nbd.OFFSET_HOLE])
    return chunk.error


# READ


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("flags", [0, FUA])
async def test_read_of_data_and_holes_sends_only_the_data(quick: bool, flags: int) -> None:
    """Acceptance rows A7.1, A7.4, A7.5, A7.10: from memory at once, and by a task."""
    device = ByteDevice(quick=quick)
    device.fill(2 * BLOCK - 3, b"abc" + b"d" * BLOCK)
    async with transmitting(device) as direct:
        peer = direct.peer
        for offset, length, expected in [
            (0, BLOCK, [nbd.OFFSET_HOLE]),
            (2 * BLOCK - 3, 3, [nbd.OFFSET_DATA]),
            (BLOCK, 2 * BLOCK, [nbd.OFFSET_DATA]),
            (0, 2 * BLOCK, [nbd.OFFSET_HOLE, nbd.OFFSET_DATA]),
            (0, 5 * BLOCK, [nbd.OFFSET_HOLE, nbd.OFFSET_DATA, nbd.OFFSET_HOLE]),
            (100, BLOCK + 1000, [nbd.OFFSET_HOLE, nbd.OFFSET_DATA]),
            (SIZE - 1, 1, [nbd.OFFSET_DATA]),
            (0, SIZE, [nbd.OFFSET_HOLE, nbd.OFFSET_DATA, nbd.OFFSET_HOLE]),
        ]:
            chunks = await peer.ask_chunks(READ, offset, length, flags=flags)
            assert kinds(chunks) == expected, (offset, length)
            assert content_of(chunks, offset, length) == device.image()[offset : offset + length]
            assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert direct.counters.client_out == SIZE + 11 * BLOCK + 1004


async def test_read_with_df_is_one_chunk_up_to_32_mib() -> None:
    """Acceptance row A7.9."""
    device = ByteDevice(33 * MiB // BLOCK)
    device.fill(5 * BLOCK, b"data")
    async with transmitting(device) as direct:
        for length in (1, 65536, SIZE, 32 * MiB):
            chunks = await direct.peer.ask_chunks(READ, 0, length, flags=DF)
            assert kinds(chunks) == [nbd.OFFSET_DATA]
            assert content_of(chunks, 0, length) == device.image()[:length]
        error = await failure(direct.peer, READ, 0, 32 * MiB + 1, DF)
        assert error.number == nbd.EOVERFLOW


async def test_read_of_nothing_is_done() -> None:
    """Acceptance rows A6.9, A7.3."""
    async with transmitting(ByteDevice()) as direct:
        for flags in (0, DF, FUA):
            chunks = await direct.peer.ask_chunks(READ, SIZE, 0, flags=flags)
            assert chunks == [Chunk(nbd.NONE, ANY)]


async def test_without_structured_replies_nothing_is_structured() -> None:
    device = ByteDevice()
    async with transmitting(device, PLAIN, frozenset()) as direct:
        peer = direct.peer
        assert await peer.ask(READ, 0, SIZE) == bytes(SIZE)
        assert await peer.ask(READ, 0, 0) == b""
        for command, flags in [(READ, DF), (nbd.BLOCK_STATUS, 0), (99, 0)]:
            with pytest.raises(NbdError) as caught:
                await peer.ask(command, 0, 512, flags=flags)
            assert caught.value.number == nbd.EINVAL


# Errors


async def test_every_refusal_is_structured_and_says_why() -> None:
    """Acceptance rows A6.2 to A6.13, A7.1, A7.2, A7.8: even for early ones."""
    async with transmitting(ByteDevice()) as direct:
        for command, offset, length, flags, number, text, where in [
            (READ, 0, 512, 1 << 9, nbd.EINVAL, "flags 0x200", None),
            (READ, SIZE - 1, 2, 0, nbd.EINVAL, "beyond the end", SIZE),
            (READ, SIZE + 1, 0, 0, nbd.EINVAL, "beyond the end", None),
            (READ, 2**64 - 1, 2, 0, nbd.EINVAL, "beyond the end", 2**64 - 1),
            (READ, 0, 33 * MiB, 0, nbd.EINVAL, "beyond the end", SIZE),
            (WRITE, SIZE, 4, 0, nbd.ENOSPC, "beyond the end", SIZE),
            (WRITE, 0, 4, DF, nbd.EINVAL, "flags 0x4", None),
            (WRITE_ZEROES, SIZE - 1, 2, 0, nbd.ENOSPC, "beyond the end", SIZE),
            (nbd.TRIM, SIZE - 1, 2, 0, nbd.EINVAL, "beyond the end", SIZE),
            (nbd.CACHE, SIZE - 1, 2, 0, nbd.EINVAL, "beyond the end", SIZE),
            (nbd.CACHE, 0, 2, REQ_ONE, nbd.EINVAL, "flags 0x8", None),
            (nbd.BLOCK_STATUS, SIZE - 1, 2, 0, nbd.EINVAL, "beyond the end", SIZE),
            (nbd.BLOCK_STATUS, 0, 0, 0, nbd.EINVAL, "no bytes", None),
            (nbd.BLOCK_STATUS, 0, 512, DF, nbd.EINVAL, "flags 0x4", None),
            (8, 0, 512, 0, nbd.EINVAL, "command 8 is not supported", None),
        ]:
            data = b"data" if command == WRITE else b""
            error = await failure(direct.peer, command, offset, length, flags, data)
            assert (error.number, error.offset) == (number, where), (command, offset, length)
            assert text in error.text


async def test_block_status_without_a_selected_context_is_refused() -> None:
    """Acceptance row A6.12."""
    async with transmitting(ByteDevice(), contexts=frozenset()) as direct:
        error = await failure(direct.peer, nbd.BLOCK_STATUS, 0, 512)
        assert error.number == nbd.EINVAL
        assert "no metadata context" in error.text


@pytest.mark.expects_log("READ 0.4096 flags 0x1 failed: secret detail")
async def test_failing_read_says_that_but_nothing_of_the_store() -> None:
    """Acceptance rows A6.26, A7.8."""
    device = ByteDevice()
    async with transmitting(device) as direct:
        device.error = StoreError("secret detail")
        (chunk,) = await direct.peer.ask_chunks(READ, 0, BLOCK, flags=FUA)
        device.error = None
        assert chunk.error is not None
        assert chunk.error.number == nbd.EIO
        assert chunk.error.text == (
            "READ 0+4096 flags 0x1: the store failed; the server's log says why"
        )
        assert kinds(await direct.peer.ask_chunks(READ, 0, BLOCK)) == [nbd.OFFSET_HOLE]


@pytest.mark.allows_log("failed")
@pytest.mark.parametrize(
    ("command", "flags", "raised", "number"),
    [
        (WRITE, FUA, StoreFull("quota"), nbd.ENOSPC),
        (nbd.FLUSH, 0, StoreFull("quota"), nbd.ENOSPC),
        (WRITE_ZEROES, 0, ExportError(ENOTSUP, "slow"), nbd.EIO),
        (nbd.TRIM, 0, ExportError(ENOTSUP, "slow"), nbd.EIO),
        (WRITE, FUA, ExportError(EOVERFLOW, "odd"), nbd.EIO),
        (nbd.CACHE, 0, ExportError(ENOSPC, "full"), nbd.ENOSPC),
        (nbd.BLOCK_STATUS, 0, StoreError("gone"), nbd.EIO),
        (WRITE_ZEROES, 0, RuntimeError("a bug"), nbd.EIO),
    ],
)
async def test_error_of_the_device_is_narrowed_for_its_command(
    command: int, flags: int, raised: Exception, number: int
) -> None:
    """Acceptance row A6.27."""
    device = ByteDevice()
    async with transmitting(device) as direct:
        device.error = raised  # type: ignore[assignment]
        data = b"x" * 512 if command == WRITE else b""
        error = await failure(direct.peer, command, 0, 512, flags, data)
        assert error.number == number


async def test_fast_zero_passes_through_and_may_be_declined_without_noise() -> None:
    """Acceptance row A6.14: declined is not failed, so nothing is in the log."""
    device = ByteDevice()
    async with transmitting(device) as direct:
        for flags, method in [
            (0, "zero"),
            (FAST_ZERO, "zero fast"),
            (FAST_ZERO | NO_HOLE | FUA, "zero no_hole fua fast"),
            (NO_HOLE, "zero no_hole"),
            (FUA, "zero fua"),
        ]:
            await direct.peer.ask(WRITE_ZEROES, 512, 1024, flags=flags)
            assert device.calls[-1] == (method, 512, 1024)
        device.error = ExportError(ENOTSUP, "not known to be fast")
        error = await failure(direct.peer, WRITE_ZEROES, 0, 512, FAST_ZERO)
        assert error.number == nbd.ENOTSUP


@pytest.mark.parametrize(
    ("command", "method"),
    [(WRITE, "write fua"), (WRITE_ZEROES, "zero fua"), (nbd.TRIM, "trim fua")],
)
async def test_fua_reaches_the_device(command: int, method: str) -> None:
    """Acceptance row A6.23."""
    device = ByteDevice()
    async with transmitting(device) as direct:
        data = b"x" * 512 if command == WRITE else b""
        await direct.peer.ask(command, 0, 512, flags=FUA, data=data)
        assert device.calls == [(method, 0, 512)]


# BLOCK_STATUS


async def extents(peer: Peer, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
    (chunk,) = await peer.ask_chunks(nbd.BLOCK_STATUS, offset, length, flags=flags)
    assert chunk.kind == STATUS
    assert chunk.done
    assert chunk.data[:4] == b"\0\0\0\1"
    return chunk.extents


async def test_block_status_merges_what_is_of_one_kind() -> None:
    """Acceptance rows A7.6, A8: HOLE and ZERO for what is absent, nothing for the rest."""
    device = ByteDevice()
    device.fill(2 * BLOCK, b"x" * 3 * BLOCK)
    async with transmitting(device) as direct:
        for offset, length, expected in [
            (0, SIZE, [(2 * BLOCK, 3), (3 * BLOCK, 0), (59 * BLOCK, 3)]),
            (0, 1, [(1, 3)]),
            (2 * BLOCK + 5, 100, [(100, 0)]),
            (BLOCK + 1, 2 * BLOCK, [(BLOCK - 1, 3), (BLOCK + 1, 0)]),
            (SIZE - 1, 1, [(1, 3)]),
        ]:
            assert await extents(direct.peer, offset, length) == expected
            assert await extents(direct.peer, offset, length, FUA) == expected
            one = await extents(direct.peer, offset, length, REQ_ONE)
            assert one == expected[:1]


async def test_block_status_of_one_looks_no_further_than_it_must() -> None:
    """Acceptance row A7.7."""
    device = ByteDevice()
    async with transmitting(device) as direct:
        ((length, state),) = await extents(direct.peer, 0, SIZE, REQ_ONE)
        assert state == 3
        assert BLOCK <= length <= SIZE
        device.fill(BLOCK, b"x")
        assert await extents(direct.peer, 0, SIZE, REQ_ONE) == [(BLOCK, 3)]
        assert len(device.calls) == 2


class Short(ByteDevice):
    """Tells of one block at a time, whatever it may tell."""

    async def extents(self, offset, length, *, count):  # type: ignore[no-untyped-def]
        return (await super().extents(offset, length, count=count))[:1]


async def test_block_status_asks_on_where_the_device_stopped() -> None:
    device = Short()
    device.fill(2 * BLOCK, b"x")
    async with transmitting(device) as direct:
        expected = [(2 * BLOCK, 3), (BLOCK, 0), (61 * BLOCK, 3)]
        assert await extents(direct.peer, 0, SIZE) == expected
        device.calls.clear()
        assert await extents(direct.peer, 0, SIZE, REQ_ONE) == expected[:1]
        assert len(device.calls) == 3  # the third block is of another kind


class Silent(ByteDevice):
    """Knows of no extent at all, which is a bug: there always is one."""

    async def extents(self, offset, length, *, count):  # type: ignore[no-untyped-def]
        return []


@pytest.mark.allows_log("told of no extent at all")
async def test_device_that_tells_of_no_extent_fails_the_request_and_ends_it() -> None:
    async with transmitting(Silent()) as direct:
        error = await failure(direct.peer, nbd.BLOCK_STATUS, 0, SIZE)
        assert error.number == nbd.EIO


class Huge(ByteDevice):
    """8 TiB of blocks in turn absent and present, or all of one kind."""

    def __init__(self, alternating: bool) -> None:
        super().__init__()
        self.size = 1 << 43
        if alternating:
            self.blocks = _Even()  # type: ignore[assignment]

    async def extents(self, offset, length, *, count):  # type: ignore[no-untyped-def]
        if isinstance(self.blocks, _Even):
            return await super().extents(offset, length, count=count)
        return [(length, False, False)]


class _Even:
    def __contains__(self, index: int) -> bool:
        return index % 2 == 0


@pytest.mark.parametrize("offset", [0, 512, 1, 2**32 - 1, 2**40 + 511])
async def test_e14_block_status_of_more_than_32_bits_can_say_is_cut(offset: int) -> None:
    """Acceptance rows E14, E15: and to whole sectors."""
    async with transmitting(Huge(alternating=False)) as direct:
        assert await extents(direct.peer, offset, 2**32 - 1) == [(2**32 - 512, 0)]
        assert await extents(direct.peer, offset, 2**32 - 1, REQ_ONE) == [(2**32 - 512, 0)]
        assert await extents(direct.peer, offset, 2**32 - 512) == [(2**32 - 512, 0)]


async def test_e20_block_status_of_many_extents_is_bounded() -> None:
    """Acceptance row E20."""
    async with transmitting(Huge(alternating=True)) as direct:
        found = await extents(direct.peer, 0, 2**32 - 1)
        assert len(found) == 64 * KiB
        assert set(found) == {(BLOCK, 0), (BLOCK, 3)}
        assert await extents(direct.peer, 0, 2**32 - 1, REQ_ONE) == [(BLOCK, 0)]


async def test_e20_block_status_of_many_extents_leaves_time_for_others() -> None:
    """Acceptance rows E19, E20: nobody waits for all of the answer."""
    device = Huge(alternating=True)
    async with transmitting(device) as direct:
        direct.peer.request(nbd.BLOCK_STATUS, 0, 2**32 - 1)
        await until(lambda: bool(device.calls))
        assert len(device.calls) < 16
        chunks = await direct.peer.chunks()
        assert len(chunks[0].extents) == 64 * KiB
        assert len(device.calls) == 16


async def test_block_status_answers_no_more_than_a_few_bytes_for_each_sector_asked() -> None:
    device = ByteDevice()
    async with transmitting(device) as direct:
        for length in (1, 511, 512, 4096):
            assert sum(each for each, _ in await extents(direct.peer, 100, length)) == length


# WRITE


async def test_write_from_the_buffer_is_done_at_once() -> None:
    device = ByteDevice()
    async with transmitting(device) as direct:
        chunks = await direct.peer.ask_chunks(WRITE, 5, 3, data=b"abc")
        assert chunks == [Chunk(-1, ANY, bytes(4))]
        assert device.calls == [("write_now", 5, 3)]
        assert device.image()[4:9] == b"\0abc\0"
        assert direct.counters.client_in == 3


async def test_write_that_cannot_be_done_at_once_becomes_a_task_with_its_own_bytes() -> None:
    device = ByteDevice(quick=False)
    async with transmitting(device) as direct:
        device.gate.clear()
        first = direct.peer.request(WRITE, 0, 3, data=b"abc")
        second = direct.peer.request(WRITE, BLOCK, 3, data=b"def")
        device.gate.set()
        cookies = {(await direct.peer.chunks())[0].cookie for _ in range(2)}
        assert cookies == {first, second}
        assert [method for method, _, _ in device.calls if method == "write"] == ["write"] * 2
        assert device.given == [b"abc", b"def"]
        assert device.image()[:3] + device.image()[BLOCK : BLOCK + 3] == b"abcdef"
        assert direct.counters.client_in == 6


@pytest.mark.parametrize("quick", [True, False])
async def test_payload_larger_than_the_buffer_is_handed_over_without_a_copy(quick: bool) -> None:
    device = ByteDevice(1024, quick=quick)
    data = bytes(range(256)) * 4 * KiB
    async with transmitting(device) as direct:
        await direct.peer.ask(WRITE, 512, MiB, data=data)
        assert device.image()[: MiB + 1024] == bytes(512) + data + bytes(512)
        if quick:
            assert device.calls == [("write_now", 512, MiB)]
        else:
            assert isinstance(device.given[0], bytearray)
        assert direct.counters.client_in == MiB


@pytest.mark.parametrize("flags", [FUA, DF, 1 << 9])
async def test_write_with_any_flag_is_never_done_at_once(flags: int) -> None:
    device = ByteDevice(128)
    async with transmitting(device) as direct:
        for length in (4, 300 * KiB):
            direct.peer.request(WRITE, 0, length, flags=flags, data=b"x" * length)
            await direct.peer.chunks()
        assert "write_now" not in [method for method, _, _ in device.calls]


@pytest.mark.parametrize(
    ("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), (2**64 - 1, 2), (0, 0), (SIZE, 0)]
)
async def test_write_out_of_range_or_of_nothing_never_reaches_the_device(
    offset: int, length: int
) -> None:
    device = ByteDevice()
    async with transmitting(device) as direct:
        await direct.peer.ask_chunks(WRITE, offset, length, data=b"x" * length)
        assert device.calls == []


async def test_write_to_a_read_only_export_never_reaches_the_device() -> None:
    device = ByteDevice()
    async with transmitting(device, TransmissionFlag(0x0587)) as direct:
        error = await failure(direct.peer, WRITE, 0, 4, data=b"data")
        assert error.number == nbd.EPERM
        assert "write_now" not in [method for method, _, _ in device.calls]


async def test_chunks_of_many_replies_at_once_stay_whole() -> None:
    """Acceptance row A7.11: answered from memory and by tasks, small and larger than a buffer."""
    device = ByteDevice(256)
    for index in range(0, 256, 3):
        device.fill(index * BLOCK, bytes([index]) * BLOCK)
    image = device.image()
    async with transmitting(device) as direct:
        asked = {}
        for number in range(200):
            offset, length = number * 3001 % (100 * BLOCK), 1 + number * 2003 % (150 * BLOCK)
            flags = (0, FUA, DF)[number % 3]
            cookie = direct.peer.request(READ, offset, length, flags=flags)
            asked[cookie] = (offset, length)
        found: dict[int, list[Chunk]] = {cookie: [] for cookie in asked}
        while not all(chunks and chunks[-1].done for chunks in found.values()):
            chunks = await direct.peer.chunks()
            found[chunks[0].cookie] += chunks
        for cookie, (offset, length) in asked.items():
            assert content_of(found[cookie], offset, length) == image[offset : offset + length]
