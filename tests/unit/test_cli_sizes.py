# SPDX-License-Identifier: MIT
import pytest

from swiftnbd.cli.sizes import exact_size, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("65536", 65536),
        ("64K", 65536),
        ("64k", 65536),
        ("64KiB", 65536),
        ("1M", 1048576),
        ("10G", 10737418240),
        ("2T", 2199023255552),
        ("7P", 7881299347898368),
        ("9223372036854775807", 9223372036854775807),
    ],
)
def test_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "0G", "-1", "+1", "1.5G", "1GB", "G", "1 G", "1_000", "\u0661", "0x10", "1e3"),
        *("9223372036854775808", "8192P", "9" * 30, "1G\n"),
        "1\u212a",  # the Kelvin sign, which is a k in lower case
    ],
)
def test_what_is_no_size_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not (a size|between 1 byte and 8 EiB)"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (512, "512 bytes"),
        (65536, "64 KiB"),
        (1572864, "1.5 MiB"),
        (10737418240, "10 GiB"),
        (1 << 62, "4096 PiB"),
    ],
)
def test_size_is_shown(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1000, "1000 bytes"),
        (1 << 30, "1 GiB"),
        (1000 << 20, "1000 MiB"),
        (1600000, "1.5 MiB (1600000 bytes)"),
        ((1 << 30) + 1, "1.0 GiB (1073741825 bytes)"),
    ],
)
def test_no_byte_is_lost_where_each_counts(size: int, text: str) -> None:
    assert exact_size(size) == text
