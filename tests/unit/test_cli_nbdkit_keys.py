# SPDX-License-Identifier: MIT
"""The keys of our plugin for nbdkit."""

from pathlib import Path

import pytest

from swiftnbd.cli.nbdkit_keys import plan_of
from swiftnbd.errors import ConfigError
from swiftnbd.export.settings import CacheMode


def test_keys_are_the_flags_of_the_server(tmp_path: Path) -> None:
    plan = plan_of(
        [
            ("auth", f"file:{tmp_path}"),
            ("container", "demo"),
            ("cache-limit", "128M"),
            ("cache-mode", "writethrough"),
            ("takeover", "yes"),
            ("read-only", "0"),
            ("lock-term", "200"),
        ]
    )
    (export,) = plan.exports
    cache = plan.cache_of(export)
    assert (export.name, export.read_only) == ("demo", False)
    assert (cache.cache_bytes, cache.mode) == (128 * 1024 * 1024, CacheMode.WRITETHROUGH)
    assert plan.auth.directory == tmp_path
    assert plan.server.takeover
    assert plan.server.pace.term_seconds == 200


def test_section_of_the_secrets_file_counts(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.conf"
    secrets.touch(mode=0o600)
    secrets.write_text("[demo]\ncache-limit = 32M\nfilters = cow\n")
    keys = [("container", "demo"), ("auth-url", f"file:{tmp_path}"), ("secrets", str(secrets))]
    plan = plan_of([*keys, ("read-only", "true")])
    (export,) = plan.exports
    assert export.read_only
    assert plan.cache_of(export).cache_bytes == 32 * 1024 * 1024
    assert [each.name for each in export.filters] == ["cow"]
    secrets.write_text("[demo]\nplugin = null\nsize = 1M\n")
    with pytest.raises(ConfigError, match="demo is made by a plugin"):
        plan_of(keys)


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("colour", "blue", "there is no key 'colour'; there are auth, auth-url, "),
        ("version", "1", "there is no key 'version'"),
        ("takeover", "perhaps", "takeover='perhaps' is neither true nor false"),
        ("cache-limit", "much", "cache-limit"),
        ("container", "../etc", "../etc"),
        ("auth", "s3://bucket", "served by swiftnbd-server, not in nbdkit"),
        ("auth", "file:", "names no folder"),
    ],
)
def test_bad_key_is_said_in_a_sentence(tmp_path: Path, key: str, text: str, said: str) -> None:
    keys = [("auth", f"file:{tmp_path}"), ("container", "demo"), (key, text)]
    with pytest.raises(ConfigError) as caught:
        plan_of(keys)
    assert said in str(caught.value)


def test_container_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="container=NAME is missing"):
        plan_of([("auth", f"file:{tmp_path}")])
