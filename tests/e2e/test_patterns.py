# SPDX-License-Identifier: MIT
"""Patterns written and read by qemu-io and fio."""

from pathlib import Path

import pytest

from tests.e2e.conftest import Disk, KiB, MiB
from tests.support.clients import run

QEMU_IO_SCRIPTS = {
    "whole_objects": ["write -P 0x11 128k 128k", "read -P 0x11 128k 128k"],
    "unaligned_write": [
        "write -P 0x22 192k 128k",
        "write -P 0x33 200001 50003",
        "read -P 0x33 200001 50003",
        "read -P 0x22 196608 3393",
        "read -P 0x22 250004 77676",
    ],
    "zeros_over_data": [
        "write -P 0x44 512k 256k",
        "write -z 600k 100k",
        "read -P 0 600k 100k",
        "read -P 0x44 512k 88k",
        "read -P 0x44 700k 68k",
    ],
    "zeros_that_unmap": [
        "write -P 0x55 1M 256k",
        "write -z -u 1M 256k",
        "flush",
        "read -P 0 1M 256k",
    ],
    "discard_leaves_the_neighbours": [
        "write -P 0x66 2M 512k",
        "discard 2176k 256k",
        "flush",
        "read -P 0x66 2M 128k",
        "read -P 0x66 2432k 128k",
    ],
    "write_after_discard": [
        "write -P 0x77 3M 64k",
        "discard 3M 64k",
        "write -P 0x78 3146000 100",
        "read -P 0x78 3146000 100",
    ],
    "forced_unit_access": [
        "write -f -P 0x88 4M 4k",
        "write -z -f 4200000 512",
        "read -P 0x88 4M 4k",
        "read -P 0 4200000 512",
    ],
    "many_in_flight": [
        *(f"aio_write -P {index + 1} {5000 + index * 64}k 64k" for index in range(32)),
        "aio_flush",
        *(f"read -P {index + 1} {5000 + index * 64}k 64k" for index in range(32)),
    ],
    "last_bytes_of_the_disk": [
        "write -P 0x99 16773120 4096",
        "write -P 0x9a 16777215 1",
        "read -P 0x99 16773120 4095",
        "read -P 0x9a 16777215 1",
    ],
}


@pytest.mark.parametrize("commands", QEMU_IO_SCRIPTS.values(), ids=QEMU_IO_SCRIPTS.keys())
def test_qemu_io_reads_what_it_wrote(shared_disk: Disk, commands: list[str]) -> None:
    def qemu_io(*lines: str) -> None:
        options = [word for line in lines for word in ("-c", line)]
        said = run("qemu-io", "-f", "raw", *options, shared_disk.uri).stdout
        assert "failed" not in said.lower(), said

    qemu_io(*commands)
    # Once more on a new connection, when nothing is left in a cache.
    last_write = max(i for i, line in enumerate(commands) if not line.startswith("read"))
    if reads := commands[last_write + 1 :]:
        qemu_io(*reads)


@pytest.mark.parametrize(
    ("block_size", "total"),
    [
        ("512", 128 * KiB),
        ("4k", MiB),
        ("10k", 2 * MiB),
        ("64k", 6 * MiB),
        ("300k", 6 * MiB),
        ("1k-130k", 6 * MiB),
    ],
)
def test_fio_verifies_random_writes(
    shared_disk: Disk, tmp_path: Path, block_size: str, total: int
) -> None:
    option = "bsrange" if "-" in block_size else "bs"
    run(
        "fio",
        "--name=verify",
        "--ioengine=nbd",
        f"--uri={shared_disk.uri}",
        "--rw=randrw",
        f"--{option}={block_size}",
        f"--size={total}",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--randseed=1",
        cwd=tmp_path,
    )


def test_fio_verifies_what_four_jobs_wrote(shared_disk: Disk, tmp_path: Path) -> None:
    """Each has a connection, and a part of the disk."""
    run(
        "fio",
        "--name=jobs",
        "--ioengine=nbd",
        f"--uri={shared_disk.uri}",
        "--rw=randrw",
        "--bsrange=512-96k",
        "--size=256k",
        "--numjobs=4",
        "--offset_increment=3M",
        "--iodepth=8",
        "--fsync=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--randseed=2",
        cwd=tmp_path,
    )
