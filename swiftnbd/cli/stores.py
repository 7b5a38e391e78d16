# SPDX-License-Identifier: MIT
"""From configuration to open stores. What is heavy is imported when it is needed."""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from swiftnbd.metrics import StoreTraffic
from swiftnbd.server.config import AuthConfig, Credentials, ExportConfig
from swiftnbd.store.base import Store

if TYPE_CHECKING:
    from swiftnbd.store.open import SwiftAccount


class Stores:
    """Opens the stores of one configuration and closes them all in the end.

    Containers with the same login share an account: its token and its connections. ``seconds``
    is how long one operation on a Swift may take, retries included (default: the store's own).
    """

    def __init__(self, auth: AuthConfig, *, seconds: float | None = None) -> None:
        self._auth = auth
        self._seconds = seconds
        self.traffic = StoreTraffic()  # of all Swift accounts
        self._accounts: dict[Credentials, SwiftAccount] = {}
        self._stores: list[Store] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for store in self._stores:
            await store.close()
        for account in self._accounts.values():
            await account.close()

    def open(self, export: ExportConfig) -> Store:
        """The store of one container. Nothing is sent yet."""
        directory = self._auth.directory
        if directory is None:
            store = self._open_swift(export)
        else:
            store = _open_directory(directory, export)
        self._stores.append(store)
        return store

    def _open_swift(self, export: ExportConfig) -> Store:
        from swiftnbd.store.open import Patience, open_swift

        assert export.credentials is not None
        patience = None if self._seconds is None else Patience(self._seconds)
        return open_swift(self._account(export.credentials), export.name, patience)

    def _account(self, login: Credentials) -> "SwiftAccount":
        from swiftnbd.store.open import SwiftAccount, V1Auth

        if login not in self._accounts:
            auth = V1Auth(self._auth.url, login.username, login.password)
            self._accounts[login] = SwiftAccount(auth, traffic=self.traffic)
        return self._accounts[login]


def _open_directory(directory: Path, export: ExportConfig) -> Store:
    from swiftnbd.store.directory import DirectoryStore

    return DirectoryStore(directory, export.name)
