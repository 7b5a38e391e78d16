# SPDX-License-Identifier: MIT
"""What plugins and filters can be told: declared once, as the fields of their dataclass.

From a declaration come the parsing of ``key=value``, the help of ``NAME --help``,
``--dump-plugin``, the keys of the configuration and the table in the documentation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from math import inf
from pathlib import Path
from typing import Any, Final

from swiftnbd.errors import ConfigError
from swiftnbd.units import format_size, parse_size

_PARAMETER: Final = "swiftnbd"  # in a field's metadata
_SECONDS_UNITS: Final = {"ms": 0.001, "us": 1e-6, "s": 1.0, "m": 60.0, "h": 3600.0}
_YES: Final = ("1", "yes", "true", "on")
_NO: Final = ("0", "no", "false", "off")


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of values: how its text is read, and what help calls it.

    ``parse`` raises ValueError for what is not ``expected`` ("a size like 512M"); ``show`` makes
    the text of a value.
    """

    metavar: str
    expected: str
    parse: Callable[[str], Any]
    show: Callable[[Any], str] = str


def _seconds(text: str) -> float:
    unit = next((unit for unit in _SECONDS_UNITS if text.endswith(unit)), "")
    seconds = float(text.removesuffix(unit)) * _SECONDS_UNITS.get(unit, 1.0)
    if not 0 <= seconds < inf:
        raise ValueError
    return seconds


def _boolean(text: str) -> bool:
    word = text.lower()
    if word not in _YES + _NO:
        raise ValueError
    return word in _YES


def _path(text: str) -> Path:
    """Absolute, for a daemon leaves the folder it was started in."""
    if not text or "\0" in text:
        raise ValueError
    return Path(text).expanduser().absolute()


def _fraction(text: str) -> float:
    share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= share <= 1:
        raise ValueError
    return share


def integer(least: int = 0, most: int | None = None) -> Kind:
    """Whole numbers from ``least`` to ``most``, decimal or with 0x."""

    def parse(text: str) -> int:
        number = int(text[:40], 0 if text.lower().startswith("0x") else 10)
        if number < least or (most is not None and number > most):
            raise ValueError
        return number

    upto = "" if most is None else f" to {most}"
    return Kind("NUMBER", f"a number from {least}{upto}" + (" on" if most is None else ""), parse)


def size(least: int = 1) -> Kind:
    """Bytes, at least so many."""
    expected = f"a size like 512M or 2G, at least {format_size(least)}"
    return Kind("SIZE", expected, lambda text: parse_size(text, least=least), format_size)


def choice(kind: type[Enum]) -> Kind:
    """One member of an enumeration of words."""
    words = [str(member.value) for member in kind]
    return Kind(
        "|".join(words),
        " or ".join(words),
        lambda text: kind(text.lower()),
        lambda value: str(value.value),
    )


SIZE: Final = size()
OFFSET: Final = size(0)
INTEGER: Final = integer()
SECONDS: Final = Kind(
    "SECONDS", "a time like 5, 0.5 or 100ms", _seconds, lambda value: f"{value:g}"
)
BOOLEAN: Final = Kind("yes|no", "yes or no", _boolean, lambda value: "yes" if value else "no")
TEXT: Final = Kind("TEXT", "text", str)
PATH: Final = Kind("PATH", "the path of a file or folder", _path)
FRACTION: Final = Kind("SHARE", "a share like 0.1 or 10%", _fraction, lambda value: f"{value:g}")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of them, under its ``key``; ``field`` is the field of the dataclass that it fills.

    ``is_main``: a first value without a key is for it. ``is_repeated``: it may be given several
    times, and the field is a tuple. ``is_secret``: its value is never shown. ``default`` is
    MISSING (of `dataclasses`) where it has to be given.
    """

    key: str
    field: str
    kind: Kind
    help: str
    default: Any
    is_main: bool
    is_repeated: bool
    is_secret: bool

    @property
    def is_required(self) -> bool:
        return self.default is MISSING and not self.is_repeated

    @property
    def default_text(self) -> str:
        """The default for people; '' if there is none, or none to tell."""
        return "" if self.default in (MISSING, None, "", ()) else self.kind.show(self.default)

    def parse(self, text: str) -> Any:
        """The value. `ConfigError` says what is expected; a secret is not repeated in it."""
        try:
            return self.kind.parse(text.strip())
        except ValueError:
            shown = "this" if self.is_secret else repr(text[:80])
            raise ConfigError(f"{self.key}: {shown} is not {self.kind.expected}") from None


def parameter(
    kind: Kind,
    help: str,
    *,
    default: Any = MISSING,
    main: bool = False,
    repeated: bool = False,
    secret: bool = False,
) -> Any:
    """A field of a plugin's or filter's dataclass that users can set; see `Parameter`.

    The key is the field's name with dashes for underscores.
    """
    options: dict[str, Any] = {"default": () if repeated and default is MISSING else default}
    if options["default"] is MISSING:
        del options["default"]
    metadata = {"kind": kind, "help": help, "main": main, "repeated": repeated, "secret": secret}
    return field(**options, kw_only=True, repr=not secret, metadata={_PARAMETER: metadata})


def other_keys(help: str) -> Any:
    """A field for all keys that are not declared: a tuple of pairs of texts, in their order."""
    return field(default=(), kw_only=True, repr=False, metadata={_PARAMETER: {"others": help}})


def parameters_of(made: type) -> Iterator[Parameter]:
    """What instances of a dataclass can be told, in the order of its fields."""
    for each in fields(made):
        found = each.metadata.get(_PARAMETER)
        if found is not None and "kind" in found:
            yield Parameter(
                each.name.replace("_", "-"),
                each.name,
                found["kind"],
                found["help"],
                each.default,
                found["main"],
                found["repeated"],
                found["secret"],
            )


def others_of(made: type) -> tuple[str, str] | None:
    """The field for keys that are not declared, and its help, if there is one."""
    for each in fields(made):
        if "others" in each.metadata.get(_PARAMETER, {}):
            return each.name, each.metadata[_PARAMETER]["others"]
    return None


def values_of(made: type, given: Sequence[tuple[str, str]]) -> Mapping[str, Any]:
    """The fields of a dataclass for these keys and texts. What may be given again may also be
    given in several lines of one text, as a section of the configuration has a key once only.

    Raises `ConfigError` for an unknown key, one that is given twice, a text that is no value,
    and what is missing.
    """
    known = {each.key: each for each in parameters_of(made)}
    others = others_of(made)
    values: dict[str, Any] = {}
    rest: list[tuple[str, str]] = []
    for key, text in given:
        found = known.get(key.replace("_", "-"))
        if found is None:
            if others is None:
                keys = ", ".join(known) or "none"
                raise ConfigError(f"unknown key {key!r}; there are: {keys}")
            rest.append((key, text))
        elif found.is_repeated:
            lines = [line for line in text.splitlines() if line.strip()] or [text]
            values[found.field] = (*values.get(found.field, ()), *map(found.parse, lines))
        elif found.field in values:
            raise ConfigError(f"{key} is given twice")
        else:
            values[found.field] = found.parse(text)
    for each in known.values():
        if each.is_required and each.field not in values:
            raise ConfigError(f"{each.key}={each.kind.metavar} is missing ({each.help})")
    if others is not None:
        values[others[0]] = tuple(rest)
    return values


def shown_values(made: Any) -> dict[str, Any]:
    """What a plugin or filter was told, as texts by key, without secrets."""
    shown: dict[str, Any] = {}
    for each in parameters_of(type(made)):
        value = getattr(made, each.field)
        if each.is_secret:
            shown[each.key] = "..." if value else ""
        elif each.is_repeated:
            shown[each.key] = [each.kind.show(one) for one in value]
        else:
            shown[each.key] = "" if value is None else each.kind.show(value)
    return shown
