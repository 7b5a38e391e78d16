# SPDX-License-Identifier: MIT
"""From configuration to open stores. What is heavy is imported when it is needed."""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from swiftnbd.metrics import StoreTraffic
from swiftnbd.server.config import AuthConfig, Credentials, ExportConfig
from swiftnbd.store.base import Store

if TYPE_CHECKING:
    from swiftnbd.store.open import Outages, SwiftAccount


class Stores:
    """Opens the stores of one configuration and closes them all in the end.

    Containers with the same login share an account: its token and its connections. All of one
    Swift share what is known of its outages. ``seconds`` is how long one operation on a Swift may
    take, retries included (default: the store's own).
    """

    def __init__(self, auth: AuthConfig, *, seconds: float | None = None) -> None:
        self._auth = auth
        self._seconds = seconds
        self.traffic = StoreTraffic()  # of all Swift accounts
        self._outages: Outages | None = None
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

    def open(self, export: ExportConfig, *, seconds: float | None = None) -> Store:
        """The store of one container, perhaps with ``seconds`` of its own. Nothing is sent yet."""
        directory = self._auth.directory
        if directory is None:
            store = self._open_swift(export, self._seconds if seconds is None else seconds)
        else:
            store = _open_directory(directory, export)
        self._stores.append(store)
        return store

    def _open_swift(self, export: ExportConfig, seconds: float | None) -> Store:
        from swiftnbd.store.open import Patience, open_swift

        assert export.credentials is not None
        patience = None if seconds is None else Patience(seconds)
        return open_swift(self._account(export.credentials), export.name, patience)

    def _account(self, login: Credentials) -> "SwiftAccount":
        from swiftnbd.store.open import Outages, SwiftAccount, V1Auth

        if self._outages is None:
            self._outages = Outages()
        if login not in self._accounts:
            auth = V1Auth(self._auth.url, login.username, login.password)
            self._accounts[login] = SwiftAccount(auth, traffic=self.traffic, outages=self._outages)
        return self._accounts[login]


def _open_directory(directory: Path, export: ExportConfig) -> Store:
    from swiftnbd.store.directory import DirectoryStore

    return DirectoryStore(directory, export.name)
