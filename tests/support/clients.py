# SPDX-License-Identifier: MIT
"""Foreign programs: found, run with a deadline, and their absence said in one sentence.

On a developer's machine a missing program skips the tests that need it; with ``CI=true`` it
fails them, because a suite that silently tests less is no suite.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

SECONDS_MAX = 120.0

PACKAGES = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "dpkg": "dpkg",
    "e2fsck": "e2fsprogs",
    "fio": "fio",
    "mke2fs": "e2fsprogs",
    "modprobe": "kmod",
    "mount": "mount",
    "nbd-client": "nbd-client",
    "nbdcopy": "libnbd-bin",
    "nbdinfo": "libnbd-bin",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "rsync": "rsync",
    "umount": "mount",
}

_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def missing(what: str) -> NoReturn:
    """Skip, or fail where everything has to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def find(program: str) -> Path:
    """The path of a program of `PACKAGES`."""
    path = shutil.which(program, path=_SEARCH_PATH)
    if path is None:
        missing(f"{program} is not installed: apt-get install {PACKAGES[program]}")
    return Path(path)


def run(
    program: str,
    *arguments: str | Path,
    seconds: float = SECONDS_MAX,
    check: bool = True,
    cwd: Path | None = None,
    given: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a program with ``given`` as its input; what it said is in the failure if it fails."""
    command = [str(find(program)), *map(str, arguments)]
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=seconds, check=False, cwd=cwd
    )
    if check and done.returncode:
        pytest.fail(
            f"{' '.join(command)}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}",
            pytrace=True,
        )
    return done


def start(program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start a program in the background, silent; the caller ends it."""
    command = [str(find(program)), *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
