# SPDX-License-Identifier: MIT
"""Sizes as people write them: ``65536``, ``64K``, ``10G``; always powers of 1024. Counts, times."""

import re

BYTES_MAX = 1 << 63  # off_t: no file system and no NBD client goes further

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"(?P<number>[0-9]{1,19})(?P<unit>[KMGTP]?)(?:iB)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str, *, least: int = 1) -> int:
    """Bytes of ``text``; ValueError with a sentence if it is no size."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a size; write bytes, or a number with K, M, G or T")
    size = int(match["number"]) * _UNITS[match["unit"].upper()]
    if not least <= size < BYTES_MAX:
        raise ValueError(f"{text[:40]!r} is not between 1 byte and 8 EiB")
    return size


def format_size(size: int) -> str:
    """``size`` for people: ``512 bytes``, ``64 KiB``, ``1.5 GiB``."""
    name, unit = _unit_of(size)
    if unit == 1:
        return f"{size} bytes" if size != 1 else "1 byte"
    return f"{size // unit} {name}iB" if size % unit == 0 else f"{size / unit:.1f} {name}iB"


def exact_size(size: int) -> str:
    """`format_size`, with the bytes where that may be rounded: ``1.5 MiB (1600000 bytes)``."""
    text = format_size(size)
    return f"{text} ({size} bytes)" if size % _unit_of(size)[1] else text


def counted(number: int, noun: str) -> str:
    """``1 object``, ``20 objects``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_seconds(seconds: float) -> str:
    """A time for people, in its two largest units: ``48 s``, ``12 min 5 s``, ``1 h 30 min``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((i for i, (number, _) in enumerate(parts) if number), len(parts) - 1)
    shown = parts[first : first + 2]
    return " ".join(f"{n} {unit}" for i, (n, unit) in enumerate(shown) if n or not i)


def _unit_of(size: int) -> tuple[str, int]:
    """The largest unit that is not larger than ``size``."""
    return max((unit for unit in _UNITS.items() if unit[1] <= max(size, 1)), key=lambda u: u[1])
