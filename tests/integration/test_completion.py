# SPDX-License-Identifier: MIT
"""Completion in real shells: bash to the end, zsh and fish as far as without a terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clients import find

SECONDS_MAX = 60.0
VARIABLES = {
    "swiftnbd-ctl": "_SWIFTNBD_CTL_COMPLETE",
    "swiftnbd-server": "_SWIFTNBD_SERVER_COMPLETE",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A secrets file, and a folder with a container that is no section of it."""
    (tmp_path / "s.conf").touch(mode=0o600)
    (tmp_path / "s.conf").write_text(
        "[backups]\nusername = u\npassword = p\n[bigdisk]\nusername = u\npassword = p\n"
        "[media]\nusername = u\npassword = p\n"
    )
    container = tmp_path / "disks" / "local"
    container.mkdir(parents=True)
    (container / ".container.json").write_text("{}")
    return tmp_path


def shell(name: str, text: str, folder: Path) -> str:
    """What a shell prints."""
    program = find(name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [program, "-c", text],
        cwd=folder,
        env={"PATH": path, "HOME": str(folder), "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def complete(words: str, folder: Path) -> list[str]:
    """What bash offers for the last of these words, by the function that `complete` set up."""
    program = words.split()[0]
    text = f"""
        eval "$({VARIABLES[program]}=bash_source {program})"
        function_name=$(complete -p {program} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        COMP_WORDS=({words} )
        [ "${{WORDS_END:-}}" ] && COMP_WORDS+=("")
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        COMP_LINE="{words}" COMP_POINT=${{#COMP_LINE}}
        $function_name {program}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    if words.endswith(" "):
        text = "WORDS_END=1\n" + text
    return shell("bash", text, folder).split()


def test_commands(folder: Path) -> None:
    assert sorted(complete("swiftnbd-ctl lo", folder)) == ["locate", "lock"]
    assert "setup" in complete("swiftnbd-ctl ", folder)


def test_containers_of_the_secrets_file(folder: Path) -> None:
    assert complete("swiftnbd-ctl --secrets s.conf info b", folder) == ["backups", "bigdisk"]
    assert complete("swiftnbd-ctl --secrets s.conf copy backups m", folder) == ["media"]
    assert complete("swiftnbd-ctl -a https://s/ --secrets s.conf unlock ", folder) == [
        "backups",
        "bigdisk",
        "media",
    ]


def test_containers_of_a_folder(folder: Path) -> None:
    assert complete("swiftnbd-ctl -a file:disks resize l", folder) == ["local"]


def test_mistakes_complete_nothing_and_say_nothing(folder: Path) -> None:
    assert complete("swiftnbd-ctl --secrets missing.conf info b", folder) == []
    (folder / "s.conf").write_text("nonsense")
    assert complete("swiftnbd-ctl --secrets s.conf info b", folder) == []
    (folder / "s.conf").write_text("[b]\nusername = u\npassword = p\nread-only = maybe\n")
    (folder / "s.conf").chmod(0o644)
    assert complete("swiftnbd-ctl --secrets s.conf info b", folder) in ([], ["b"])


def test_flags_of_the_server(folder: Path) -> None:
    assert "--takeover" in complete("swiftnbd-server --ta", folder)


def test_exports_of_the_server(folder: Path) -> None:
    assert complete("swiftnbd-server --secrets s.conf --default-export b", folder) == [
        "backups",
        "bigdisk",
    ]


def test_plugins_filters_and_their_keys(folder: Path) -> None:
    assert complete("swiftnbd-server --secrets s.conf m", folder) == ["memory", "media"]
    assert complete("swiftnbd-server --filter through sparse-random run", folder) == ["runlength="]


@pytest.mark.parametrize("program", VARIABLES)
@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_script_of_other_shells_is_sound_and_offers_the_same(
    name: str, program: str, folder: Path
) -> None:
    source = shell(
        name,
        f"{VARIABLES[program]}={name}_source {program}"
        if name == "zsh"
        else f"env {VARIABLES[program]}={name}_source {program}",
        folder,
    )
    (folder / "script").write_text(source)
    assert f"{name}_complete" in source
    assert shell(name, f"{name} -n script", folder) == ""


def test_zsh_and_fish_are_given_the_containers(folder: Path) -> None:
    words = "swiftnbd-ctl --secrets s.conf info"
    asked = f"env COMP_WORDS='{words} b' COMP_CWORD=4 _SWIFTNBD_CTL_COMPLETE=zsh_complete"
    assert "backups" in shell("zsh", f"{asked} swiftnbd-ctl", folder)
    asked = f"env COMP_WORDS='{words}' COMP_CWORD=b _SWIFTNBD_CTL_COMPLETE=fish_complete"
    assert "backups" in shell("fish", f"{asked} swiftnbd-ctl", folder)
