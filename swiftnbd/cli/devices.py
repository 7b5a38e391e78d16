# SPDX-License-Identifier: MIT
"""From the words of a command line or a section to plugins and filters that are told what to do.

``key=value`` goes to whoever declares the key. If several do, ``NAME.key=value`` says who is meant.
A value without a key is the plugin's main parameter.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from swiftnbd.api.parameters import others_of, parameters_of, values_of
from swiftnbd.api.passphrases import PASSPHRASE, is_literal
from swiftnbd.api.plugin import FilterPlugin, Plugin
from swiftnbd.cli.finding import PLUGINS, find_filter, find_plugin, names
from swiftnbd.errors import ConfigError
from swiftnbd.server.config import FilterConfig, PluginConfig

T = TypeVar("T", Plugin, FilterPlugin)

_KEY = re.compile(r"([A-Za-z][\w.-]*)=(.*)", re.DOTALL)
NO_KEY = ""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Names, and what is said to them: pairs of a key (or `NO_KEY`) and a text."""

    plugin: str | None = None
    filters: tuple[str, ...] = ()
    keys: tuple[tuple[str, str], ...] = ()


def pairs(words: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Words of a command line as keys and texts."""
    return tuple(
        (match[1], match[2]) if (match := _KEY.fullmatch(word)) else (NO_KEY, word)
        for word in words
    )


def is_pair(word: str) -> bool:
    """Whether a word says something to a plugin or filter, by a key."""
    return _KEY.fullmatch(word) is not None


def make(wanted: Wanted) -> tuple[PluginConfig | None, tuple[FilterConfig, ...]]:
    """Find them and tell them. Raises `ConfigError`, with the name of who it is about."""
    plugin = None if wanted.plugin is None else plugin_of(wanted.plugin)
    filters = [(name, find_filter(name)) for name in wanted.filters]
    kinds: dict[str, type[Plugin] | type[FilterPlugin]] = dict(filters)
    if wanted.plugin is not None and plugin is not None:
        if wanted.plugin in kinds:
            raise ConfigError(f"{wanted.plugin} is the name of a plugin and of a filter")
        kinds[wanted.plugin] = plugin
    told = _shared_out(wanted.keys, kinds, wanted.plugin)
    made = None
    if wanted.plugin is not None and plugin is not None:
        made = PluginConfig(wanted.plugin, _made(wanted.plugin, plugin, told))
    return made, tuple(FilterConfig(name, _made(name, kind, told)) for name, kind in filters)


def warn_of_secrets(
    keys: Iterable[tuple[str, str]],
    plugin: PluginConfig | None,
    filters: Iterable[FilterConfig],
) -> None:
    """A WARNING for each secret of a command line that stands there itself."""
    told = [each.filter for each in filters]
    kinds = [type(each) for each in (*told, *([] if plugin is None else [plugin.plugin]))]
    secret = {
        each.key: each.kind for kind in kinds for each in parameters_of(kind) if each.is_secret
    }
    for key, text in keys:
        kind = secret.get(key.rpartition(".")[2].replace("_", "-"))
        if kind is not None and (kind is not PASSPHRASE or is_literal(text)):
            log.warning(
                "everybody on this machine can see %s= on the command line: "
                "give it in a file, or in the secrets file",
                key,
            )


def plugin_of(name: str) -> type[Plugin]:
    """`swiftnbd.cli.finding.find_plugin`, which must be there."""
    found = find_plugin(name)
    if found is None:
        raise ConfigError(f"there is no plugin {name!r}; there are: {', '.join(names(PLUGINS))}")
    return found


def _shared_out(
    keys: Sequence[tuple[str, str]],
    kinds: Mapping[str, type[Plugin] | type[FilterPlugin]],
    plugin: str | None,
) -> dict[str, list[tuple[str, str]]]:
    """What each name is told."""
    declared = {name: {each.key for each in parameters_of(kind)} for name, kind in kinds.items()}
    told: dict[str, list[tuple[str, str]]] = {name: [] for name in kinds}
    for key, text in keys:
        if key == NO_KEY:
            name, key = _main(plugin, kinds, text)
        else:
            name, key = _meant(key, declared, plugin, kinds)
        told[name].append((key, text))
    return told


def _main(
    plugin: str | None, kinds: Mapping[str, type[Plugin] | type[FilterPlugin]], text: str
) -> tuple[str, str]:
    """Whose main parameter a value without a key is."""
    if plugin is not None:
        for each in parameters_of(kinds[plugin]):
            if each.is_main:
                return plugin, each.key
    raise ConfigError(f"{text[:80]!r} is not KEY=VALUE, and {plugin} takes nothing else")


def _meant(
    key: str,
    declared: Mapping[str, set[str]],
    plugin: str | None,
    kinds: Mapping[str, type[Plugin] | type[FilterPlugin]],
) -> tuple[str, str]:
    """Who is told a key, and the key as it is declared there."""
    name, dot, rest = key.rpartition(".")
    if dot and name in declared:
        return name, rest
    found = [each for each, own in declared.items() if key.replace("_", "-") in own]
    if len(found) > 1:
        ways = " or ".join(f"{each}.{key}=" for each in found)
        raise ConfigError(f"{' and '.join(found)} both have a key {key!r}: write {ways}")
    if found:
        return found[0], key
    if plugin is not None and others_of(kinds[plugin]) is not None:
        return plugin, key
    known = ", ".join(
        one if name == plugin else f"{one} ({name})"
        for name, own in declared.items()
        for one in sorted(own)
    )
    raise ConfigError(f"unknown key {key!r}; there are: {known or 'none'}")


def _made(name: str, kind: type[T], told: Mapping[str, list[tuple[str, str]]]) -> T:
    try:
        return kind(**values_of(kind, told[name]))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
