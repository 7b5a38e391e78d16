# SPDX-License-Identifier: MIT
"""Object names as paths of files, and back.

A name is cut at its slashes; each part becomes a folder, the last one the file. Visible ASCII
stays as it is, so that ``disk.part/00000042`` is a file of that name; everything else becomes
``%XX``. Two parts are special: an empty one is a lone ``%``, and a leading dot becomes ``%2E``, so
no name can mean ``..`` or meet a file of ours (all of which begin with a dot).
"""

import re
from urllib.parse import quote, unquote

# A part that is its own file name. A listing may see a million of them.
_ITSELF = re.compile(r"[ -$&-\-0-~][ -$&-.0-~]*")
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "").replace("/", "")
_EMPTY = "%"


def file_part(part: str) -> str:
    """One part of a name as the name of a file or folder."""
    if _ITSELF.fullmatch(part):
        return part
    if not part:
        return _EMPTY
    quoted = quote(part, safe=_PLAIN)
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def name_part(file_name: str) -> str | None:
    """What `file_part` made this from, or None for a file that is none of its making."""
    if _ITSELF.fullmatch(file_name):
        return file_name
    if file_name == _EMPTY:
        return ""
    try:
        part = unquote(file_name, errors="strict")
        return part if file_part(part) == file_name else None
    except UnicodeError:
        return None


def file_parts(name: str) -> list[str]:
    """An object's name as folders and, last, its file."""
    return [file_part(part) for part in name.split("/")]
