# SPDX-License-Identifier: MIT
"""`check` as a truth table, and the errno table (acceptance rows A5, A6)."""

import errno
import itertools

import pytest

from swiftnbd.errors import ExportError
from swiftnbd.protocol.constants import Error, TransmissionFlag
from swiftnbd.protocol.errors import wire_error
from swiftnbd.protocol.requests import REQUEST, ExportShape, OutOfRange, Request, check

MiB = 1024 * 1024
SIZE = 40 * MiB
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW = 1, 5, 22, 28, 75

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, BLOCK_STATUS = range(8)
# what we announce: FLUSH, FUA, TRIM, ZEROES, DF, MULTI_CONN, CACHE, FAST_ZERO
ALL = TransmissionFlag(0x0DED)
READ_ONLY = TransmissionFlag(0x0587)
STATUS = frozenset({"base:allocation"})

WRITABLE = ExportShape(SIZE, ALL, STATUS)
PLAIN = ExportShape(SIZE, ALL & ~TransmissionFlag.SEND_DF)  # no structured replies


def verdict(
    command: int, flags: int = 0, offset: int = 0, length: int = 512, shape: ExportShape = WRITABLE
) -> int:
    """0 or the errno of the refusal."""
    try:
        check(Request(command, flags, 7, offset, length), shape)
    except ExportError as error:
        return error.errno
    return 0


# Every command with every flag: FUA 1, NO_HOLE 2, DF 4, REQ_ONE 8, FAST_ZERO 16, PAYLOAD_LEN 32,
# the first unassigned one and the last.
FLAGS = [0, 1, 2, 4, 8, 16, 32, 64, 0x8000]
ALLOWED = {
    READ: {0, 1, 4, 5},
    WRITE: {0, 1},
    FLUSH: {0, 1},
    TRIM: {0, 1},
    CACHE: {0, 1},
    ZEROES: {0, 1, 2, 3, 16, 17, 18},
    BLOCK_STATUS: {0, 1, 8, 9},
}


@pytest.mark.parametrize("command", [*range(10), 0x100, 0xFFFF])
def test_each_flag_on_each_command(command: int) -> None:
    """Acceptance rows A6.2, A6.3, A6.4."""
    for one, other in itertools.product(FLAGS, FLAGS):
        flags = one | other
        expected = 0 if flags in ALLOWED.get(command, ()) else EINVAL
        assert verdict(command, flags) == expected, f"flags {flags:#x}"


@pytest.mark.parametrize("command", [*range(10), 0x100, 0xFFFF])
def test_each_flag_on_each_command_without_structured_replies(command: int) -> None:
    """Acceptance rows A6.12, A6.13: no DF, and no BLOCK_STATUS at all."""
    allowed = ALLOWED | {READ: {0, 1}, BLOCK_STATUS: set()}
    for one, other in itertools.product(FLAGS, FLAGS):
        flags = one | other
        expected = 0 if flags in allowed.get(command, ()) else EINVAL
        assert verdict(command, flags, shape=PLAIN) == expected, f"flags {flags:#x}"


@pytest.mark.parametrize("command", [*range(10), 0x100, 0xFFFF])
def test_each_flag_on_each_command_of_a_read_only_export(command: int) -> None:
    """Acceptance row A6.8."""
    shape = ExportShape(SIZE, READ_ONLY, STATUS)
    for flags in FLAGS:
        if command in (WRITE, TRIM, ZEROES):
            expected = EPERM
        else:  # FUA is invalid too: a read-only export does not announce it
            allowed = {READ: (0, 4), BLOCK_STATUS: (0, 8), FLUSH: (0,), CACHE: (0,)}
            expected = 0 if flags in allowed.get(command, ()) else EINVAL
        assert verdict(command, flags, shape=shape) == expected, f"flags {flags:#x}"


RANGES = {
    "first byte": (0, 1, True),
    "all that a request may have": (0, 32 * MiB, True),
    "last byte": (SIZE - 1, 1, True),
    "unaligned": (12345, 6789, True),
    "nothing at the start": (0, 0, True),
    "nothing at the end": (SIZE, 0, True),
    "nothing beyond the end": (SIZE + 1, 0, False),
    "first byte beyond": (SIZE, 1, False),
    "across the end": (SIZE - 1, 2, False),
    "far beyond": (1 << 62, 512, False),
    "nothing at the last offset": (2**64 - 1, 0, False),
    "wrapping to 1": (2**64 - 1, 2, False),
    "wrapping to 0": (2**64 - 512, 512, False),
    "4 GiB at 2^32": (2**32 - 1, 2**32 - 1, False),
    "unaligned 4 GiB": (1, 2**32 - 1, False),
}
BEYOND = {
    READ: EINVAL,
    WRITE: ENOSPC,
    TRIM: EINVAL,
    CACHE: EINVAL,
    ZEROES: ENOSPC,
    BLOCK_STATUS: EINVAL,
    FLUSH: 0,
}


@pytest.mark.parametrize("case", RANGES)
@pytest.mark.parametrize("command", BEYOND)
def test_range(command: int, case: str) -> None:
    """Acceptance rows A6.5, A6.6, A6.7, A6.9, A6.10, A6.11, E16."""
    offset, length, inside = RANGES[case]
    expected = 0 if inside else BEYOND[command]
    if command == BLOCK_STATUS and not length:
        expected = EINVAL
    assert verdict(command, 0, offset, length) == expected


@pytest.mark.parametrize(
    ("offset", "length", "first"),
    [
        (SIZE - 1, 2, SIZE),
        (SIZE, 1, SIZE),
        (SIZE + 5, 1, SIZE + 5),
        (2**64 - 1, 2, 2**64 - 1),
        (SIZE + 5, 0, None),
    ],
)
@pytest.mark.parametrize("command", [READ, WRITE, TRIM, CACHE, ZEROES, BLOCK_STATUS])
def test_refused_range_says_where_it_leaves_the_export(
    command: int, offset: int, length: int, first: int | None
) -> None:
    with pytest.raises(OutOfRange) as caught:
        check(Request(command, 0, 7, offset, length), WRITABLE)
    assert caught.value.offset == first


@pytest.mark.parametrize("case", RANGES)
@pytest.mark.parametrize("command", [WRITE, TRIM, ZEROES])
def test_read_only_is_the_first_reason(command: int, case: str) -> None:
    offset, length, _ = RANGES[case]
    assert verdict(command, 0, offset, length, ExportShape(SIZE, READ_ONLY)) == EPERM


@pytest.mark.parametrize(
    ("command", "length", "expected"),
    [
        (READ, 32 * MiB, 0),
        (READ, 32 * MiB + 1, EINVAL),
        (READ, SIZE, EINVAL),
        (WRITE, 32 * MiB, 0),
        (WRITE, 32 * MiB + 1, EINVAL),
        (TRIM, SIZE, 0),
        (CACHE, SIZE, 0),
        (ZEROES, SIZE, 0),
        (BLOCK_STATUS, SIZE, 0),
    ],
)
def test_payload_is_bounded_and_effects_are_not(command: int, length: int, expected: int) -> None:
    """Acceptance rows A6.15, A6.16, A6.17."""
    assert verdict(command, 0, 0, length) == expected


def test_read_over_the_limit_with_df_overflows() -> None:
    """Acceptance row A7.9: what may be sent in one chunk is."""
    assert verdict(READ, 4, 0, 32 * MiB) == 0
    assert verdict(READ, 4, 0, 32 * MiB + 1) == EOVERFLOW


@pytest.mark.parametrize("length", [200 * MiB, 2**32 - 1])
@pytest.mark.parametrize("offset", [0, 2**32 - 1, 2**32 + 513])
@pytest.mark.parametrize("command", [TRIM, CACHE, ZEROES, BLOCK_STATUS])
def test_huge_effect_inside_a_huge_export_is_allowed(
    command: int, offset: int, length: int
) -> None:
    assert verdict(command, 0, offset, length, ExportShape(1 << 43, ALL, STATUS)) == 0


@pytest.mark.parametrize(
    ("command", "announcement"),
    [
        (FLUSH, TransmissionFlag.SEND_FLUSH),
        (TRIM, TransmissionFlag.SEND_TRIM),
        (CACHE, TransmissionFlag.SEND_CACHE),
        (ZEROES, TransmissionFlag.SEND_WRITE_ZEROES),
    ],
)
def test_command_that_is_not_announced_is_invalid(
    command: int, announcement: TransmissionFlag
) -> None:
    assert verdict(command, shape=ExportShape(SIZE, ALL & ~announcement)) == EINVAL
    assert verdict(command, shape=ExportShape(SIZE, ALL)) == 0


def test_fua_that_is_not_announced_is_invalid() -> None:
    shape = ExportShape(SIZE, ALL & ~TransmissionFlag.SEND_FUA, STATUS)
    for command in ALLOWED:
        assert verdict(command, 1, shape=shape) == EINVAL


def test_fast_zero_that_is_not_announced_is_invalid() -> None:
    """Acceptance row A6.14."""
    shape = ExportShape(SIZE, ALL & ~TransmissionFlag.SEND_FAST_ZERO)
    assert verdict(ZEROES, 16, shape=shape) == EINVAL
    assert verdict(ZEROES, 0, shape=shape) == 0


@pytest.mark.parametrize(("offset", "length"), [(5, 0), (0, 5), (2**64 - 1, 2**32 - 1)])
def test_flush_ignores_its_reserved_fields(offset: int, length: int) -> None:
    assert verdict(FLUSH, 0, offset, length) == 0


def test_refusal_says_why_with_values() -> None:
    for request, text in [
        (Request(TRIM, 0, 0, SIZE, 1), f"range {SIZE}+1 is beyond the end ({SIZE})"),
        (Request(READ, 8, 0, 0, 1), "flags 0x8 are not valid for command 0"),
        (Request(9, 0, 0, 0, 1), "command 9 is not supported"),
        (Request(BLOCK_STATUS, 0, 0, 0, 0), "the status of no bytes"),
    ]:
        with pytest.raises(ExportError) as caught:
            check(request, WRITABLE)
        assert str(caught.value) == text


def test_every_errno_becomes_one_that_nbd_knows() -> None:
    expected = {
        errno.EPERM: 1,
        errno.EACCES: 1,
        errno.EROFS: 1,
        errno.EINVAL: 22,
        errno.ENOSPC: 28,
        errno.EDQUOT: 28,
        errno.EFBIG: 28,
        errno.ESHUTDOWN: 108,
    }
    for number in [0, -1, 4096, *errno.errorcode]:
        narrowed = wire_error(number, Request(WRITE, 0, 7, 0, 512))
        assert narrowed == expected.get(number, 5), errno.errorcode.get(number)


@pytest.mark.parametrize("length", [512, 32 * MiB, 32 * MiB + 1])
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("command", ALLOWED)
def test_overflow_and_not_supported_are_said_only_where_documented(
    command: int, flags: int, length: int
) -> None:
    """Acceptance row A6.27: otherwise they are I/O errors."""
    request = Request(command, flags, 7, 0, length)
    fast_zero = (command, flags) == (ZEROES, 16)
    assert wire_error(errno.ENOTSUP, request) == (95 if fast_zero else EIO)
    long_effect = command in (TRIM, CACHE, ZEROES, BLOCK_STATUS) and length > 32 * MiB
    overflow = (command, flags) == (READ, 4) or (long_effect and not fast_zero)
    assert wire_error(errno.EOVERFLOW, request) == (EOVERFLOW if overflow else EIO)


def test_error_values_are_the_specifications() -> None:
    assert {error.name: error.value for error in Error} == {
        "EPERM": 1,
        "EIO": 5,
        "ENOMEM": 12,
        "EINVAL": 22,
        "ENOSPC": 28,
        "EOVERFLOW": 75,
        "ENOTSUP": 95,
        "ESHUTDOWN": 108,
    }


def test_type_and_flags_are_two_fields() -> None:
    header = bytes.fromhex("25609513 0001 0001 ffffffffffffffff 0000000000000200 00000400")
    assert REQUEST.unpack(header) == (0x25609513, 1, 1, 2**64 - 1, 512, 1024)
