# SPDX-License-Identifier: MIT
"""The directory store against the contract."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from swiftnbd.store.base import Store
from swiftnbd.store.directory import DirectoryStore
from tests.store.contract import BackDoor, StoreContract


class FolderBack(BackDoor):
    """The files. Its own idea of the quoting is: unquote, and a lone percent sign is nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> dict[str, Path]:
        found = {}
        for path in self.folder.rglob("*"):
            parts = path.relative_to(self.folder).parts
            if path.is_file() and not parts[0].startswith("."):
                found["/".join("" if part == "%" else unquote(part) for part in parts)] = path
        return found

    async def read(self, name: str) -> bytes | None:
        path = self.files().get(name)
        return None if path is None else path.read_bytes()

    async def write(self, name: str, data: bytes) -> None:
        assert "%" not in name
        assert not name.startswith(".")
        plain = "".join(
            char if char.isascii() else "".join(f"%{byte:02X}" for byte in char.encode())
            for char in name
        )
        path = self.folder / plain
        path.parent.mkdir(exist_ok=True, parents=True)
        new = path.with_name(".new")
        new.write_bytes(data)
        new.rename(path)

    async def names(self) -> list[str]:
        return sorted(self.files())

    async def metadata(self) -> dict[str, str] | None:
        path = self.folder / ".container.json"
        return dict(json.loads(path.read_text())) if path.exists() else None


class TestDirectoryStore(StoreContract):
    @pytest.fixture
    async def fresh(self, tmp_path: Path) -> AsyncIterator[DirectoryStore]:
        store = DirectoryStore(tmp_path / "root", "disk")
        yield store
        await store.close()

    @pytest.fixture
    async def store(self, fresh: DirectoryStore) -> DirectoryStore:
        await fresh.create_container()
        return fresh

    def beside(self, store: Store, *, impatient: bool = False) -> Store:
        assert isinstance(store, DirectoryStore)
        assert isinstance(store.place.home, Path)
        return DirectoryStore(store.place.home, "other")

    @pytest.fixture
    def back(self, store: DirectoryStore, tmp_path: Path) -> FolderBack:
        return FolderBack(tmp_path / "root" / "disk")
