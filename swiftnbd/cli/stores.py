# SPDX-License-Identifier: MIT
"""From configuration to open stores. Imported late: an HTTP client is heavy."""

from pathlib import Path

from swiftnbd.server.config import AuthConfig, ExportConfig
from swiftnbd.store.base import Store


def containers_under(directory: Path) -> list[str]:
    """The containers of the directory store, sorted."""
    from swiftnbd.store.directory import containers

    return containers(directory)


def open_store(auth: AuthConfig, export: ExportConfig, *, seconds: float | None = None) -> Store:
    """The store of one container; nothing is sent yet.

    ``seconds`` is how long one operation may take, retries included (default: the store's).
    """
    if auth.directory is not None:
        from swiftnbd.store.directory import DirectoryStore

        return DirectoryStore(auth.directory, export.name)
    raise NotImplementedError
