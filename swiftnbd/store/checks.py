# SPDX-License-Identifier: MIT
"""What every store refuses alike, checked at its edge, so that a double behaves like Swift.

The limits are Swift's own; what breaks them is refused here with a sentence, before it reaches
a header or a path. White space at the ends of a header value does not survive HTTP.
"""

import re
from collections.abc import Mapping

from swiftnbd.errors import CorruptObject, StoreError

OBJECT_NAME_BYTES_MAX = 1024
CONTAINER_NAME_BYTES_MAX = 256
METADATA_VALUE_BYTES_MAX = 256
TOKEN_LENGTH_MAX = 256

_KEY = re.compile(r"[a-z0-9]([a-z0-9-]{0,127})")  # an underscore would be dropped silently
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_object_name(name: str) -> None:
    """Raise `StoreError` for a name Swift could not store."""
    _check_text("object name", name, OBJECT_NAME_BYTES_MAX)


def check_container_name(name: str) -> None:
    """Raise `StoreError` for a container name Swift could not store."""
    if "/" in name:
        raise StoreError(f"container name {name!r} has a slash in it")
    _check_text("container name", name, CONTAINER_NAME_BYTES_MAX)


def check_metadata(changes: Mapping[str, str]) -> None:
    """Raise `StoreError` for keys or values that would not come back as they were sent."""
    for key, value in changes.items():
        if not _KEY.fullmatch(key):
            raise StoreError(f"metadata key {key!r} is not lower-case letters, digits and dashes")
        if value:
            _check_text(f"metadata {key}", value, METADATA_VALUE_BYTES_MAX)
            if value != value.strip():
                raise StoreError(f"metadata {key} {value!r} begins or ends with white space")


def check_token(token: str) -> None:
    """Raise `StoreError` for a renew token that is not 1 to 256 visible ASCII characters."""
    if not (0 < len(token) <= TOKEN_LENGTH_MAX and re.fullmatch(r"[!-~]+", token)):
        raise StoreError(f"renew token {token!r} is not 1 to {TOKEN_LENGTH_MAX} ASCII characters")


def check_size(label: str, name: str, size: int, size_max: int) -> None:
    """Raise `CorruptObject` if a body of ``size`` bytes is more than was asked for."""
    if size > size_max:
        raise CorruptObject(f"{label}: GET {name}: {size} bytes, expected at most {size_max}")


def _check_text(what: str, text: str, bytes_max: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise StoreError(f"{what} {text!r} is not valid Unicode") from None
    if not 0 < size <= bytes_max:
        raise StoreError(f"{what} {text!r} has {size} bytes, not 1 to {bytes_max}")
    if _CONTROL.search(text):
        raise StoreError(f"{what} {text!r} has control characters in it")
