# SPDX-License-Identifier: MIT
import re
import subprocess
from pathlib import Path

import click
import pytest

from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.manpages import PROGRAMS, page, write
from tests.support.clients import find

FOLDER = Path(__file__).parents[2] / "docs" / "man"
ADVICE = "run: python -m swiftnbd.cli.manpages docs/man"


@pytest.mark.parametrize("name", PROGRAMS)
def test_page_is_what_the_commands_make_of_it(name: str) -> None:
    assert (FOLDER / f"{name}.1").read_text() == page(name, PROGRAMS[name]), ADVICE


def test_pages_are_written_one_for_each_program(tmp_path: Path) -> None:
    write(tmp_path / "man")
    assert {path.name for path in (tmp_path / "man").iterdir()} == {f"{n}.1" for n in PROGRAMS}
    assert {path.name for path in FOLDER.iterdir()} == {f"{n}.1" for n in PROGRAMS}, ADVICE


@pytest.mark.parametrize("name", PROGRAMS)
def test_man_shows_it_without_a_warning(name: str) -> None:
    shown = subprocess.run(
        [find("man"), "--warnings", "-E", "UTF-8", "-l", str(FOLDER / f"{name}.1")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PATH": "/usr/bin:/bin", "MANWIDTH": "120", "LC_ALL": "C.UTF-8"},
    )
    assert shown.stderr == ""
    text = re.sub(".\b", "", shown.stdout)
    assert f"{name} - " in text
    assert "EXIT CODES" in text
    assert "130" in text


def test_every_command_and_flag_is_on_it() -> None:
    text = page("swiftnbd-ctl", ctl).replace("\\-", "-")
    for name, command in ctl.commands.items():
        assert f'.SS "{name}"' in text
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden:
                assert max(param.opts, key=len) in text


def test_text_means_nothing_to_roff() -> None:
    @click.command(help='.SH evil\n\n\'so /etc/passwd\n\nback\\slash - "dash" ü', epilog="X:\n1 a")
    def command() -> None:
        pass

    lines = page("swiftnbd-ctl", command).splitlines()
    assert "\\&.SH evil" in lines
    assert "\\&'so /etc/passwd" in lines
    assert "back\\eslash \\- \\(dqdash\\(dq \\[u00FC]" in lines
