# SPDX-License-Identifier: MIT
"""The little language of nbdkit's data plugin: from a text to an `Image`.

::

    255 0xff 0377         a byte; le16:N be16:N le32:N be32:N le64:N be64:N: a word
    "text"  <FILE         bytes of a text, or of a file
    @N @+N @-N @^N        move to an offset, forwards, backwards, to the next multiple
    (...)                 one thing, whose offsets begin at 0
    thing*N thing[N:M]    so many times; a part
    thing -> \\name \\name  give it a name, and use it, here and in what is inside
    $key                  what another key holds, as if in brackets
    # ...                 a comment

A text is parsed when the configuration is read, and carried out when the disk is made, which is
when files are read.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swiftnbd.api import ConfigError
from swiftnbd.plugins.data.image import STORED_BYTES_MAX, Image

TEXT_CHARS_MAX: Final = 4 * 1024 * 1024  # more than a command line can be
DEPTH_MAX: Final = 50  # of brackets and variables in each other
STEPS_MAX: Final = 1_000_000  # short texts can mean a lot of work

_N = r"(?:0[xX][0-9a-fA-F]{1,16}|0[0-7]{0,22}|[1-9][0-9]{0,18})(?![0-9A-Za-z_])"
_TOKEN: Final = re.compile(
    rf"""
    (?P<space> \s+ | \#[^\n]* )
    | (?P<word> [lb]e(?:16|32|64) : {_N} )
    | (?P<byte> {_N} )
    | @ (?P<move> [+^-]? ) (?P<to> {_N} )
    | "(?P<text> (?: [^"\\] | \\. )* )"
    | < (?P<file> [^\s()*\[\]]+ )
    | \\ (?P<name> [A-Za-z0-9_-]+ )
    | \$ (?P<key> [A-Za-z_][A-Za-z0-9_-]* )
    | \* \s* (?P<times> {_N} )
    | \[ \s* (?P<first> (?:{_N})? ) \s* : \s* (?P<end> (?:{_N})? ) \s* \]
    | -> \s* \\ (?P<given> [A-Za-z0-9_-]+ )
    | (?P<open> \( ) | (?P<close> \) )
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPED: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_ORDER: Final = {"l": "little", "b": "big"}


@dataclass(frozen=True, slots=True)
class Scope:
    """What things are made in: the names that are known, and the state of the whole work."""

    names: dict[str, Image]
    work: "_Work"


Thing = Callable[[Scope, int], Image]  # at most so many bytes of it are needed
Action = Callable[[Scope, Image, int], int]  # what is made so far, an offset, the next one


def parse(text: str, others: Mapping[str, str]) -> Callable[[], Image]:
    """What makes the image, reading files. ``others``: the values of keys by name.

    Raises `ConfigError`, and so does what it returns, or OSError.
    """
    parser = _Parser(others)
    whole = parser.group(text, 0)
    if unused := sorted(others.keys() - parser.used):
        raise unknown(unused[0])
    return lambda: whole(Scope({}, _Work()), STORED_BYTES_MAX)


def unknown(key: str) -> ConfigError:
    """That it is neither one of the plugin's nor used in the text."""
    return ConfigError(f"{key!r} is no key, and data does not use ${key}")


class _Work:
    """How much was done."""

    def __init__(self) -> None:
        self._steps = 0

    def step(self) -> None:
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise ConfigError(f"to write it takes more than {STEPS_MAX} steps")


class _Parser:
    def __init__(self, others: Mapping[str, str]) -> None:
        self._others = others
        self._parsed: dict[str, Thing] = {}
        self.used: set[str] = set()

    def group(self, text: str, depth: int) -> Thing:
        """All of a text as one thing."""
        if len(text) > TEXT_CHARS_MAX:
            raise ConfigError(f"a text of more than {TEXT_CHARS_MAX} characters")
        thing, at = self._items(text, 0, depth)
        if at < len(text):
            raise _mistake(text, at, "a ) without its (")
        return thing

    def _items(self, text: str, at: int, depth: int) -> tuple[Thing, int]:
        """Things up to the end of the text or a closing bracket, and where that is."""
        if depth > DEPTH_MAX:
            raise ConfigError(f"more than {DEPTH_MAX} brackets and keys are in each other")
        actions: list[Action] = []
        things: list[Thing | None] = []  # beside each action, the thing it writes
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise _mistake(text, at, "what is meant?")
            kind = match.lastgroup
            if kind == "close":
                break
            begin, at = at, match.end()
            if kind == "space":
                continue
            if kind == "to":
                things.append(None)
                actions.append(_move(match["move"], _number(match["to"])))
            elif kind in ("times", "end", "given"):
                if not things or things[-1] is None:
                    raise _mistake(text, begin, "there is nothing before it")
                actions[-1], things[-1] = _changed(match, things[-1])
            else:
                if kind == "open":
                    thing, at = self._items(text, at, depth + 1)
                    if at == len(text):
                        raise _mistake(text, begin, "a ( without its )")
                    at += 1
                else:
                    thing = self._thing(match, text, begin, depth)
                things.append(thing)
                actions.append(_write(thing))
        return _together(actions), at

    def _thing(self, match: re.Match[str], text: str, begin: int, depth: int) -> Thing:
        if (file := match["file"]) is not None:
            return _file(Path(file).expanduser().absolute())
        if (name := match["name"]) is not None:
            return _named(name)
        if (key := match["key"]) is not None:
            return self._variable(key, depth)
        try:
            data = _literal(match)
        except (ValueError, OverflowError) as error:
            raise _mistake(text, begin, str(error)) from None
        return lambda scope, most: _image(data)

    def _variable(self, key: str, depth: int) -> Thing:
        if key not in self._others:
            raise ConfigError(f"${key} has no value: give {key}=...")
        self.used.add(key)
        if key not in self._parsed:
            self._parsed[key] = self.group(self._others[key], depth + 1)
        return self._parsed[key]


def _mistake(text: str, at: int, what: str) -> ConfigError:
    return ConfigError(f"at character {at + 1}, {text[at : at + 20]!r}: {what}")


def _number(text: str) -> int:
    if text[:2].lower() == "0x":
        return int(text, 16)
    return int(text, 8 if text.startswith("0") else 10)


def _literal(match: re.Match[str]) -> bytes:
    if (text := match["text"]) is not None:
        return _ESCAPE.sub(_unescaped, text).encode("utf-8", "surrogateescape")
    if (word := match["word"]) is not None:
        kind, _, number = word.partition(":")
        return _number(number).to_bytes(int(kind[2:]) // 8, _ORDER[kind[0]])  # type: ignore[arg-type]
    byte = _number(match["byte"])
    if byte > 255:
        raise ValueError("a byte is 0 to 255")
    return bytes([byte])


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if len(code) == 3:
        byte = int(code[1:], 16)
        return chr(byte) if byte < 128 else chr(0xDC00 + byte)  # as surrogateescape has it
    if code.isdigit() or code in "xuU":
        raise ValueError(f"\\{code} is not known in a text; \\x41 is a byte")
    return _ESCAPED.get(code, code)


def _image(data: bytes) -> Image:
    return Image(data) if any(data) else Image(length=len(data))


# What is done


def _move(how: str, number: int) -> Action:
    def act(scope: Scope, image: Image, at: int) -> int:
        match how:
            case "+":
                at += number
            case "-":
                if number > at:
                    raise ConfigError(f"@-{number} goes before the beginning, from {at}")
                at -= number
            case "^":
                if not number:
                    raise ConfigError("@^0 is nothing that can be aligned to")
                at = -(-at // number) * number
            case _:
                at = number
        image.extend_to(at)
        return at

    return act


def _write(thing: Thing) -> Action:
    def act(scope: Scope, image: Image, at: int) -> int:
        made = thing(scope, STORED_BYTES_MAX)
        image.paste(at, made)
        return at + made.length

    return act


def _together(actions: Sequence[Action]) -> Thing:
    def make(scope: Scope, most: int) -> Image:
        inner = Scope(dict(scope.names), scope.work)
        image, at = Image(), 0
        for action in actions:
            scope.work.step()
            at = action(inner, image, at)
        return image

    return make


def _changed(match: re.Match[str], thing: Thing) -> tuple[Action, Thing | None]:
    if (times := match["times"]) is not None:
        repeated = _repeat(thing, _number(times))
        return _write(repeated), repeated
    if (name := match["given"]) is not None:
        return _assign(thing, name), None
    first = _number(match["first"]) if match["first"] else 0
    part = _part(thing, first, _number(match["end"]) if match["end"] else None)
    return _write(part), part


def _repeat(thing: Thing, count: int) -> Thing:
    return lambda scope, most: thing(scope, most).repeated(count)


def _part(thing: Thing, first: int, end: int | None) -> Thing:
    def make(scope: Scope, most: int) -> Image:
        whole = thing(scope, most if end is None else min(end, most))
        stop = whole.length if end is None else end
        if not first <= stop <= whole.length:
            shown = f"[{first}:{'' if end is None else end}]"
            raise ConfigError(f"{shown} is no part of {whole.length} bytes")
        return whole.slice(first, stop)

    return make


def _assign(thing: Thing, name: str) -> Action:
    def act(scope: Scope, image: Image, at: int) -> int:
        scope.names[name] = thing(scope, STORED_BYTES_MAX)
        return at

    return act


def _named(name: str) -> Thing:
    def make(scope: Scope, most: int) -> Image:
        if name not in scope.names:
            raise ConfigError(f"\\{name} is used before it is given")
        return scope.names[name]

    return make


def _file(path: Path) -> Thing:
    def make(scope: Scope, most: int) -> Image:
        with path.open("rb") as file:
            data = file.read(most)
            if most == STORED_BYTES_MAX and file.read(1):
                raise ConfigError(f"{path} has more than {most} bytes: take a part, [:512]")
        return _image(data)

    return make
