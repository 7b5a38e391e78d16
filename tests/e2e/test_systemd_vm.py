# SPDX-License-Identifier: MIT
"""The units of docs/systemd under a systemd that has booted, with a kernel that mounts the disk.

Some minutes, on an emulated processor: only under ``tox -e systemd``.
"""

import hashlib
import os
import re
from pathlib import Path

import pytest

from tests.support import vm
from tests.support.backends import DirectoryBackend
from tests.support.clients import run
from tests.support.systemd_vm import SystemdMachine

OBJECT_SIZE, OBJECTS = 64 * 1024, 1024
ROUND_FILES = 8
SECONDS_MAX = 15 * 60

pytestmark = [
    pytest.mark.timeout(SECONDS_MAX),
    pytest.mark.skipif(not os.environ.get("SYSTEMD"), reason="takes minutes: tox -e systemd"),
    pytest.mark.skipif(os.getuid() != 0, reason="the VM's users have to be able to own files"),
]


def put_file_system(backend: DirectoryBackend, folder: Path) -> Path:
    """A container with an ext4 that holds one file. No lock was ever taken of it."""
    content = folder / "content"
    content.mkdir()
    (content / "hello").write_text("hello from the host")
    image = folder / "image"
    image.touch()
    os.truncate(image, OBJECTS * OBJECT_SIZE)
    run("mke2fs", "-q", "-t", "ext4", "-d", content, image)
    backend.set_metadata("disk", version="1", objects=str(OBJECTS), object_size=str(OBJECT_SIZE))
    data = image.read_bytes()
    for index in range(OBJECTS):
        part = data[index * OBJECT_SIZE : (index + 1) * OBJECT_SIZE]
        if part.strip(b"\0"):
            backend.put("disk", f"disk.part/{index:08d}", part)
    return content / "hello"


def test_server_is_restarted_under_a_mounted_file_system_and_all_ends_in_order(
    tmp_path: Path,
) -> None:
    backend = DirectoryBackend(tmp_path / "store")
    hello = put_file_system(backend, tmp_path)
    machine = SystemdMachine(backend.root, hello, tmp_path / "vm")
    machine.wait()
    assert ["boot", *machine.passed()] == vm.steps("systemd"), machine.console
    console = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", machine.console)
    order = [
        console.index("Unmounted mnt-disk.mount"),
        console.index("Stopped swiftnbd-attach@nb", console.index("PASS end")),
        console.index("Stopped swiftnbd.service", console.index("PASS end")),
    ]
    assert order == sorted(order), console
    assert backend.metadata("disk").get("client", "") == ""
    image = tmp_path / "after"
    image.write_bytes(backend.image("disk"))
    run("e2fsck", "-fn", image)
    files = tmp_path / "files"
    files.mkdir()
    run("debugfs", "-R", f"rdump / {files}", image)
    rounds = sorted(files.glob("round-*"))
    assert len(rounds) == ROUND_FILES
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in rounds)).hexdigest()
    assert machine.lines("checksums")[0][0] == digest
