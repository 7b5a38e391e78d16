# SPDX-License-Identifier: MIT
"""``swiftnbd-ctl check-auth``: which logins work, or why not."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from swiftnbd.cli import run
from swiftnbd.cli.common import IN_FLIGHT_MAX, PROGRAM, STORE_SECONDS_MAX, tell
from swiftnbd.cli.exits import exit_code
from swiftnbd.cli.options import SharedOptions
from swiftnbd.errors import AccessRefused, ContainerMissing, StoreError, StoreUnavailable
from swiftnbd.server.config import AuthConfig, ExportConfig
from swiftnbd.store.bucket_settings import BucketSettings
from swiftnbd.store.login import LoginSettings

if TYPE_CHECKING:
    from swiftnbd.cli.stores import Stores
    from swiftnbd.store.auth import Login
    from swiftnbd.store.open import SwiftAccount

Settings = LoginSettings | BucketSettings


@dataclass(slots=True)
class Report:
    """What came of one login; the fields are those of ``--json``. '' is unknown."""

    containers: list[str]
    method: str
    works: bool = False
    user: str = ""
    project: str = ""
    region: str = ""
    storage_url: str = ""
    valid_until: str = ""  # the token, in ISO 8601
    error: str = ""
    exit_code: int = 0

    def learn(self, login: "Login") -> None:
        """Note what the login gave; not its token."""
        self.user, self.project, self.region = login.user, login.project, login.region
        self.storage_url = login.storage_url
        if login.lifetime_seconds is not None:
            until = datetime.now(UTC) + timedelta(seconds=login.lifetime_seconds)
            self.valid_until = until.isoformat(timespec="seconds")

    def sentence(self) -> str:
        """It all, for people."""
        where = f" in region {self.region}" if self.region else ""
        until = f", token valid until {self.valid_until}" if self.valid_until else ""
        return f"{self.about}{self.login} works: storage at {self.storage_url}{where}{until}"

    @property
    def login(self) -> str:
        """Who logged in, and how."""
        user = f" as {self.user}" if self.user else ""
        project = f" in project {self.project}" if self.project else ""
        return f"{self.method} login{user}{project}"

    @property
    def about(self) -> str:
        """The containers it is for, as the beginning of a sentence."""
        return f"{', '.join(self.containers)}: " if self.containers else ""


@click.command("check-auth")
@click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout.")
@click.argument("containers", nargs=-1, metavar="[CONTAINER]...")
@click.pass_obj
def check_auth_command(
    options: SharedOptions, *, as_json: bool, containers: tuple[str, ...]
) -> int:
    """Log in as for these containers, or all of the secrets file, and say what came of it.

    Without a secrets file it tries the login of the flags or the environment. Nothing is changed.
    """
    auth = options.auth()
    if auth.directory is not None:
        if as_json:
            click.echo("[]")
        tell(f"{auth.url} needs no login")
        return 0
    logins = _logins(options, auth, containers)
    reports = run.run_interruptible(PROGRAM, lambda: _check_all(auth, logins))
    if as_json:
        click.echo(json.dumps([asdict(report) for report in reports], indent=1))
    for report in reports:
        if report.works and not as_json:
            click.echo(report.sentence())
        elif not report.works:
            tell(f"{report.about}{report.error}")
    codes = {report.exit_code for report in reports if not report.works}
    return codes.pop() if len(codes) == 1 else int(bool(codes))


def _logins(
    options: SharedOptions, auth: AuthConfig, containers: Sequence[str]
) -> dict[Settings, list[ExportConfig]]:
    """Each login once, and what it is for."""
    alone = None if containers or options.has_secrets else options.login_alone()
    if alone is not None:
        return {alone: []}
    found: dict[Settings, list[ExportConfig]] = {}
    for export in options.exports(auth, containers):
        assert export.login is not None
        found.setdefault(export.login, []).append(export)
    return found


async def _check_all(auth: AuthConfig, logins: dict[Settings, list[ExportConfig]]) -> list[Report]:
    import asyncio

    from swiftnbd.cli.stores import Stores

    slots = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def check(stores: Stores, login: Settings) -> Report:
        async with slots:
            return await _check(stores, login, logins[login])

    async with Stores(auth, seconds=STORE_SECONDS_MAX) as stores:
        return await asyncio.gather(*(check(stores, login) for login in logins))


async def _check(stores: "Stores", login: Settings, exports: list[ExportConfig]) -> Report:
    report = Report([export.name for export in exports], login.method)
    try:
        if isinstance(login, BucketSettings):
            report.storage_url, report.region = login.url, login.option("region")
            await stores.bucket(login).check(login.url)
        else:
            account = stores.account(login)
            report.learn(await account.login())
            if not exports:
                await _try_account(account)
        for export in exports:
            await _try_container(stores, export)
    except StoreError as error:
        report.error = await _explained(login, report, error)
        report.exit_code = exit_code(error)
    else:
        report.works = True
    return report


async def _try_account(account: "SwiftAccount") -> None:
    """Whether Swift takes the token. An account that does not exist yet is no trouble."""
    answer = await account.request("HEAD of the account", "HEAD", "")
    if answer.status == 403:
        raise AccessRefused("HEAD of the account: 403")
    if answer.status != 404 and not 200 <= answer.status < 300:
        raise StoreUnavailable(f"HEAD of the account: {answer.status} {answer.reason}")


async def _try_container(stores: "Stores", export: ExportConfig) -> None:
    """Whether the login may see the container. One that does not exist yet is no trouble."""
    with suppress(ContainerMissing):
        await stores.open(export).info()


async def _explained(login: Settings, report: Report, error: StoreError) -> str:
    """The error, and what else can be found out about a refusal."""
    if isinstance(login, BucketSettings):
        return str(error)  # there is no login apart from its use
    is_logged_in, is_refused = bool(report.storage_url), isinstance(error, AccessRefused)
    if is_logged_in and is_refused:
        return (
            f"{report.login} works, but may not use {report.storage_url} ({error}): it lacks a "
            "role there that Swift wants, such as member"
        )
    if is_logged_in:
        return f"{report.login} works, but Swift does not: {error}"
    if is_refused and (hint := await _right_half(login)):
        return f"{error} ({hint})"
    return str(error)


async def _right_half(login: LoginSettings) -> str:
    """Whether the user or the project is wrong, '' if that cannot be told."""
    from swiftnbd.store.open import PluginAuth

    try:
        works = await PluginAuth(login).works_without_project()
    except StoreError:
        return ""
    if works is None:
        return ""
    if works:
        return "the password is right, the project is not"
    return "user and password are not right, whatever the project"
