# SPDX-License-Identifier: MIT
"""From the words of a command line or a section to plugins and filters that are told what to do.

``key=value`` goes to whoever declares the key. If several do, ``NAME.key=value`` says who is meant;
a filter that is given twice is told twice, or by ``NAME.1.key=value`` and ``NAME.2.key=value``.
A value without a key is the plugin's main parameter.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swiftnbd.api.parameters import others_of, parameters_of, values_of
from swiftnbd.api.passphrases import PASSPHRASE, is_literal
from swiftnbd.api.plugin import FilterPlugin, Plugin
from swiftnbd.blame import file_of, said
from swiftnbd.cli.finding import PLUGINS, find_filter, find_plugin, no_such, plugin_name
from swiftnbd.errors import ConfigError
from swiftnbd.server.config import FilterConfig, PluginConfig

Kind = type[Plugin] | type[FilterPlugin]

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
    given: list[tuple[str, Kind]] = [(name, find_filter(name)) for name in wanted.filters]
    if wanted.plugin is not None:
        given.append((wanted.plugin, plugin_of(wanted.plugin)))
    layers = _layers(given)
    _share_out(wanted.keys, layers, None if wanted.plugin is None else layers[-1])
    made = [(each.name, each.made()) for each in layers]
    plugins = [PluginConfig(name, one) for name, one in made if isinstance(one, Plugin)]
    filters = [FilterConfig(name, one) for name, one in made if isinstance(one, FilterPlugin)]
    return next(iter(plugins), None), tuple(filters)


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
        raise ConfigError(no_such(name, PLUGINS))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A plugin or filter as it was named. ``labels`` may stand before its keys, and a dot between;
    with ``label`` it is not mistaken for one of another kind. ``told`` grows."""

    name: str
    kind: Kind
    label: str
    labels: frozenset[str]
    told: list[tuple[str, str]]

    def knows(self, key: str) -> bool:
        """Whether it declares this key."""
        return key.replace("_", "-") in self.keys()

    def keys(self) -> list[str]:
        """Those that it declares."""
        return [each.key for each in parameters_of(self.kind)]

    def made(self) -> Plugin | FilterPlugin:
        """Raises `ConfigError`, with its name."""
        try:
            return self.kind(**values_of(self.kind, self.told))
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None
        except OSError:
            raise
        except Exception as error:  # of their __post_init__, or of a kind of parameter
            log.debug("%s cannot be made", self.name, exc_info=error)
            where = said(error, file_of(self.kind), known=True)
            raise ConfigError(f"{self.name} cannot be made: {where}") from error


def _layers(given: Sequence[tuple[str, Kind]]) -> list[_Layer]:
    """Filters as they are asked, then the plugin. Of a file the name without its folder and its
    .py is a label; of those with one name also NAME.1, NAME.2 and so on, in this order."""
    names = [plugin_name(name) for name, _ in given]
    layers = []
    for index, (name, kind) in enumerate(given):
        short = names[index]
        alike = [other for each, (_, other) in zip(names, given, strict=True) if each == short]
        numbered = f"{short}.{names[: index + 1].count(short)}"
        label = short if len(set(alike)) == 1 else numbered
        labels = {name, short, *([numbered] if len(alike) > 1 else [])}
        layers.append(_Layer(name, kind, label, frozenset(labels), []))
    return layers


def _share_out(
    keys: Sequence[tuple[str, str]], layers: Sequence[_Layer], plugin: _Layer | None
) -> None:
    """Tell each what it is told."""
    for key, text in keys:
        found, key = _main(plugin, text) if key == NO_KEY else _meant(key, layers, plugin)
        for each in found:
            each.told.append((key, text))


def _main(plugin: _Layer | None, text: str) -> tuple[list[_Layer], str]:
    """The plugin, and the key of its main parameter, which a value without a key is for."""
    name = "a container" if plugin is None else plugin.name
    if plugin is not None:
        for each in parameters_of(plugin.kind):
            if each.is_main:
                return [plugin], each.key
    raise ConfigError(f"{text[:80]!r} is not KEY=VALUE, and {name} takes nothing else")


def _meant(key: str, layers: Sequence[_Layer], plugin: _Layer | None) -> tuple[list[_Layer], str]:
    """Who is told a key, and the key as it is declared there. A filter that is there several
    times is told each time."""
    label, dot, rest = key.rpartition(".")
    named = [each for each in layers if dot and label in each.labels]
    if named:
        layers, key = named, rest
    found = [each for each in layers if each.knows(key)]
    if len({each.kind for each in found}) > 1:
        ways = " or ".join(dict.fromkeys(f"{each.label}.{key}=" for each in found))
        who = " and ".join(dict.fromkeys(each.name for each in found))
        raise ConfigError(f"{who} both have a key {key!r}: write {ways}")
    if found or named:  # what nobody knows, whoever is named will say
        return found or named, key
    if plugin is not None and others_of(plugin.kind) is not None:
        return [plugin], key
    known = dict.fromkeys(
        one if each is plugin else f"{one} ({each.name})"
        for each in layers
        for one in sorted(each.keys())
    )
    raise ConfigError(f"unknown key {key!r}; there are: {', '.join(known) or 'none'}")
