# SPDX-License-Identifier: MIT
"""``--dump-config``: everything but secrets."""

import json
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.cli import login
from swiftnbd.cli.run import run
from swiftnbd.cli.server import server
from swiftnbd.store.login import HIDDEN, without_secrets

METHODS = {
    "v1": {"auth-version": "1", "username": "a:u", "password": "S1"},
    "v2": {"auth-version": "2", "username": "u", "project": "t", "password": "S2"},
    "v3": {"auth-version": "3", "username": "u", "project": "p", "password": "S3"},
    "token": {"auth-version": "3", "token": "S4", "project": "p"},
    "application": {
        "application-credential-id": "i",
        "application-credential-secret": "S5",
    },
    "bucket": {
        "auth-url": "s3://b",
        "access-key-id": "i",
        "secret-access-key": "SA",
        "session-token": "SB",
    },
    "azure": {"auth-url": "az://c", "account-name": "n", "account-key": "SC"},
}


def dump(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[str, dict[str, Any]]:
    """The whole output, and what it says."""
    code = run(server, "swiftnbd-server", ["--dump-config", *flags])
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    return said.out, json.loads(said.out)


def section(name: str, keys: dict[str, str]) -> str:
    lines = [f"{key} = {value}" for key, value in keys.items()]
    return "\n".join([f"[{name}]", *lines, ""])


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    path = tmp_path / "secrets.conf"
    path.write_text("")
    path.chmod(0o600)
    return path


def test_every_way_to_log_in_is_shown_without_its_secret(
    secrets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each secret that the secrets file can hold, in a URL, too."""
    url = "https://somebody:S6@h/v3?token=S7#S8"
    storage = "https://somebody:S9@store/v1/AUTH_a?temp_url_sig=S0"
    secrets.write_text(
        "".join(
            section(name, {"auth-url": url, "storage-url": storage} | keys)
            for name, keys in METHODS.items()
        )
    )
    text, values = dump(capsys, "--secrets", str(secrets))
    assert {key for keys in METHODS.values() for key in keys} >= login.SECRET_KEYS
    for number in "0123456789ABC":
        assert f"S{number}" not in text
    assert list(values["exports"]) == list(METHODS)
    shown = values["exports"]["application"]["login"]
    assert shown["method"] == "v3applicationcredential"
    assert shown["options"] == {
        "application_credential_id": "i",
        "application_credential_secret": HIDDEN,
        "auth_url": "https://h/v3",
    }
    assert values["exports"]["bucket"]["login"]["options"] == {
        "access_key_id": HIDDEN,
        "secret_access_key": HIDDEN,
        "session_token": HIDDEN,
    }
    assert shown["storage_url"] == "https://store/v1/AUTH_a"


def test_secrets_of_variables_and_clouds_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options that only a plugin knows are secrets until proven otherwise."""
    (tmp_path / "clouds.yaml").write_text(
        "clouds: {one: {auth_type: v3totp, auth: {auth_url: 'https://h/v3', username: u,"
        " passcode: S1, project_name: p}}}"
    )
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    text, values = dump(capsys, "--os-cloud", "one", "disk")
    assert "S1" not in text
    assert values["exports"]["disk"]["login"]["options"]["passcode"] == HIDDEN
    monkeypatch.setenv("OS_AUTH_URL", "https://h/v3")
    monkeypatch.setenv("OS_USERNAME", "u")
    monkeypatch.setenv("OS_PASSWORD", "S2")
    text, _ = dump(capsys, "disk")
    assert "S2" not in text


def test_sources_are_merged_for_each_export(
    secrets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    who = {"username": "u", "password": "p"}
    one = section(
        "one", who | {"cache-limit": "128", "read-only": "yes", "allow": "unix,10.0.0.0/8"}
    )
    secrets.write_text(one + section("two", who | {"on-outage": "wait"}))
    flags = ("-a", "https://h/auth/v1.0", "--secrets", str(secrets), "-c", "32", "--timeout", "7")
    _, values = dump(capsys, *flags, "-b", "::1", "-p", "7", "--deny", "all", "--slow-seconds", "0")
    one, two = (values["exports"][name] for name in ("one", "two"))
    assert (one["read_only"], two["read_only"]) == (True, False)
    assert (one["cache"]["cache_bytes"], two["cache"]["cache_bytes"]) == (128 << 20, 32 << 20)
    assert one["access"]["allow"] == ["unix", "10.0.0.0/8"]
    assert (one["outages"], two["outages"]) == (
        {"seconds": 7, "policy": "error"},
        {"seconds": 7, "policy": "wait"},
    )
    assert one["login"]["options"]["auth_url"] == "https://h/auth/v1.0"
    assert values["server"]["listen"] == ["[::1]:7"]
    assert values["server"]["access"] == {"allow": [], "deny": ["all"]}
    assert values["server"]["slow_seconds"] is None


def test_command_of_run_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, values = dump(capsys, "-a", f"file:{tmp_path}", "--run", "mount -o pass=S1", "disk")
    assert "S1" not in text
    assert values["server"]["run"] is True


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h:5000/v3", "https://h:5000/v3"),
        ("https://u:p@h/v3", "https://h/v3"),
        ("https://u:p@q@h", "https://h"),
        ("https://h/v3?a=b", "https://h/v3"),
        ("https://h#f", "https://h"),
        ("a@name", "a@name"),
    ],
)
def test_url_is_shown_without_what_may_be_a_password(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
