# SPDX-License-Identifier: MIT
"""Which bucket flags, sections and variables name."""

import pytest

from swiftnbd.cli.login import LoginKeys
from swiftnbd.cli.sources import has_login, login_of
from swiftnbd.errors import ConfigError
from swiftnbd.store.bucket_settings import BucketSettings

KEYS = {"access-key-id": "AKIA", "secret-access-key": "hunter2"}
AWS = {"AWS_ACCESS_KEY_ID": "ENV", "AWS_SECRET_ACCESS_KEY": "env", "AWS_SESSION_TOKEN": "more"}


def bucket(
    url: str = "s3://b",
    section: dict[str, str] | None = None,
    environ: dict[str, str] | None = None,
) -> BucketSettings:
    flags = LoginKeys({"auth-url": url})
    found = login_of(LoginKeys(section or {}, "[disk]"), flags, environ or {})
    assert isinstance(found, BucketSettings)
    return found


@pytest.mark.parametrize(
    ("url", "scheme", "name", "prefix"),
    [
        ("s3://b", "s3", "b", ""),
        ("s3://b/", "s3", "b", ""),
        ("s3://b/a/b/", "s3", "b", "a/b"),
        ("gs://my.bucket/x", "gs", "my.bucket", "x"),
        ("az://c/with%20space", "az", "c", "with space"),
    ],
)
def test_url(url: str, scheme: str, name: str, prefix: str) -> None:
    found = bucket(url)
    assert (found.scheme, found.bucket, found.prefix) == (scheme, name, prefix)


def test_keys_of_the_url() -> None:
    found = bucket("s3://b/p?endpoint=http://127.0.0.1:9000&region=eu-west-1")
    assert dict(found.options) == {"endpoint": "http://127.0.0.1:9000", "region": "eu-west-1"}
    assert found.url == "s3://b/p"
    assert found.service == "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://key:secret@b", "names no bucket"),
        ("s3://b#f", "names no bucket"),
        ("s3://b/a//c", "an empty part"),
        ("s3://b/../c", "an empty part"),
        ("s3://b?secret-access-key=x", "is none of endpoint, region .secrets: in the secrets file"),
        ("gs://b?region=x", "'region' behind the . is none of endpoint"),
        ("s3://b?endpoint", "is no KEY=VALUE"),
        ("s3://b?endpoint=127.0.0.1:9000", "begins with neither https:// nor http://"),
    ],
)
def test_url_that_makes_no_sense(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as failure:
        bucket(url)
    assert "secret@" not in str(failure.value)


def test_keys_come_from_the_section_then_from_the_environment() -> None:
    assert dict(bucket(section=KEYS).options) == {
        "access_key_id": "AKIA",
        "secret_access_key": "hunter2",
    }
    assert dict(bucket(environ=AWS).options) == {
        "access_key_id": "ENV",
        "secret_access_key": "env",
        "session_token": "more",
    }
    # never a key of one with the token of the other
    assert "session_token" not in dict(bucket(section=KEYS, environ=AWS).options)


def test_a_section_may_name_the_bucket_itself() -> None:
    found = bucket("https://swift/auth/v1.0", {"auth-url": "s3://c/p", **KEYS}, AWS)
    assert (found.bucket, found.option("access_key_id")) == ("c", "AKIA")
    found = bucket("https://swift/auth/v1.0", {"auth-url": "az://c", "account-name": "n"}, AWS)
    assert found.options == (("account_name", "n"),)


def test_the_url_goes_before_the_environment() -> None:
    found = bucket(
        "s3://b?region=one", environ={"AWS_REGION": "two", "AWS_ENDPOINT_URL": "http://e"}
    )
    assert (found.option("region"), found.option("endpoint")) == ("one", "http://e")


@pytest.mark.parametrize("key", ["access-key-id", "secret-access-key"])
def test_half_a_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"\[disk\] has .*, but no "):
        bucket(section={key: KEYS[key]}, environ=AWS)


def test_no_secret_is_shown() -> None:
    found = bucket("s3://b?region=r", {**KEYS, "session-token": "hunter3"})
    assert found.shown == {
        "region": "r",
        "access_key_id": "(hidden)",
        "secret_access_key": "(hidden)",
        "session_token": "(hidden)",
    }
    assert "hunter" not in f"{found!r}{found.account}"


def test_a_bucket_needs_no_further_login() -> None:
    assert has_login(LoginKeys({"auth-url": "s3://b"}), {}, ambient=False)
