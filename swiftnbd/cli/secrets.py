# SPDX-License-Identifier: MIT
"""The secrets file: which containers there are and who may log in to them.

One section per container, as swiftnbd 0.11 read it: `RawConfigParser` syntax, so ``[DEFAULT]``
gives values to all sections and ``%`` means nothing. No message ever shows a value: half of
them are passwords.
"""

import configparser
import logging
import os
import stat
from dataclasses import dataclass, field
from typing import Any, TextIO

from swiftnbd.api.passphrases import is_literal
from swiftnbd.cli.cache import CACHE_SETTINGS
from swiftnbd.cli.devices import Wanted
from swiftnbd.cli.finding import SWIFT
from swiftnbd.cli.login import LOGIN_KEYS, SECRET_KEYS, LoginKeys
from swiftnbd.cli.networks import NAMES, parse_rules
from swiftnbd.cli.outages import OUTAGE_SETTINGS
from swiftnbd.cli.settings import SettingTable
from swiftnbd.errors import ConfigError, StoreError
from swiftnbd.server.access import Access, Rule
from swiftnbd.server.config import ExportConfig
from swiftnbd.store.checks import check_container_name

_PASSPHRASES = ("passphrase", "luks.passphrase")  # of filters
SECRETS_FILE_DEFAULT = "/etc/swiftnbd/secrets.conf"
SECRETS_CHARS_MAX = 4 * 1024 * 1024  # thousands of containers; not /dev/zero

# What a section of any kind can have. With a plugin, all else is what the plugin is told.
_COMMON = frozenset({"plugin", "filters", "read-only", "multi-conn", "allow", "deny", "tls"})
_KNOWN = CACHE_SETTINGS.keys | OUTAGE_SETTINGS.keys | LOGIN_KEYS | _COMMON | {"authurl"}
_WORDS = {"1": True, "yes": True, "true": True, "on": True} | {
    "": False,  # as if the key was not there
    "0": False,
    "no": False,
    "false": False,
    "off": False,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Section:
    """One container of the file, and what it says of its login; or one of a plugin, or behind
    filters, and what these are told."""

    export: ExportConfig
    login: LoginKeys
    wanted: Wanted = field(default_factory=Wanted)


def load_secrets(path: str) -> tuple[Section, ...]:
    """Every container of the file, in its order. ConfigError says what is wrong with it."""
    parser, world_readable = _read(path)
    _report_keys(path, parser)
    sections = tuple(_section(path, parser[name]) for name in parser.sections())
    if not sections:
        raise ConfigError(f"{path} names no container: add a section [CONTAINER]")
    if world_readable and any(_is_secret(parser[name]) for name in parser.sections()):
        log.warning("%s holds passwords and everybody can read it: chmod 600 %s", path, path)
    return sections


def _is_secret(section: configparser.SectionProxy) -> bool:
    passphrases = (section.get(key, "") for key in _PASSPHRASES)
    return bool(SECRET_KEYS & set(section)) or any(map(is_literal, passphrases))


def _read(path: str) -> tuple[configparser.RawConfigParser, bool]:
    parser = configparser.RawConfigParser()
    try:
        with open(path, encoding="utf-8-sig") as file:
            world_readable = bool(os.fstat(file.fileno()).st_mode & stat.S_IROTH)
            _parse(path, parser, file)
    except FileNotFoundError:
        raise ConfigError(
            f"secrets file {path} does not exist: create it, or name another with --secrets, or "
            "name containers and a login (--os-cloud, OS_AUTH_URL or -a with --os-username)"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read secrets file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    return parser, world_readable


def _parse(path: str, parser: configparser.RawConfigParser, file: TextIO) -> None:
    """Parse; configparser's own messages quote lines of the file, so none of them is used."""
    text = file.read(SECRETS_CHARS_MAX + 1)
    if len(text) > SECRETS_CHARS_MAX:
        raise ConfigError(f"{path} is too large for a secrets file")
    try:
        parser.read_string(text)
    except configparser.DuplicateSectionError as error:
        reason = f"line {error.lineno}: section [{error.section}] is there already"
    except configparser.DuplicateOptionError as error:
        reason = f"line {error.lineno}: [{error.section}] has {error.option!r} already"
    except configparser.MissingSectionHeaderError as error:
        reason = f"line {error.lineno}: no [CONTAINER] line before it"
    except configparser.ParsingError as error:
        line = error.errors[0][0] if error.errors else "?"
        reason = f"line {line} is neither [CONTAINER] nor KEY = VALUE"
    else:
        return
    raise ConfigError(f"{path}, {reason}")


def _report_keys(path: str, parser: configparser.RawConfigParser) -> None:
    defaults = parser.defaults()
    for section in ("DEFAULT", *parser.sections()):
        keys = defaults if section == "DEFAULT" else set(parser[section]) - set(defaults)
        if section != "DEFAULT" and {"plugin", "filters"} & set(parser[section]):
            continue  # what is unknown there is an error
        for key in sorted(keys):
            if key == "authurl":
                log.warning("%s: authurl of [%s] is deprecated and ignored", path, section)
            elif key not in _KNOWN:
                log.warning("%s: unknown key %r of [%s] is ignored", path, key, section)


def _section(path: str, section: configparser.SectionProxy) -> Section:
    name = section.name
    wanted = _wanted(section)
    try:
        check_container_name(name)
    except StoreError as error:
        raise ConfigError(f"{path}: {error}") from None
    export = ExportConfig(
        name=name,
        read_only=_word(path, section, "read-only", default=False),
        multi_conn=_word(path, section, "multi-conn", default=True),
        access=Access(_rules(path, section, "allow"), _rules(path, section, "deny")),
        tls_only=_tls_only(path, section),
        cache={} if wanted.plugin else _settings(path, section, CACHE_SETTINGS),
        outages={} if wanted.plugin else _settings(path, section, OUTAGE_SETTINGS),
    )
    login = {key: section[key] for key in sorted(LOGIN_KEYS & set(section))}
    return Section(export, LoginKeys(login, f"{path}: [{name}]"), wanted)


def _wanted(section: configparser.SectionProxy) -> Wanted:
    """The plugin and the filters of a section, and what they are told."""
    plugin = section.get("plugin", "").strip() or None
    if plugin == SWIFT:
        plugin = None
    filters = tuple(each.strip() for each in section.get("filters", "").split(",") if each.strip())
    if plugin is None and not filters:
        return Wanted()
    others = _KNOWN if plugin is None else _COMMON
    defaults = section.parser.defaults()
    return Wanted(
        plugin,
        filters,
        # what the file says to all sections is meant for those that know it
        tuple(
            (key, text)
            for key, text in section.items()
            if key not in others and text != defaults.get(key)
        ),
    )


def _settings(path: str, section: configparser.SectionProxy, table: SettingTable) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key in sorted(table.keys & set(section)):
        try:
            field, value = table.parse(key, section[key])
        except ValueError as error:
            raise ConfigError(f"{path}: {key} of [{section.name}] {error}") from None
        settings[field] = value
    return settings


def _tls_only(path: str, section: configparser.SectionProxy) -> bool:
    value = section.get("tls", "").lower()
    if value not in ("", "on", "require"):
        raise ConfigError(f"{path}: tls of [{section.name}] is neither on nor require")
    return value == "require"


def _word(path: str, section: configparser.SectionProxy, key: str, *, default: bool) -> bool:
    value = section.get(key, "").lower()
    if value not in _WORDS:
        # 0.11 took any other word as "no", which is the dangerous way to read a typo
        raise ConfigError(f"{path}: {key} of [{section.name}] is neither yes nor no")
    return _WORDS[value] if value else default


def _rules(path: str, section: configparser.SectionProxy, key: str) -> tuple[Rule, ...]:
    try:
        return parse_rules(section[key]) if key in section else ()
    except ConfigError:  # which shows the value
        raise ConfigError(
            f"{path}: {key} of [{section.name}] is no list of addresses, networks and {NAMES}"
        ) from None
