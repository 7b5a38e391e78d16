# SPDX-License-Identifier: MIT
"""Accounts and what they share."""

import pytest

from swiftnbd.cli.stores import Stores
from swiftnbd.server.config import AuthConfig
from swiftnbd.store.login import LoginSettings, TlsSettings


def login(url: str, user: str = "a:u", *, insecure: bool = False) -> LoginSettings:
    options = (("auth_url", url), ("username", user), ("password", "hunter2"))
    return LoginSettings("v1password", options, tls=TlsSettings(insecure=insecure))


async def test_accounts_of_one_swift_share_its_outages_and_no_others() -> None:
    async with Stores(AuthConfig()) as stores:
        first, second = (stores.account(login("https://one", user)) for user in ("a:u", "b:u"))
        other = stores.account(login("https://other"))
        assert first is not second
        assert first is stores.account(login("https://one"))
        assert first.outages is second.outages is not other.outages


@pytest.mark.expects_log(
    r"^WARNING swiftnbd.*: certificates of Swift and its login are not verified \(insecure\): "
    "whoever is on the way can read the password and change the disk$"
)
async def test_a_login_that_verifies_nobody_is_loud_once() -> None:
    async with Stores(AuthConfig()) as stores:
        for _ in range(2):
            stores.account(login("https://one", insecure=True))


async def test_a_login_that_verifies_is_quiet() -> None:
    async with Stores(AuthConfig()) as stores:
        stores.account(login("https://one"))
