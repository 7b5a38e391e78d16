# SPDX-License-Identifier: MIT
"""Which login sections, flags and variables add up to."""

import json
from pathlib import Path

import pytest

from swiftnbd.cli.login import LoginKeys, settings_of
from swiftnbd.cli.login_options import LoginFlags
from swiftnbd.cli.sources import has_login, login_of
from swiftnbd.errors import ConfigError
from swiftnbd.store.login import LoginSettings, TlsSettings

SECRET = "hunter2"
V1 = {"auth-url": "https://h/auth/v1.0", "username": "a:u", "password": SECRET}
V3 = {"auth-url": "https://h/v3", "username": "u", "password": SECRET, "project": "p"}
OPENRC = {
    "OS_AUTH_URL": "https://env:5000",
    "OS_USERNAME": "envuser",
    "OS_PASSWORD": "envpass",
    "OS_PROJECT_NAME": "envproject",
    "OS_USER_DOMAIN_NAME": "envdomain",
    "OS_PROJECT_DOMAIN_NAME": "envdomain",
    "OS_REGION_NAME": "envregion",
}


def options(keys: dict[str, str]) -> dict[str, str]:
    return dict(settings_of(LoginKeys(keys)).options)


def login(
    section: dict[str, str], flags: LoginFlags | None = None, environ: dict[str, str] | None = None
) -> LoginSettings:
    flags = LoginFlags() if flags is None else flags
    found = login_of(LoginKeys(section, "[disk]"), flags.keys(), environ or {})
    assert isinstance(found, LoginSettings)
    return found


@pytest.mark.parametrize(
    ("keys", "method"),
    [
        (V1, "v1password"),
        ({**V1, "auth-url": "https://h"}, "v1password"),
        ({**V1, "auth-url": "https://h/v3/"}, "v3password"),
        ({**V1, "auth-version": "3"}, "v3password"),
        ({**V3, "auth-url": "https://h"}, "v3password"),
        ({**V1, "user-domain": "d"}, "v3password"),
        ({**V1, "auth-url": "https://h/v2.0", "project": ""}, "v2password"),
        ({**V3, "auth-version": "2.0"}, "v2password"),
        ({**V3, "auth-version": "v1"}, "v1password"),
        ({"auth-url": "https://h", "token": SECRET}, "v3token"),
        (
            {
                "auth-url": "https://h",
                "application-credential-id": "i",
                "application-credential-secret": SECRET,
            },
            "v3applicationcredential",
        ),
    ],
)
def test_version_is_as_given_or_as_the_keys_need(keys: dict[str, str], method: str) -> None:
    keys = {**keys, "username": "a.u"} if method == "v2password" and "username" in keys else keys
    assert settings_of(LoginKeys(keys)).method == method


def test_domains_that_are_not_named_are_the_default_one_and_the_users() -> None:
    assert options(V3) == {
        "auth_url": "https://h/v3",
        "username": "u",
        "user_domain_id": "default",
        "password": SECRET,
        "project_name": "p",
        "project_domain_id": "default",
    }
    assert options({**V3, "user-domain-name": "d"})["project_domain_name"] == "d"
    assert options({**V3, "user-domain": "d", "project-domain": "e"})["project_domain_name"] == "e"


def test_tenant_and_username_of_old() -> None:
    flags = LoginFlags("https://h/v2.0", keystone_auth=True)
    found = dict(login({"username": "ten.ant.user", "password": SECRET}, flags).options)
    assert (found["tenant_name"], found["username"]) == ("ten", "ant.user")
    flags = LoginFlags("https://h/v2.0", keystone_auth=True, keystone_separator=":")
    found = dict(login({"username": "t.x:user", "password": SECRET}, flags).options)
    assert (found["tenant_name"], found["username"]) == ("t.x", "user")
    with pytest.raises(ConfigError, match=r"\[disk\]: the username is not TENANT:USERNAME"):
        login({"username": "user", "password": SECRET}, flags)


def test_variables_that_are_set_never_change_a_login_of_the_auth_url_flag() -> None:
    section = {"username": "a:u", "password": SECRET}
    flags = LoginFlags(V1["auth-url"])
    assert login(section, flags, OPENRC) == login(section, flags) == login(V1)


def test_section_that_says_where_is_complete_in_itself() -> None:
    flags = LoginFlags("https://flag/v3", os_project_name="q", os_region_name="r")
    assert login(V1, flags, OPENRC) == login(V1)


def test_section_that_says_who_takes_the_rest_from_the_environment() -> None:
    found = login({"username": "mine", "password": SECRET}, None, OPENRC)
    assert (found.method, found.region) == ("v3password", "envregion")
    assert dict(found.options) == {
        "auth_url": "https://env:5000",
        "username": "mine",
        "user_domain_id": "default",  # not the other user's
        "password": SECRET,
        "project_name": "envproject",
        "project_domain_name": "envdomain",
    }


def test_flags_go_before_the_environment_and_leave_it_the_secret() -> None:
    flags = LoginFlags("https://flag/v3", os_username="me", os_project_name="mine")
    found = dict(login({}, flags, OPENRC).options)
    assert found["auth_url"] == "https://flag/v3"
    assert (found["username"], found["password"]) == ("me", "envpass")
    assert (found["project_name"], found["project_domain_id"]) == ("mine", "default")
    credential = LoginFlags("https://flag/v3", os_application_credential_id="i")
    environ = {"OS_APPLICATION_CREDENTIAL_SECRET": SECRET}
    assert login({}, credential, environ).method == "v3applicationcredential"


@pytest.mark.parametrize(
    ("environ", "method"),
    [
        (OPENRC, "v3password"),
        ({**OPENRC, "OS_IDENTITY_API_VERSION": "2"}, "v2password"),
        ({**OPENRC, "OS_AUTH_URL": "https://env/v2.0"}, "v2password"),
        ({**OPENRC, "OS_AUTH_TYPE": "v3token", "OS_TOKEN": "t"}, "v3token"),
        (
            {
                **OPENRC,
                "OS_AUTH_TYPE": "v3applicationcredential",
                "OS_APPLICATION_CREDENTIAL_ID": "i",
                "OS_APPLICATION_CREDENTIAL_SECRET": "s",
            },
            "v3applicationcredential",
        ),
        ({"ST_AUTH": "https://h/auth/v1.0", "ST_USER": "a:u", "ST_KEY": "k"}, "v1password"),
        (
            {"ST_AUTH": "https://h", "ST_USER": "t:u", "ST_KEY": "k", "ST_AUTH_VERSION": "2.0"},
            "v2password",
        ),
    ],
)
def test_login_of_the_environment(environ: dict[str, str], method: str) -> None:
    found = login({}, None, environ)
    assert found.method == method
    if "ST_AUTH_VERSION" in environ:
        assert (found.option("tenant_name"), found.option("username")) == ("t", "u")


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({**V1, "username": ""}, "[disk] has no username"),
        ({**V1, "password": ""}, "[disk] has no password"),
        ({"auth-url": "https://h", "user-id": "i"}, "[disk] has no password"),
        ({"auth-url": "https://h", "auth-version": "3"}, "[disk] has no username or user-id"),
        (
            {"auth-url": "https://h", "application-credential-id": "i"},
            "[disk] has no application-credential-secret",
        ),
        ({**V1, "auth-version": SECRET}, "[disk]: auth-version is none of 1, 2.0 and 3"),
        ({**V1, "endpoint-type": SECRET}, "[disk]: endpoint-type is none of public, internal"),
        ({**V1, "insecure": SECRET}, "[disk]: insecure is neither yes nor no"),
        ({**V1, "key": "/k"}, "[disk] has a key, but no cert"),
        ({**V1, "cacert": "/none"}, "cannot read /none: No such file or directory"),
        ({**V1, "cert": "/none"}, "cannot read /none: No such file or directory"),
        ({**V1, "cacert": __file__}, f"{__file__} holds no certificates in PEM form"),
        ({**V1, "auth-url": f"ftp://{SECRET}"}, "begins with none of https://, http://, file:"),
    ],
)
def test_what_makes_no_login_is_one_sentence(keys: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        login(keys)
    assert sentence in str(caught.value)
    assert "password" not in keys or SECRET not in str(caught.value).replace(keys["auth-url"], "")


def test_secret_that_no_section_can_have_says_where_it_belongs() -> None:
    nothing = LoginKeys(where="the login for c", without_section=True)
    flags = LoginFlags("https://h/v3", os_username="u").keys()
    with pytest.raises(ConfigError, match="the login for c has no password: set OS_PASSWORD, or"):
        login_of(nothing, flags, {})


def test_unknown_auth_type_of_the_environment_is_refused() -> None:
    with pytest.raises(ConfigError, match="OS_AUTH_TYPE=v3oidcpassword is none of"):
        login({}, None, {**OPENRC, "OS_AUTH_TYPE": "v3oidcpassword"})


def test_nothing_shows_a_secret(tmp_path: Path) -> None:
    found = login(V3)
    assert SECRET not in repr(found) + repr(LoginKeys(V3))
    assert hash(found) == hash(login(dict(reversed(V3.items()))))


def test_tls_settings() -> None:
    assert login({**V1, "insecure": "yes"}).tls == TlsSettings(insecure=True)


def test_when_there_is_a_login_without_a_section() -> None:
    nothing = LoginKeys()
    assert has_login(LoginFlags(os_cloud="c").keys(), {}, ambient=False)
    assert not has_login(LoginFlags("https://h").keys(), {}, ambient=True)
    assert has_login(LoginFlags("https://h").keys(), {"ST_USER": "u"}, ambient=False)
    assert has_login(nothing, OPENRC, ambient=True)
    assert not has_login(nothing, OPENRC, ambient=False)


@pytest.mark.parametrize(
    ("cloud", "tls"),
    [
        ({"verify": False}, TlsSettings(insecure=True)),
        ({"insecure": True}, TlsSettings(insecure=True)),
        ({}, TlsSettings()),
        ({"cacert": "~/ca.pem"}, TlsSettings("HOME/ca.pem")),
        ({"cert": "~/me.pem", "key": "~/me.key"}, TlsSettings(None, "HOME/me.pem", "HOME/me.key")),
        ({"cert": "~/me.pem"}, TlsSettings(None, "HOME/me.pem")),
    ],
)
def test_tls_of_a_cloud_is_what_other_clients_of_it_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud: dict[str, object], tls: TlsSettings
) -> None:
    monkeypatch.setattr(TlsSettings, "context", lambda _: None)  # there are no such files
    auth = {"auth_url": "https://h/v3", "username": "u", "password": SECRET}
    path = tmp_path / "clouds.yaml"
    path.write_text(json.dumps({"clouds": {"mine": {"auth": auth, **cloud}}}))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    monkeypatch.setenv("HOME", "HOME")
    assert login({"cloud": "mine"}).tls == tls
