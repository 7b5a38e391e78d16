# SPDX-License-Identifier: MIT
"""Settings of an export: a flag for all of them, and a key of the secrets file for one.

The flag and the key have the same name and take the same values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from swiftnbd.cli.flags import Decorator


@dataclass(frozen=True, slots=True)
class Setting:
    """The key ``name``, the field of a dataclass it sets, and how its text is read.

    ``parse`` raises ValueError for what is not ``expected``.
    """

    name: str
    field: str
    parse: Callable[[str], Any]
    expected: str
    metavar: str
    help: str
    short: str = ""  # another name of the flag


class SettingTable:
    """The settings that one dataclass has."""

    def __init__(self, *settings: Setting) -> None:
        self._by_name = {setting.name: setting for setting in settings}
        self.keys = frozenset(self._by_name)

    def parse(self, name: str, text: str) -> tuple[str, Any]:
        """The field that the key ``name`` sets, and its value.

        Raises ValueError, saying what is expected.
        """
        setting = self._by_name[name]
        try:
            return setting.field, setting.parse(text.strip())
        except ValueError:
            raise ValueError(f"is not {setting.expected}") from None

    def flags(self, flag: Callable[..., Decorator]) -> list[Decorator]:
        """The options, made with ``flag``; one that is not given is None."""
        return [
            flag(
                *([setting.short] if setting.short else []),
                f"--{setting.name}",
                metavar=setting.metavar,
                callback=self._parse_flag,
                help=setting.help,
            )
            for setting in self._by_name.values()
        ]

    def given(self, options: object) -> dict[str, Any]:
        """The fields for which ``options``, with an attribute for each flag, has a value."""
        values = {
            setting.field: getattr(options, setting.name.replace("-", "_"))
            for setting in self._by_name.values()
        }
        return {field: value for field, value in values.items() if value is not None}

    def _parse_flag(self, ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        """A click callback."""
        if value is None:
            return None
        try:
            return self.parse(str(param.name).replace("_", "-"), value)[1]
        except ValueError as error:
            raise click.BadParameter(f"{value!r} {error}", ctx=ctx, param=param) from None
