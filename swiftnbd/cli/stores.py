# SPDX-License-Identifier: MIT
"""From configuration to open stores. What is heavy is imported when it is needed."""

import logging
from math import inf
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from swiftnbd.metrics import StoreTraffic
from swiftnbd.server.config import AuthConfig, ExportConfig
from swiftnbd.store.base import Store
from swiftnbd.store.bucket_settings import BucketSettings
from swiftnbd.store.login import LoginSettings

if TYPE_CHECKING:
    from swiftnbd.store.bucket import Bucket
    from swiftnbd.store.open import Outages, SwiftAccount

log = logging.getLogger(__name__)


class Stores:
    """Opens the stores of one configuration and closes them all in the end.

    Containers with the same login share an account, its token and its connections, or a bucket. All
    of one Swift, or one bucket, share what is known of its outages. ``seconds`` is how long one
    operation on these may take, retries included (default: the store's own).
    """

    def __init__(
        self, auth: AuthConfig, *, seconds: float | None = None, slow_seconds: float = inf
    ) -> None:
        self._auth = auth
        self._seconds = seconds
        self.traffic = StoreTraffic(slow_seconds=slow_seconds)  # of all Swift accounts
        self._outages: dict[str, Outages] = {}  # by where to log in: one Swift each
        self._accounts: dict[LoginSettings, SwiftAccount] = {}
        self._buckets: dict[BucketSettings, Bucket] = {}
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
        for bucket in self._buckets.values():
            await bucket.close()
        for outages in self._outages.values():
            outages.close()

    def open(self, export: ExportConfig, *, seconds: float | None = None) -> Store:
        """The store of one container, perhaps with ``seconds`` of its own. Nothing is sent yet."""
        seconds = self._seconds if seconds is None else seconds
        directory, login = self._auth.directory, export.login
        if directory is not None:
            store = _open_directory(directory, export)
        elif isinstance(login, BucketSettings):
            store = self._open_bucket(export.name, login, seconds)
        else:
            assert login is not None
            store = self._open_swift(export.name, login, seconds)
        self._stores.append(store)
        return store

    async def names_beside(self, export: ExportConfig, prefix: str) -> list[str]:
        """Containers with that one's login whose names begin with ``prefix``: a page of them."""
        directory, login = self._auth.directory, export.login
        if directory is not None:
            from swiftnbd.store.directory import containers

            names = containers(directory)
        elif isinstance(login, BucketSettings):
            from swiftnbd.store.open_bucket import containers as containers_in

            names = await containers_in(self.bucket(login))
        else:
            from swiftnbd.store.swift import containers_of

            assert login is not None
            names = await containers_of(self.account(login), prefix)
        return [name for name in names if name.startswith(prefix)]

    def _open_swift(self, name: str, login: LoginSettings, seconds: float | None) -> Store:
        from swiftnbd.store.open import Patience, open_swift

        patience = None if seconds is None else Patience(seconds)
        return open_swift(self.account(login), name, patience)

    def _open_bucket(self, name: str, settings: BucketSettings, seconds: float | None) -> Store:
        from swiftnbd.store.open_bucket import open_bucket

        bucket = self.bucket(settings)
        return open_bucket(bucket, name) if seconds is None else open_bucket(bucket, name, seconds)

    def bucket(self, settings: BucketSettings) -> "Bucket":
        """A bucket of an object store. Nothing is sent yet."""
        from swiftnbd.store.open_bucket import Bucket

        if settings not in self._buckets:
            if settings.tls.insecure:
                log.warning(
                    "certificates of %s are not verified (insecure): whoever is on the way can "
                    "change the disk",
                    settings.service,
                )
            self._buckets[settings] = Bucket(settings, traffic=self.traffic)
        return self._buckets[settings]

    def account(self, login: LoginSettings) -> "SwiftAccount":
        """The account of a login. Nothing is sent yet."""
        from swiftnbd.store.open import Outages, PluginAuth, SwiftAccount

        if login not in self._accounts:
            if login.tls.insecure:
                log.warning(
                    "certificates of Swift and its login are not verified (insecure): whoever is "
                    "on the way can read the password and change the disk"
                )
            self._accounts[login] = SwiftAccount(
                PluginAuth(login),
                tls=login.tls,
                traffic=self.traffic,
                outages=self._outages.setdefault(login.option("auth_url"), Outages()),
            )
        return self._accounts[login]


def _open_directory(directory: Path, export: ExportConfig) -> Store:
    from swiftnbd.store.directory import DirectoryStore

    return DirectoryStore(directory, export.name)
