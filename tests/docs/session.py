# SPDX-License-Identifier: MIT
"""The terminal session of README.md, recorded: ``python -m tests.docs.session docs/session.svg``.

The commands are run, on a terminal, in the order they have here; what they said is drawn by rich.
The first one that fails ends it.
"""

import os
import pty
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from io import StringIO
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

COLUMNS = 100
BEFORE = "truncate -s 256M disk.img && mke2fs -q -t ext4 disk.img"
COMMANDS = (
    "swiftnbd-ctl -a file:disks setup demo --size 1G",
    "swiftnbd-server -a file:disks -l server.log --run 'nbdcopy disk.img \"$uri\"'",
    "swiftnbd-ctl -a file:disks info demo",
    "swiftnbd-ctl -a file:disks download -q demo copy.img",
    "cmp -n 256M disk.img copy.img && du -h copy.img",
)

# A font from elsewhere has no place in a page; the reader's own is as good.
_FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def said(command: str, folder: Path) -> str:
    """What a command says on a terminal. CalledProcessError if it fails."""
    ours, theirs = pty.openpty()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    # nobody is told where on whose machine this was
    environ = os.environ | {"PATH": path, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    parts = []
    with suppress(OSError):  # the end, on a terminal
        while data := os.read(ours, 65536):
            parts.append(data)
    os.close(ours)
    text = b"".join(parts).decode().replace("\r\n", "\n")
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command, text)
    return text


def record(file: Path) -> None:
    """Run the session and draw it into an SVG file."""
    console = Console(
        record=True, width=COLUMNS, file=StringIO(), force_terminal=True, legacy_windows=False
    )
    with tempfile.TemporaryDirectory(prefix="session-") as folder:
        said(BEFORE, Path(folder))
        for command in COMMANDS:
            console.print(Text("$ ", "bold green") + Text(command, "bold"))
            if answer := said(command, Path(folder)).rstrip("\n"):
                console.print(Text.from_ansi(answer))
    file.write_text(
        console.export_svg(title="swiftnbd", code_format=_FORMAT, unique_id="session") + "\n"
    )


if __name__ == "__main__":
    record(Path(sys.argv[1]))
