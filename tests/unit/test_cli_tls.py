# SPDX-License-Identifier: MIT
"""The flags for TLS: what they add up to, and what does not go together."""

from pathlib import Path

import click
import pytest

from swiftnbd.cli.plan import Plan
from swiftnbd.cli.run import run
from swiftnbd.cli.tls import TlsOptions, tls_options
from swiftnbd.errors import ConfigError
from swiftnbd.server.config import AuthConfig, ExportConfig, ServerConfig, TlsConfig

DIRECTORY = ("--tls-certificates", "/pki")
KEYS = ("--tls-psk", "/keys")
VERIFY = "--tls-verify-peer"


def encryption(*flags: str) -> TlsOptions:
    """These flags, parsed."""
    seen: list[TlsOptions] = []
    command = click.command(tls_options(lambda encryption: seen.append(encryption)))
    assert run(command, "prog", flags) == 0
    return seen[0]


@pytest.mark.parametrize(
    ("flags", "config"),
    [
        ([], None),
        (["--tls", "off"], None),
        (["--tls=on", *DIRECTORY], TlsConfig(certificates=Path("/pki"))),
        (["--tls=require", *DIRECTORY], TlsConfig(True, Path("/pki"))),
        (["--tls=require", *DIRECTORY, VERIFY], TlsConfig(True, Path("/pki"), True)),
        (["--tls=on", *KEYS], TlsConfig(psk_file=Path("/keys"))),
        (["--tls=on", *KEYS, *DIRECTORY], TlsConfig(False, Path("/pki"), False, Path("/keys"))),
    ],
)
def test_flags_add_up(flags: list[str], config: TlsConfig | None) -> None:
    assert encryption(*flags).config([ExportConfig("disk")]) == config


def test_relative_paths_are_made_absolute_for_daemons(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = encryption("--tls=on", "--tls-certificates=pki", "--tls-psk=keys").config([])
    assert config == TlsConfig(certificates=tmp_path / "pki", psk_file=tmp_path / "keys")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--tls=on"], "--tls on needs the server's certificate"),
        (["--tls=require"], "--tls require needs the server's certificate"),
        (["--tls=require", VERIFY], "--tls require needs the server's certificate"),
        (["--tls=require", *KEYS, VERIFY], "--tls-verify-peer needs the authority's certificate"),
        ([*DIRECTORY], "--tls-certificates is given, but TLS is off: add --tls on"),
        ([*KEYS], "--tls-psk is given, but TLS is off"),
        ([VERIFY], "--tls-verify-peer is given, but TLS is off"),
    ],
)
def test_what_does_not_go_together_is_said(flags: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        encryption(*flags).config([])
    assert str(error.value).startswith(sentence)


def test_export_that_requires_tls_is_not_served_without() -> None:
    exports = [ExportConfig("disk"), ExportConfig("secret", tls_only=True)]
    with pytest.raises(ConfigError, match=r"\[secret\] has tls = require, but TLS is off"):
        encryption().config(exports)
    assert encryption("--tls=on", *DIRECTORY).config(exports) is not None


@pytest.mark.parametrize(
    ("tls", "encrypted"),
    [
        (None, {"disk": False, "secret": True}),
        (TlsConfig(False), {"disk": False, "secret": True}),
        (TlsConfig(True), {"disk": True, "secret": True, "": True}),
    ],
)
def test_uri_is_that_of_tls_where_nothing_else_is_served(
    tls: TlsConfig | None, encrypted: dict[str, bool]
) -> None:
    exports = (ExportConfig("disk"), ExportConfig("secret", tls_only=True))
    plan = Plan(ServerConfig(tls=tls), AuthConfig(), exports)
    assert {name: plan.is_tls_only(name) for name in encrypted} == encrypted
