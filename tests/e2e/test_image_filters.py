# SPDX-License-Identifier: MIT
"""The filters cow, luks, xz and gzip: one server, real clients, and images that qemu made."""

import filecmp
import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import KiB, MiB
from tests.support.backends import DirectoryBackend
from tests.support.clients import run
from tests.support.server_process import ServerProcess

PASSPHRASE = "correct horse battery staple"
QEMU_TRIES = 20  # it cannot always measure how fast it is, and then gives up

# In two orders: the overlay of plaintext, and that of noise.
CONFIG = """
[disk]
read-only = yes
filters = cow
cow-directory = {folder}/overlays
[above]
plugin = file
file = {folder}/qemu.luks
filters = cow, luks
passphrase = +{folder}/key
cow-directory = {folder}/overlays
[below]
plugin = file
file = {folder}/qemu.luks
filters = luks, cow
passphrase = +{folder}/key
cow-file = {folder}/noise
[made]
plugin = file
file = {folder}/made.luks
filters = luks
passphrase = +{folder}/key
luks-format = yes
luks-iter-time = 10ms
[xz]
plugin = file
file = {folder}/disk.img.xz
filters = cow, xz
cow-directory = {folder}/overlays
[gzip]
plugin = file
file = {folder}/disk.img.gz
filters = gzip
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    """6 MiB, some of it holes."""
    path = folder / "disk.img"
    path.write_bytes(os.urandom(MiB) + bytes(3 * MiB) + b"text" * (512 * KiB))
    return path


@pytest.fixture(scope="module")
def secret(folder: Path) -> tuple[str, ...]:
    """How qemu is told the passphrase."""
    (folder / "key").write_text(PASSPHRASE + "\n")
    return "--object", f"secret,id=key,data={PASSPHRASE}"


@pytest.fixture(scope="module")
def disks(folder: Path) -> DirectoryBackend:
    """A container with something in it."""
    backend = DirectoryBackend(folder / "disks")
    backend.setup("disk", 16, 64 * KiB)
    backend.put("disk", "disk.part/00000001", b"stored" * 10922 + b"....")
    return backend


@pytest.fixture(scope="module")
def server(
    folder: Path, image: Path, secret: tuple[str, ...], disks: DirectoryBackend
) -> Iterator[ServerProcess]:
    luks_image(folder / "qemu.luks", secret)
    with (folder / "made.luks").open("wb") as file:
        file.truncate(4 * MiB)
    (folder / "overlays").mkdir()
    run("xz", "-0", "--keep", "--block-size=1MiB", image)
    (folder / "disk.img.gz").write_bytes(gzip.compress(image.read_bytes(), 1))
    config = folder / "secrets.conf"
    config.write_text(CONFIG.format(folder=folder))
    config.chmod(0o600)
    arguments = (*disks.arguments, "--secrets", str(config))
    server = ServerProcess(*arguments, workdir=folder, strict=True)
    try:
        server.wait_ready("disk", "above", "below", "made", "xz", "gzip")
        yield server
    finally:
        server.finish()


def luks_image(path: Path, secret: tuple[str, ...]) -> None:
    """4 MiB that qemu encrypted, with a pattern in it."""
    options = ("-o", "key-secret=key,iter-time=10")
    for _ in range(QEMU_TRIES):
        made = ("create", "-q", *secret, "-f", "luks", *options, str(path), "4M")
        if not run("qemu-img", *made, check=False).returncode:
            break
    qemu_io(path, secret, "write -P 7 0 4M")


def qemu_io(path: Path, secret: tuple[str, ...], *commands: str) -> None:
    """Let qemu do that with an encrypted image, which it opens by itself."""
    source = f"driver=luks,key-secret=key,file.filename={path}"
    check_io(*secret, "--image-opts", source, commands=commands)


def io(uri: str, *commands: str) -> None:
    check_io("-f", "raw", uri, commands=commands)


def check_io(*arguments: str, commands: tuple[str, ...]) -> None:
    words = [word for command in commands for word in ("-c", command)]
    done = run("qemu-io", *words, *arguments)
    assert "failed" not in done.stdout + done.stderr, done.stdout + done.stderr


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder, and when they were changed."""
    return {
        f"{path.relative_to(folder)} {path.stat().st_mtime_ns}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_overlay_of_a_read_only_container_is_thrown_away_without_a_trace(
    server: ServerProcess, disks: DirectoryBackend, folder: Path
) -> None:
    uri, before = server.uris()["disk"], everything(folder / "disks")
    io(
        uri,
        *("write -P 1 0 1M", "write -z 64k 100k", "discard 512k 64k", "write -f -P 2 1000 10"),
        *("flush", "read -P 0 64k 100k", "read -P 1 164k 4k", "read -P 2 1000 10"),
    )
    server.wait_log("disconnected from disk")
    io(uri, "read -P 0 0 64k")
    assert run("nbdcopy", uri, "-").stdout[64 * KiB :][:12] == "storedstored"
    assert everything(folder / "disks") == before
    assert "client" not in disks.metadata("disk") or not disks.metadata("disk")["client"]
    assert os.listdir(folder / "overlays") == []


@pytest.mark.parametrize("name", ["above", "below"])
def test_overlay_stands_before_and_behind_encryption(
    name: str, server: ServerProcess, secret: tuple[str, ...], folder: Path
) -> None:
    uri, before = server.uris()[name], (folder / "qemu.luks").read_bytes()
    io(uri, "read -P 7 0 4M", "write -P 1 1000 100k", "write -z 1M 512k", "write -f -P 2 3M 512")
    io(uri, "read -P 7 0 1000", "read -P 1 1000 100k", "read -P 7 103400 60k", "read -P 0 1M 512k")
    io(uri, "read -P 2 3M 512", "read -P 7 3146240 512")
    assert (folder / "qemu.luks").read_bytes() == before
    qemu_io(folder / "qemu.luks", secret, "read -P 7 0 4M")
    assert bytes([1]) * 64 not in (folder / "noise").read_bytes()


def test_disk_that_we_encrypted_is_opened_by_qemu(
    server: ServerProcess, secret: tuple[str, ...], folder: Path
) -> None:
    io(server.uris()["made"], "write -P 3 0 2M", "write -P 4 700 600", "flush")
    qemu_io(folder / "made.luks", secret, "read -P 4 700 600", "write -P 5 1M 4k")
    io(server.uris()["made"], "read -P 3 0 700", "read -P 3 1300 512k", "read -P 5 1M 4k")


def test_compressed_images_are_what_was_compressed(
    server: ServerProcess, image: Path, folder: Path
) -> None:
    packed = (folder / "disk.img.xz").read_bytes()
    for name in ("xz", "gzip"):
        run("nbdcopy", server.uris()[name], folder / f"{name}.copy")
        assert filecmp.cmp(image, folder / f"{name}.copy", shallow=False)
    assert "is_read_only: true" in run("nbdinfo", server.uris()["gzip"]).stdout
    io(server.uris()["xz"], "write -P 6 100 1M", "read -P 6 100 1M")
    assert (folder / "disk.img.xz").read_bytes() == packed
