# SPDX-License-Identifier: MIT
import re

import pytest

from swiftnbd.cli.exits import SeveralFailed, exit_code
from swiftnbd.cli.loading import loaded
from swiftnbd.cli.plan import Plan
from swiftnbd.cli.run import run
from swiftnbd.cli.server import new_export, server
from swiftnbd.errors import AccessRefused, StoreUnavailable
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.export.settings import CacheSettings
from swiftnbd.server.config import AuthConfig, ExportConfig, ServerConfig
from swiftnbd.store.base import ContainerInfo, Store
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from tests.support.log_watch import Announce

GOOD = setup_metadata(Geometry(4, 4096))


class Refusing(MemoryStore):
    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        raise AccessRefused("login of somebody refused")


class Unreachable(MemoryStore):
    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        raise StoreUnavailable("no answer in 60 s")


STORES: dict[str, type[MemoryStore]] = {"refused": Refusing, "down": Unreachable}


async def load(*names: str, cache_bytes: int = 1 << 20) -> dict[str, bool]:
    """Load a container for each name; which were loaded, and whether read-only."""
    account = MemoryAccount()
    for name, metadata in {
        "good": GOOD,
        "fine": GOOD,
        "bare": {},
        "odd": GOOD | {"swiftnbd-object-size": "3"},
        "future": GOOD | {"swiftnbd-version": "9"},
    }.items():
        await MemoryStore(name, account).create_container(metadata)

    def open_store(config: ExportConfig) -> Store:
        return STORES.get(config.name, MemoryStore)(config.name, account)

    plan = Plan(
        ServerConfig(cache=CacheSettings(cache_bytes=cache_bytes)),
        AuthConfig("memory"),
        tuple(ExportConfig(name, read_only=name == "fine") for name in names),
        "pid",
    )
    async with loaded([new_export(plan, each, open_store) for each in plan.exports]) as exports:
        ready = exports.ready
        assert all(export.cache_bytes_max == cache_bytes for export in ready.values())
        return {name: export.read_only for name, export in ready.items()}


async def test_exports_keep_order_and_settings() -> None:
    assert list((await load("good", "fine")).items()) == [("good", False), ("fine", True)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "does not exist"),
        ("bare", "not set up"),
        ("odd", "object-size 3 is not a multiple"),
        ("future", "format version '9' is unknown"),
        ("refused", "login of somebody refused"),
    ],
)
async def test_what_cannot_be_served_is_skipped_with_one_warning(
    name: str, reason: str, caplog: pytest.LogCaptureFixture, expects_log: Announce
) -> None:
    """Acceptance row E32."""
    expects_log(rf"WARNING .*: {name}: .*{re.escape(reason)}.*; skipping$")
    assert await load("good", name) == {"good": False}
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["none"], 4),
        (["none", "bare", "odd"], 4),
        (["refused"], 5),
        (["down"], 6),
        (["down", "refused"], 1),
    ],
)
@pytest.mark.allows_log("skipping$|as soon as it can be reached$")
async def test_none_left_is_an_error_whose_exit_code_says_why(names: list[str], code: int) -> None:
    with pytest.raises(SeveralFailed, match="nothing is left to export") as caught:
        await load(*names)
    assert exit_code(caught.value) == code


@pytest.mark.expects_log(r"good: .*cache.*; skipping$")
async def test_cache_too_small_for_an_export_skips_it() -> None:
    with pytest.raises(SeveralFailed):
        await load("good", cache_bytes=4096)


@pytest.mark.parametrize("flags", [["-b", ""], ["--bind-address="], ["-b", " "]])
def test_empty_bind_address_does_not_listen_on_all_interfaces(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(server, "swiftnbd-server", ["-a", "file:/nonexistent", "-f", *flags]) == 2
    assert capsys.readouterr().err == (
        "swiftnbd-server: Invalid value for '-b' / '--bind-address': no address given; to listen "
        "on all interfaces, say 0.0.0.0 or ::; try: swiftnbd-server --help\n"
    )
