# SPDX-License-Identifier: MIT
"""Texts as nbdkit understands them, for what scripts are told: not quite as we do elsewhere."""

import re
from typing import Final

SIZE_MAX: Final = (1 << 63) - 1
SECONDS_MAX: Final = (1 << 31) - 1
_SUFFIXES: Final[dict[str, int]] = {"": 1, "b": 1, "s": 512} | {
    letter: 1024**power for power, letter in enumerate("kmgtpe", 1)
}
_DELAYS: Final = {"": 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "μs": 10**3, "ns": 1}
_TRUE: Final = ("1", "true", "t", "yes", "y", "on")
_FALSE: Final = ("0", "false", "f", "no", "n", "off")


def parse_size(text: str) -> int:
    """Bytes, with one letter of k, M, G, T, P, E (powers of 1024), b or s (sectors of 512)."""
    match = re.fullmatch(r"\s*\+?([0-9]{1,40})([a-zA-Z]?)", _text(text), re.ASCII)
    scale = None if match is None else _SUFFIXES.get(match[2].lower())
    if match is None or scale is None or (size := int(match[1]) * scale) > SIZE_MAX:
        raise ValueError("Unable to parse string as size")
    return size


def parse_bool(text: str) -> bool:
    """One of true, t, yes, y, on, 1 and their opposites, in any case."""
    word = _text(text).lower()
    if word not in _TRUE + _FALSE:
        raise ValueError(f"could not decipher boolean ({text[:80]})")
    return word in _TRUE


def parse_delay(what: str, text: str) -> tuple[int, int]:
    """Seconds and nanoseconds of 1, 1.2s, 100ms, 5us or 1ns. ``what`` is for the error."""
    match = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{0,20})?)(|s|ms|us|μs|ns)", _text(text), re.ASCII)
    nanoseconds = 0 if match is None else round(float(match[1]) * _DELAYS[match[2]])
    if match is None or nanoseconds > SECONDS_MAX * 10**9:
        raise ValueError(f"{what}: could not parse delay ({text[:80]})")
    return divmod(nanoseconds, 10**9)


def parse_probability(what: str, text: str) -> float:
    """A number, a percentage (10%), or a ratio (1:10 or 1/10), from 0 on."""
    match = re.fullmatch(
        r"([0-9]{1,20}(?:\.[0-9]{0,20})?(?:[eE][-+]?[0-9]{1,3})?)(?:(%)|[:/]([0-9.]{1,20}))?",
        _text(text),
        re.ASCII,
    )
    try:
        if match is None:
            raise ValueError
        below = 100 if match[2] else float(match[3] or 1)
        return float(match[1]) / below
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{what}: could not parse probability ({text[:80]})") from None


def _text(text: str) -> str:
    if not isinstance(text, str):  # as the functions in C say it
        raise TypeError(f"argument must be str, not {type(text).__name__}")
    return text
