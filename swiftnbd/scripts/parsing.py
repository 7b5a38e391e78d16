# SPDX-License-Identifier: MIT
"""Texts as nbdkit understands them, for what scripts are told: not quite as we do elsewhere."""

import re
from math import inf
from typing import Final

SIZE_MAX: Final = (1 << 63) - 1
SECONDS_MAX: Final = (1 << 31) - 1
DELAY_SECONDS_MAX: Final = (1 << 32) - 1
_SUFFIXES: Final[dict[str, int]] = {"": 1, "b": 1, "s": 512} | {
    letter: 1024**power for power, letter in enumerate("kmgtpe", 1)
}
_DELAYS: Final = {"": 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "μs": 10**3, "ns": 1}
# As strtod in C reads one, but for infinity and what is no number, and not endlessly long.
_NUMBER: Final = (
    r"\s*([-+]?(?:0[xX](?:[0-9a-fA-F]{1,40}\.?[0-9a-fA-F]{0,40}|\.[0-9a-fA-F]{1,40})"
    r"(?:[pP][-+]?[0-9]{1,5})?|(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,5})?))"
)
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
    """Seconds and nanoseconds of 1, 1.2s, 100ms, 5us or 1ns. ``what`` is for the error.

    Other than in nbdkit, what has more seconds than there are is refused, and nanoseconds are
    never a whole second.
    """
    match = re.fullmatch(rf"{_NUMBER}(|s|ms|us|μs|ns)", _text(text), re.ASCII)
    number = _value(match[1]) if match else -1.0
    nanoseconds = number * _DELAYS[match[2]] if match else -1.0
    if match is None or not 0 <= nanoseconds < (DELAY_SECONDS_MAX + 1) * 10**9:
        raise ValueError(f"{what}: could not parse delay ({text[:80]})")
    if number.is_integer():  # exactly, however many seconds
        return divmod(int(number) * _DELAYS[match[2]], 10**9)
    return divmod(int(nanoseconds + 0.5), 10**9)


def parse_probability(what: str, text: str) -> float:
    """A number, a percentage (10%), or a ratio (1:10 or 1/10), from 0 on."""
    match = re.fullmatch(rf"{_NUMBER}(?:(%)|[:/]{_NUMBER})?", _text(text), re.ASCII)
    number, below = -1.0, 1.0
    if match is not None:
        number, below = _value(match[1]), 100.0 if match[2] else _value(match[3] or "1")
    if number == 0:
        return 0.0
    if not 0 < number < inf or not 0 < below < inf:
        raise ValueError(f"{what}: could not parse probability ({text[:80]})")
    return number / below


def _value(number: str) -> float:
    """Of a `_NUMBER`; -1 for what is negative, if only by its sign."""
    if "-" in number.lower().partition("e" if "x" not in number.lower() else "p")[0]:
        return -1.0
    try:
        return float.fromhex(number) if "x" in number.lower() else float(number)
    except OverflowError:
        return inf


def _text(text: str) -> str:
    if not isinstance(text, str):  # as the functions in C say it
        raise TypeError(f"argument must be str, not {type(text).__name__}")
    return text
