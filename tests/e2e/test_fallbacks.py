# SPDX-License-Identifier: MIT
"""Foreign clients with a server that lacks what is newer: each finds its way to do without."""

import filecmp
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Disk, KiB, launcher, set_up_disk
from tests.support.backends import DirectoryBackend
from tests.support.clients import nbdsh, run

OLDER = {
    "no_structured_replies": ("--no-sr",),
    "neither_fixed_nor_without_zeroes": ("--mask-handshake", "0"),
    "with_zeroes": ("--mask-handshake", "1"),
    "not_fixed": ("--mask-handshake", "2"),
}
OBJECTS, SIZE = 64, 64 * KiB


@pytest.fixture(scope="module", params=OLDER)
def older(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture(scope="module")
def fixed(older: str) -> bool:
    """Are there options other than EXPORT_NAME?"""
    return older in ("no_structured_replies", "with_zeroes")


@pytest.fixture(scope="module")
def structured(older: str) -> bool:
    return older == "with_zeroes"


@pytest.fixture(scope="module")
def disk(older: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    directory = tmp_path_factory.mktemp(older)
    backend = DirectoryBackend(directory / "store")
    with launcher(backend, directory) as launch:
        yield set_up_disk(backend, launch, OBJECTS, SIZE, True, extra=OLDER[older])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and zeros."""
    path = tmp_path_factory.mktemp("image") / "disk.img"
    with path.open("wb") as file:
        file.truncate(OBJECTS * SIZE)
        file.seek(20 * SIZE + 1000)
        file.write(random.Random("older").randbytes(10 * SIZE))
    return path


def test_nbdinfo_shows_what_is_left(disk: Disk, structured: bool, fixed: bool) -> None:
    shown = json.loads(run("nbdinfo", "--no-content", "--json", disk.uri).stdout)
    assert shown["protocol"] == ("newstyle-fixed" if fixed else "newstyle")
    assert shown["structured"] is structured
    (export,) = shown["exports"]
    assert export["export-size"] == disk.size
    assert export["can_df"] is structured
    assert export.get("contexts", []) == (["base:allocation"] if structured else [])
    assert all(export[name] for name in ("can_multi_conn", "can_fua", "can_zero"))


def test_nbdinfo_maps_or_says_why_not(disk: Disk, structured: bool) -> None:
    done = run("nbdinfo", "--map", disk.uri, check=False)
    assert (done.returncode == 0) is structured
    assert structured or "does not support metadata context" in done.stderr


def test_nbd_client_lists_or_says_why_not(disk: Disk, fixed: bool) -> None:
    done = run("nbd-client", "-l", "127.0.0.1", str(disk.server.port), check=False)
    assert (done.returncode == 0) is fixed
    assert disk.container in done.stdout or "does not support listing" in done.stderr


def test_nbdcopy_in_and_out_is_identical(disk: Disk, image: Path, tmp_path: Path) -> None:
    run("nbdcopy", "--connections=4", "--flush", image, disk.uri)
    run("nbdcopy", "--connections=4", disk.uri, tmp_path / "copy")
    assert filecmp.cmp(image, tmp_path / "copy", shallow=False)


def test_qemu_img_converts_both_ways(disk: Disk, image: Path, tmp_path: Path) -> None:
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, disk.uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk.uri, tmp_path / "copy")
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, tmp_path / "copy")
    extents = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", disk.uri).stdout)
    assert sum(extent["length"] for extent in extents) == disk.size


def test_qemu_io_writes_zeroes_and_discards(disk: Disk) -> None:
    commands = ["write -P 5 1000 1M", "discard 128k 256k", "write -z -u 512k 128k"]
    commands += ["write -z 700k 4k", "write -f -P 6 800k 512", "flush", "read -P 5 1000 100000"]
    commands += ["read -P 0 512k 128k", "read -P 0 700k 4k", "read -P 6 800k 512"]
    said = run("qemu-io", "-f", "raw", *(w for c in commands for w in ("-c", c)), disk.uri).stdout
    assert "failed" not in said.lower(), said


def test_fio_verifies_what_several_jobs_wrote(disk: Disk, tmp_path: Path) -> None:
    jobs = ["--numjobs=4", "--offset_increment=1M", "--size=128k", "--bs=4k", "--iodepth=8"]
    verify = ["--name=jobs", "--rw=randrw", "--verify=crc32c", "--verify_fatal=1"]
    run("fio", "--ioengine=nbd", f"--uri={disk.uri}", *jobs, *verify, cwd=tmp_path)


def test_nbdkit_checks_what_it_passes_on(disk: Disk, image: Path) -> None:
    run("nbdcopy", "--flush", image, disk.uri)
    check = ["-U", "-", "--filter=checkwrite", "nbd", f"uri={disk.uri}"]
    run("nbdkit", *check, "--run", f"nbdcopy '{image}' \"$uri\"")


SCRIPT = """
h.add_meta_context("base:allocation")
h.connect_uri({uri!r})
assert h.get_structured_replies_negotiated() == {structured}
assert h.can_meta_context("base:allocation") == {structured}
h.set_strict_mode(0)

def fails(number, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errno == number, (error.errno, number)
    else:
        raise AssertionError("that must fail")

size = h.get_size()
h.pwrite(b"data", 100, nbd.CMD_FLAG_FUA)
fails("EINVAL", lambda: h.pread(2, size - 1))
fails("ENOSPC", lambda: h.pwrite(b"xx", size - 1))
if not {structured}:
    fails("EINVAL", lambda: h.pread_structured(4, 100, lambda *_: None, nbd.CMD_FLAG_DF))
assert h.pread(4, 100) == b"data"
h.shutdown()
print("fine")
"""


def test_nbdsh_gets_plain_errors(disk: Disk, structured: bool) -> None:
    assert nbdsh(SCRIPT.format(uri=disk.uri, structured=structured)) == "fine\n"
