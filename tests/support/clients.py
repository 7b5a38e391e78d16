# SPDX-License-Identifier: MIT
"""Foreign programs: found, run with a deadline, and their absence said in one sentence.

On a developer's machine a missing program skips the tests that need it; with ``CI=true`` it
fails them, because a suite that silently tests less is no suite.
"""

import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import IO, NoReturn

import pytest

SECONDS_MAX = 120.0

PACKAGES = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "bash": "bash",
    "blkdiscard": "util-linux",
    "busybox": "busybox-static",
    "chromium": "chromium",
    "cpio": "cpio",
    "debugfs": "e2fsprogs",
    "dpkg": "dpkg",
    "e2fsck": "e2fsprogs",
    "fallocate": "util-linux",
    "fio": "fio",
    "fish": "fish",
    "losetup": "mount",
    "man": "man-db",
    "mke2fs": "e2fsprogs",
    "modprobe": "kmod",
    "mount": "mount",
    "nbd-client": "nbd-client",
    "nbdcopy": "libnbd-bin",
    "nbdinfo": "libnbd-bin",
    "nbdkit": "nbdkit",
    "nbdsh": "python3-libnbd",
    "openssl": "openssl",
    "psktool": "gnutls-bin",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "rsync": "rsync",
    "systemd-analyze": "systemd",
    "systemd-socket-activate": "systemd",
    "systemd-sysusers": "systemd",
    "udevadm": "udev",
    "umount": "mount",
    "xz": "xz-utils",
    "zsh": "zsh",
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
    path: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program with ``given`` as its input; what it said is in the failure if it fails.

    ``path`` is where it finds programs itself, if not where we do.
    """
    command = [str(find(program)), *map(str, arguments)]
    done = subprocess.run(
        command,
        input=given,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        cwd=cwd,
        env=os.environ | {"PATH": path} if path else None,
    )
    if check and done.returncode:
        pytest.fail(
            f"{' '.join(command)}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}",
            pytrace=True,
        )
    return done


def nbdsh(script: str) -> str:
    """Run a script of libnbd's shell; its output. It needs Debian's own Python."""
    return run("nbdsh", "-c", script, path=os.defpath).stdout


class Output:
    """Lines of one pipe, read by a thread of its own."""

    def __init__(self, stream: IO[str], changed: threading.Condition) -> None:
        self.lines: list[str] = []
        self.ended = False
        self._stream = stream
        self._changed = changed
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self._stream:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self.ended = True
            self._changed.notify_all()
        self._stream.close()
