# SPDX-License-Identifier: MIT
"""Cache settings, from flags and from the secrets file."""

from pathlib import Path
from typing import Any

import click
import pytest

from swiftnbd.cli.cache import CACHE_SETTINGS, CacheOptions, cache_options, check_folder
from swiftnbd.cli.run import run
from swiftnbd.cli.secrets import load_secrets
from swiftnbd.cli.server import server
from swiftnbd.errors import ConfigError
from swiftnbd.export.settings import CacheMode, CacheSettings

MIB = 1024 * 1024
SECRET = "hunter2"


def parse(*flags: str) -> CacheOptions:
    """What the flags come to."""
    found: list[CacheOptions] = []

    @click.command()
    @cache_options
    def command(caching: CacheOptions) -> None:
        found.append(caching)

    command.main(list(flags), standalone_mode=False)
    return found[0]


def test_without_flags_the_defaults_are_the_engines() -> None:
    assert parse().settings == CacheSettings()


def test_every_flag_sets_its_field() -> None:
    flags = (
        "-c 8 --cache-mode WriteThrough --dirty-limit 2 --dirty-seconds 0.5 --read-ahead 0 "
        "--requests 3 --cache-dir / --cache-disk-limit 10G"
    )
    assert parse(*flags.split()).settings == CacheSettings(
        cache_bytes=8 * MIB,
        mode=CacheMode.WRITETHROUGH,
        dirty_bytes=2 * MIB,
        dirty_seconds=0.5,
        read_ahead_bytes=0,
        requests=3,
        disk_directory=Path("/"),
        disk_bytes=10240 * MIB,
    )


@pytest.mark.parametrize(
    ("text", "size"), [("64", 64 * MIB), ("512K", MIB // 2), ("1G", 1024 * MIB), ("2GiB", 2 << 30)]
)
def test_sizes_are_mb_or_have_a_unit(text: str, size: int) -> None:
    assert parse("-c", text).settings.cache_bytes == size


WRONG = [
    ("cache-limit", "0", "a number of MB, or a size like 512M or 2G, up to 1T"),
    ("cache-limit", "-1", "a number of MB"),
    ("cache-limit", "2T", "a number of MB"),
    ("cache-limit", "9" * 30, "a number of MB"),
    ("cache-mode", "unsafe", "writeback or writethrough"),
    ("dirty-limit", "x", "a number of MB"),
    ("dirty-seconds", "-0.1", "seconds from 0 to 3600"),
    ("dirty-seconds", "nan", "seconds from 0 to 3600"),
    ("dirty-seconds", "inf", "seconds from 0 to 3600"),
    ("read-ahead", "", "a number of MB"),
    ("requests", "0", "a number from 1 to 256"),
    ("requests", "257", "a number from 1 to 256"),
    ("requests", "1.5", "a number from 1 to 256"),
    ("cache-disk-limit", "0", "a number of MB"),
    ("cache-disk-limit", "2T", "a number of MB"),
]


@pytest.mark.parametrize(("key", "text", "expected"), WRONG)
def test_wrong_flag_is_one_sentence(
    key: str, text: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(server, "swiftnbd-server", [f"--{key}", text]) == 2
    said = capsys.readouterr().err
    assert f"{text!r} is not {expected}" in said
    assert said.count("\n") == 1


def section(tmp_path: Path, *lines: str) -> dict[str, Any]:
    """What a section with these lines says of the cache."""
    path = tmp_path / "secrets"
    path.write_text("\n".join(["[disk]", *lines]))
    path.chmod(0o600)
    (section,) = load_secrets(str(path))
    return dict(section.export.cache)


def test_section_names_only_what_differs(tmp_path: Path) -> None:
    assert section(tmp_path) == {}
    assert section(tmp_path, "cache-mode = writethrough", "dirty-limit = 4M", "requests = 9") == {
        "mode": CacheMode.WRITETHROUGH,
        "dirty_bytes": 4 * MIB,
        "requests": 9,
    }


def test_folder_of_the_disk_cache_is_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert section(tmp_path, "cache-dir = new") == {"disk_directory": tmp_path / "new"}
    check_folder(tmp_path / "new")
    check_folder(tmp_path)


@pytest.mark.parametrize("folder", ["/dev/null", "/dev/null/cache", "/no/such/folder"])
@pytest.mark.parametrize("by_flag", [True, False])
def test_folder_that_cannot_be_is_refused_at_the_start(
    folder: str, by_flag: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text("[disk]\n" + ("" if by_flag else f"cache-dir = {folder}\n"))
    flags = ["-f", "-a", f"file:{tmp_path}", "--secrets", str(secrets)]
    flags += ["--cache-dir", folder] if by_flag else []
    assert run(server, "swiftnbd-server", flags) == 2
    said = capsys.readouterr().err
    assert f"cache-dir: {folder} is no folder, and none can be made there; name one" in said
    assert said.count("\n") == 1


def test_one_container_may_do_without_the_disk_cache_of_all(tmp_path: Path) -> None:
    assert section(tmp_path, "cache-dir =") == {"disk_directory": None}


@pytest.mark.parametrize(("key", "text", "expected"), WRONG)
def test_wrong_key_is_named_without_its_value(
    tmp_path: Path, key: str, text: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=rf": {key} of \[disk\] is not {expected}"):
        section(tmp_path, f"{key} = {text}")
    with pytest.raises(ConfigError) as caught:
        section(tmp_path, f"{key} = {SECRET}")
    assert SECRET not in str(caught.value)


def test_each_setting_is_explained_in_the_documentation_with_its_default() -> None:
    """One table for all: flag and key, default and unit, reason."""
    text = (Path(__file__).parents[2] / "docs/commands.md").read_text()
    lines = text.split("### How exports are cached")[1].split("###")[0].splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if "| `" in line
    ]
    explained = {name: row for row in rows for name in row[0].replace("`", "").split(", ")}
    assert set(explained) - {"-c"} == CACHE_SETTINGS.keys
    assert all(len(row) == 3 and all(row) for row in explained.values())
    defaults = CacheSettings()
    assert explained["cache-limit"][1] == f"{defaults.cache_bytes // MIB} MB"
    assert explained["cache-mode"][1] == f"`{defaults.mode.value}`"
    assert explained["dirty-seconds"][1] == f"{defaults.dirty_seconds:.0f} seconds"
    assert explained["read-ahead"][1] == f"{defaults.read_ahead_bytes // MIB} MB"
    assert explained["requests"][1].startswith(
        f"{defaults.requests} (and {defaults.reads_reserved} "
    )
    assert explained["cache-disk-limit"][1] == f"{defaults.disk_bytes // MIB} MB"
