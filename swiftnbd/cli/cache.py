# SPDX-License-Identifier: MIT
"""How exports are cached: flags for all of them, and keys of the secrets file for one."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swiftnbd.cli.flags import flag_group, flags_of
from swiftnbd.cli.settings import Setting, SettingTable
from swiftnbd.cli.sizes import parse_size
from swiftnbd.errors import ConfigError
from swiftnbd.export.settings import CacheMode, CacheSettings

_MEGABYTE = 1024 * 1024  # as swiftnbd 0.11 counted
_CACHE_BYTES_MAX = 1024 * 1024 * _MEGABYTE
_SECONDS_MAX = 3600
_REQUESTS_MAX = 256  # far beyond what saturates a Swift; each may be a connection

_SIZE_EXPECTED = "a number of MB, or a size like 512M or 2G, up to 1T"

_DEFAULTS = CacheSettings()


def _megabytes(text: str) -> int:
    """A number of MB, or a size with its unit."""
    size = int(text[:9]) * _MEGABYTE if text.isascii() and text.isdigit() else parse_size(text)
    if size > _CACHE_BYTES_MAX:
        raise ValueError
    return size


def _cache_megabytes(text: str) -> int:
    if size := _megabytes(text):
        return size
    raise ValueError  # there is no serving without a cache


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= _SECONDS_MAX:
        raise ValueError
    return seconds


def _requests(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _REQUESTS_MAX):
        raise ValueError
    return int(text)


def _folder(text: str) -> Path | None:
    """Its absolute path, for a daemon leaves the folder it was started in."""
    if "\0" in text:
        raise ValueError
    return Path(text).absolute() if text else None


def check_folder(folder: Path) -> None:
    """Raise `ConfigError` if a disk cache can never be kept there."""
    try:
        is_possible = folder.is_dir() or (folder.parent.is_dir() and not os.path.lexists(folder))
    except OSError as error:
        raise ConfigError(f"cache-dir: {folder}: {error.strerror}") from None
    if not is_possible:
        raise ConfigError(
            f"cache-dir: {folder} is no folder, and none can be made there; "
            "name one, or a new one in a folder that exists"
        )


CACHE_SETTINGS: Final = SettingTable(
    Setting(
        "cache-limit",
        "cache_bytes",
        _cache_megabytes,
        _SIZE_EXPECTED,
        "MB",
        f"Cache memory limit of each export in MB (default: {_DEFAULTS.cache_bytes // _MEGABYTE}).",
        short="-c",
    ),
    Setting(
        "cache-mode",
        "mode",
        lambda text: CacheMode(text.lower()),
        " or ".join(mode.value for mode in CacheMode),
        "MODE",
        "writeback: a write is done when it is in the cache, and durable after a flush; "
        f"writethrough: when it is durable (default: {_DEFAULTS.mode.value}).",
    ),
    Setting(
        "dirty-limit",
        "dirty_bytes",
        _megabytes,
        _SIZE_EXPECTED,
        "MB",
        "Of the cache, what may be written and not stored yet (default: half of it).",
    ),
    Setting(
        "dirty-seconds",
        "dirty_seconds",
        _seconds,
        f"seconds from 0 to {_SECONDS_MAX}",
        "SECONDS",
        f"Store what was written that long ago, unasked (default: {_DEFAULTS.dirty_seconds:.0f}).",
    ),
    Setting(
        "read-ahead",
        "read_ahead_bytes",
        _megabytes,
        _SIZE_EXPECTED,
        "MB",
        "Fetch up to so much ahead of a sequential reader; 0: nothing "
        f"(default: {_DEFAULTS.read_ahead_bytes // _MEGABYTE}).",
    ),
    Setting(
        "requests",
        "requests",
        _requests,
        f"a number from 1 to {_REQUESTS_MAX}",
        "NUMBER",
        "Requests to the store at once, for each export "
        f"(default: {_DEFAULTS.requests}, and {_DEFAULTS.reads_reserved} more for reads).",
    ),
    Setting(
        "cache-dir",
        "disk_directory",
        _folder,
        "the path of a folder",
        "DIR",
        "Keep what was read and stored in a folder on a local disk, too, over restarts "
        "(default: nowhere).",
    ),
    Setting(
        "cache-disk-limit",
        "disk_bytes",
        _cache_megabytes,
        _SIZE_EXPECTED,
        "MB",
        f"Of that disk, for each export, in MB (default: {_DEFAULTS.disk_bytes // _MEGABYTE}).",
    ),
)


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """The flags; None where there is none."""

    cache_limit: int | None
    cache_mode: CacheMode | None
    dirty_limit: int | None
    dirty_seconds: float | None
    read_ahead: int | None
    requests: int | None
    cache_dir: Path | None
    cache_disk_limit: int | None

    @property
    def settings(self) -> CacheSettings:
        """For every export whose section does not say otherwise."""
        return CacheSettings(**CACHE_SETTINGS.given(self))


cache_options = flag_group(
    "caching", CacheOptions, *CACHE_SETTINGS.flags(flags_of("How they are cached"))
)
