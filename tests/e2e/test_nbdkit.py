# SPDX-License-Identifier: MIT
"""nbdkit's plugin `nbd` as a proxy in front of us, with filters that look at what passes."""

import random
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Disk, KiB, launcher, set_up_disk
from tests.support.backends import DirectoryBackend
from tests.support.certificates import Certificates
from tests.support.clients import run
from tests.support.foreground import command

OBJECTS, SIZE = 64, 64 * KiB


@pytest.fixture
def backend(tmp_path: Path) -> DirectoryBackend:
    return DirectoryBackend(tmp_path / "store")


@pytest.fixture
def disk(backend: DirectoryBackend, tmp_path: Path, certificates: Certificates) -> Iterator[Disk]:
    """Served on each road at once."""
    roads = ("-p", "0", "-U", str(tmp_path / "nbd.sock"))
    tls = ("--tls=on", f"--tls-certificates={certificates.server}", "--tls-verify-peer")
    with launcher(backend, tmp_path) as launch:
        yield set_up_disk(backend, launch, OBJECTS, SIZE, True, extra=(*roads, *tls))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Data, zeros, and data that begins and ends at no object."""
    chance = random.Random("nbdkit")
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(OBJECTS * SIZE)
        file.write(chance.randbytes(10 * SIZE))
        file.seek(40 * SIZE + 1000)
        file.write(chance.randbytes(3 * SIZE))
    return path


def proxied(*arguments: str, client: str, check: bool = True) -> str:
    """What a shell command says to nbdkit at ``$uri``, and nbdkit on the way."""
    done = run("nbdkit", "-U", "-", *arguments, "--run", client, check=check)
    assert bool(done.returncode) != check, done
    return done.stdout + done.stderr


def roads(disk: Disk, folder: Path, certificates: Certificates) -> dict[str, list[str]]:
    return {
        "tcp": [f"uri={disk.uri}"],
        "shared": [f"uri={disk.uri}", "shared=true"],
        "unix": [f"socket={folder}/nbd.sock", f"export={disk.container}"],
        "tls": [
            *("hostname=localhost", f"port={disk.server.port}", f"export={disk.container}"),
            *("tls=require", f"tls-certificates={certificates.client}"),
        ],
    }


@pytest.mark.parametrize("road", ["tcp", "shared", "unix", "tls"])
def test_image_copied_through_nbdkit_is_there_when_every_write_is_checked(
    disk: Disk, image: Path, tmp_path: Path, certificates: Certificates, road: str
) -> None:
    plugin = ["nbd", *roads(disk, tmp_path, certificates)[road]]
    copy = f'nbdcopy --flush {shlex.quote(str(image))} "$uri"'
    proxied(*plugin, client=copy)
    proxied("--filter=checkwrite", *plugin, client=copy)
    proxied("--filter=checkwrite", *plugin, client='nbdcopy "$uri" "$uri"')
    with image.open("r+b") as file:
        file.seek(41 * SIZE)
        byte = file.read(1)[0]
        file.seek(41 * SIZE)
        file.write(bytes([byte ^ 1]))
    said = proxied("--filter=checkwrite", *plugin, client=copy, check=False)
    assert "data written does not match expected" in said


def test_nbdkit_starts_the_server_itself(
    backend: DirectoryBackend, tmp_path: Path, image: Path
) -> None:
    backend.setup("disk", OBJECTS, SIZE)
    program, *arguments = command(tmp_path)  # nbdkit hands over a socket
    plugin = ["nbd", f"command={program}", *(f"arg={argument}" for argument in arguments)]
    proxied(*plugin, "shared=true", client=f'nbdcopy --flush {shlex.quote(str(image))} "$uri"')
    assert backend.image("disk") == image.read_bytes()
    assert "client" not in backend.metadata("disk")


def counted(
    disk: Disk, folder: Path, client: str, filters: tuple[str, ...] = (), *parameters: str
) -> set[str]:
    """The kinds of requests that went on to us."""
    file = folder / "counted"
    filters = tuple(f"--filter={name}" for name in (*filters, "stats"))
    proxied(*filters, "nbd", f"uri={disk.uri}", f"statsfile={file}", *parameters, client=client)
    return set(re.findall(r"^(\w+): [1-9]\d* ops", file.read_text(), re.MULTILINE)) - {"total"}


def qemu_io(*commands: str) -> str:
    return " -c ".join(["qemu-io -f raw", *map(shlex.quote, commands)]) + ' "$uri"'


@pytest.mark.parametrize(
    ("filters", "parameters"),
    [((), ()), (("blocksize",), ("minblock=4096", "maxdata=32768"))],
    ids=["plain", "blocks"],
)
def test_every_kind_of_request_passes_through(
    disk: Disk, tmp_path: Path, filters: tuple[str, ...], parameters: tuple[str, ...]
) -> None:
    client = qemu_io(
        *("write -P 5 1000 100000", "discard 1M 1M", "write -z -u 2M 64k", "write -z 3M 128k"),
        *("write -f -P 6 3200k 4k", "flush", "read -P 5 1000 100000", "read -P 0 2M 64k"),
        *("read -P 0 3M 128k", "read -P 6 3200k 4k"),
    )
    requests = counted(disk, tmp_path, f'{client} && nbdinfo --map "$uri"', filters, *parameters)
    assert requests == {"read", "write", "trim", "zero", "extents", "flush"}
    disk.wait_unlocked()
    expected = bytearray(OBJECTS * SIZE)
    expected[1000:101000] = b"\x05" * 100000
    expected[3200 * KiB : 3204 * KiB] = b"\x06" * 4096
    assert disk.image_at_rest() == expected


def test_what_nbdkit_reads_ahead_it_has_us_cache(disk: Disk, tmp_path: Path) -> None:
    client = qemu_io(*(f"read -P 0 {index * 64}k 64k" for index in range(8)))
    assert "cache" in counted(disk, tmp_path, client, ("readahead",))


def test_map_through_nbdkit_is_ours(disk: Disk, image: Path) -> None:
    copy = f'nbdcopy --flush {shlex.quote(str(image))} "$uri"'
    client = f'{copy} && nbdinfo --map "$uri" && nbdinfo --map {disk.uri}'
    lines = proxied("nbd", f"uri={disk.uri}", "shared=true", client=client).splitlines()
    assert lines
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_what_stays_in_nbdkit_changes_nothing_here(disk: Disk, image: Path) -> None:
    run("nbdcopy", "--flush", image, disk.uri)
    write = qemu_io("write -P 9 0 1M", "discard 1M 1M", "read -P 9 0 1M")
    proxied("--filter=cow", "nbd", f"uri={disk.uri}", client=write)
    assert disk.image_at_rest() == image.read_bytes()
