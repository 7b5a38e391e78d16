# SPDX-License-Identifier: MIT
import logging
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftnbd.cli import secrets
from swiftnbd.cli.login import LoginKeys
from swiftnbd.cli.secrets import Section, load_secrets
from swiftnbd.errors import ConfigError
from swiftnbd.server.access import Access, Family
from swiftnbd.server.config import ExportConfig

SECRET = "hunter2"
ONE = f"[disk]\nusername = test:tester\npassword = {SECRET}\n"


def write(path: Path, text: str, mode: int = 0o600) -> str:
    file = path / "secrets.conf"
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)
    return str(file)


def one(path: Path, line: str) -> ExportConfig:
    """The only section, with this line in it."""
    return load_secrets(write(path, f"{ONE}{line}\n"))[0].export


def test_sections_become_exports_in_their_order(tmp_path: Path) -> None:
    text = (
        "# comment\n[DEFAULT]\npassword = 100%%\nread-only = 0\n"
        "[z]\nusername = a\n[a b]\nUsername: t:u\npassword = p=q:r # not a comment\nread-only=YES\n"
    )
    path = write(tmp_path, text)
    first = {"username": "a", "password": "100%%"}
    second = {"username": "t:u", "password": "p=q:r # not a comment"}
    assert load_secrets(path) == (
        Section(ExportConfig("z"), LoginKeys(first, f"{path}: [z]")),
        Section(ExportConfig("a b", True), LoginKeys(second, f"{path}: [a b]")),
    )


@pytest.mark.parametrize(
    ("text", "read_only"),
    [
        *[("1", True), ("yes", True), ("True", True), ("ON", True)],
        *[("0", False), ("no", False), ("false", False), ("off", False), ("", False)],
    ],
)
def test_read_only_words(tmp_path: Path, text: str, read_only: bool) -> None:
    assert one(tmp_path, f"read-only = {text}").read_only is read_only


@pytest.mark.parametrize(
    ("text", "multi_conn"), [("off", False), ("0", False), ("on", True), ("", True)]
)
def test_multi_conn_words(tmp_path: Path, text: str, multi_conn: bool) -> None:
    export = one(tmp_path, f"multi-conn = {text}")
    assert export.multi_conn is multi_conn


@pytest.mark.parametrize(
    ("text", "tls_only"), [("require", True), ("Require", True), ("on", False), ("", False)]
)
def test_tls_words(tmp_path: Path, text: str, tls_only: bool) -> None:
    export = one(tmp_path, f"tls = {text}")
    assert export.tls_only is tls_only


def test_rules_of_a_section_and_of_all(tmp_path: Path) -> None:
    text = f"[DEFAULT]\ndeny = all\n{ONE}allow = 192.0.2.7,\n  unix\n"
    assert load_secrets(write(tmp_path, text))[0].export.access == Access(
        (ip_network("192.0.2.7"), frozenset({Family.UNIX})), (frozenset(Family),)
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names no container: add a section [CONTAINER]"),
        ("[DEFAULT]\nusername = a\n", "names no container: add a section [CONTAINER]"),
        (f"password = {SECRET}\n", ", line 1: no [CONTAINER] line before it"),
        (f"{ONE}{SECRET}\n", ", line 4 is neither [CONTAINER] nor KEY = VALUE"),
        (f"{ONE}{ONE}", ", line 4: section [disk] is there already"),
        (f"{ONE}password = {SECRET}\n", ", line 4: [disk] has 'password' already"),
        (f"{ONE}read-only = {SECRET}\n", ": read-only of [disk] is neither yes nor no"),
        (f"{ONE}multi-conn = {SECRET}\n", ": multi-conn of [disk] is neither yes nor no"),
        (f"{ONE}tls = {SECRET}\n", ": tls of [disk] is neither on nor require"),
        (f"{ONE}tls = off\n", ": tls of [disk] is neither on nor require"),
        (f"{ONE}allow = ::1, {SECRET}\n", ": allow of [disk] is no list of addresses, networks"),
        (f"{ONE}deny =\n", ": deny of [disk] is no list of addresses, networks"),
        (ONE.replace("disk", "a/b"), ": container name 'a/b' has a slash in it"),
        (ONE.replace("disk", "x" * 257), ": container name"),
    ],
)
def test_bad_file_is_one_sentence_without_its_values(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_secrets(path)
    message = str(caught.value)
    assert message.startswith(path)
    assert sentence in message
    assert SECRET not in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_missing_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = str(tmp_path / "none.conf")
    with pytest.raises(ConfigError, match=r"none\.conf does not exist: create it, or name another"):
        load_secrets(path)


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot read secrets file {tmp_path}: Is a directory"):
        load_secrets(str(tmp_path))


def test_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    Path(path).write_bytes(b"[\xff]\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_secrets(path)


def test_endless_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(secrets, "SECRETS_CHARS_MAX", 10)
    with pytest.raises(ConfigError, match="too large"):
        load_secrets(write(tmp_path, ONE))


@pytest.mark.expects_log(r"holds passwords and everybody can read it: chmod 600 \S+/secrets.conf$")
def test_world_readable_file_is_warned_of(tmp_path: Path) -> None:
    load_secrets(write(tmp_path, ONE, 0o644))


def test_world_readable_file_without_passwords_is_fine(tmp_path: Path) -> None:
    path = write(tmp_path, "[disk]\nread-only = 1\n", 0o644)
    assert [found.export for found in load_secrets(path)] == [ExportConfig("disk", read_only=True)]


@pytest.mark.expects_log(r"authurl of \[disk\] is deprecated and ignored$")
@pytest.mark.expects_log(r"unknown key 'readonly' of \[disk\] is ignored$")
@pytest.mark.expects_log(r"unknown key 'colour' of \[DEFAULT\] is ignored$")
def test_keys_without_effect_are_reported_once_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = f"[DEFAULT]\ncolour = {SECRET}\n{ONE}authurl = {SECRET}\nreadonly = {SECRET}\n"
    load_secrets(write(tmp_path, text))
    assert len(caplog.records) == 3
    assert SECRET not in caplog.text


def test_credentials_are_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    sections = load_secrets(write(tmp_path, ONE))
    assert sections[0].login.get("password") == SECRET
    assert SECRET not in repr(sections) + str(sections) + caplog.text


@pytest.mark.allows_log("")
@given(
    text=st.lists(
        st.sampled_from(["[a]", "[DEFAULT]", "[", "]", "a", "username", "=", ":", "\n", " ", "#"])
        | st.text(max_size=4)
    ).map("".join)
)
def test_any_text_gives_exports_or_a_sentence(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.conf"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    path.chmod(0o600)
    with suppress(ConfigError):
        load_secrets(str(path))
