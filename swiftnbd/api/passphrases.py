# SPDX-License-Identifier: MIT
"""Passphrases that need not stand where others can see them, given as nbdkit's are.

They are read when the configuration is, before the server leaves its terminal, and again with
it, but for those that can be had only once.
"""

import functools
import getpass
import os
import re
from pathlib import Path
from typing import Final

from swiftnbd.api.parameters import Kind
from swiftnbd.errors import ConfigError

BYTES_MAX: Final = 8192  # of one: more is a mistake, such as a disk instead of a file
_TERMINAL: Final = "/dev/tty"


def is_literal(text: str) -> bool:
    """Whether a text is a passphrase itself, not where it is."""
    return bool(text) and not (text.startswith("+") or re.fullmatch(r"-[0-9]*", text))


def _parse(text: str) -> bytes:
    if text.startswith("+"):
        found = _from_file(Path(text[1:]).expanduser())
    elif text == "-":
        found = _asked()
    elif re.fullmatch(r"-[0-9]+", text):
        found = _from_descriptor(int(text[1:5]))
    else:
        found = os.fsencode(text)
    if not found:
        raise ConfigError("the passphrase is empty")
    return found


def _from_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _line(file.read(BYTES_MAX + 1), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read the passphrase in {path}: {error.strerror}") from None


@functools.cache
def _from_descriptor(number: int) -> bytes:
    try:
        with os.fdopen(number, "rb") as file:
            return _line(file.read(BYTES_MAX + 1), f"descriptor {number}")
    except OSError as error:
        raise ConfigError(
            f"cannot read the passphrase from descriptor {number}: {error.strerror}"
        ) from None


@functools.cache
def _asked() -> bytes:
    try:
        open(_TERMINAL, "r+b", buffering=0).close()
    except OSError:  # or getpass would ask on standard input and show what is typed
        raise ConfigError(
            "there is no terminal to ask for the passphrase: give passphrase=+FILE"
        ) from None
    try:
        return _line(os.fsencode(getpass.getpass("Passphrase: ")), "what was typed")
    except (EOFError, OSError):
        raise ConfigError("no passphrase was typed") from None


def _line(data: bytes, where: str) -> bytes:
    """Without the end of the line that editors put there."""
    if len(data) > BYTES_MAX:
        raise ConfigError(f"{where} has more than {BYTES_MAX} bytes, too many for a passphrase")
    return data.removesuffix(b"\n").removesuffix(b"\r")


PASSPHRASE: Final = Kind(
    "+FILE|-|-FD|TEXT", "a passphrase, +FILE, - or -FD", _parse, lambda value: "..."
)
