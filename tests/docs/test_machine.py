# SPDX-License-Identifier: MIT
"""Commands that need more than namespaces: an installation from an index, and a kernel."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.blocks import Command, blocks, commands
from tests.docs.test_pages import LONG
from tests.e2e.conftest import launcher
from tests.support import vm
from tests.support.backends import DirectoryBackend
from tests.support.pages import ROOT

NOT_IN_A_CLONE = ".git", ".cache", ".venv", "*.egg-info", "__pycache__"
KERNEL = "nbd-client", "mkfs.ext4", "mount", "umount", "fstrim"

pytestmark = [
    pytest.mark.skipif(not LONG, reason="long: tox -e docs"),
    pytest.mark.timeout(2 * vm.BOOT_SECONDS_MAX + 120),
]


def commands_of(page: str) -> list[Command]:
    return [each for block in blocks(page) if block.language == "sh" for each in commands(block)]


def kernel_commands(page: str) -> list[str]:
    """Those for the kernel; a VM has no Unix socket of its host."""
    texts = [command.text for command in commands_of(page)]
    return [text for text in texts if text.startswith(KERNEL) and ".sock" not in text]


def test_installing_it(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*NOT_IN_A_CLONE))
    wanted = ("python3 -m venv", ".venv/bin/pip install")
    lines = [each.text for each in commands_of("docs/first-disk.md")]
    script = "\n".join(line for line in lines if line.startswith(wanted))
    script += "\n.venv/bin/swiftnbd-ctl -a file:disks setup demo --size 1G"
    script += "\n.venv/bin/swiftnbd-server -a file:disks --run 'test -n \"$uri\"'"
    subprocess.run(["bash", "-e", "-c", script], cwd=clone, check=True, timeout=300)


def test_kernel_commands(tmp_path: Path) -> None:
    backend = DirectoryBackend(tmp_path / "disks")
    backend.setup("demo", 1024, 64 * 1024)
    files = tmp_path / "files"
    files.mkdir()
    with launcher(backend, tmp_path) as launch:
        server = launch("demo")
        lines = kernel_commands("docs/kernel.md")
        there = f"10.0.2.2 {server.port}"  # this host, as the VM sees it
        (files / "page.sh").write_text("\n".join(lines).replace("127.0.0.1", there) + "\n")
        vm.boot("page", port=server.port, export="demo", files=files)
    assert len(lines) >= 8
    assert set(kernel_commands("README.md")) <= set(lines)
