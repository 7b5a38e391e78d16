# SPDX-License-Identifier: MIT
import os
from pathlib import Path

import click
import pytest

from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.login_options import LoginFlags
from swiftnbd.cli.options import SharedOptions, shared_options
from swiftnbd.cli.run import run
from swiftnbd.errors import ConfigError, ContainerMissing
from swiftnbd.server.config import AuthConfig, ExportConfig
from swiftnbd.store.login import LoginSettings

SECTION = "[disk]\nusername = u\npassword = p\n"


def options(auth_url: str = "", secrets: str | None = None) -> SharedOptions:
    return SharedOptions(secrets, login=LoginFlags(auth_url))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have a cloud of their own."""
    for name in list(os.environ):
        if name.startswith(("OS_", "ST_")):
            monkeypatch.delenv(name)


@pytest.fixture
def secrets(tmp_path: Path) -> str:
    path = tmp_path / "secrets.conf"
    path.write_text(SECTION)
    path.chmod(0o600)
    return str(path)


def test_flags_become_options() -> None:
    seen: list[SharedOptions] = []
    command = click.command(shared_options(lambda options: seen.append(options)))
    flags = ["--secrets", "S", "-a", "U", "-k", "--keystone-separator", ":", "-v"]
    flags += ["--keystone-service=t", "--keystone-endpoint=internalURL", "--keystone-region=r"]
    assert run(command, "prog", flags) == 0
    assert run(command, "prog", []) == 0
    assert seen[0].login.keys().values == {
        "auth-url": "U",
        "auth-version": "2.0",
        "separator": ":",
        "service-type": "t",
        "endpoint-type": "internalURL",
        "region": "r",
    }
    assert (seen[0].secrets, seen[0].verbose) == ("S", True)
    assert seen[1] == SharedOptions()
    assert not seen[1].login.keys()


@pytest.mark.parametrize(
    ("url", "directory"),
    [("file:/srv/d", "/srv/d"), ("file:///srv/d", "/srv/d"), ("file:/a b%20c", "/a b%20c")],
)
def test_file_url_names_a_folder(url: str, directory: str) -> None:
    assert options(url).auth() == AuthConfig(url, directory=Path(directory))


def test_relative_folder_is_made_absolute_for_daemons(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert options("file:d").auth().directory == tmp_path / "d"


def test_http_url_is_taken_as_it_is() -> None:
    assert options("http://h:1/auth/v1.0").auth() == AuthConfig("http://h:1/auth/v1.0")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://host", "begins with none of"),
        ("/srv/disks", "begins with none of"),
        ("file:", "names no folder"),
        ("file://host/dir", "names no folder"),
    ],
)
def test_bad_url_is_one_sentence(url: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        options(url).auth()


def test_swift_container_must_be_in_the_secrets_file(secrets: str) -> None:
    auth = AuthConfig("https://h")
    chosen = options("https://h", secrets)
    options_of_v1 = (("auth_url", "https://h"), ("password", "p"), ("username", "u"))
    login = LoginSettings("v1password", options_of_v1)
    assert chosen.export(auth, "disk") == ExportConfig("disk", login=login)
    with pytest.raises(ContainerMissing, match=rf"other not found in {secrets}: add a section"):
        chosen.export(auth, "other")


def test_no_authentication_url_is_one_sentence(secrets: str) -> None:
    with pytest.raises(ConfigError, match=r"\[disk\] has no authentication URL: give -a URL"):
        options(secrets=secrets).exports(AuthConfig())


def test_named_containers_need_no_secrets_file_if_there_is_a_login(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ST_AUTH", "https://h/auth/v1.0")
    monkeypatch.setenv("ST_USER", "u")
    monkeypatch.setenv("ST_KEY", "p")
    exports = options().exports(AuthConfig(), ["b", "a", "b"])
    assert [export.name for export in exports] == ["b", "a"]
    assert exports[0].login == exports[1].login
    assert exports[0].login is not None
    assert exports[0].login.option("password") == "p"


def test_a_secrets_file_that_is_named_is_not_filled_up_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, secrets: str
) -> None:
    monkeypatch.setenv("OS_AUTH_URL", "https://h/v3")
    with pytest.raises(ContainerMissing, match="other not found"):
        options(secrets=secrets).exports(AuthConfig(), ["other"])


def test_folder_needs_no_secrets_file(tmp_path: Path) -> None:
    auth = AuthConfig("file:x", directory=tmp_path / "none")
    assert options().export(auth, "any") == ExportConfig("any")


def test_folder_without_containers_has_no_exports(tmp_path: Path) -> None:
    auth = AuthConfig("file:x", directory=tmp_path)
    with pytest.raises(ContainerMissing, match=f"no container is set up under {tmp_path}; run: "):
        options().exports(auth)


def test_named_secrets_file_selects_containers_of_a_folder(tmp_path: Path, secrets: str) -> None:
    Path(secrets).write_text("[disk]\nread-only = 1\n")
    auth = AuthConfig("file:x", directory=tmp_path)
    chosen = options(secrets=secrets)
    assert chosen.exports(auth) == (ExportConfig("disk", read_only=True),)
    with pytest.raises(ContainerMissing):
        chosen.export(auth, "other")


@pytest.mark.parametrize("name", ["a/b", "", "x" * 257, "\udcff"])
def test_impossible_container_name_is_wrong_usage(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="container name"):
        options().export(AuthConfig("file:x", directory=tmp_path), name)


def test_check_auth_of_a_folder_is_json_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ctl, "swiftnbd-ctl", ["-a", f"file:{tmp_path}", "check-auth", "--json"]) == 0
    assert capsys.readouterr() == ("[]\n", f"swiftnbd-ctl: file:{tmp_path} needs no login\n")
