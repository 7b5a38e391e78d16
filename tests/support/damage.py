# SPDX-License-Identifier: MIT
"""Damage to what a real Swift has on its disk, as a disk that fails would do it."""

import os
import pickle
from pathlib import Path

from tests.support.swift_aio import RealSwift

_METADATA = "user.swift.metadata"


def object_file(swift: RealSwift, container: str, name: str) -> Path:
    """The file of an object, of which there is one replica."""
    wanted = f"/{container}/{name}".encode()
    for path in (swift.root / "srv").rglob("*.data"):
        if "quarantined" in path.parts:
            continue
        metadata = pickle.loads(os.getxattr(path, _METADATA))
        if metadata[b"name"].endswith(wanted):
            return path
    raise LookupError(f"no file of {container}/{name} in {swift.root}")


def flip_a_byte(path: Path, at: int = 1000) -> None:
    """Another byte than was written, as a bad sector gives."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0xFF]))


def cut_short(path: Path) -> None:
    """A file that lost its end."""
    os.truncate(path, path.stat().st_size - 1)
