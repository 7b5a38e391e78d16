# SPDX-License-Identifier: MIT
"""Whole images in and out with foreign programs, and what lies in the container afterwards."""

import filecmp
import random
from pathlib import Path

import pytest

from tests.e2e.conftest import KiB, MiB, Serve
from tests.support.clients import run

IMAGE_BYTES = 16 * MiB


@pytest.fixture(scope="module")
def ext4_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real file system with a tree of files: part data, part zeros."""
    directory = tmp_path_factory.mktemp("ext4")
    chance = random.Random("ext4")
    for number in range(40):
        path = directory / f"tree/{number % 5}/file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(250 * KiB)))
    image = directory / "ext4.img"
    run("mke2fs", "-q", "-t", "ext4", "-d", directory / "tree", image, f"{IMAGE_BYTES // KiB}k")
    run("e2fsck", "-fn", image)
    return image


@pytest.mark.parametrize("object_size", [64 * KiB, MiB], ids=["64k", "1m"])
def test_nbdcopy_in_and_out_is_identical(
    serve: Serve, ext4_image: Path, tmp_path: Path, object_size: int
) -> None:
    disk = serve(objects=IMAGE_BYTES // object_size, object_size=object_size)
    copy = tmp_path / "copy.img"
    run("nbdcopy", "--flush", ext4_image, disk.uri)
    disk.wait_unlocked()
    run("nbdcopy", disk.uri, copy)
    assert filecmp.cmp(ext4_image, copy, shallow=False)
    run("e2fsck", "-fn", copy)
    assert disk.image_at_rest() == ext4_image.read_bytes()


def test_zeros_of_an_image_are_not_stored(serve: Serve, tmp_path: Path) -> None:
    disk = serve(objects=64)
    image = tmp_path / "sparse.img"
    with image.open("wb") as file:
        file.truncate(disk.size)
        file.seek(5 * disk.object_size + 1000)
        file.write(b"x" * 10)
        file.seek(40 * disk.object_size)
        file.write(b"y" * disk.object_size)
    run("nbdcopy", "--flush", image, disk.uri)
    assert disk.image_at_rest() == image.read_bytes()
    parts = [name for name in disk.backend.objects(disk.container) if name.startswith("disk.")]
    assert sorted(parts) == ["disk.part/00000005", "disk.part/00000040"]


def test_image_overwritten_by_another_is_the_other(serve: Serve, tmp_path: Path) -> None:
    """Holes of the second image fall on data of the first."""
    disk = serve(objects=32)
    first, second = tmp_path / "first.img", tmp_path / "second.img"
    first.write_bytes(random.Random(1).randbytes(disk.size))
    with second.open("wb") as file:
        file.truncate(disk.size)
        file.write(random.Random(2).randbytes(disk.size // 3))
    for image in (first, second):
        run("nbdcopy", "--flush", image, disk.uri)
    assert disk.image_at_rest() == second.read_bytes()


def test_qemu_img_converts_both_ways(serve: Serve, ext4_image: Path, tmp_path: Path) -> None:
    disk = serve(objects=IMAGE_BYTES // (64 * KiB))
    packed, copy = tmp_path / "image.qcow2", tmp_path / "copy.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", ext4_image, packed)
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", packed, disk.uri)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", packed, disk.uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk.uri, copy)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", copy, ext4_image)
    assert disk.image_at_rest() == ext4_image.read_bytes()
