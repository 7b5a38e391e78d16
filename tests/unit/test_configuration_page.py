# SPDX-License-Identifier: MIT
"""docs/configuration.md knows the keys of the secrets file, and flags as they are."""

import re

import click
import pytest

from swiftnbd.cli.secrets import _KNOWN
from swiftnbd.cli.server import server
from tests.support.pages import ROOT

TEXT = (ROOT / "docs/configuration.md").read_text()
FLAGS, _, KEYS = TEXT.partition("## secrets.conf")
OPTIONS = {flag: param for param in server.params for flag in param.opts}
ROWS = re.findall(r"^\| (`-.*?) \| (.*?) \| .* \|$", FLAGS, re.MULTILINE)


def test_every_key_is_there_and_no_other() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", KEYS, re.MULTILINE)
    named = {key for row in rows for key in re.findall(r"`([\w-]+)`", row)}
    others = re.search(r"^(`interface`.*?) are other names", KEYS, re.MULTILINE | re.DOTALL)
    assert others is not None
    assert named | set(re.findall(r"`([\w-]+)`", others[1])) == _KNOWN


@pytest.mark.parametrize(("flags", "default"), ROWS)
def test_flag_exists_with_its_default(flags: str, default: str) -> None:
    names = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", flags)
    assert names
    for name in names:
        assert name in OPTIONS
    given = re.fullmatch(r"`(.+)`", default)
    option = OPTIONS[names[-1]]
    assert isinstance(option, click.Option)
    if given:
        assert f"(default: {given[1]}" in (option.help or "") or str(option.default) == given[1]
