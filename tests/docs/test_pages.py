# SPDX-License-Identifier: MIT
"""Every command of the documentation does what its page says, or it is said why it is not run."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.blocks import blocks
from tests.docs.pages import PAGES
from tests.docs.sandbox import command, namespaces
from tests.docs.script import runs, unused
from tests.support.clients import missing
from tests.support.pages import ROOT

PAGE_SECONDS_MAX = 300.0
LONG = os.environ.get("DOCS") == "long"

pytestmark = pytest.mark.timeout(PAGE_SECONDS_MAX + 10)


def with_commands() -> list[str]:
    """All pages that have commands."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    names = [file.relative_to(ROOT).as_posix() for file in files]
    return [name for name in names if any(block.language == "sh" for block in blocks(name))]


def test_every_page_with_commands_is_run() -> None:
    assert sorted(PAGES) == sorted(with_commands())


@pytest.mark.parametrize("name", PAGES)
def test_every_mark_has_a_command(name: str) -> None:
    assert list(unused(name, PAGES[name])) == []


@pytest.mark.parametrize("name", [name for name in PAGES if runs(name, PAGES[name])])
def test_commands_of_page(name: str) -> None:
    if PAGES[name].long and not LONG:
        pytest.skip("long: tox -e docs")
    if subprocess.run([*namespaces(), "true"], capture_output=True, check=False).returncode:
        missing("the kernel gives this user no namespaces: run it as root")
    done = subprocess.run(
        command(name),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PAGE_SECONDS_MAX,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{name}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")


LINK = re.compile(r"\]\(([^)#: ]+)(?:#([\w-]+))?\)")


def anchors(file: Path) -> set[str]:
    """What the headings of a page can be linked to as."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}


@pytest.mark.parametrize(
    "file", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=str
)
def test_links_lead_somewhere(file: Path) -> None:
    for target, anchor in LINK.findall(file.read_text()):
        there = file.parent / target
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = {file.name for file in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= {target for target, _ in LINK.findall(index)}
