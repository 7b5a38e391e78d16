# SPDX-License-Identifier: MIT
"""Plugins and filters by the names that users give: ours, those of other packages, files.

Ours are the modules of `swiftnbd.plugins` and `swiftnbd.filters`, found by their names, which takes
no time. Others are entry points (``swiftnbd.plugins``, ``swiftnbd.filters``), looked at only for a
name that is none of ours.
"""

import functools
import importlib
import importlib.util
import inspect
import logging
import os
import pkgutil
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from swiftnbd.api.plugin import API_VERSION, FilterPlugin, Plugin
from swiftnbd.blame import said
from swiftnbd.errors import ConfigError
from swiftnbd.export.forms import FORMS

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

T = TypeVar("T")

log = logging.getLogger(__name__)

SWIFT = "swift"  # what is served without a plugin, by a name that says so
PLUGINS = "swiftnbd.plugins"  # our package, and the group of entry points
FILTERS = "swiftnbd.filters"


def find_plugin(name: str) -> type[Plugin] | None:
    """The plugin of a name or a file; None if there is none of that name.

    Raises `ConfigError` if there is one that cannot be used.
    """
    if name == SWIFT:
        raise ConfigError(f"{SWIFT} is what is served without a plugin: give containers after it")
    return _find(name, Plugin, PLUGINS)  # type: ignore[type-abstract]


def find_filter(name: str) -> type[FilterPlugin]:
    """The filter of a name or a file. Raises `ConfigError`."""
    found = _find(name, FilterPlugin, FILTERS)  # type: ignore[type-abstract]
    if found is None:
        raise ConfigError(no_such(name, FILTERS))
    return found


def find_either(name: str) -> type[Plugin] | type[FilterPlugin] | None:
    """The plugin of a name or a file, or else the filter. Raises as `find_plugin` does."""
    try:
        plugin = find_plugin(name)
    except ConfigError:
        if not is_file(name):
            raise
        with suppress(ConfigError):
            return find_filter(name)
        raise
    return find_filter(name) if plugin is None and name in names(FILTERS) else plugin


def no_such(name: str, group: str, otherwise: str = "") -> str:
    """What to say of a name that is none of ``PLUGINS`` or ``FILTERS``; and, if none of them was
    meant, a sentence ``otherwise``."""
    kind, other = ("plugin", FILTERS) if group == PLUGINS else ("filter", PLUGINS)
    if name in names(other) and name != SWIFT:
        return _is_other(name, other)
    near = close_name(name, group)
    instead = f"is it {near}?" if near else f"there are: {', '.join(names(group))}"
    said = f"there is no {kind} {name!r}; {instead}"
    return f"{said}{'' if near else '.'} {otherwise}" if otherwise else said


def _is_other(name: str, group: str) -> str:
    """What to say of one that is of this group, and was given as one of the other."""
    if group == FILTERS:
        return f"{name} is a filter: write --filter {name} before the plugin or container"
    return f"{name} is a plugin: it stands behind the filters, without --filter"


def close_name(name: str, group: str) -> str | None:
    """The name that was meant perhaps, if there is one like it."""
    from difflib import get_close_matches  # late: only mistakes need it

    return next(iter(get_close_matches(name, names(group), 1)), None)


def names(group: str) -> list[str]:
    """All names there are of ``PLUGINS`` or ``FILTERS``."""
    others = (entry.name for entry in _entry_points(group))
    return sorted({*own_names(group), *others, *([SWIFT] if group == PLUGINS else [])})


def own_names(group: str) -> list[str]:
    """Those that are ours."""
    package = importlib.import_module(group)
    return [each.name.replace("_", "-") for each in pkgutil.iter_modules(package.__path__)]


def plugin_name(name: str) -> str:
    """What an export is called that nobody has named."""
    return Path(name).stem if is_file(name) else name


def is_file(name: str) -> bool:
    """Whether a name is that of a file: with a slash in it, or with .py at its end."""
    return "/" in name or name.endswith(".py")


def _find(name: str, kind: type[T], group: str) -> type[T] | None:
    if is_file(name):
        path = Path(name).expanduser().absolute()
        try:
            module = _load(path, path.stat().st_mtime_ns)
        except OSError as error:
            raise ConfigError(f"{name}: {error.strerror}") from None
        return _defined_in(module, kind, name)
    if name in own_names(group):
        module = importlib.import_module(f"{group}.{name.replace('-', '_')}")
        return _defined_in(module, kind, name)
    entry = next((each for each in _entry_points(group) if each.name == name), None)
    if entry is None:
        return None
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:
        log.debug("%s, of %s, cannot be loaded", name, entry.value, exc_info=error)
        raise ConfigError(f"{name}, of {entry.value}, cannot be loaded: {said(error)}") from error
    return _checked(found, kind, name)


def _entry_points(group: str) -> "EntryPoints":
    from importlib.metadata import entry_points  # late: it reads the metadata of all packages

    return entry_points(group=group)


@functools.lru_cache(maxsize=64)  # a file that did not change is the same when it is read again
def _load(path: Path, mtime_ns: int) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"swiftnbd_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file: its name has no .py at its end")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    try:
        spec.loader.exec_module(module)
    except OSError:
        raise
    except (Exception, SystemExit) as error:
        log.debug("%s cannot be loaded", path, exc_info=error)
        raise ConfigError(
            f"{path} cannot be loaded: {said(error, os.fspath(path), known=True)}"
        ) from error
    return module


def _defined_in(module: ModuleType, kind: type[T], name: str) -> type[T]:
    """The one class of this kind that a module defines for others."""
    found = _classes(module, kind)
    if len(found) == 1:
        return _checked(found[0], kind, name)
    other, group = (FilterPlugin, FILTERS) if issubclass(kind, Plugin) else (Plugin, PLUGINS)
    if not found and _classes(module, other):
        raise ConfigError(_is_other(name, group))
    for each in _classes(module, kind, is_whole=False):
        method = sorted(vars(each)["__abstractmethods__"])[0]
        raise ConfigError(f"{name}: {each.__name__} has no method {method}: write {FORMS[method]}")
    raise ConfigError(
        f"{name} defines {len(found)} classes of the kind {kind.__name__}, and should one"
    )


def _classes(module: ModuleType, kind: type[T], *, is_whole: bool = True) -> list[type[T]]:
    """Those of a kind that a module defines for others; or those that lack a method."""
    return [
        each
        for each in vars(module).values()
        if inspect.isclass(each)
        and issubclass(each, kind)
        and each.__module__ == module.__name__
        and not each.__name__.startswith("_")
        and inspect.isabstract(each) is not is_whole
    ]


def _checked(found: type[T], kind: type[T], name: str) -> type[T]:
    if not (inspect.isclass(found) and issubclass(found, kind)):
        raise ConfigError(f"{name} is no class of the kind {kind.__name__}")
    if "__dataclass_fields__" not in vars(found):
        raise ConfigError(f"{name}: {found.__name__} is no dataclass: write @dataclass before it")
    version = getattr(found, "api_version", 0)
    if not 1 <= version <= API_VERSION:
        raise ConfigError(
            f"{name} is written for version {version} of the interface; this is {API_VERSION}"
        )
    return found
