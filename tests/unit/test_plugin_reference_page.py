# SPDX-License-Identifier: MIT
"""docs/plugin-reference.md has a section for each plugin and filter, with its keys as they are."""

import re

import pytest

from swiftnbd.api.parameters import others_of, parameters_of
from swiftnbd.cli.finding import FILTERS, PLUGINS, SWIFT, find_filter, find_plugin, own_names
from swiftnbd.cli.plugin_help import description, summary
from tests.support.pages import ROOT

PLUGIN_PART, _, FILTER_PART = (
    (ROOT / "docs/plugin-reference.md").read_text().partition("\n## Filters\n")
)


def sections(part: str) -> dict[str, str]:
    """What stands under each title."""
    _, *found = re.split(r"^### ", part, flags=re.MULTILINE)
    return {text.partition("\n")[0]: text for text in found}


def check(name: str, kind: type, text: str) -> None:
    assert summary(kind) in text
    expected = [f"| `{each.key}={each.kind.metavar}` | {description(each)} |"
                for each in parameters_of(kind)]  # fmt: skip
    if (others := others_of(kind)) is not None:
        expected.append(f"| `KEY=VALUE` | {others[1]} |")
    rows = re.findall(r"^\| `.*=.*` \| .* \|$", text, re.MULTILINE)
    assert [row.replace("\\|", "|") for row in rows] == expected, "\n".join(expected)


def test_each_has_a_section_and_there_are_no_others() -> None:
    assert set(sections(PLUGIN_PART)) == {SWIFT, *own_names(PLUGINS)}
    assert set(sections(FILTER_PART)) == set(own_names(FILTERS))


@pytest.mark.parametrize("name", own_names(PLUGINS))
def test_section_of_a_plugin_has_its_keys(name: str) -> None:
    kind = find_plugin(name)
    assert kind is not None
    check(name, kind, sections(PLUGIN_PART)[name])


@pytest.mark.parametrize("name", own_names(FILTERS))
def test_section_of_a_filter_has_its_keys(name: str) -> None:
    check(name, find_filter(name), sections(FILTER_PART)[name])
