# SPDX-License-Identifier: MIT
"""Foreign clients on every road: Unix sockets, standard input, sockets they hand over."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import nbdsh, run
from tests.support.foreground import command, run_server, server
from tests.support.server_process import ctl

SIZE = 16 * 65536


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ctl("-a", f"file:{tmp_path}/store", "setup", "disk", "16")
    return tmp_path


@pytest.fixture
def uri(folder: Path) -> Iterator[str]:
    """That of a disk on a Unix socket."""
    with server(folder, "-U", str(folder / "nbd.sock")) as running:
        yield running.uris[0]
        assert running.end() == 0


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * (SIZE // 256))
    return image


def stored(folder: Path) -> bytes:
    parts = sorted((folder / "store/disk/disk.part").iterdir())
    return b"".join(part.read_bytes() for part in parts)


def test_nbdinfo_finds_the_disk_on_a_unix_socket(uri: str) -> None:
    shown = json.loads(run("nbdinfo", "--no-content", "--json", uri).stdout)
    (export,) = shown["exports"]
    assert (export["export-name"], export["export-size"]) == ("disk", SIZE)
    assert export["can_multi_conn"]


def test_nbdcopy_with_several_connections_on_a_unix_socket(
    uri: str, image: Path, folder: Path
) -> None:
    run("nbdcopy", "--connections=4", "--flush", image, uri)
    assert stored(folder) == image.read_bytes()
    run("nbdcopy", "--connections=4", uri, folder / "copy")
    assert (folder / "copy").read_bytes() == image.read_bytes()


def test_qemu_img_on_a_unix_socket(uri: str, image: Path, folder: Path) -> None:
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri)
    filename = f"nbd:unix:{folder}/nbd.sock:exportname=disk"  # as written before there were URIs
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, filename)
    assert stored(folder) == image.read_bytes()


PROGRAM = """
connect(argv)
assert h.get_size() == {size}
h.pwrite(b"from nbdsh", 5)
h.flush()
assert h.pread(10, 5) == b"from nbdsh"
h.shutdown()
"""


@pytest.mark.parametrize(
    ("method", "flags"),
    [("connect_command", ["-s"]), ("connect_systemd_socket_activation", [])],
    ids=["single", "activation"],
)
@pytest.mark.parametrize("structured", [True, False])
def test_nbdsh_starts_the_server_itself(
    folder: Path, method: str, flags: list[str], structured: bool
) -> None:
    argv = command(folder, *flags)
    script = f"""
h.set_request_structured_replies({structured})
connect, argv = h.{method}, {argv!r}
{PROGRAM.format(size=SIZE)}
"""
    assert nbdsh(script) == ""
    assert stored(folder)[5:15] == b"from nbdsh"
    assert "(version=1, unlocked)" in ctl("-a", f"file:{folder}/store", "list", "-s").stdout


def test_nbdsh_without_fixed_newstyle_or_with_a_masked_handshake(folder: Path) -> None:
    for flags in (["--mask-handshake", "0"], ["--mask-handshake", "1"], ["--no-sr"]):
        script = f"""
h.set_export_name("disk")
connect, argv = h.connect_command, {command(folder, "-s", *flags)!r}
{PROGRAM.format(size=SIZE)}
"""
        nbdsh(script)


def test_nbdcopy_starts_the_server_itself(folder: Path, image: Path) -> None:
    run("nbdcopy", "--flush", image, "--", "[", *command(folder), "]")
    assert stored(folder) == image.read_bytes()


@pytest.mark.parametrize("address", [(), ("-p", "0"), ("-U", "-")])
def test_captive_client_finds_the_disk(folder: Path, image: Path, address: tuple[str, ...]) -> None:
    shell = f'nbdcopy --flush {shlex.quote(str(image))} "$uri" && nbdinfo --size "$uri"'
    done = run_server(folder, *address, "--run", shell)
    assert (done.returncode, done.stdout) == (0, f"{SIZE}\n")
    assert stored(folder) == image.read_bytes()


def test_captive_client_that_fails_makes_the_exit_code(folder: Path) -> None:
    done = run_server(folder, "-r", "--run", 'nbdcopy /dev/zero "$uri"')
    assert done.returncode == 1
