# SPDX-License-Identifier: MIT
"""Who comes from swiftnbd 0.11: its command lines, its secrets file and its containers."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from swiftnbd.cli.ctl import ctl as ctl_program
from swiftnbd.cli.server import server as server_program
from tests.support.legacy import Legacy
from tests.support.nbd_client import NbdClient
from tests.support.pages import ROOT
from tests.support.server_process import ServerProcess, ctl
from tests.support.swift_aio import KEY, USER, RealSwift

OBJECTS, SIZE = 8, 64 * 1024

# As swiftnbd 0.11's --help shows them, with its defaults.
BOTH = {
    "--version": None, "--secrets": "/etc/swiftnbd/secrets.conf", "-a": None, "--auth-url": None,
    "-k": None, "--keystone-auth": None, "--keystone-separator": ".",
    "--keystone-service": "object-store", "--keystone-endpoint": "publicURL",
    "--keystone-region": None, "-v": None, "--verbose": None,
}  # fmt: skip
SERVER = {
    "-b": "127.0.0.1", "--bind-address": "127.0.0.1", "-p": "10809", "--bind-port": "10809",
    "-c": "64", "--cache-limit": "64", "-l": None, "--log-file": None, "--syslog": None,
    "-f": None, "--foreground": None, "--pid-file": "/swiftnbd.pid",
}  # fmt: skip
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "list": ((), ("-s", "--simple-output")),
    "setup": (("container", "objects"), ("--object-size", "-f", "--force")),
    "unlock": (("container",), ()),
    "lock": (("container",), ()),
    "download": (("container", "image"), ("-q", "--quiet")),
    "delete": (("container",), ()),
}


def options(command: click.Command) -> dict[str, click.Option]:
    found = [param for param in command.params if isinstance(param, click.Option)]
    return {flag: option for option in found for flag in option.opts}


@pytest.mark.parametrize("program", [server_program, ctl_program], ids=["server", "ctl"])
def test_flags_are_those_of_0_11_with_their_defaults(program: click.Command) -> None:
    known = options(program)
    for flag, default in (BOTH | (SERVER if program is server_program else {})).items():
        assert flag in known, flag
        if default is not None:
            text = re.sub(r"\s+", " ", known[flag].help or "")
            assert re.search(rf"\(default: \S*{re.escape(default)}\b", text) or default == ".", flag


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_take_what_those_of_0_11_took(name: str) -> None:
    arguments, flags = COMMANDS[name]
    command = ctl_program.commands[name]
    assert set(flags) <= set(options(command))
    taken = [param for param in command.params if isinstance(param, click.Argument)]
    assert [param.name for param in taken][: len(arguments)] == list(arguments)


def test_page_lists_every_flag_and_command_of_0_11() -> None:
    text = (ROOT / "docs/migration.md").read_text()
    text = text.partition("## Command lines")[2].partition("## The secrets file")[0]
    shown = {word for span in re.findall(r"`([^`]+)`", text) for word in span.split()}
    wanted = {
        *BOTH,
        *SERVER,
        *COMMANDS,
        *(flag for _, flags in COMMANDS.values() for flag in flags),
    }
    assert wanted <= shown, wanted - shown


@dataclass(frozen=True)
class Old:
    """A user of 0.11: a container of theirs, and the arguments they gave to both programs."""

    container: Legacy
    arguments: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        return self.container.container


@pytest.fixture
def old(real_swift: RealSwift, container_name: str, tmp_path: Path) -> Iterator[Old]:
    secrets = tmp_path / "secrets.conf"
    secrets.touch(mode=0o600)
    secrets.write_text(
        f"[DEFAULT]\nusername = {USER}\npassword = {KEY}\n\n"
        f"# access credentials\n[{container_name}]\nread-only = 0\n"
    )
    legacy = Legacy(real_swift.auth_url, USER, KEY, container_name)
    yield Old(legacy, ("--secrets", str(secrets), "-a", real_swift.auth_url), tmp_path)
    legacy.close()


@pytest.mark.timeout(240)  # many commands, each a process: a minute where four tests share a core
def test_days_of_a_user_of_0_11(old: Old) -> None:
    name, arguments = old.name, old.arguments
    ctl(*arguments, "setup", name, str(OBJECTS), "--object-size", str(SIZE))
    line = f"{name} objects={OBJECTS} size={SIZE} (version=1, unlocked)\n"
    assert ctl(*arguments, "list", "-s").stdout == line
    ctl(*arguments, "lock", name)
    assert ", locked by " in ctl(*arguments, "list", "--simple-output").stdout
    assert ctl(*arguments, "lock", name, check=False).returncode != 0
    ctl("-v", *arguments, "unlock", name)
    assert ctl(*arguments, "unlock", name, check=False).returncode == 1
    assert ctl(*arguments, "setup", name, str(OBJECTS), check=False).returncode == 1
    ctl(*arguments, "setup", "-f", name, str(OBJECTS), "--object-size", str(SIZE))
    old.container.write(2, b"\x5a" * SIZE)
    image = old.folder / "image.raw"
    ctl(*arguments, "download", "-q", name, str(image))
    assert image.read_bytes() == old.container.read()
    ctl(*arguments, "delete", name)
    assert ctl(*arguments, "list", "-s", check=False).returncode == 4


def test_server_started_as_0_11_was_serves_its_container_byte_for_byte(old: Old) -> None:
    old.container.setup(OBJECTS, SIZE, last="10.0.0.5:40112@1460000000")
    expected = bytearray(OBJECTS * SIZE)
    expected[3 * SIZE : 4 * SIZE] = data = random.Random("0.11").randbytes(SIZE)
    old.container.write(3, data)
    server = ServerProcess(
        *("-b", "127.0.0.1", "-c", "64", "-l", str(old.folder / "server.log"), "-v"),
        *old.arguments,
        workdir=old.folder,
    )
    try:
        server.wait_ready(old.name)
        with NbdClient(server.port) as client:
            client.go(old.name.encode())
            assert client.read(0, len(expected)) == expected
            client.write(SIZE, b"new" * 100)
            client.disconnect()
        server.finish()
    finally:
        server.kill()
    expected[SIZE : SIZE + 300] = b"new" * 100
    assert old.container.read() == expected
    assert "client" not in old.container.meta
    assert old.name in (old.folder / "server.log").read_text()


def test_container_whose_size_has_the_old_spelling_is_told_what_to_do(old: Old) -> None:
    """0.11's own `setup`, on a Swift of today, which drops the name with the underscore."""
    old.container.connection.put_container(
        old.name,
        headers={
            "X-Container-Meta-Swiftnbd-Version": "1",
            "X-Container-Meta-Swiftnbd-Objects": str(OBJECTS),
            "X-Container-Meta-Swiftnbd-Object_Size": str(SIZE),
        },
    )
    old.container.write(1, b"\x77" * SIZE)
    found = ctl(*old.arguments, "list", "-s", check=False)
    assert "object-size" in found.stdout + found.stderr or "setup" in found.stdout + found.stderr
    wrong = ("setup", "-f", old.name, str(OBJECTS), "--object-size", str(SIZE // 2))
    refused = ctl(*old.arguments, *wrong, check=False)
    assert refused.returncode == 1
    assert "unreadable" in refused.stderr
    ctl(*old.arguments, "setup", "-f", old.name, str(OBJECTS), "--object-size", str(SIZE))
    image = old.folder / "image.raw"
    ctl(*old.arguments, "download", "-q", old.name, str(image))
    assert image.read_bytes() == old.container.read()
