# SPDX-License-Identifier: MIT
"""The unit files of docs/systemd, as systemd itself judges them."""

import re
from pathlib import Path

import pytest

from tests.support.clients import find, run
from tests.support.server_process import script

UNITS = Path(__file__).parents[2] / "docs/systemd"
EXPOSURE_MAX = 3.0
SERVICES = ("swiftnbd.service", "swiftnbd-attach@nbd0.service", "swiftnbd-reconnect@nbd0.service")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as they would be installed, with the program where it is here."""
    folder = tmp_path_factory.mktemp("units")
    for path in UNITS.glob("*.*"):
        text = path.read_text()
        if path.name == "swiftnbd.service":
            assert text.count("/usr/bin/swiftnbd-server ") == 1
            text = text.replace("/usr/bin/swiftnbd-server", script("swiftnbd-server"))
        text = text.replace("/usr/local/sbin/nbd-reconnect.py", str(UNITS / "nbd-reconnect.py"))
        (folder / path.name.replace("@.", "@nbd0.")).write_text(text)
    find("nbd-client")
    return folder


def test_units_pass_systemds_check(folder: Path) -> None:
    others = (".sysusers", ".py", ".rules")
    units = sorted(path.name for path in folder.iterdir() if path.suffix not in others)
    assert len(units) == 5
    paths = [f"./{name}" for name in units]
    done = run("systemd-analyze", "verify", "--man=no", *paths, cwd=folder)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_hardly_exposed(folder: Path, name: str) -> None:
    done = run("systemd-analyze", "security", "--offline=true", f"./{name}", cwd=folder)
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert match
    assert float(match[1]) < EXPOSURE_MAX


def test_user_of_the_service_is_made_by_sysusers(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    run("systemd-sysusers", f"--root={tmp_path}", UNITS / "swiftnbd.sysusers")
    assert (tmp_path / "etc/passwd").read_text().startswith("swiftnbd:x:")
