# SPDX-License-Identifier: MIT
"""qemu-img and qemu-io on every road: TCP, a Unix socket, and inside TLS."""

import json
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Disk, KiB, MiB, launcher, set_up_disk
from tests.support.backends import DirectoryBackend
from tests.support.certificates import Certificates
from tests.support.clients import find, run

OBJECTS, SIZE = 128, 64 * KiB

Serve = Callable[..., Disk]


@dataclass
class Road:
    """How qemu reaches the disk."""

    disk: Disk
    server: dict[str, str]
    credentials: str = ""

    def image(self, format: str = "raw") -> str:
        """The disk as a file name, holding an image of this format."""
        node = {"driver": "nbd", "export": self.disk.container, "server": self.server}
        if self.credentials:
            node["tls-creds"] = "tls"
        return "json:" + json.dumps({"driver": format, "file": node})

    def img(self, command: str, *arguments: str | Path) -> str:
        return run("qemu-img", command, *self._objects(), *arguments).stdout

    def io(self, *commands: str, flags: tuple[str, ...] = ()) -> str:
        words = [word for command in commands for word in ("-c", command)]
        done = run("qemu-io", *self._objects(), *flags, *words, self.image())
        assert "failed" not in done.stdout.lower(), done.stdout
        return done.stdout

    def _objects(self) -> list[str]:
        return ["--object", self.credentials] if self.credentials else []


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """``serve(*flags)`` serves a new disk of 8 MiB from a folder."""
    backend = DirectoryBackend(tmp_path / "store")
    with launcher(backend, tmp_path) as launch:
        yield lambda *flags: set_up_disk(backend, launch, OBJECTS, SIZE, True, extra=flags)


@pytest.fixture(params=["tcp", "unix", "tls"])
def road(
    request: pytest.FixtureRequest, serve: Serve, tmp_path: Path, certificates: Certificates
) -> Road:
    tls = ("--tls=require", f"--tls-certificates={certificates.server}", "--tls-verify-peer")
    path = str(tmp_path / "nbd.sock")
    disk = serve("-p", "0", "-U", path, *(tls if request.param == "tls" else ()))
    if request.param == "unix":
        return Road(disk, {"type": "unix", "path": path})
    tcp = {"type": "inet", "host": "localhost", "port": str(disk.server.port)}
    credentials = f"tls-creds-x509,id=tls,endpoint=client,dir={certificates.client}"
    return Road(disk, tcp, credentials if request.param == "tls" else "")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Data and zeros, of the size of the disk."""
    path = tmp_path / "disk.img"
    chance = random.Random("qemu")
    with path.open("wb") as file:
        file.truncate(OBJECTS * SIZE)
        for offset in (0, 20 * SIZE + 512, OBJECTS * SIZE - 3 * SIZE):
            file.seek(offset)
            file.write(chance.randbytes(3 * SIZE))
    return path


def test_qemu_img_converts_raw_and_qcow2_in_and_out(
    road: Road, image: Path, tmp_path: Path
) -> None:
    road.img("convert", "-n", "-f", "raw", "-O", "raw", image, road.image())
    road.img("convert", "-O", "qcow2", road.image(), tmp_path / "out.qcow2")
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, tmp_path / "out.qcow2")
    road.io("write -P 1 0 8M")
    road.img("convert", "-n", "-f", "qcow2", "-O", "raw", tmp_path / "out.qcow2", road.image())
    assert "Images are identical" in road.img("compare", image, road.image())
    road.img("convert", "-O", "raw", "-W", "-m", "16", road.image(), tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()
    extents = json.loads(road.img("map", "--output=json", road.image()))
    assert sum(extent["length"] for extent in extents) == road.disk.size
    assert road.disk.image_at_rest() == image.read_bytes()


def test_qemu_io_zeroes_discards_and_many_at_once(road: Road) -> None:
    at_once = [f"aio_write -P {index + 1} {4096 + index * 20}k 20k" for index in range(64)]
    road.io(
        *("write -P 7 0 4M", "write -z 100k 300k", "write -z -u 512k 256k", "write -z -f 1M 512"),
        *("write -z -u -f 1200k 64k", "discard 2M 1M", "write -f -P 8 2500k 1000"),
        *(*at_once, "aio_write -z 6M 1M", "aio_flush"),
    )
    zeros = ("100k 300k", "512k 256k", "1M 512", "1200k 64k", "6M 1M")
    sevens = ("0 100k", "400k 112k", "768k 256k", "1049088 179712", "1264k 784k", "3M 1M")
    road.io(
        *(f"read -P 0 {place}" for place in zeros),
        *(f"read -P 7 {place}" for place in sevens),
        "read -P 8 2500k 1000",
        *(f"read -P {index + 1} {4096 + index * 20}k 20k" for index in range(64)),
    )


@pytest.mark.parametrize("road", ["tcp", "unix"], indirect=True)  # bench knows no credentials
def test_qemu_img_bench_of_writes_flushes_and_reads(road: Road) -> None:
    bench = ["-c", "500", "-d", "64", "-s", "4096", "-f", "raw"]
    road.img("bench", "-w", "--pattern=9", "--flush-interval=64", *bench, road.image())
    road.io("read -P 9 0 2000k")
    road.img("bench", "-S", "8192", *bench, road.image())


def test_qcow2_lives_inside_an_export(serve: Serve, tmp_path: Path) -> None:
    """Its clusters are written, zeroed and freed at any place, and its size is found by its own."""
    disk = serve()
    source = tmp_path / "source.img"
    source.write_bytes(random.Random("qcow2").randbytes(2 * MiB) + bytes(4 * MiB))
    run("qemu-img", "create", "-q", "-f", "qcow2", disk.uri, "6M")
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", source, disk.uri)
    run("qemu-io", "-f", "qcow2", "-c", "write -z -u 64k 128k", disk.uri)
    run("qemu-io", "-f", "qcow2", "-c", "write -z 0 4k", "-c", "discard 1M 512k", disk.uri)
    assert "No errors were found" in run("qemu-img", "check", "-f", "qcow2", disk.uri).stdout
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk.uri, tmp_path / "out.img")
    expected = bytearray(source.read_bytes())
    for start, length in ((64 * KiB, 128 * KiB), (0, 4 * KiB), (MiB, 512 * KiB)):
        expected[start : start + length] = bytes(length)
    assert (tmp_path / "out.img").read_bytes() == expected


def test_reading_writes_nothing(serve: Serve, image: Path) -> None:
    disk = serve("-v")
    run("nbdcopy", "--flush", image, disk.uri)
    disk.wait_unlocked()
    before, said = len(disk.server.stderr.lines), disk.backend.image(disk.container)
    run("qemu-img", "info", disk.uri)
    run("qemu-img", "map", disk.uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, disk.uri)
    run("qemu-io", "-r", "-f", "raw", "-c", "read 0 8M", disk.uri)
    disk.wait_unlocked(2)
    asked = [line for line in disk.server.stderr.lines[before:] if " flags 0x" in line]
    assert asked
    assert not [line for line in asked if ": WRITE" in line or ": TRIM" in line]
    assert disk.image_at_rest() == said


def test_read_only_export_stays_as_it_is(serve: Serve, image: Path, tmp_path: Path) -> None:
    disk = serve()
    run("nbdcopy", "--flush", image, disk.uri)
    disk.image_at_rest()
    stored = disk.backend.objects(disk.container)
    with launcher(disk.backend, tmp_path) as launch:
        uri = launch(disk.container, extra=("-r",)).uris()[disk.container]
        done = run("qemu-io", "-f", "raw", "-c", "write 0 4k", uri, check=False)
        assert (done.returncode, "Permission denied" in done.stderr) == (1, True)
        run("qemu-io", "-r", "-f", "raw", "-c", "read 0 8M", uri)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, tmp_path / "copy")
        run("qemu-img", "compare", "-F", "qcow2", "-f", "raw", uri, tmp_path / "copy")
    assert disk.backend.objects(disk.container) == stored
    run("qemu-img", "compare", "-F", "qcow2", "-f", "raw", image, tmp_path / "copy")


def test_requests_of_qemu_outlast_a_restart_of_the_server(tmp_path: Path) -> None:
    """Its reconnect-delay, under load; both servers have a part in it, and no request fails."""
    backend = DirectoryBackend(tmp_path / "store")
    closing = ("--on-end=close",)
    with launcher(backend, tmp_path) as launch:
        disk = set_up_disk(backend, launch, OBJECTS, SIZE, True, extra=closing)
        port = str(disk.server.port)
        node = {"driver": "nbd", "export": disk.container, "reconnect-delay": 60}
        node["server"] = {"type": "inet", "host": "localhost", "port": port}
        image = "json:" + json.dumps({"driver": "raw", "file": node})
        bench = ["bench", "-w", "--pattern=9", "--flush-interval=64", "-c", "4096", "-d", "16"]
        with subprocess.Popen([find("qemu-img"), *bench, "-s", "2048", image]) as qemu:
            disk.server.wait_log("negotiated export")
            assert disk.server.terminate() == 0, disk.server.log()
            disk.server = launch(disk.container, strict=True, extra=(*closing, "-p", port))
            assert qemu.wait(60) == 0
        disk.server.wait_log("negotiated export")
        assert disk.image_at_rest() == bytes([9]) * disk.size
